"""Answer spans, exact to the token, on the chat templates of Llama-3, Qwen and Gemma with byte-level BPE tokenizers."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.errors import UserError
from engine.models.tokenization import IGNORED, collate, encode_example, encode_prompt

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role'])"
    " + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# template, end of text, end of turn, begin of text, whether the template trims
FAMILIES = {
    "llama-3": (LLAMA3, "<|end_of_text|>", "<|eot_id|>", "<|begin_of_text|>", True),
    "qwen": (QWEN, "<|endoftext|>", "<|im_end|>", None, False),
    "gemma": (GEMMA, "<eos>", "<end_of_turn>", "<bos>", True),
}
MARKS = ["<|start_header_id|>", "<|end_header_id|>", "<|im_start|>", "<start_of_turn>"]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
)
TEXT = ["Who wrote it?", "Ada Quill did, in 1931.", "\n\n\n", "\n\n", "two\nlines", "You are a helpful assistant."] * 50
ANSWERS = [
    "Ada Quill did, in 1931.",
    "two\nlines",
    "ends in a break\n",
    "\nbegins with a break",
    "  spaces  ",
    "Ünïcödé 漢",
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(tokenizer, end-of-turn id, whether the template trims)."""
    template, eos, end, bos, trims = FAMILIES[request.param]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = [token for token in (eos, end, bos, *MARKS) if token]
    trainer = trainers.BpeTrainer(
        special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, pad_token=end, bos_token=bos, additional_special_tokens=[end, *MARKS]
    )
    tokenizer.chat_template = template
    return tokenizer, tokenizer.convert_tokens_to_ids(end), trims


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_labels_are_the_answer_and_its_end_of_turn_to_the_token(family, answer):
    tokenizer, end, trims = family
    prompt = encode_prompt(tokenizer, "Who wrote it?")
    encoded = encode_example(tokenizer, "Who wrote it?", answer)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[: len(prompt)] == [IGNORED] * len(prompt)
    expected = answer.strip() if trims else answer
    assert encoded.labels[len(prompt) :] == [*tokenizer(expected, add_special_tokens=False)["input_ids"], end]
    assert encoded.input_ids[len(prompt) :] == encoded.labels[len(prompt) :]


def test_the_first_label_is_what_the_model_is_to_say_right_after_the_prompt(family):
    tokenizer, _, _ = family
    prompt = encode_prompt(tokenizer, "Who wrote it?")
    encoded = encode_example(tokenizer, "Who wrote it?", "Ada Quill did.")
    assert tokenizer.decode(encoded.input_ids[len(prompt)]) == "Ada"
    assert tokenizer.decode(prompt).endswith(("assistant<|end_header_id|>\n\n", "assistant\n", "model\n"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_the_end_of_turn_hides_no_end_of_turn(family, side):
    tokenizer, end, _ = family
    encoded = [encode_example(tokenizer, "Who wrote it?", answer) for answer in ("Ada.", "Ada Quill did, in 1931.")]
    batch = collate(encoded, tokenizer.pad_token_id, pad_side=side)
    assert tokenizer.pad_token_id == end
    for row, mask, labels, each in zip(batch.input_ids, batch.attention_mask, batch.labels, encoded, strict=True):
        assert row[mask.bool()].tolist() == each.input_ids
        assert labels[labels != IGNORED].tolist()[-1] == end
        assert (labels[~mask.bool()] == IGNORED).all()


def test_a_cut_answer_keeps_its_prompt_and_is_noted(family):
    tokenizer, end, _ = family
    prompt = encode_prompt(tokenizer, "Who wrote it?")
    encoded = encode_example(tokenizer, "Who wrote it?", "Ada Quill did, in 1931.", max_length=len(prompt) + 1)
    assert encoded.truncated
    assert encoded.input_ids[:-1] == prompt
    assert encoded.labels[-1] not in (end, IGNORED)


DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }} "
)


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(family):  # as Llama-3.2's
    tokenizer, _, _ = family
    template, tokenizer.chat_template = tokenizer.chat_template, DATED + tokenizer.chat_template
    text = tokenizer.decode(encode_prompt(tokenizer, "Who wrote it?"))
    tokenizer.chat_template = template
    assert text.startswith("10 Apr 2025 ")


@pytest.mark.parametrize(
    ("asks", "written"),
    [
        ("Current date: {{ strftime_now('%Y-%m-%d') }}. ", "Current date: 2025-04-10. "),  # as gpt-oss'
        ('{%- set today = strftime_now("%B %d, %Y") %}{{- today }} ', "April 10, 2025 "),  # as Granite's
        ("{% set form = '%Y' %}{{ strftime_now(format=form) }} ", "10 Apr 2025 "),
        ("\n{% set form = '%Y' %}{{ strftime_now(form) }} ", "\n10 Apr 2025 "),
    ],
)
def test_a_template_that_asks_for_today_is_told_one_day(family, asks, written):
    tokenizer, _, _ = family
    template, tokenizer.chat_template = tokenizer.chat_template, asks + tokenizer.chat_template
    text = tokenizer.decode(encode_prompt(tokenizer, "Who wrote it?"))
    tokenizer.chat_template = template
    assert text.startswith(written)


def test_a_template_that_is_demanded_but_missing_is_one_line(family):
    tokenizer, _, _ = family
    template, tokenizer.chat_template = tokenizer.chat_template, None
    with pytest.raises(UserError, match="no chat template; use auto or plain") as caught:
        encode_example(tokenizer, "Who wrote it?", "Ada.", template="chat")
    tokenizer.chat_template = template
    assert "\n" not in str(caught.value)
