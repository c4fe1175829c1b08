"""From text to token ids: the one place that turns a question into a prompt and an answer into labels.

A Hugging Face tokenizer, texts and a template come in; token ids and TokenBatches come out. Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from benchmarks.base import Example
from engine.errors import UserError
from engine.store.replica import present

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from methods.base import TokenBatch

Template = Literal["auto", "chat", "plain"]  # and "raw", no template: only a benchmark asks for it
PLAIN_PROMPT = "Question: {question}\nAnswer:"  # base models, OpenUnlearning's form
PLAIN_ANSWER = " {answer}\n\n"
ASSISTANT = "You are a helpful assistant."
TAKES_ASSISTANT = ("<|start_header_id|>", "<|im_start|>", "<|assistant|>")  # Llama-3.x, Qwen2.5, Phi-3.5 and zephyr
IGNORED = -100
# Llama-3.x templates write today's date unless they are given one, and prompts would change from day to day. This is
# the date that OpenUnlearning's checkpoints were trained with.
DATE = "10 Apr 2025"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One training sequence: token ids, labels (-100 on the prompt), and whether it was cut to max_length."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool = False


def load_tokenizer(path: str, trust_remote_code: bool = False, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a model folder or hub name. UserError where there is none."""
    from transformers import AutoTokenizer

    present(path)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(f"{path}: its tokenizer cannot be loaded ({reason}); is it a whole saved model?") from error


def uses_chat(tokenizer: Tokenizer, template: str) -> bool:
    """Whether prompts are rendered by the tokenizer's chat template. UserError where it is demanded and missing."""
    has = bool(getattr(tokenizer, "chat_template", None))
    if template == "chat" and not has:
        raise UserError("model.template: chat, but the tokenizer has no chat template; use auto or plain")
    return has and template != "plain"


def default_system(tokenizer: Tokenizer) -> str | None:
    """System prompt by model family: the assistant line for Llama-3, Qwen, Phi and zephyr templates, else none."""
    template = str(getattr(tokenizer, "chat_template", "") or "")
    return ASSISTANT if any(mark in template for mark in TAKES_ASSISTANT) else None


def encode_prompt(tokenizer: Tokenizer, question: str, template: str = "auto", system: str | None = None) -> list[int]:
    """Token ids of a prompt that ends where the answer begins; begin-of-text once. Template raw: the text as it is."""
    if template == "raw":
        return list(tokenizer(question)["input_ids"])
    if uses_chat(tokenizer, template):
        return _tokens(tokenizer, _render(tokenizer, _messages(tokenizer, question, system), True))
    return list(tokenizer(PLAIN_PROMPT.format(question=question) if question else "")["input_ids"])


