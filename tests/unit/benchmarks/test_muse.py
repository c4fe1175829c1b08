"""MUSE in the hub's layout: prompts to the letter of its own code, and one clear line for what is missing."""

import json

import pytest
from rouge_score.rouge_scorer import RougeScorer

from benchmarks import BENCHMARKS
from engine.errors import UserError
from engine.metrics import score
from engine.pipeline.unlearning_requests import split_requests
from engine.stages.answer_texts import texts
from engine.stages.prompting import reference_of
from tests.hub import write_hub, write_muse


@pytest.fixture(scope="module")
def muse(tmp_path_factory):
    return BENCHMARKS["muse"].load(path=write_muse(tmp_path_factory.mktemp("muse")))


def test_parquet_holds_what_json_lines_hold(muse, tmp_path):
    again = BENCHMARKS["muse"].load(path=write_muse(tmp_path, parquet=True))
    for part in ("forget", "retain", "finetune_retain", "members", "holdout", "probes"):
        assert getattr(again, part) == getattr(muse, part) != []


def test_knowmem_questions_stand_behind_the_data_sets_own_examples(muse):
    assert muse.group("forget_knowmem")[1].prompt == (
        "Question: What is forget example 0?\nAnswer: the forget example 0\n\n"
        "Question: What is forget example 1?\nAnswer: the forget example 1\n\n"
        "Question: What is forget 1?\nAnswer: "
    )
    assert muse.group("retain_knowmem")[0].prompt == (
        "Question: What is retain example 0?\nAnswer: the retain example 0\n\nQuestion: What is retain 0?\nAnswer: "
    )


def test_each_group_has_its_own_length_and_no_template(muse):
    lengths = {probe.group: probe.max_new_tokens for probe in muse.probes}
    assert lengths == {"forget_knowmem": 32, "forget_verbmem": 128, "retain_knowmem": 32}
    assert all(probe.raw for probe in muse.probes)
    assert len({probe.id for probe in muse.probes}) == len(muse.probes) == 6


def test_what_is_trained_on_is_running_text(muse):
    assert [each.question for each in muse.forget + muse.retain] == [""] * 6
    assert {each.answer.split()[1] for each in muse.forget} == {"forget"}
    assert {each.answer.split()[1] for each in muse.retain} == {"retain1"}
    assert {each.answer.split()[1] for each in muse.finetune_retain} == {"retain1", "retain2"}


def test_privleak_tells_texts_of_the_forget_set_from_unseen_ones(muse):
    assert {each.answer.split()[1] for each in muse.members} == {"forget"}
    assert {each.answer.split()[1] for each in muse.holdout} == {"holdout"}
    assert [each.question for each in muse.members + muse.holdout] == [""] * 6
    assert len({each.id for each in muse.members + muse.holdout + muse.forget}) == 9
    assert muse.protocol.attacks == ("min_k",)


@pytest.mark.parametrize(("corpus", "logged"), [("news", 0.4772), ("books", 0.5393)])
def test_privleak_against_the_published_retain_model_is_muses_own_formula(muse, corpus, logged):
    """MUSE's AUC is 1 where the forget set looks unseen; a target model that knows every text has 0, and -100 %."""
    from benchmarks.muse import PUBLISHED_AUC
    from engine.metrics.privacy import privleak

    for muses_auc in (0.0, 0.3, 0.9):
        expected = 100 * (muses_auc - logged) / logged
        assert privleak(1 - muses_auc, PUBLISHED_AUC[corpus]) == pytest.approx(expected)


def test_larger_and_successive_forget_sets_are_read_by_option(muse, tmp_path):
    path = write_muse(tmp_path)
    scal = BENCHMARKS["muse"].load(path=path, forget="scal", folds=3)
    assert [each.id for each in scal.forget] == [f"scal/forget_3/{index}" for index in range(3)]
    sust = BENCHMARKS["muse"].load(path=path, forget="sust", folds=2, attacks=[])
    assert [each.answer.split()[1] for each in sust.forget] == ["forget_1"] * 3 + ["forget_2"] * 3
    assert [probe.prompt for probe in sust.probes] == [probe.prompt for probe in muse.probes]
    assert (muse.protocol.requests, scal.protocol.requests, sust.protocol.requests) == (None, None, (3, 3))
    assert sust.holdout == []
    parts = split_requests(sust, sust.protocol.requests)
    assert [[each.answer.split()[1] for each in part] for part in parts.examples] == [
        ["forget_1"] * 3,
        ["forget_2"] * 3,
    ]
    assert set(parts.of_probe.values()) == {0}


