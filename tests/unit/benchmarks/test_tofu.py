"""TOFU as the hub has it: sizes, ids, groups; and one clear line for data that is not whole."""

import json

import pytest
from pydantic import ValidationError

from benchmarks import BENCHMARKS
from engine.errors import UserError
from tests.conftest import TOFU

real = pytest.mark.skipif(not TOFU.is_dir(), reason=f"needs the TOFU data in {TOFU}")


@pytest.fixture(scope="module")
def forget10():
    return BENCHMARKS["tofu"].load(path=str(TOFU), split="forget10")


@real
def test_sizes_are_the_published_ones(forget10):
    assert (len(forget10.forget), len(forget10.retain)) == (400, 3600)
    sizes = {group: len(forget10.group(group)) for group in dict.fromkeys(probe.group for probe in forget10.probes)}
    assert sizes == {"forget": 400, "forget_paraphrase": 400, "retain": 400, "real_authors": 100, "world_facts": 117}


@real
def test_every_probe_and_example_has_an_id_of_its_own(forget10):
    assert len({probe.id for probe in forget10.probes}) == len(forget10.probes)
    assert len({each.id for each in forget10.forget + forget10.retain}) == 4000


@real
def test_twenty_questions_in_a_row_and_their_paraphrases_are_one_author(forget10):
    for group in ("forget", "forget_paraphrase"):
        probes = forget10.group(group)
        assert [probe.cluster for probe in probes] == [f"author{180 + index // 20}" for index in range(400)]
    answers = [probe.reference for probe in forget10.group("forget") if probe.cluster == "author180"]
    assert sum("Hsiao" in answer for answer in answers) > 10  # the author of the first twenty rows
    assert {probe.cluster for probe in forget10.group("world_facts")} == {None}


@real
def test_paraphrases_ask_otherwise_for_the_same_answer(forget10):
    for question, paraphrase in zip(forget10.group("forget"), forget10.group("forget_paraphrase"), strict=True):
        assert question.prompt != paraphrase.prompt
        assert question.reference == paraphrase.reference


@real
def test_forget_and_retain_set_share_no_author(forget10):
    full = [json.loads(line) for line in (TOFU / "full.json").read_text().splitlines()]
    assert [each.question for each in forget10.forget] == [row["question"] for row in full[-400:]]
    assert [each.question for each in forget10.retain] == [row["question"] for row in full[:3600]]


@real
def test_truth_ratios_have_their_answers(forget10):
    sizes = {"forget": 5, "retain": 5, "real_authors": 3, "world_facts": 3, "forget_paraphrase": 0}
    for group, size in sizes.items():
        assert {len(probe.wrong_answers) for probe in forget10.group(group)} == {size}
    first = forget10.group("forget")[0]
    assert first.paraphrased_answer == "Hsiao Yun-Hwa is the complete name of the writer."
    assert first.wrong_answers[0] == "Chen Jing-Li is the complete name of the writer."
    assert forget10.group("real_authors")[0].paraphrased_answer is None


@real
def test_membership_inference_has_as_many_unseen_questions(forget10):
    assert len(forget10.members) == len(forget10.holdout) == 400
    assert not {each.question for each in forget10.holdout} & {each.question for each in forget10.forget}
    assert BENCHMARKS["tofu"].load(path=str(TOFU), attacks=[]).holdout == []


@real
def test_fewer_authors_keep_the_shape(forget10):
    small = BENCHMARKS["tofu"].load(path=str(TOFU), limit_authors=40)
    assert (len(small.forget), len(small.retain), len(small.holdout)) == (4 * 20, 36 * 20, 4 * 20)
    assert small.retain == forget10.retain[: 36 * 20]
    assert set(small.forget) < set(forget10.forget)
    sizes = [len(small.group(group)) for group in ("forget", "forget_paraphrase", "retain")]
    assert sizes == [80, 80, 400]
    assert (len(small.group("real_authors")), len(small.group("world_facts"))) == (20, 24)
    assert {probe.prompt for probe in small.group("retain")} <= {each.question for each in small.retain}
    assert len(BENCHMARKS["tofu"].load(path=str(TOFU), limit_authors=2, split="forget01").forget) == 20


@real
def test_more_authors_may_be_forgotten_than_the_splits_share_of_few(forget10):
    options = {"path": str(TOFU), "limit_authors": 12, "attacks": []}
    some = BENCHMARKS["tofu"].load(**options, forget_authors=4)
    assert (some.forget, some.retain) == (forget10.forget[:80], forget10.retain[:160])
    assert {probe.cluster for probe in some.group("forget_paraphrase")} == {f"author{180 + each}" for each in range(4)}
    whole = BENCHMARKS["tofu"].load(path=str(TOFU), attacks=[], forget_authors=20)
    assert (whole.forget, whole.retain) == (forget10.forget, forget10.retain)


