"""The sampler draws exactly from the model, and a sample depends on nothing but its seed, prompt and index."""

import functools
import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from benchmarks.base import Decoding
from engine.decode.sampler import sample, sample_grid
from engine.decode.token_sampling import draw as draw_tokens
from engine.models.attention import group_queries, ungroup_queries

V, EOS = 37, 1
COMMON = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "bos_token_id": 2,
}
GROUPED = COMMON | {"num_key_value_heads": 2}
SMALL_HEADS = GROUPED | {"head_dim": 8}
CONFIGS = {
    "llama": LlamaConfig(**COMMON),
    "llama grouped tied": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2 sliding": Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=0),
    "qwen3": Qwen3Config(**SMALL_HEADS),
    "mistral sliding": MistralConfig(**GROUPED, sliding_window=5),
    "phi": PhiConfig(**COMMON),
    "phi3 sliding": Phi3Config(**GROUPED, sliding_window=6),
    "gemma": GemmaConfig(**SMALL_HEADS),
    "gemma2": Gemma2Config(**SMALL_HEADS, sliding_window=4),
    "gemma3": Gemma3TextConfig(**SMALL_HEADS, sliding_window=4),
    "gpt-neox": GPTNeoXConfig(**COMMON),
    "gpt2 absolute positions": GPT2Config(
        vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=2, eos_token_id=EOS
    ),
}
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [5, 6, 8], [14], [20, 21, 22, 23, 24, 25]]
IDS = ["a", "b", "c", "d", "e"]


def make(config, spread=1.0):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(spread) if parameter.dim() > 1 else None
    return model


@pytest.fixture(scope="module", autouse=True)
def grouped():
    """Attention as workers on CPUs have it."""
    group_queries()
    yield
    ungroup_queries()


@pytest.fixture(scope="module")
def llama():
    return make(CONFIGS["llama"], spread=8.0)


def draw(model, n=20, **changes):
    arguments = {"max_new_tokens": 8, "prompt_ids": IDS, "eos_token_id": EOS, "seed": 3} | changes
    return sample(model, changes.pop("prompts", PROMPTS), n, **{k: v for k, v in arguments.items() if k != "prompts"})


def naive(model, prompt, prompt_id, n, seed, steps, decoding):
    """Row by row, without a cache, in float64, from the same uniforms."""
    import hashlib

    key = int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest()[:16], "little")
    results = []

    @functools.cache  # samples begin alike
    def logits_after(ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, -1].double().numpy()

    for index in range(n):
        ids, logprob, finish = list(prompt), 0.0, "length"
        for step in range(steps):
            logits = logits_after(tuple(ids))
            scaled = np.exp((logits - logits.max()) / decoding.temperature)
            probs = scaled / scaled.sum()
            order = np.argsort(-probs, kind="stable")
            keep = np.zeros(V, dtype=bool)
            mass = 0.0
            for rank, token in enumerate(order):
                if mass >= decoding.top_p or (decoding.top_k is not None and rank >= decoding.top_k):
                    break
                keep[token] = True
                mass += probs[token]
            probs = np.where(keep, probs, 0)
            probs /= probs.sum()
            u = np.random.Generator(np.random.Philox(key=key, counter=[0, step, 0, 0])).random(n)[index]
            token = int(np.searchsorted(np.cumsum(probs), u, side="right"))
            logprob += np.log(probs[token])
            if token == EOS:
                finish = "stop"
                break
            ids.append(token)
        results.append((ids[len(prompt) :], logprob, finish))
    return results


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_agrees_with_plain_sampling_without_a_cache(name):
    model = make(CONFIGS[name], spread=4.0)
    prompts, ids = PROMPTS[1:4], IDS[1:4]
    for prompt, prompt_id, samples in zip(prompts, ids, draw(model, 3, prompts=prompts, prompt_ids=ids), strict=True):
        expected = naive(model, prompt, prompt_id, 3, 3, 8, Decoding())
        assert [(each.token_ids, each.finish) for each in samples] == [(each[0], each[2]) for each in expected]
        np.testing.assert_allclose([each.logprob for each in samples], [each[1] for each in expected], atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_prompts_padded_on_the_left_give_what_each_alone_gives(name):
    model = make(CONFIGS[name], spread=4.0)
    for index, mixed in enumerate(draw(model, n=8)):
        (alone,) = draw(model, n=8, prompts=[PROMPTS[index]], prompt_ids=[IDS[index]])
        assert [each.token_ids for each in mixed] == [each.token_ids for each in alone]
        np.testing.assert_allclose([each.logprob for each in mixed], [each.logprob for each in alone], atol=1e-3)


@pytest.mark.parametrize(
    "decoding", [Decoding(temperature=0.7, top_p=0.8), Decoding(top_p=0.5), Decoding(temperature=1.3, top_k=5)]
)
def test_temperature_nucleus_and_top_k_agree_with_plain_sampling(llama, decoding):
    drawn = draw(llama, n=4, **decoding.model_dump())
    for prompt, prompt_id, samples in zip(PROMPTS, IDS, drawn, strict=True):
        expected = naive(llama, prompt, prompt_id, 4, 3, 8, decoding)
        assert [each.token_ids for each in samples] == [each[0] for each in expected]
        np.testing.assert_allclose([each.logprob for each in samples], [each[1] for each in expected], atol=1e-3)


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(temperature=0.5), Decoding(top_p=0.6)])
def test_first_tokens_follow_the_models_softmax(llama, decoding):
    n = 5_000
    samples = draw(llama, n=n, prompts=PROMPTS[:1], prompt_ids=["x"], max_new_tokens=1, **decoding.model_dump())[0]
    tokens = [each.token_ids[0] if each.token_ids else EOS for each in samples]
    with torch.no_grad():
        logits = llama(torch.tensor(PROMPTS[:1])).logits[0, -1].double()
    probs = torch.softmax(logits / decoding.temperature, -1).numpy()
    order = np.argsort(-probs)
    size = int(np.searchsorted(np.cumsum(probs[order]), decoding.top_p)) + 1
    kept = np.zeros(V)
    kept[order[:size]] = probs[order[:size]]
    expected = n * kept / kept.sum()
    counts = np.bincount(tokens, minlength=V)
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    wanted, observed = wanted[wanted > 0], observed[wanted > 0]
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


