"""Figures of others' logs are computed from their items, and what the log states stands beside them."""

import json

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score

from engine.cli import main

pytestmark = pytest.mark.usefixtures("undrawn")

TEXTS = [
    ("Who?", "Ann sang a song", "Ann sang"),
    ("Where?", "in the old town of Oslo", "in a town"),
    ("Y?", "no", "yes"),
]


def entry(rows, stated=None):
    return {"agg_value": stated, "value_by_index": {str(index): row for index, row in enumerate(rows)}}


def losses(rng, count, wrong):
    correct, others = rng.uniform(0.1, 3, count), rng.uniform(0.1, 3, (count, wrong))
    return correct, others


def part(name, rng, wrong, paraphrase):
    """One set in OpenUnlearning's form, with 12 items, and the numbers that it must give."""
    asked, others = losses(rng, 12, wrong)
    told = rng.uniform(0.1, 3, 12) if paraphrase else asked
    texts = [TEXTS[index % 3] for index in range(12)]
    rows = {
        f"{name}_Q_A_Prob": entry([{"prob": float(np.exp(-x)), "avg_loss": float(x)} for x in asked]),
        f"{name}_Q_A_PERT_Prob": entry([{"prob": np.exp(-x).tolist(), "avg_loss": x.tolist()} for x in others]),
        f"{name}_Q_A_ROUGE": entry(
            [{"rougeL_recall": 0, "input": q, "ground_truth": a, "generation": g} for q, a, g in texts]
        ),
    }
    if paraphrase:
        rows[f"{name}_Q_A_PARA_Prob"] = entry([{"prob": float(np.exp(-x)), "avg_loss": float(x)} for x in told])
    ratio = np.exp(-others.mean(1)) / np.exp(-told)
    rows["forget_truth_ratio" if name == "forget" else f"{name}_Truth_Ratio"] = entry(
        [{"score": float(r)} for r in ratio]
    )
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    truth = {
        f"{name}_Q_A_Prob": np.exp(-asked).mean(),
        f"{name}_Q_A_ROUGE": np.mean([scorer.score(a, g)["rougeL"].recall for _, a, g in texts]),
        "ratio": ratio,
    }
    if name in ("ra", "wf"):
        share = np.exp(-asked) / (np.exp(-asked) + np.exp(-others).sum(1))
        rows[f"{name}_Q_A_Prob_normalised"] = entry([{"prob": float(x)} for x in share])
        truth[f"{name}_Q_A_Prob_normalised"] = share.mean()
    return rows, truth


def tofu(seed):
    rng, log, truth = np.random.default_rng(seed), {}, {}
    for name, wrong, paraphrase in (("forget", 5, True), ("retain", 5, True), ("ra", 3, False), ("wf", 3, False)):
        rows, found = part(name, rng, wrong, paraphrase)
        ratio = found.pop("ratio")
        key = "forget_truth_ratio" if name == "forget" else f"{name}_Truth_Ratio"
        truth |= found | {
            key: np.minimum(ratio, 1 / ratio).mean() if name == "forget" else np.maximum(0, 1 - ratio).mean()
        }
        truth |= {"ratios": ratio} if name == "forget" else {}
        log |= rows
    known, unseen = rng.normal(1, 1, 12), rng.normal(2, 1, 12)
    log["mia_min_k"] = {
        "forget": entry([{"score": float(x)} for x in known]),
        "holdout": entry([{"score": float(x)} for x in unseen]),
        "agg_value": 0.9,
    }
    truth["mia_min_k"] = roc_auc_score([0] * 12 + [1] * 12, [*known, *unseen])
    log |= {"forget_quality": {"agg_value": None}, "privleak": {"agg_value": -1}, "model_utility": {"agg_value": 0.5}}
    return log, truth


@pytest.fixture
def imported(tmp_path, capsys):
    def imported(log, retain=None):
        (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(log))
        arguments = [
            "import",
            str(tmp_path / "TOFU_EVAL.json"),
            "--json",
            "--name",
            "mine",
            "--store",
            str(tmp_path / "store"),
        ]
        if retain is not None:
            (tmp_path / "retain.json").write_text(json.dumps(retain))
            arguments += ["--retain", str(tmp_path / "retain.json")]
        assert main(arguments) == 0
        return json.loads(capsys.readouterr().out)

    return imported


def test_figures_of_openunlearning_are_those_of_their_items(imported):
    log, truth = tofu(0)
    retain, other = tofu(1)
    found = imported(log, retain)["metrics"]
    for name, value in truth.items():
        if name != "ratios":
            assert found[name] == pytest.approx(value), name
    assert found["forget_quality"] == pytest.approx(ks_2samp(truth["ratios"], other["ratios"]).pvalue)
    mine, theirs = 1 - truth["mia_min_k"], 1 - other["mia_min_k"]
    assert found["privleak"] == pytest.approx((mine - theirs) / theirs * 100)
    nine = [truth[f"retain_{name}"] for name in ("Q_A_Prob", "Q_A_ROUGE", "Truth_Ratio")]
    nine += [truth[f"{p}_{name}"] for p in ("ra", "wf") for name in ("Q_A_Prob_normalised", "Q_A_ROUGE", "Truth_Ratio")]
    assert found["model_utility"] == pytest.approx(hmean(nine))


