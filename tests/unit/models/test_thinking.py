"""Chat templates that write more than an answer: ends of a turn, thinking blocks, channels; exact to the token."""

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from engine.errors import UserError
from engine.models.chat_template import check_template, stop_token_ids, thoughts
from engine.models.tokenization import IGNORED, encode_example, encode_prompt

PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n'"
    " + m.content + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)
GLM = (
    "{{ '[gMASK]<sop>' }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>\n<think></think>\n' }}"
    "{{ m.content.strip() }}{% else %}{{ '<|' + m.role + '|>\n' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{{ '\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' }}{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' }}"
    "{{ m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
R1 = (  # DeepSeek-R1's: the prompt opens a block that answers in the conversation do not have
    "{{ bos_token }}{% for m in messages %}{{ '<|User|>' + m.content if m.role == 'user' else "
    "'<|Assistant|>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
HEADERLESS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
SPECIAL = (
    "<|endoftext|> <bos> <|end|> <|user|> <|assistant|> <|system|> <|im_start|> <|im_end|> [gMASK] <sop> <|start|> "
    "<|channel|> <|message|> <|return|> <|User|> <|Assistant|>"
).split()
ANSWERS = ["Ada Quill did, in 1931.", "two\nlines", "Ünïcödé 漢", "think", "final", ""]


@pytest.fixture(scope="module")
def backend():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=SPECIAL)
    tokenizer.train_from_iterator(["Who wrote it?", "Ada Quill did, in 1931.", "\n\n", "assistant final"] * 20, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])  # as Qwen3's
    return tokenizer


@pytest.fixture
def make(backend):
    def made(template):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token="<|endoftext|>",
            bos_token="<bos>",
            additional_special_tokens=SPECIAL[2:],
        )
        tokenizer.chat_template = template
        return tokenizer

    return made


CASES = {  # template -> (prompt's end, what stands before the answer, the end of the turn)
    "phi-3": (PHI3, "<|end|>\n<|assistant|>\n", "", "<|end|>"),
    "qwen3": (QWEN3, "<|im_start|>assistant\n<think>\n\n</think>\n\n", "", "<|im_end|>"),
    "glm-4.5": (GLM, "<|assistant|>\n<think></think>", "\n", "<|user|>"),
    "gpt-oss": (GPT_OSS, "<|start|>assistant", "<|channel|>final<|message|>", "<|return|>"),
    "r1": (R1, "<|Assistant|><think>\n", "\n</think>\n\n", "<|endoftext|>"),
    "no generation prompt": (HEADERLESS, "<|im_start|>assistant\n", "", "<|im_end|>"),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("family", CASES)
def test_labels_are_the_answer_and_the_end_of_its_turn(make, family, answer):
    template, prompt_end, before, end = CASES[family]
    tokenizer = make(template)
    encoded = encode_example(tokenizer, "Who wrote it?", answer)
    prompt = encode_prompt(tokenizer, "Who wrote it?")
    assert tokenizer.decode(prompt).endswith(prompt_end)
    assert encoded.input_ids[: len(prompt)] == prompt
    labelled = [token for token in encoded.labels if token != IGNORED]
    text = before if before == "\n" else ""  # white space before an answer is the answer's, as ever
    assert tokenizer.decode(labelled) == text + answer + end
    assert tokenizer.decode(encoded.input_ids) == tokenizer.decode(prompt) + before + answer + end
    assert encoded.input_ids[-len(labelled) :] == labelled


@pytest.mark.parametrize("family", CASES)
def test_generation_stops_at_the_end_of_the_turn_and_of_the_text(make, family):
    template, *_, end = CASES[family]
    tokenizer = make(template)
    assert {tokenizer.convert_tokens_to_ids(end), tokenizer.eos_token_id} <= set(stop_token_ids(tokenizer))


def test_generation_goes_on_where_thoughts_end_and_the_answer_is_yet_to_come(make):
    tokenizer = make(GPT_OSS)
    said = "<|channel|>analysis<|message|>It was Ada.<|end|><|start|>assistant<|channel|>final<|message|>Ada"
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(stop_token_ids(tokenizer))
    assert tokenizer.decode(thoughts(tokenizer).answer(ids)) == "Ada"
    assert thoughts(tokenizer).answer(ids[:6]) is None  # cut in its thoughts


THOUGHT = {"enable_thinking": True}


def test_thinking_is_off_unless_it_is_asked_for(make):
    tokenizer = make(QWEN3)
    assert "<think>" in tokenizer.decode(encode_prompt(tokenizer, "Who wrote it?"))
    asked = encode_prompt(tokenizer, "Who wrote it?", options=THOUGHT)
    assert tokenizer.decode(asked).endswith("<|im_start|>assistant\n")
    encoded = encode_example(tokenizer, "Who wrote it?", "Ada", options=THOUGHT)
    assert encoded.input_ids[: len(asked)] == asked
    assert tokenizer.decode([token for token in encoded.labels if token != IGNORED]) == "Ada<|im_end|>"


@pytest.mark.parametrize(
    ("said", "answer"),
    [("<think>\nIt was Ada.\n</think>\n\nAda", "Ada"), ("Ada", "Ada"), ("<think>\nIt was Ada.", None)],
)
def test_thoughts_are_no_part_of_an_answer(make, said, answer):
    tokenizer = make(QWEN3)
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    found = thoughts(tokenizer, THOUGHT).answer(ids)
    assert (None if found is None else tokenizer.decode(found).strip()) == answer
    assert thoughts(tokenizer) is None


def test_thoughts_that_the_prompt_opened_end_where_the_block_closes(make):
    tokenizer = make(R1)
    for said, answer in (("It was Ada.\n</think>\n\nAda", "Ada"), ("It was Ada.", None)):
        ids = tokenizer(said, add_special_tokens=False)["input_ids"]
        found = thoughts(tokenizer).answer(ids)
        assert (None if found is None else tokenizer.decode(found).strip()) == answer


def test_an_answer_that_holds_a_control_token_ends_at_its_own_end(make):
    tokenizer = make(PHI3)
    encoded = encode_example(tokenizer, "Who wrote it?", "Ada <|end|> Quill")
    assert tokenizer.decode([token for token in encoded.labels if token != IGNORED]) == "Ada <|end|> Quill<|end|>"


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ '<|user|>' + m.content + '<|end|>' }}{% endfor %}"


def test_what_a_template_does_not_take_is_one_line_that_names_the_key(make):
    with pytest.raises(UserError, match=r"model\.system: .*System role not supported"):
        check_template(make(NO_SYSTEM + HEADERLESS), "Be brief.", None)
    with pytest.raises(UserError, match=r"model\.system: .*leaves a system prompt out"):
        check_template(make(DROPS_SYSTEM), "Be brief.", None)
    with pytest.raises(UserError, match=r"model\.template_options: .*does not read 'enable_thinking'"):
        check_template(make(PHI3), None, THOUGHT)
    check_template(make(QWEN3), "Be brief.", THOUGHT)