def test_whole_continuations_follow_the_product_of_the_models_softmaxes(llama):
    n, prompt = 10_000, PROMPTS[0]
    samples = draw(llama, n=n, prompts=[prompt], prompt_ids=["y"], max_new_tokens=2)[0]
    with torch.no_grad():
        first = torch.softmax(llama(torch.tensor([prompt])).logits[0, -1].double(), -1)
        pairs = torch.tensor([[*prompt, token] for token in range(V)])
        second = torch.softmax(llama(pairs).logits[:, -1].double(), -1)
    expected = n * (first[:, None] * second).numpy()
    expected[EOS] = [n * float(first[EOS])] + [0] * (V - 1)  # ended: there is no second token
    counts = np.zeros((V, V))
    for each in samples:
        tokens = [*each.token_ids, EOS] if each.finish == "stop" else each.token_ids
        counts[tokens[0], tokens[1] if len(tokens) > 1 else 0] += 1
    common = expected >= 5
    wanted = np.append(expected[common], expected[~common].sum())
    assert len(wanted) > 20
    assert stats.chisquare(np.append(counts[common], counts[~common].sum()), wanted).pvalue > 1e-3


def test_samples_do_not_depend_on_the_rows_held_at_once(llama):
    together = draw(llama, n=20)
    assert draw(llama, n=20, max_rows=16) == together
    assert draw(llama, n=20, max_rows=19) == together


# wide enough for BLAS to change kernels with the number of rows
WIDE = {"vocab_size": 493, "hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**GROUPED | WIDE), GPTNeoXConfig(**COMMON | WIDE), Gemma2Config(**SMALL_HEADS | WIDE)],
    ids=lambda config: config.model_type,
)
def test_a_wide_models_samples_have_the_same_bits_for_any_rows_held_at_once(config):
    model = make(config, spread=3.0)
    tokens = np.random.default_rng(0).integers(3, 493, size=(6, 8)).tolist()
    prompts = [row[:length] for row, length in zip(tokens, (8, 5, 8, 7, 6, 8), strict=True)]
    together = draw(model, n=24, prompts=prompts, prompt_ids=list("abcdef"))
    assert len({tuple(each.token_ids) for samples in together for each in samples}) > 100
    for rows in (16, 100):
        assert draw(model, n=24, prompts=prompts, prompt_ids=list("abcdef"), max_rows=rows) == together
    assert [each[:2] for each in together] == draw(model, n=2, prompts=prompts, prompt_ids=list("abcdef"))


