"""The cache's rows are split, moved and dropped in place as if each row were a list of its own."""

import numpy as np
import pytest
import torch

from engine.decode.kv_cache import KVRows
from engine.decode.sampler import sample


def column(values):
    """Keys [R, 1 head, 1 position, 1 wide] that hold the given numbers; values hold their negatives."""
    keys = torch.tensor(values, dtype=torch.float32)[:, None, None, None]
    return keys, -keys


def held(cache, rows, layer=0):
    keys, values = cache.layers[layer].keys, cache.layers[layer].values
    length = cache.get_seq_length(layer)
    assert torch.equal(keys[:rows, :, :length], -values[:rows, :, :length])
    return keys[:rows, 0, :length, 0].tolist()


def test_rows_split_and_vanish_like_lists():
    rng = np.random.default_rng(0)
    cache, number = KVRows(), iter(range(10_000))
    rows = [[next(number)] for _ in range(3)]
    for layer in (0, 1):
        cache.update(*column([row[-1] for row in rows]), layer)
    for step in range(60):
        count = int(rng.integers(1, 40))
        parents = np.sort(rng.integers(0, len(rows), size=count))
        places = cache.arrange(parents)
        assert sorted(places) == list(range(count))
        arranged = [[] for _ in range(count)]
        for parent, place in zip(parents, places, strict=True):
            arranged[place] = [*rows[parent], next(number)]
        rows = arranged
        for layer in (0, 1):
            cache.update(*column([row[-1] for row in rows]), layer)
            assert held(cache, count, layer) == rows, step


def test_rows_taken_leave_the_cache_as_it_was():
    cache = KVRows()
    cache.update(*column([1, 2, 3]), 0)
    taken = cache.taken(np.array([2, 0, 2]))
    taken.update(*column([4, 5, 6]), 0)
    assert held(taken, 3) == [[3, 4], [1, 5], [3, 6]]
    assert held(cache, 3) == [[1], [2], [3]]


def test_a_step_cut_off_can_be_made_again():
    cache = KVRows()
    for values in ([1, 2, 3], [4, 5, 6]):
        for layer in (0, 1):
            cache.update(*column(values), layer)
    parents = np.array([1, 1, 2, 2, 2])
    cache.arrange(parents)
    cache.update(*column([7, 7, 7, 7, 7]), 0)  # the second layer is never reached
    cache.truncate(2)
    again = cache.taken(parents)
    for layer in (0, 1):
        assert held(again, 5, layer) == [[2, 5], [2, 5], [3, 6], [3, 6], [3, 6]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_first_tokens_follow_the_models_softmax(dtype):
    from scipy import stats
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=37, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    model = AutoModelForCausalLM.from_config(config).to("cuda", dtype).eval()
    prompts, n = [[5, 6, 7], [8, 9, 10, 11, 12]], 20_000
    drawn = sample(model, prompts, n, max_new_tokens=3, prompt_ids=["a", "b"], eos_token_id=1, max_rows=64)
    for prompt, samples in zip(prompts, drawn, strict=True):
        with torch.no_grad():
            probs = torch.softmax(model(torch.tensor([prompt], device="cuda")).logits[0, -1].double(), -1).cpu().numpy()
        counts = np.bincount([each.token_ids[0] if each.token_ids else 1 for each in samples], minlength=37)
        assert stats.chisquare(counts, n * probs / probs.sum()).pvalue > 1e-3
