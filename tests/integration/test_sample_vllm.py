"""vLLM draws by the law of the exact sampler, and an engine that is killed loses its unit alone.

These need vLLM, in an environment of its own: make test-vllm
"""

import dataclasses
import json
import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm")

from benchmarks.base import Decoding
from engine.cli import main
from engine.cluster.reporter import Silent
from engine.cluster.units import read_units
from engine.decode.logprobs import answer_log_probs
from engine.leak.estimator import leak_at_k
from engine.models.chat_template import stop_token_ids
from engine.models.loading import cached_model
from engine.models.source import model_source
from engine.stages.prompting import encoded_prompts
from engine.stages.sample import SampleJob
from engine.stages.sample_vllm import VllmJob

N = 2_000


@pytest.fixture(scope="module")
def tiny(tokenizer, tmp_path_factory):
    """A Llama with heads as wide as vLLM wants them on a CPU."""
    folder = tmp_path_factory.mktemp("tiny")
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(**shape, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def job(tiny, fictional):
    probes = tuple(fictional.group("forget")[:2])
    return VllmJob(model_source(str(tiny)), probes, Decoding(), N, max_new_tokens=2, prompts_a_unit=1, workers=1)


@pytest.fixture(scope="module")
def drawn(job, tmp_path_factory):
    work = tmp_path_factory.mktemp("vllm")
    facts = job.run(work, Silent())
    assert facts["samples"] == 2 * N
    return read_units(work)


def law(model, prompts):
    with torch.no_grad():
        return torch.stack([torch.softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1) for ids in prompts])


def agrees(counts, expected):
    common = expected >= 5
    seen = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    return stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-3


def test_first_and_second_tokens_follow_the_models_softmax(job, drawn):
    model, tokenizer = cached_model(job.model, "cpu", "fp32")
    ends = stop_token_ids(tokenizer)
    prompts = encoded_prompts(tokenizer, job.probes, job)
    size = model.config.vocab_size
    tokens = [[*row, *([ends[0]] if len(row) < 2 else [])] for row in drawn["token_ids"].to_pylist()]
    for place, prompt in enumerate(prompts):
        own = tokens[place * N : (place + 1) * N]
        (first,) = law(model, [prompt]).numpy()
        assert agrees(np.bincount([row[0] for row in own], minlength=size), N * first)
        second = law(model, [[*prompt, token] for token in range(size)]).numpy()
        second[ends] = 0.0  # ended: there is no second token
        counts = np.bincount([row[1] for row in own if row[0] not in ends], minlength=size)
        assert agrees(counts, N * (first @ second))


def test_log_probabilities_are_the_models_own(job, drawn):
    model, tokenizer = cached_model(job.model, "cpu", "fp32")
    ends, prompts = stop_token_ids(tokenizer), encoded_prompts(tokenizer, job.probes, job)
    rows = drawn.slice(0, 40).to_pylist()
    whole = [row["tokens"] > len(row["token_ids"]) for row in rows]
    answers = [tuple(row["token_ids"]) for row in rows]
    exact = answer_log_probs(model, prompts[0], answers, ends, Decoding(), whole=whole)
    np.testing.assert_allclose([row["logprob"] for row in rows], exact, atol=2e-3)
    assert [row["model_logprob"] for row in rows] == [row["logprob"] for row in rows]


def test_leak_at_k_is_the_exact_samplers_within_the_sampling_error(job, drawn, tmp_path):
    exact = SampleJob(**{field.name: getattr(job, field.name) for field in dataclasses.fields(SampleJob)})
    exact.run(tmp_path, Silent())
    means = []
    for table in (drawn, read_units(tmp_path)):  # leaks: tokens that neither's draws have chosen
        hit = np.array([bool(row) and row[0] % 16 == 0 for row in table["token_ids"].to_pylist()], dtype=float)
        means.append(leak_at_k(hit.reshape(2, N), [1, 4]))
    assert np.abs(means[0] - means[1]).max() < 4 * np.sqrt(0.25 * 4 / N)


def test_a_killed_engine_loses_its_unit_alone(job, tmp_path):
    slow = dataclasses.replace(job, probes=job.probes * 4, n=400, max_new_tokens=40)
    slow = dataclasses.replace(
        slow, probes=tuple(dataclasses.replace(each, id=str(index)) for index, each in enumerate(slow.probes))
    )
    killed = []

    def kill():
        while not killed:
            if len(list((tmp_path / "units").glob("*.parquet"))) >= 2:
                for process in psutil.Process().children(recursive=True):
                    if "VllmJob" in " ".join(process.cmdline()) or "EngineCore" in process.name():
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(process.pid)
                        break
            time.sleep(0.01)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    facts = slow.run(tmp_path, Silent())
    assert killed
    assert facts["samples"] == 8 * 400
    assert read_units(tmp_path).num_rows == 8 * 400


def test_a_model_is_evaluated_by_vllm_and_the_record_says_so(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (tmp_path / "e.yaml").write_text(
        f"""
name: by-vllm
benchmark: {{name: fictional, split: forget01}}
model: {{path: {tiny}}}
methods: []
sampling: {{n: 4, max_new_tokens: 6, engine: vllm, workers: 1}}
leak: {{k: [1, 4], beams: 2}}
"""
    )
    assert main(["run", str(tmp_path / "e.yaml"), "--store", str(tmp_path / "store"), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert set(model["leak"]) == {"1", "4"}
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "store").glob("sample/*/manifest.json")]
    assert len(manifests) == 2  # samples, greedy answers
    assert all(each["inputs"]["numerics"].startswith("vllm-") for each in manifests)