def test_more_samples_begin_with_the_fewer(llama):
    assert [each[:10] for each in draw(llama, n=40)] == draw(llama, n=10)


def test_other_seeds_and_other_prompt_ids_give_other_samples(llama):
    assert draw(llama, n=10) != draw(llama, n=10, seed=4)
    assert draw(llama, n=10) != draw(llama, n=10, prompt_ids=["f", "g", "h", "i", "j"])


def test_greedy_takes_the_likeliest_token_every_time(llama):
    samples = draw(llama, n=3, temperature=0.0)[1]
    ids = list(PROMPTS[1])
    with torch.no_grad():
        for token in samples[0].token_ids:
            assert token == int(llama(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
    assert samples[0] == samples[1] == samples[2]
    assert samples[0].logprob == 0.0
    assert samples[0].model_logprob < 0


@pytest.mark.parametrize("size", [5_000, 4_224])  # the last block full or not
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_wide_vocabulary_is_drawn_from_by_the_same_law(size, dtype, temperature):
    logits = (4 * torch.randn(3, size, generator=torch.Generator().manual_seed(0))).to(dtype)
    logits[0, 100:4_000] = -torch.inf
    row = np.repeat(np.arange(3), 2_000)
    uniform = np.concatenate([[0.0, np.nextafter(1.0, 0.0)], np.random.default_rng(0).random(5_998)])
    drawn = draw_tokens(logits, row, uniform, Decoding(temperature=temperature))
    law = torch.softmax(logits.double() / temperature, dim=-1).numpy()
    wanted = np.array([np.searchsorted(np.cumsum(law[r]), u, side="right") for r, u in zip(row, uniform, strict=True)])
    wanted[1] = np.flatnonzero(law[0])[-1]
    assert (drawn.token_S == wanted).mean() > 0.998  # all but what falls on an edge's rounding
    np.testing.assert_allclose(drawn.logprob_S, np.log(law[row, drawn.token_S]), atol=1e-6)
    model = torch.log_softmax(logits.double(), dim=-1).numpy()
    np.testing.assert_allclose(drawn.model_logprob_S, model[row, drawn.token_S], atol=1e-6)
    greedy = draw_tokens(logits, np.arange(3), np.zeros(3), Decoding(temperature=0))
    assert greedy.token_S.tolist() == logits.argmax(dim=-1).tolist()


def test_a_uniform_number_at_either_end_draws_no_token_outside_the_nucleus():
    logits = torch.tensor([[0.0, 5.0, 0.0]] * 2)
    drawn = draw_tokens(logits, np.arange(2), np.array([0.0, 1.0 - 2**-53]), Decoding(top_p=0.5))
    assert drawn.token_S.tolist() == [1, 1]
    assert drawn.logprob_S.tolist() == [0.0, 0.0]


def test_of_equally_likely_tokens_the_lowest_are_kept():
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0, 1.0]]).expand(1000, 5)
    drawn = draw_tokens(logits, np.arange(1000), (np.arange(1000) + 0.5) / 1000, Decoding(top_k=3))
    assert set(drawn.token_S.tolist()) == {0, 1, 2}
    drawn = draw_tokens(logits, np.arange(1000), (np.arange(1000) + 0.5) / 1000, Decoding(top_p=0.5))
    assert set(drawn.token_S.tolist()) == {0, 1}


def test_greedy_ties_go_to_the_lowest_token():
    drawn = draw_tokens(
        torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]]), np.arange(2), np.zeros(2), Decoding(temperature=0)
    )
    assert drawn.token_S.tolist() == [1, 0]


def test_a_stop_sequence_ends_a_sample_like_the_end_token(llama):
    plain = draw(llama, n=20)
    tokens = next(each.token_ids for each in plain[0] if len(each.token_ids) > 4)
    stop = tokens[2:4]
    cut = draw(llama, n=20, stop=[stop])
    found = 0
    for before, after in zip(itertools.chain(*plain), itertools.chain(*cut), strict=True):
        starts = [i for i in range(len(before.token_ids) - 1) if before.token_ids[i : i + 2] == stop]
        found += bool(starts)
        assert after.token_ids == (before.token_ids[: starts[0]] if starts else before.token_ids)
        assert after.finish == ("stop" if starts else before.finish)
    assert found


