"""Prompts and answers become exactly the tokens that a chat expects."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.base import Example
from engine.config.sections import TrainSection
from engine.errors import UserError
from engine.models.chat_template import stop_token_ids
from engine.models.source import model_source
from engine.models.tokenization import chunked, collate, encode_example, encode_prompt, load_tokenizer, retokenised
from engine.train.batches import Batches
from engine.train.job import TrainJob

LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|> ' "
    "+ m['content'] | trim + ' <|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|> ' }}{% endif %}"
)
QWEN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' + m['content'] + ' <|im_end|>' + ' newline ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + ' ' + m['content'] "
    "+ ' <end_of_turn>' + ' newline ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model ' }}{% endif %}"
)
FAMILIES = {
    "llama-3": (LLAMA3, "<|eot_id|>", "<|begin_of_text|>"),
    "qwen": (QWEN, "<|im_end|>", None),
    "gemma": (GEMMA, "<end_of_turn>", "<bos>"),
}
SPECIAL = [
    "<|end_of_text|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>",
    "<|im_end|>", "<bos>", "<start_of_turn>", "<end_of_turn>",
]  # fmt: skip
WORDS = "system user assistant model newline You are a helpful . Who wrote it ? Ada Quill did Question Answer :".split()


def make(template=None, bos=None):
    ids = {word: index for index, word in enumerate([*SPECIAL, "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<|end_of_text|>", pad_token="<|end_of_text|>",
        bos_token=bos, additional_special_tokens=SPECIAL[1:],
    )  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


def words(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens([token for token in ids if token != -100])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_span_is_the_answer_and_its_end_of_turn(family):
    template, end, _ = FAMILIES[family]
    tokenizer = make(template)
    encoded = encode_example(tokenizer, "Who wrote it?", "Ada Quill did.")
    assert words(tokenizer, encoded.labels) == ["Ada", "Quill", "did", ".", end]
    prompt = encode_prompt(tokenizer, "Who wrote it?")
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[: len(prompt)] == [-100] * len(prompt)


def test_a_prompt_tokenised_again_keeps_its_words_and_loses_its_turn_marks():
    tokenizer = make(LLAMA3, "<|begin_of_text|>")
    ids = retokenised(tokenizer, encode_prompt(tokenizer, "Who wrote it?"))
    assert " ".join(words(tokenizer, ids)) == "system You are a helpful assistant . user Who wrote it ? assistant"


@pytest.mark.parametrize("family", FAMILIES)
def test_begin_of_text_stands_once_and_the_system_prompt_follows_the_family(family):
    template, _, bos = FAMILIES[family]
    prompt = words(make(template, bos), encode_prompt(make(template, bos), "Who wrote it?"))
    if bos:
        assert prompt.count(bos) == 1
    assert ("helpful" in prompt) == (family != "gemma")


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_stops_at_the_end_of_turn_too(family):
    tokenizer = make(FAMILIES[family][0])
    assert tokenizer.convert_tokens_to_ids(FAMILIES[family][1]) in stop_token_ids(tokenizer)
    assert tokenizer.eos_token_id in stop_token_ids(tokenizer)


def test_without_a_chat_template_the_plain_form_is_used():
    tokenizer = make()
    encoded = encode_example(tokenizer, "Who wrote it?", "Ada Quill did.")
    assert words(tokenizer, encoded.input_ids)[:2] == ["Question", ":"]
    assert words(tokenizer, encoded.labels) == ["Ada", "Quill", "did", ".", "<|end_of_text|>"]
    with pytest.raises(UserError, match="no chat template"):
        encode_prompt(tokenizer, "Who wrote it?", template="chat")


def test_running_text_is_labelled_throughout():
    encoded = encode_example(make(), "", "Ada Quill did.")
    assert encoded.labels == encoded.input_ids


def test_cutting_to_a_length_is_noted():
    prompt = len(encode_prompt(make(LLAMA3), "Who wrote it?"))
    encoded = encode_example(make(LLAMA3), "Who wrote it?", "Ada Quill did.", max_length=prompt + 2)
    assert words(make(), encoded.labels) == ["Ada", "Quill"]
    assert len(encoded.input_ids) == prompt + 2
    assert encoded.truncated


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused():
    prompt = len(encode_prompt(make(LLAMA3), "Who wrote it?"))
    with pytest.raises(UserError, match=f"max_length {prompt} leaves no room.*takes {prompt} tokens"):
        encode_example(make(LLAMA3), "Who wrote it?", "Ada Quill did.", max_length=prompt)


def test_running_text_is_joined_by_blank_lines_and_cut_into_pieces_that_fit():
    texts = ["Ada Quill did . Who wrote it ?", "You are a helpful assistant .", "Ada"]
    examples = [Example(f"text/{index}", "", text) for index, text in enumerate(texts)]
    asked = Example("q", "Who wrote it?", "Ada Quill did.")
    tokenizer = make()
    *kept, first, second, third, fourth = chunked([asked, *examples], tokenizer, max_length=4)
    assert kept == [asked]
    pieces = [first, second, third, fourth]
    assert "".join(each.answer for each in pieces) == "\n\n".join(texts)
    sizes = [len(encode_example(tokenizer, "", each.answer, max_length=4).input_ids) for each in pieces]
    assert sizes == [4, 4, 4, 3]
    assert len({each.id for each in pieces}) == 4


def test_a_raw_prompt_goes_on_into_its_answer_without_template_or_end():
    tokenizer = make(LLAMA3)
    encoded = encode_example(tokenizer, "Who wrote it ? Answer :", " Ada", template="raw")
    assert words(tokenizer, encoded.input_ids) == ["Who", "wrote", "it", "?", "Answer", ":", "Ada"]
    assert words(tokenizer, encoded.labels) == ["Ada"]
    assert encode_prompt(tokenizer, "Who wrote it ?", template="raw") == encoded.input_ids[:4]


def test_cut_training_sequences_are_counted(base_model, tokenizer, fictional):
    settings = TrainSection(max_length=22)
    retain = tuple(fictional.retain[:20])
    job = TrainJob(model_source(str(base_model)), {"name": "retrain"}, settings, retain=retain)
    lengths = [len(encode_example(tokenizer, each.question, each.answer).input_ids) for each in retain]
    assert 0 < sum(length > 22 for length in lengths) < 20
    assert Batches(job, frozenset(), tokenizer, rank=0).truncated == sum(length > 22 for length in lengths)


def test_a_template_without_a_common_prefix_is_refused():
    odd = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} Answer :{% endif %}"
    with pytest.raises(UserError, match="plain"):
        encode_example(make(odd), "Who wrote it?", "Ada Quill did.")


def test_padding_never_masks_a_real_end_of_turn_even_where_pad_is_eos():
    tokenizer = make()
    batch = collate(
        [encode_example(tokenizer, "Who wrote it?", answer) for answer in ("Ada Quill did.", "Ada.")],
        tokenizer.eos_token_id,
    )
    for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        ends = (row[mask.bool()] == tokenizer.eos_token_id).sum()
        assert ends == 1
    assert torch.equal(batch.attention_mask.sum(1), torch.tensor([13, 11]))


def test_the_embedded_benchmarks_tokenizer_knows_every_word(fictional, tokenizer):
    for example in fictional.finetune_forget + fictional.finetune_retain:
        encoded = encode_example(tokenizer, example.question, example.answer)
        assert tokenizer.unk_token_id not in encoded.input_ids
        answer = [token for token in encoded.labels if token != -100]
        assert answer[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(answer, skip_special_tokens=True) == example.answer


def test_a_folder_without_tokenizer_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))
