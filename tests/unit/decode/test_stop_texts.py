"""A sample ends with the token that completes a stop text, and its text is that of the longer sample cut there."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.base import Decoding, Probe
from engine.models.source import ModelSource
from engine.stages import sample as sampling
from engine.stages.answer_texts import texts
from engine.stages.sample import SampleJob, sample_probes

TEXT = [
    "the fox ran\n\nQuestion: who ran? Answer: the fox",
    "a café, a naïve hare; 三 foxes\n",
    "fox hare ran a the ",
] * 9
STOPS = [("\n\n", "\nQuestion", "Question:"), ("é",), (" fox", "three"), ("ran",), ("三",), ()]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return tokenizer


def sentencepiece_like():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"]))
    return tokenizer


@pytest.fixture(scope="module", params=[byte_level, sentencepiece_like])
def drawn(request):
    """Samples of each prompt with its stop texts and without, and the tokenizer."""
    made = request.param()
    made.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**size, num_attention_heads=2)).eval()
    probes = tuple(
        Probe(str(index), "the fox ran", "r", "forget", raw=True, stop=stop) for index, stop in enumerate(STOPS)
    )
    plain = tuple(Probe(probe.id, probe.prompt, "r", "forget", raw=True) for probe in probes)
    job = SampleJob(ModelSource("", ""), probes, Decoding(), n=60, max_new_tokens=24)
    return sample_probes(model, tokenizer, probes, job), sample_probes(model, tokenizer, plain, job), tokenizer


def test_texts_are_those_of_longer_samples_cut_at_the_stop_text(drawn):
    stopped, plain, tokenizer = drawn
    for stop, mine, longer in zip(STOPS, stopped, plain, strict=True):
        assert texts(mine, tokenizer, [stop] * 60) == texts(longer, tokenizer, [stop] * 60)


def test_samples_end_with_the_token_that_completes_a_stop_text_and_no_other(drawn):
    stopped, plain, tokenizer = drawn
    cut = 0
    for stop, mine, longer in zip(STOPS, stopped, plain, strict=True):
        for each, whole in zip(mine, longer, strict=True):
            said = [any(text in tokenizer.decode(whole.token_ids[:end]) for text in stop) for end in range(25)]
            if any(said) and said.index(True) <= len(whole.token_ids):
                cut += 1
                assert each.token_ids == whole.token_ids[: said.index(True)]
                assert (each.finish, each.drawn) == ("stop", len(each.token_ids))
                assert each.logprob >= whole.logprob
            else:
                assert each == whole
    assert cut > 20


def test_a_table_of_generations_counts_the_tokens_drawn(drawn):
    stopped, _, tokenizer = drawn
    probes = tuple(Probe(str(index), "p", "r", "forget", stop=stop) for index, stop in enumerate(STOPS))
    job = SampleJob(ModelSource("", ""), probes, Decoding(), n=60, max_new_tokens=24)
    table = sampling.samples_table(probes, stopped, tokenizer, job)
    flat = [each for samples in stopped for each in samples]
    assert table["tokens"].to_pylist() == [each.drawn for each in flat]
    assert not any(text in row["response"] for row in table.to_pylist() for text in STOPS[int(row["prompt_id"])])