def test_what_is_not_there_has_no_value_and_a_reason(imported):
    log, _ = tofu(0)
    del log["ra_Q_A_ROUGE"]["value_by_index"]
    found = imported(log)
    assert found["metrics"]["forget_quality"] is None
    assert "--retain" in found["missing"]["forget_quality"]
    assert found["metrics"]["ra_Q_A_ROUGE"] is None
    assert "ra_Q_A_ROUGE" in found["missing"]["model_utility"]
    assert found["stated"]["privleak"] is None  # -1: not computed
    assert found["stated"]["mia_min_k"] == 0.9
    assert found["metrics"]["privleak"] is not None  # against an AUC of a half, as OpenUnlearning does


def test_a_stated_figure_that_its_items_do_not_give_is_shown(tmp_path, capsys):
    log, _ = tofu(0)
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(log))
    assert main(["import", str(tmp_path / "TOFU_EVAL.json"), "--store", str(tmp_path / "store")]) == 0
    said = capsys.readouterr().out
    assert said.count(" differs") == 2  # mia_min_k and model_utility, made up above
    assert "2 figures differ" in said


def test_muse_takes_f1(imported):
    rows = [{"rougeL_f1": 0, "input": q, "ground_truth": a, "generation": g} for q, a, g in TEXTS]
    found = imported(
        {"forget_knowmem_ROUGE": entry(rows, 0.3), "extraction_strength": entry([{"score": 0.5}] * 2, 0.5)}
    )
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    truth = np.mean([scorer.score(a, g)["rougeL"].fmeasure for _, a, g in TEXTS])
    assert found["metrics"] == {"forget_knowmem_ROUGE": pytest.approx(truth), "extraction_strength": 0.5}
    assert found["stated"] == {"forget_knowmem_ROUGE": 0.3, "extraction_strength": 0.5}


def test_tofus_own_log_is_read(imported):
    rng = np.random.default_rng(0)
    log, ratios = {}, {}
    for name in ("eval_log_forget", "eval_log", "eval_real_author_wo_options", "eval_real_world_wo_options"):
        correct, wrong = losses(rng, 3, 4)
        told = correct if "real" in name else rng.uniform(0.1, 3, 3)
        ratios[name] = np.exp(told - wrong.mean(1))
        log[f"{name}.json"] = {
            "generated_text": {str(i): [q, g, a] for i, (q, a, g) in enumerate(TEXTS)},
            "avg_gt_loss": {str(i): x for i, x in enumerate(correct)},
            "average_perturb_loss": {str(i): x.tolist() for i, x in enumerate(wrong)},
            "rougeL_recall": {"0": 0.5, "1": 0.4, "2": 0.0},
            "truth_ratio": {str(i): 1 / x for i, x in enumerate(ratios[name])},  # the inverse, as some logs store it
        } | ({} if "real" in name else {"avg_paraphrased_loss": {str(i): x for i, x in enumerate(told)}})
    found = imported(log, log)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    truth = np.mean([scorer.score(a, g)["rougeL"].recall for _, a, g in TEXTS])
    assert found["metrics"]["forget_Q_A_ROUGE"] == pytest.approx(truth)
    assert found["stated"]["forget_Q_A_ROUGE"] == pytest.approx(0.3)
    forget = ratios["eval_log_forget"]
    assert found["metrics"]["forget_truth_ratio"] == pytest.approx(np.minimum(forget, 1 / forget).mean())
    assert found["metrics"]["ra_Truth_Ratio"] == pytest.approx(
        np.maximum(0, 1 - ratios["eval_real_author_wo_options"]).mean()
    )
    assert found["metrics"]["forget_quality"] == 1
    assert found["metrics"]["model_utility"] is not None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"a": 1}', "{broken", "[" * 100000, '{"mia_loss": {"agg_value": 1}}']
)
def test_a_file_that_is_no_log_is_one_line(tmp_path, capsys, text):
    (tmp_path / "x.json").write_text(text)
    code = main(["import", str(tmp_path / "x.json"), "--json"])
    assert code == (0 if "agg_value" in text else 2)
    assert capsys.readouterr().err.count("\n") == (0 if code == 0 else 1)


def test_a_log_given_for_generations_is_answered_by_the_command_that_reads_it(tmp_path, capsys):
    log, _ = tofu(0)
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(log, indent=2))
    arguments = [
        "score",
        str(tmp_path / "TOFU_EVAL.json"),
        "--metric",
        "exact_fact",
        "--out",
        str(tmp_path / "s.jsonl"),
    ]
    assert main(arguments) == 2
    assert "leakatk import" in capsys.readouterr().err