def test_muses_own_metrics_are_greedy_rouge_of_each_group(muse):
    from engine.evaluation.benchmark_metrics import benchmark_metrics

    groups = {"forget_knowmem": 0.5, "forget_verbmem": 0.25, "retain_knowmem": 0.75}
    values, missing = benchmark_metrics(muse, {muse.protocol.core_metric: groups}, None, None)
    assert values["knowmem.forget"] == 0.5
    assert values["verbmem.forget"] == 0.25
    assert values["knowmem.retain"] == 0.75
    assert set(missing) == {"mia_min_k", "privleak", "privleak_published"}


def test_the_stemmer_is_off_as_in_muses_code_and_on_by_option(muse, tmp_path):
    pair = ["he was running home"], ["they run home"]
    ours = score(muse.protocol.core_metric, *pair)
    assert ours == [RougeScorer(["rougeL"], use_stemmer=False).score(pair[1][0], pair[0][0])["rougeL"].fmeasure]
    stemmed = BENCHMARKS["muse"].load(path=write_muse(tmp_path), stemmer=True)
    ours = score(stemmed.protocol.core_metric, *pair)
    assert ours == [RougeScorer(["rougeL"], use_stemmer=True).score(pair[1][0], pair[0][0])["rougeL"].fmeasure]


class Letters:
    """A tokenizer whose tokens are letters."""

    def __call__(self, text):
        return {"input_ids": list(map(ord, text))}

    def decode(self, ids, **_):
        return "".join(map(chr, ids))

    def batch_decode(self, rows, **_):
        return [self.decode(ids) for ids in rows]


def test_a_beginning_is_scored_against_as_much_text_as_may_be_sampled(muse):
    (verbmem,) = muse.group("forget_verbmem")
    assert reference_of(verbmem, Letters(), 200) == verbmem.reference[:128]
    assert reference_of(verbmem, Letters(), 20) == verbmem.reference[:20]
    knowmem = muse.group("forget_knowmem")[0]
    assert reference_of(knowmem, Letters(), 3) == knowmem.reference


def muses_own_cut(string, words=("\n\n", "\nQuestion", "Question:")):
    for word in words:
        string = string.split(word)[0]
    return string


@pytest.mark.parametrize(
    "text", ["159 pounds\n\nQuestion: who?", "159\nQuestion: who?\n\n", "a Question: b\n\nc", "no end", "\n\n", ""]
)
def test_an_answer_ends_where_muses_code_ends_it(muse, text):
    from engine.decode.sampler import Sample

    stop = muse.group("forget_knowmem")[0].stop
    sample = Sample(list(map(ord, text)), -1.0, -1.0, "length", len(text))
    assert texts([sample, sample], Letters(), [stop, ()]) == [muses_own_cut(text), text]


def test_a_missing_config_split_or_column_is_named(tmp_path):
    raw = {"raw": {"forget": [{"text": "t"}]}}
    with pytest.raises(UserError, match=r"raw.*retain1"):
        BENCHMARKS["muse"].load(path=write_hub(tmp_path / "a", raw))
    raw["raw"]["retain1"] = [{"text": "t"}]
    with pytest.raises(UserError, match="no config 'knowmem'; found raw"):
        BENCHMARKS["muse"].load(path=write_hub(tmp_path / "b", raw))
    raw["raw"]["forget"] = [{"text": "t"}, {"text": None}]
    with pytest.raises(UserError, match="row 1 has nothing in column text"):
        BENCHMARKS["muse"].load(path=write_hub(tmp_path / "d", raw))
    folder = write_muse(tmp_path / "c")
    (tmp_path / "c" / "verbmem-forget.jsonl").write_text(json.dumps({"prompt": "p"}))
    with pytest.raises(UserError, match="'verbmem' has no column gt; found prompt"):
        BENCHMARKS["muse"].load(path=folder)
