"""What a tokenizer's chat template writes: the prompt, what stands before an answer, and the token that ends it.

A Hugging Face tokenizer with a chat template and messages come in, text and token ids come out. Knows nothing of
training or sampling.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

ASSISTANT = "You are a helpful assistant."
TAKES_ASSISTANT = ("<|start_header_id|>", "<|im_start|>", "<|assistant|>")  # Llama-3.x, Qwen2.5, Phi-3.5 and zephyr
# Templates write today's date, Llama-3.x's unless they are given one, and prompts would change from day to day. This is
# the date that OpenUnlearning's checkpoints were trained with.
DAY = datetime.date(2025, 4, 10)
DATE = DAY.strftime("%d %b %Y")
THINKING = ("enable_thinking", "thinking")  # how templates name the switch of their thinking block (Qwen3, GLM-4.5)
END_NAMES = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<|endoftext|>")
SAMPLE = ("Who wrote it?", "Ada")  # a conversation to look at a template with
Message = dict[str, str]
Options = Mapping[str, object]  # handed to a template


@dataclasses.dataclass(frozen=True)
class Turn:
    """An answer as a template writes it: `prompt`, where generation begins; `opening`, a thinking block or a channel
    that the template puts before the answer and that is no part of it, mostly empty; `rest`, the answer to the end of
    what the template writes."""

    prompt: str
    opening: str
    rest: str

    @property
    def whole(self) -> str:
        return self.prompt + self.opening + self.rest


def default_system(tokenizer: Tokenizer) -> str | None:
    """System prompt by model family: the assistant line for Llama-3, Qwen, Phi and zephyr templates, else none."""
    return ASSISTANT if any(mark in _template(tokenizer) for mark in TAKES_ASSISTANT) else None


def render_prompt(
    tokenizer: Tokenizer,
    question: str,
    system: str | None,
    options: Options | None = None,
    shots: Sequence[tuple[str, str]] = (),
) -> str:
    """The conversation, `shots` its earlier turns, up to where a model goes on. UserError where the template refuses
    it."""
    return render_turn(tokenizer, question, SAMPLE[1], system, options, shots).prompt


def render_turn(
    tokenizer: Tokenizer,
    question: str,
    answer: str,
    system: str | None,
    options: Options | None = None,
    shots: Sequence[tuple[str, str]] = (),
) -> Turn:
    """A question and its answer as the template writes them.

    system: None, the family's own. options: handed to the template. UserError where the template refuses them, or
    where its prompt is not the beginning of the conversation, for then no answer span exists.
    """
    messages = _messages(tokenizer, question, system, shots)
    answered = [*messages, {"role": "assistant", "content": answer}]
    prompt = _render(tokenizer, messages, True, options)
    whole = _render(tokenizer, answered, False, options)
    if not whole.startswith(prompt):
        return _after_thoughts(prompt, whole)
    rest = whole[len(prompt) :]
    if answer.strip() and rest.lstrip().startswith(answer.strip()):  # white space before the answer is the answer's
        return Turn(prompt, "", rest)
    sample = _render(tokenizer, [*messages, {"role": "assistant", "content": SAMPLE[1]}], False, options)
    opening = sample[len(prompt) :].partition(SAMPLE[1])[0]
    if not opening.strip() or not rest.startswith(opening):
        return Turn(prompt, "", rest)
    rest = rest.removeprefix(opening)
    if prompt == _render(tokenizer, messages, False, options):  # the template has no form of a prompt: a plain header
        return Turn(prompt + opening, "", rest)
    return Turn(prompt, opening, rest)


def _after_thoughts(prompt: str, whole: str) -> Turn:
    """A template that opens a thinking block in its prompt and leaves it out of answers: answered without thoughts."""
    opened = re.search(r"<([^<>/\s]+)>\s*$", prompt)
    if opened is None or not whole.startswith(prompt[: opened.start()]):
        raise UserError(
            "model.template: the chat template renders a prompt that is not the beginning of the conversation; "
            "use template: plain"
        )
    return Turn(prompt, f"\n</{opened[1]}>\n\n", whole[opened.start() :])


def control_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids of tokens that are no text: special ones, and those that the chat template writes literally."""
    template = _template(tokenizer)
    added = tokenizer.added_tokens_decoder.items()
    ids = set(tokenizer.all_special_ids) | {id for id, token in added if token.special or token.content in template}
    return ids - {tokenizer.unk_token_id} | {tokenizer.eos_token_id} - {None}


def end_of_turn(tokenizer: Tokenizer, options: Options | None = None) -> int | None:
    """The id of the token that ends an answer in the chat template; None where none is written."""
    question, answer = SAMPLE
    try:
        turn = render_turn(tokenizer, question, answer, None, options)
    except UserError:
        return None
    ids = text_ids(tokenizer, turn.rest)
    place = end_place(tokenizer, ids, answer)
    return ids[place] if place is not None else _next_turn(tokenizer, turn, options)


