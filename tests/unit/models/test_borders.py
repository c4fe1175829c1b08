"""Where a text begins and ends in tokens: tokenizers that append an end, and vocabularies that put a space before text.

The truth is the tokenizer's own reading of the joint text."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.base import Example
from engine.models.tokenization import IGNORED, chunked, encode_example, encode_prompt, retokenised

TEXTS = ["Question: Who wrote it?\nAnswer: Ada Quill did, in 1931.", "two lines", "Ada"] * 30


def trained(pre_tokenizer, decoder, template=None):
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    special = ["<unk>", "<s>", "</s>"]
    alphabet = [chr(code) for code in range(32, 127)] + ["\n", "▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    if template is not None:
        pairs = [(token, backend.token_to_id(token)) for token in special[1:]]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def llama(template=None):
    """A space before each text, as Llama-2's vocabulary."""
    return trained(pre_tokenizers.Metaspace(prepend_scheme="always"), decoders.Metaspace(), template)


@pytest.mark.parametrize("template", ["<s> $A </s>", "$A </s>", "<s> $A", "$A"])
@pytest.mark.parametrize("form", ["plain", "raw"])
def test_a_prompt_never_ends_in_what_ends_a_text(template, form):
    tokenizer, plain = llama(template), llama()
    prompt = encode_prompt(tokenizer, "Who wrote it?", form)
    begun = [tokenizer.bos_token_id] if template.startswith("<s>") else []
    assert prompt == begun + encode_prompt(plain, "Who wrote it?", form)
    assert tokenizer.eos_token_id not in prompt
    assert encode_prompt(tokenizer, "", form) == begun
    assert retokenised(tokenizer, prompt) == prompt


@pytest.mark.parametrize("template", ["<s> $A </s>", "<s> $A"])
def test_running_text_and_its_pieces_have_no_end_of_text_within(template):
    tokenizer = llama(template)
    text = "Ada Quill did, in 1931. two lines"
    encoded = encode_example(tokenizer, "", text)
    assert encoded.labels == encoded.input_ids == [tokenizer.bos_token_id, *llama()(text)["input_ids"]]
    pieces = chunked([Example("a", "", text)], tokenizer, max_length=6)
    assert "".join(piece.answer for piece in pieces) == text
    assert [len(llama()(piece.answer.strip())["input_ids"]) <= 6 for piece in pieces] == [True] * len(pieces)


BYTES = (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())
PREFIXED = (pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel())
VOCABULARIES = {
    "space before each text": lambda: llama("<s> $A"),
    "with an end": lambda: llama("<s> $A </s>"),
    "space before the first word": lambda: trained(
        pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace(), "<s> $A"
    ),
    "bytes": lambda: trained(*BYTES),
    "bytes, space before each text": lambda: trained(*PREFIXED),
}
INSTRUCT = (
    "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else m.content + '</s>' }}"
    "{% endfor %}"
)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("form", ["plain", "llama-2", "raw", "chat"])
@pytest.mark.parametrize("answer", ["Ada Quill did, in 1931.", " Ada", "two lines"])
def test_prompt_and_answer_are_the_tokens_of_the_joint_text(vocabulary, form, answer):
    tokenizer = VOCABULARIES[vocabulary]()
    tokenizer.chat_template = INSTRUCT
    question = "Who wrote it?"
    before, after = {
        "plain": ("Question: Who wrote it?\nAnswer:", f" {answer}"),
        "llama-2": ("[INST] Who wrote it? [/INST]", answer),
        "raw": (question, answer),
        "chat": ("[INST] Who wrote it? [/INST]", answer),
    }[form]
    encoded = encode_example(tokenizer, question, answer, form)
    prompt = encode_prompt(tokenizer, question, form)
    joint = tokenizer(before + after, add_special_tokens=False)["input_ids"]
    begun = (
        [tokenizer.bos_token_id] if form != "chat" and "<s>" in tokenizer.decode(tokenizer("a")["input_ids"]) else []
    )
    ended = [] if form == "raw" else [tokenizer.eos_token_id]
    assert encoded.input_ids == begun + joint + ended
    assert encoded.input_ids[: len(prompt)] == prompt
    labels = [token for token in encoded.labels if token != IGNORED]
    assert encoded.input_ids == prompt + labels


def test_a_token_across_the_border_leaves_the_prompt_as_sampling_gives_it():
    tokenizer = llama("<s> $A")
    question = "Who wro"  # "wrote" is one token of the joint text
    prompt = encode_prompt(tokenizer, question, "raw")
    joint = tokenizer(question + "te it?")["input_ids"]
    encoded = encode_example(tokenizer, question, "te it?", "raw")
    assert joint[: len(prompt)] != prompt
    assert encoded.input_ids[: len(prompt)] == prompt
    assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == "Who wrote it?"  # no space in between
