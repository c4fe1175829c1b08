"""`leakatk evaluate` on a few real TOFU authors: its table agrees with plain forward passes of the same model."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import BENCHMARKS
from engine.cli import main
from tests.conftest import TOFU

pytestmark = pytest.mark.skipif(not TOFU.is_dir(), reason=f"needs the TOFU data in {TOFU}")
OPTIONS = {"path": str(TOFU), "split": "forget10", "limit_authors": 2, "core_metric": "rouge_l_recall"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def tofu():
    return BENCHMARKS["tofu"].load(**OPTIONS)


@pytest.fixture(scope="module")
def tokenizer(tofu):
    """A byte-pair tokenizer of its own for the kept authors; no chat template, so prompts are plain."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([f"{each.question} {each.answer}" for each in tofu.forget + tofu.retain], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="module")
def models(folder, tokenizer):
    """Two random models with opinions: (target, retain)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    found = {}
    for seed, name in enumerate(("target", "retain")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            bos_token_id=None, eos_token_id=1, pad_token_id=0, initializer_range=0.3,
        )  # fmt: skip
        found[name] = LlamaForCausalLM(config).eval()
        found[name].save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return found


def evaluate(folder, capsys, *arguments):
    options = [f"--set=benchmark.{key}={value}" for key, value in OPTIONS.items()]
    sizes = ["--set=sampling.n=4", "--set=sampling.max_new_tokens=6"]
    command = ["evaluate", "--model", str(folder / "target"), "--benchmark", "tofu", "--store", str(folder / "store")]
    assert main([*command, *options, *sizes, *arguments]) == 0
    return capsys.readouterr().out


@pytest.fixture
def rows(folder, models, capsys):
    out = evaluate(folder, capsys, "--retain", str(folder / "retain"), "--json")
    return {row["name"]: row for row in json.loads(out)["models"]}


def nll(model, tokenizer, question, answer):
    """Mean negative log-likelihood of the answer and its end, the prompt in the form of base models."""
    prompt = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
    answer = [*tokenizer(f" {answer}")["input_ids"], tokenizer.eos_token_id]
    with torch.inference_mode():
        logprobs = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return -float(np.mean([logprobs[len(prompt) + t - 1, token] for t, token in enumerate(answer)]))


def ratios(model, tokenizer, probes):
    found = []
    for probe in probes:
        wrong = [nll(model, tokenizer, probe.prompt, answer) for answer in probe.wrong_answers]
        right = nll(model, tokenizer, probe.prompt, probe.paraphrased_answer or probe.reference)
        found.append(math.exp(-np.mean(wrong)) / math.exp(-right))
    return found


def test_the_table_agrees_with_plain_forward_passes(rows, tofu, tokenizer, models):
    metrics, forget = rows["model"]["metrics"], tofu.group("forget")
    own, retain = (ratios(models[name], tokenizer, forget) for name in ("target", "retain"))
    assert metrics["truth_ratio.forget"] == pytest.approx(np.mean([min(r, 1 / r) for r in own]), rel=1e-4)
    assert metrics["forget_quality"] == pytest.approx(stats.ks_2samp(own, retain).pvalue)
    probabilities = []
    for probe in tofu.group("world_facts"):
        each = [math.exp(-nll(models["target"], tokenizer, probe.prompt, a))
                for a in (probe.reference, *probe.wrong_answers)]  # fmt: skip
        probabilities.append(each[0] / sum(each))
    assert metrics["probability.world_facts"] == pytest.approx(np.mean(probabilities), rel=1e-4)
    losses = [[nll(models["target"], tokenizer, each.question, each.answer) for each in side]
              for side in (tofu.members, tofu.holdout)]  # fmt: skip
    assert metrics["mia_loss"] == pytest.approx(np.mean([[a < b for b in losses[1]] for a in losses[0]]))


def test_utility_is_model_utility_and_nothing_is_missing(rows):
    for row in rows.values():
        assert row["missing"] == {}
        assert all(value is not None for value in row["metrics"].values())
        assert row["utility"] == row["metrics"]["model_utility"]
    assert rows["retain"]["metrics"]["forget_quality"] == 1
    assert rows["retain"]["metrics"]["privleak"] == 0


def test_a_row_says_where_its_items_stand(folder, rows):
    stages = rows["model"]["stages"]
    assert {"generations greedy", "scores greedy rouge_l_recall", "likelihoods"} <= set(stages)
    for name in ("generations greedy", "likelihoods"):
        assert list((folder / "store" / stages[name]).glob("units/*.parquet"))


def test_without_a_retain_model_the_table_says_what_lacks_and_computes_nothing_again(folder, rows, capsys):
    before = sorted((folder / "store" / "likelihood").glob("*/manifest.json"))
    out = evaluate(folder, capsys)
    assert "metrics of tofu" in out
    reason = "no forget_quality, forget_quality_log10, mia_reference, privleak, excess: needs a retain model"
    assert reason in out.replace("\n", " ")
    assert sorted((folder / "store" / "likelihood").glob("*/manifest.json")) == before
    assert len(before) == 2


def test_the_greedy_protocol_is_the_same_table_from_one_answer_a_prompt(folder, rows, capsys):
    options = ("--retain", str(folder / "retain"), "--set=sampling.decoding=greedy", "--json")
    target, retain = json.loads(evaluate(folder, capsys, *options))["models"]
    assert target["metrics"] == rows["model"]["metrics"]
    assert retain["missing"] == {}
    assert list(target["leak"]) == list(target["excess"]) == ["1"]
    assert target["leak"]["1"][0] == pytest.approx(target["greedy"]) == rows["model"]["greedy"]
    assert target["excess"]["1"][0] == pytest.approx(target["greedy"] - retain["greedy"])


def test_report_and_mlflow_hold_the_metrics(folder, rows):
    from mlflow import MlflowClient

    run = next(each for each in (folder / "store" / "runs").iterdir() if "retain" in (each / "report.html").read_text())
    assert "The metrics of tofu beside leak@k" in (run / "report.html").read_text()
    client = MlflowClient(f"sqlite:///{folder / 'store' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("leakatk").experiment_id
    recorded = client.search_runs([experiment], "tags.`mlflow.runName` = 'model'")
    qualities = {each.data.metrics.get("forget_quality") for each in recorded}
    assert rows["model"]["metrics"]["forget_quality"] in qualities