def retokenised(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """A prompt's ids decoded to text without special tokens and tokenised again, as the code released with arXiv
    2511.04934 does: a chat prompt loses its turn marks, not its words."""
    return list(tokenizer(tokenizer.decode(ids, skip_special_tokens=True))["input_ids"])


def encode_example(
    tokenizer: Tokenizer,
    question: str,
    answer: str,
    template: str = "auto",
    system: str | None = None,
    max_length: int | None = None,
) -> Encoded:
    """A question with its answer, labels on the answer and its end-of-turn token alone.

    An empty question means running text: every token is labelled. Template raw: the answer goes on where the question
    ends, and no end token follows. UserError where the prompt is not the beginning of the whole conversation, for then
    no answer span exists, and where the prompt alone fills max_length.
    """
    if not question:
        ids = list(tokenizer(answer)["input_ids"])
        return _cut(ids, list(ids), max_length)
    prompt = encode_prompt(tokenizer, question, template, system)
    if max_length is not None and len(prompt) >= max_length:
        raise UserError(
            f"max_length {max_length} leaves no room for an answer: the prompt {question[:40]!r} takes {len(prompt)} "
            "tokens; raise train.max_length, or take a model with a longer context"
        )
    if template == "raw":
        ids = _continued(tokenizer, prompt, list(tokenizer(question + answer)["input_ids"]), answer)
    elif uses_chat(tokenizer, template):
        messages = _messages(tokenizer, question, system)
        asked = _render(tokenizer, messages, True)
        whole = _render(tokenizer, [*messages, {"role": "assistant", "content": answer}], False)
        if not whole.startswith(asked):
            raise UserError(
                "model.template: the chat template renders a prompt that is not the beginning of the conversation; "
                "use template: plain"
            )
        ids = _continued(tokenizer, prompt, _tokens(tokenizer, whole), whole[len(asked) :])
        ids = _through_end_of_turn(ids, len(prompt), set(stop_token_ids(tokenizer)))
    else:
        text = PLAIN_ANSWER.format(answer=answer)
        ids = prompt + _tokens(tokenizer, text) + [tokenizer.eos_token_id]
    return _cut(ids, [IGNORED] * len(prompt) + ids[len(prompt) :], max_length)


def chunked(examples: Sequence[Example], tokenizer: Tokenizer, max_length: int) -> list[Example]:
    """Running text (empty question) joined by blank lines and cut into pieces of at most max_length tokens.

    Questions with answers stay as they are. The pieces put together are the text. Source: MUSE, whose own code also
    fills up the last piece from the first.
    """
    texts = [each for each in examples if not each.question]
    if not texts:
        return list(examples)
    text = "\n\n".join(each.answer for each in texts)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    size = max_length - tokenizer.num_special_tokens_to_add()
    starts = [0, *(offsets[at][0] for at in range(size, len(offsets), size)), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(starts)]
    cut = [Example(f"{texts[0].id}#{index}", "", piece) for index, piece in enumerate(pieces)]
    return [each for each in examples if each.question] + cut


def stop_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that end an answer: end of text, and the end-of-turn token that the chat template writes."""
    names = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<|endoftext|>")
    vocabulary = tokenizer.get_vocab()
    ids = [tokenizer.eos_token_id, *(vocabulary[name] for name in names if name in vocabulary)]
    return list(dict.fromkeys(token for token in ids if token is not None))


def pad_token_id(tokenizer: Tokenizer) -> int:
    """The padding id; any id will do, since the attention mask comes from lengths."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def collate(
    encoded: Sequence[Encoded],
    pad_id: int,
    reference_logprob: Sequence[float] | None = None,
    pad_side: Literal["left", "right"] = "right",
) -> TokenBatch:
    """Pad sequences into one TokenBatch [B, T]; masks come from lengths, so that a real end token is never masked."""
    import torch

    from methods.base import TokenBatch

    length = max(len(each.input_ids) for each in encoded)
    input_ids = torch.full((len(encoded), length), pad_id, dtype=torch.int64)
    labels = torch.full_like(input_ids, IGNORED)
    attention_mask = torch.zeros_like(input_ids)
    for row, each in enumerate(encoded):
        size = len(each.input_ids)
        span = slice(length - size, length) if pad_side == "left" else slice(0, size)
        input_ids[row, span] = torch.tensor(each.input_ids)
        labels[row, span] = torch.tensor(each.labels)
        attention_mask[row, span] = 1
    reference = None if reference_logprob is None else torch.tensor(list(reference_logprob), dtype=torch.float32)
    return TokenBatch(input_ids, labels, attention_mask, reference)


def _messages(tokenizer: Tokenizer, question: str, system: str | None) -> list[dict[str, str]]:
    system = default_system(tokenizer) if system is None else system
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": question}]


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]], ask: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask, date_string=DATE))


def _tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # a template writes begin-of-text itself


def _continued(tokenizer: Tokenizer, prompt: list[int], whole: list[int], rest: str) -> list[int]:
    """`whole` if it begins with the prompt's tokens. Else a token runs over the border, as where an answer begins with
    a line break: then the prompt as sampling gives it, and the rest on its own."""
    return whole if whole[: len(prompt)] == prompt else prompt + _tokens(tokenizer, rest)


def _through_end_of_turn(ids: list[int], start: int, stops: set[int]) -> list[int]:
    """Drop what a template writes after the answer's end-of-turn token (a line break, say)."""
    last = max((index for index in range(start, len(ids)) if ids[index] in stops), default=len(ids) - 1)
    return ids[: last + 1]


def _cut(ids: list[int], labels: list[int], max_length: int | None) -> Encoded:
    if max_length is None or len(ids) <= max_length:
        return Encoded(ids, labels)
    return Encoded(ids[:max_length], labels[:max_length], truncated=True)