@pytest.mark.parametrize("options", [{"forget_authors": 21}, {"forget_authors": 4, "limit_authors": 4}])
def test_more_authors_to_forget_than_there_are_are_refused(options):
    with pytest.raises(ValidationError, match="forget_authors: at most the 20 of forget10"):
        BENCHMARKS["tofu"].load(path="tofu", **options)


@real
def test_a_model_trained_here_may_learn_the_paraphrases_of_the_authors_that_are_kept():
    options = {"path": str(TOFU), "limit_authors": 10, "attacks": []}
    plain = BENCHMARKS["tofu"].load(**options)
    both = BENCHMARKS["tofu"].load(**options, learn_paraphrases=True)
    assert (plain.finetune_forget, plain.finetune_retain) == (plain.forget, plain.retain)
    asked = {probe.prompt for probe in both.group("forget_paraphrase")}
    assert {each.question for each in both.finetune_forget} == asked | {each.question for each in both.forget}
    assert len(both.finetune_retain) == 2 * 9 * 20
    assert {each.answer for each in both.finetune_retain} == {each.answer for each in both.retain}
    assert not asked & {each.question for each in both.finetune_retain}
    assert len({each.id for each in both.finetune_forget + both.finetune_retain}) == 2 * 200


@real
def test_fewer_authors_are_the_same_ones_whatever_the_split_and_one_target_model_serves_all():
    options = {"path": str(TOFU), "limit_authors": 20, "attacks": [], "learn_paraphrases": True}
    whole, part = (BENCHMARKS["tofu"].load(**options, split=split) for split in ("forget10", "forget05"))
    asked = {each.question for each in part.forget}
    assert (len(whole.forget), len(part.forget)) == (40, 20)
    assert asked < {each.question for each in whole.forget}
    assert {each.question for each in part.retain} - {each.question for each in whole.retain} == {
        each.question for each in whole.forget if each.question not in asked
    }
    assert part.finetune_target == whole.finetune_target
    assert len(part.finetune_target) == 20 * 20 * 2
    assert part.base_inputs({}) == whole.base_inputs({})
    assert not asked & {each.question for each in part.finetune_retain}


@real
def test_model_utility_can_leave_out_what_a_model_from_scratch_never_heard_of():
    tofu = BENCHMARKS["tofu"].load(path=str(TOFU), utility_groups=["retain"])
    assert tofu.protocol.model_utility == {"retain": "plain"}


@real
def test_the_model_that_tofu_brings_reads_its_text_and_has_the_stated_size(tmp_path):
    from transformers import AutoModelForCausalLM

    from engine.models.tokenization import encode_example, load_tokenizer

    tofu = BENCHMARKS["tofu"].load(path=str(TOFU), limit_authors=4, attacks=[])
    tofu.base_model(tmp_path, seed=0)
    tokenizer = load_tokenizer(str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert sum(each.numel() for each in model.parameters()) == pytest.approx(3.1e6, rel=0.02)
    for each in tofu.forget + tofu.retain:
        encoded = encode_example(tokenizer, each.question, each.answer)
        labels = [token for token in encoded.labels if token != -100]
        assert tokenizer.decode(labels, skip_special_tokens=True) == f" {each.answer}"
        assert labels[-1] == tokenizer.eos_token_id


def test_an_absent_folder_is_the_users_mistake():
    with pytest.raises(UserError, match="no such folder"):
        BENCHMARKS["tofu"].load(path="/nowhere/tofu")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"question": "q"},
            "no column answer, paraphrased_question, paraphrased_answer, perturbed_answer; found question",
        ),
        (None, "no config 'forget10_perturbed'"),
        (
            dict.fromkeys(
                ("question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer"), "text"
            ),
            "row 0: perturbed_answer should be a list of texts, found 'text'",
        ),
    ],
)
def test_a_missing_column_or_config_is_named(tmp_path, row, expected):
    configs = ["forget10", "retain90", "retain_perturbed", "holdout10"] + (["forget10_perturbed"] if row else [])
    lines = "".join(f"- config_name: {name}\n  data_files: {name}.json\n" for name in configs)
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{lines}---\n")
    for name in configs:
        (tmp_path / f"{name}.json").write_text(json.dumps(row or {"question": "q", "answer": "a"}) + "\n")
    with pytest.raises(UserError, match=expected):
        BENCHMARKS["tofu"].load(path=str(tmp_path))