def test_of_two_stop_sequences_the_longer_is_cut_off(llama):
    plain = next(each for each in draw(llama, n=20)[0] if len(set(each.token_ids)) > 4)
    index = draw(llama, n=20)[0].index(plain)
    tokens = plain.token_ids
    where = next(i for i in range(1, len(tokens)) if tokens.index(tokens[i]) == i)
    stops = [tokens[where - 1 : where + 1], tokens[where : where + 1]]
    for order in (stops, stops[::-1]):
        assert draw(llama, n=20, stop=order)[0][index].token_ids == tokens[: where - 1]


def test_a_diverged_model_is_refused():
    model = make(CONFIGS["llama"])
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        draw(model)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        draw(make(CONFIGS["llama"]).train())


def test_a_model_without_an_attention_cache_is_refused():
    model = make(CONFIGS["qwen3"])
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="linear_attention"):
        draw(model)


def test_the_models_generation_config_is_not_read(llama):
    before = draw(llama)
    llama.generation_config.update(top_k=1, temperature=0.1, do_sample=True, max_new_tokens=1)
    assert draw(llama) == before


def test_log_probabilities_are_of_the_untruncated_model_and_of_the_decoding(llama):
    each = draw(llama, n=1, temperature=0.7, top_p=0.9)[0][0]
    ids = PROMPTS[0] + each.token_ids + ([EOS] if each.finish == "stop" else [])
    with torch.no_grad():
        logits = llama(torch.tensor([ids])).logits[0].double()
    logprobs = torch.log_softmax(logits, -1)
    start = len(PROMPTS[0])
    expected = sum(float(logprobs[position - 1, ids[position]]) for position in range(start, len(ids)))
    assert each.model_logprob == pytest.approx(expected, abs=1e-4)
    assert each.logprob > each.model_logprob


def test_a_grid_of_decodings_gives_what_each_alone_gives(llama):
    decodings = [Decoding(), Decoding(temperature=0.8, top_p=0.2), Decoding(temperature=0)]
    grid = sample_grid(llama, PROMPTS, 7, decodings, max_new_tokens=8, seed=3, prompt_ids=IDS, eos_token_id=EOS)
    assert grid == [draw(llama, n=7, **decoding.model_dump()) for decoding in decodings]


@pytest.mark.parametrize("grown", [0, 3])
def test_running_out_of_memory_halves_the_rows_and_changes_nothing(llama, monkeypatch, grown):
    expected = draw(llama, n=20)
    forward, refused = llama.forward, []

    def refuse_large(*args, input_ids, past_key_values, **kwargs):
        before = past_key_values.get_seq_length()
        out = forward(*args, input_ids=input_ids, past_key_values=past_key_values, **kwargs)
        if len(input_ids) > 24 and before >= max(map(len, PROMPTS)) + grown:
            refused.append(len(input_ids))
            raise torch.OutOfMemoryError
        return out

    monkeypatch.setattr(llama, "forward", refuse_large)
    assert draw(llama, n=20) == expected
    assert refused


def test_prompts_too_many_for_the_memory_are_read_in_halves(llama, monkeypatch):
    prompts = [[5, 6, token] for token in range(7, 30)]
    ids = [str(token) for token in range(7, 30)]
    expected = draw(llama, prompts=prompts, prompt_ids=ids)
    forward, refused = llama.forward, []

    def refuse_large(*args, input_ids, **kwargs):
        if len(input_ids) > 16 and input_ids.shape[1] > 1:
            refused.append(len(input_ids))
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:132] DefaultCPUAllocator: can't allocate memory")
        return forward(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(llama, "forward", refuse_large)
    for found, wanted in zip(draw(llama, prompts=prompts, prompt_ids=ids), expected, strict=True):
        assert [each.token_ids for each in found] == [each.token_ids for each in wanted]
        np.testing.assert_allclose([each.logprob for each in found], [each.logprob for each in wanted], atol=1e-3)
    assert refused


def test_other_errors_of_the_model_are_not_taken_for_lack_of_memory(llama, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(llama, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        draw(llama)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_k": 0}, {"max_new_tokens": 0}, {"prompt_ids": ["a"] * 5}]
)
def test_arguments_out_of_range_are_refused(llama, wrong):
    with pytest.raises(ValueError, match=r"need|must|Input should be"):
        draw(llama, **wrong)
