"""From text to token ids: the one place that turns a question into a prompt and an answer into labels.

A Hugging Face tokenizer, texts and a template come in; token ids and TokenBatches come out. Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from benchmarks.base import Example
from engine.errors import UserError
from engine.models.chat_template import Options, end_of_turn, end_place, render_prompt, render_turn, text_ids
from engine.store.replica import present

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from methods.base import TokenBatch

    Tokenizer: TypeAlias = PreTrainedTokenizerBase

Template = Literal["auto", "chat", "plain", "llama-2"]  # and "raw", no template: only a benchmark asks for it
IGNORED = -100
ANY_TEXT = "a"  # to see what a tokenizer puts before a text
BEFORE = ("\n", "a", ".", ":")  # texts that a continuation may stand behind without being joined to them


@dataclasses.dataclass(frozen=True)
class Form:
    """How a question and its answer are written without a chat template; the end token follows the answer. between:
    what an earlier example ends with."""

    prompt: str
    answer: str
    between: str


FORMS = {
    "plain": Form("Question: {question}\nAnswer:", " {answer}", "\n\n"),  # base models in OpenUnlearning
    "llama-2": Form("[INST] {question} [/INST]", "{answer}", " "),  # TOFU's own Llama-2 checkpoints
}
RAW = Form("{question}", "{answer}", "")


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
    return has and template not in FORMS


def form_of(template: str) -> Form:
    """The form in which prompts are written where no chat template is used."""
    return RAW if template == "raw" else FORMS.get(template, FORMS["plain"])


def encode_prompt(
    tokenizer: Tokenizer,
    question: str,
    template: str = "auto",
    system: str | None = None,
    options: Options | None = None,
    shots: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """Token ids of a prompt that ends where a model goes on; begin-of-text once, and nothing that ends a text.

    template raw: the text as it is. options: handed to the chat template. shots: questions with their answers that come
    before, as earlier turns.
    """
    if template != "raw" and uses_chat(tokenizer, template):
        return text_ids(tokenizer, render_prompt(tokenizer, question, system, options, shots))
    form = form_of(template)
    before = "".join(
        form.prompt.format(question=asked) + form.answer.format(answer=answer) + form.between for asked, answer in shots
    )
    return _begun(tokenizer, before + _prompt_text(question, template))


def retokenised(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """A prompt's ids decoded to text without special tokens and tokenised again, as the code released with arXiv
    2511.04934 does: a chat prompt loses its turn marks, not its words."""
    return _begun(tokenizer, str(tokenizer.decode(ids, skip_special_tokens=True)))


def encode_example(
    tokenizer: Tokenizer,
    question: str,
    answer: str,
    template: str = "auto",
    system: str | None = None,
    max_length: int | None = None,
    options: Options | None = None,
) -> Encoded:
    """A question with its answer, labels on the answer and its end token alone.

    The ids begin with those of `encode_prompt`; what a chat template writes between prompt and answer (an empty
    thinking block, the header of a channel) has no labels. An empty question means running text: every token is
    labelled. Template raw: the answer goes on where the question ends, and no end token follows. UserError where the
    prompt is not the beginning of the whole conversation, for then no answer span exists, and where the prompt alone
    fills max_length.
    """
    if not question:
        ids = _begun(tokenizer, answer)
        return _cut(ids, 0, max_length)
    if template != "raw" and uses_chat(tokenizer, template):
        turn = render_turn(tokenizer, question, answer, system, options)
        prompt = text_ids(tokenizer, turn.prompt)
        before = _continued(prompt, text_ids, tokenizer, turn.prompt, turn.opening)
        ids = _continued(before, text_ids, tokenizer, turn.prompt + turn.opening, turn.rest)
        ids = _through_end_of_turn(tokenizer, ids, len(before), answer, options)
        prompt = before
    else:
        text = _prompt_text(question, template)
        prompt = _begun(tokenizer, text)
        rest = form_of(template).answer.format(answer=answer)
        ids = _continued(prompt, _begun, tokenizer, text, rest)
        if template != "raw":
            ids.append(int(tokenizer.eos_token_id))
    if max_length is not None and len(prompt) >= max_length:
        raise UserError(
            f"max_length {max_length} leaves no room for an answer: the prompt {question[:40]!r} takes {len(prompt)} "
            "tokens; raise train.max_length, or take a model with a longer context"
        )
    return _cut(ids, len(prompt), max_length)


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
    size = max_length - len(_beginning(tokenizer))
    starts = [0, *(offsets[at][0] for at in range(size, len(offsets), size)), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(starts)]
    cut = [Example(f"{texts[0].id}#{index}", "", piece) for index, piece in enumerate(pieces)]
    return [each for each in examples if each.question] + cut


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


def _prompt_text(question: str, template: str) -> str:
    return form_of(template).prompt.format(question=question) if question else ""


def _begun(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of `text` with the beginning that the tokenizer gives a text, and without the end: one saved with
    add_eos_token puts its end token behind every prompt."""
    return [*_beginning(tokenizer), *text_ids(tokenizer, text)]


def _beginning(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before each text: begin-of-text, or nothing."""
    whole, text = list(tokenizer(ANY_TEXT)["input_ids"]), text_ids(tokenizer, ANY_TEXT)
    special = set(tokenizer.all_special_ids)
    leading = list(itertools.takewhile(special.__contains__, whole))
    return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(text)] == text), leading)


def _continued(
    prompt: list[int], encode: Callable[[Tokenizer, str], list[int]], tokenizer: Tokenizer, text: str, rest: str
) -> list[int]:
    """The ids of `text`, which are `prompt`, and of the `rest` that goes on: those of the joint text.

    Where a token runs over the border (an answer that begins with a line break), the prompt stays as sampling gives it
    and the rest follows as it stands behind another text: on its own, many a vocabulary would put a space before it.
    """
    joint = encode(tokenizer, text + rest)
    if joint[: len(prompt)] == prompt:
        return joint
    for before in BEFORE:
        alone, both = text_ids(tokenizer, before), text_ids(tokenizer, before + rest)
        if both[: len(alone)] == alone:
            return prompt + both[len(alone) :]
    return prompt + text_ids(tokenizer, rest)


def _through_end_of_turn(
    tokenizer: Tokenizer, ids: list[int], start: int, answer: str, options: Options | None
) -> list[int]:
    """The ids up to the token that ends the answer which begins at `start`: what a template writes after it (a line
    break, end of text) is no part of it. Where the template writes none, the one that generation ends at is added."""
    place = end_place(tokenizer, ids[start:], answer)
    if place is not None:
        return ids[: start + place + 1]
    end = end_of_turn(tokenizer, options)
    return ids if end is None else [*ids, end]


def _cut(ids: list[int], prompt: int, max_length: int | None) -> Encoded:
    """ids with labels after the first `prompt` of them, cut to max_length."""
    whole = Encoded(ids, [IGNORED] * prompt + ids[prompt:])
    if max_length is None or len(ids) <= max_length:
        return whole
    return Encoded(ids[:max_length], whole.labels[:max_length], truncated=True)