def end_place(tokenizer: Tokenizer, ids: Sequence[int], answer: str) -> int | None:
    """Where in `ids`, what a template writes from an answer on, the token stands that ends it: the first control token
    that is not the answer's own. None where there is none."""
    control = control_ids(tokenizer)
    own = sum(token in control for token in text_ids(tokenizer, answer))
    places = [place for place, token in enumerate(ids) if token in control]
    return places[own] if len(places) > own else None


def _next_turn(tokenizer: Tokenizer, turn: Turn, options: Options | None) -> int | None:
    """Where a template ends no answer, the token that begins the next question ends it (GLM-4.5)."""
    question, answer = SAMPLE
    messages = [*_messages(tokenizer, question, None), {"role": "assistant", "content": answer}]
    try:
        followed = _render(tokenizer, [*messages, {"role": "user", "content": question}], False, options)
    except UserError:
        return None
    if not followed.startswith(turn.whole):
        return None
    control = control_ids(tokenizer)
    first = text_ids(tokenizer, followed[len(turn.whole) :])[:1]
    return first[0] if first and first[0] in control else None


def stop_token_ids(tokenizer: Tokenizer, options: Options | None = None) -> list[int]:
    """Ids that end an answer: end of text, the end of the turn in the chat template, and the usual names of such ends,
    but those that the template writes elsewhere, as where thoughts end and an answer is yet to come (gpt-oss)."""
    template, vocabulary = _template(tokenizer), tokenizer.get_vocab()
    end = end_of_turn(tokenizer, options) if template else None
    names = [vocabulary[name] for name in END_NAMES if name in vocabulary and (end is None or name not in template)]
    return list(dict.fromkeys(token for token in (tokenizer.eos_token_id, end, *names) if token is not None))


@dataclasses.dataclass(frozen=True)
class Thoughts:
    """How a model's thoughts stand before its answers, in token ids: what begins them (empty: the prompt does) and what
    comes between them and the answer, </think> or the header of the final channel."""

    begin: tuple[int, ...]
    end: tuple[int, ...]

    def answer(self, ids: Sequence[int]) -> list[int] | None:
        """What a model wrote without its thoughts; None where they did not come to an end: there is no answer."""
        written, size = tuple(ids), len(self.end)
        for at in range(len(written) - size + 1):
            if written[at : at + size] == self.end:
                return list(written[at + size :])
        return None if written[: len(self.begin)] == self.begin else list(written)


def thoughts(tokenizer: Tokenizer, options: Options | None = None) -> Thoughts | None:
    """How thoughts stand before the answers of the chat template; None where there are none, or they are off."""
    opening = render_turn(tokenizer, *SAMPLE, None, options).opening.strip() if _template(tokenizer) else ""
    if not opening:
        return None
    begin = () if opening.startswith("</") else tuple(text_ids(tokenizer, opening)[:1])
    return Thoughts(begin, tuple(text_ids(tokenizer, opening[max(opening.rfind("</"), 0) :])))


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of `text` alone: a template writes begin-of-text itself."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def check_template(tokenizer: Tokenizer, system: str | None, options: Options | None) -> None:
    """UserError unless the chat template writes this system prompt and reads these options."""
    template = _template(tokenizer)
    for name in options or {}:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise UserError(f"model.template_options: the chat template does not read {name!r}; leave it out")
    prompt = render_turn(tokenizer, *SAMPLE, system, options).prompt
    if system and system.strip() not in prompt:
        raise UserError("model.system: the chat template leaves a system prompt out; put it into the prompts")


def _template(tokenizer: Tokenizer) -> str:
    return str(getattr(tokenizer, "chat_template", "") or "")


def _messages(
    tokenizer: Tokenizer, question: str, system: str | None, shots: Sequence[tuple[str, str]] = ()
) -> list[Message]:
    system = default_system(tokenizer) if system is None else system
    messages = [{"role": "system", "content": system}] if system else []
    for asked, answer in shots:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": question}]


def _on_one_day(template: str) -> str:
    """A template that asks for today's date, with DAY in its place, in the form that is asked for."""

    def written(asked: re.Match[str]) -> str:
        return f"'{DAY.strftime(asked[2])}'"

    named = re.sub(r"""strftime_now\(\s*(['"])([^'"]*)\1\s*\)""", written, template)
    if "strftime_now" not in named:
        return named
    # What is left takes its form from a variable. Templates lose a line end after a block.
    end = "\n" if named.startswith("\n") else ""
    return f"{{%- macro strftime_now(format) -%}}{DATE}{{%- endmacro %}}{end}{named}"


def _render(tokenizer: Tokenizer, messages: list[Message], prompt: bool, options: Options | None) -> str:
    from jinja2 import TemplateError

    template = _template(tokenizer)
    off = {name: False for name in THINKING if re.search(rf"\b{name}\b", template)}
    values: dict[str, Any] = {"date_string": DATE} | off | dict(options or {})
    if "strftime_now" in template:
        values["chat_template"] = _on_one_day(template)
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **values))
    except (TemplateError, TypeError, ValueError) as error:
        key = "model.system" if messages[0]["role"] == "system" else "model.template"
        raise UserError(f"{key}: the chat template refuses it ({one_line(str(error))[:160]})") from error
