"""Checking an audit against the store: every digest, every score, every number; what differs comes out, in words.

The generations are scored again, all numbers are computed again from these scores by the code that made them
(engine/audit/findings.py), and the sentences again from the numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from engine.audit.claim import LEVELS, Asked, Audit, AuditedModel, Finding, ReadAudit, StageDigest
from engine.audit.findings import ModelStages, counted_decodings, find
from engine.audit.make import level_of, with_their_texts
from engine.audit.provenance import check_asked, check_chain, check_stage, pairs, stages
from engine.audit.sentences import does_not_follow, follows, judged
from engine.errors import UserError, one_line
from engine.evaluation.jobs import RUN_MODELS
from engine.metrics import METRICS
from engine.stages.score import GroupScores, ScoreJob, group_scores, scores_by_group
from engine.store.manifest import Manifest
from engine.store.replica import present

NAMED = 3  # samples of one stage that are named one by one
ROUNDING = 1e-9  # of numbers: sums in another order
OTHER_DEVICE = 1e-3  # of scores by a model: another device's arithmetic


@dataclasses.dataclass(frozen=True)
class Verification:
    """What differs, a line each, empty where the audit holds; and how much was checked."""

    differences: list[str]
    stages: int
    samples: int
    numbers: int


def verify_audit(read: ReadAudit, store_root: Path) -> Verification:
    """Check an audit against the store. UserError where the store has none of its samples."""
    try:
        return _verified(read, store_root)
    except (LookupError, ValueError, TypeError, StopIteration) as error:
        detail = one_line(f"{type(error).__name__}: {error}")[:200]
        raise UserError(f"the audit names what it does not hold, or holds what cannot be ({detail})") from error


def _verified(read: ReadAudit, store_root: Path) -> Verification:
    audit = read.audit
    every = stages(audit)
    if not any(present(store_root / digest.folder).is_dir() for _, digest in every):
        raise UserError(f"{store_root}: has none of the audit's samples; name the store that has them by --store")
    differences = [] if read.unchanged else ["audit.json was changed after it was written: its own digest differs"]
    manifests: dict[str, Manifest] = {}
    for label, digest in every:
        manifest, found = check_stage(label, digest, store_root)
        differences += found
        if manifest is not None:
            manifests[digest.folder] = manifest
    differences += check_chain(audit, manifests)
    differences += check_asked(audit, manifests)
    rescored = _Rescored(audit.asked, store_root, manifests)
    for label, generations, scores in pairs(audit):
        differences += rescored.check(label, generations, scores)
    numbers = 0
    if all(scores.folder in rescored.scores for _, _, scores in pairs(audit)):
        found, numbers = _check_numbers(audit, rescored, store_root)
        differences += found
    else:
        differences.append("the numbers were not computed again: some of the samples are not there or cannot be scored")
    return Verification(differences, len(every), rescored.samples, numbers)


class _Rescored:
    """The scores of every generation, computed again: by the folder of the stored ones."""

    def __init__(self, asked: Asked, store_root: Path, manifests: Mapping[str, Manifest]) -> None:
        self.asked, self.store_root, self.manifests = asked, store_root, manifests
        self.scores: dict[str, dict[str, GroupScores]] = {}
        self.samples = 0

    def check(self, label: str, generations: StageDigest, scores: StageDigest) -> Iterator[str]:
        """Score the generations again; yields where the stored scores say otherwise."""
        drawn, made = self.manifests.get(generations.folder), self.manifests.get(scores.folder)
        if drawn is None or made is None:
            return
        inputs = made["inputs"]
        if inputs["metric"] != self.asked.metric:
            yield f"{label}: its scores are by {inputs['metric']}, the audit says {self.asked.metric}"
        files = sum(name.startswith("units/") for name in drawn["files"])
        job = ScoreJob(str(present(self.store_root / generations.folder)), files, inputs["metric"], inputs["options"])
        try:
            again = scores_by_group(job.compute(unit)[0] for unit in range(job.units))
            stored = group_scores(present(self.store_root / scores.folder))
        except (UserError, OSError, ValueError, KeyError) as error:
            yield f"{label}: cannot be scored again: {one_line(str(error))[:200]}"
            return
        self.scores[scores.folder] = again
        self.samples += sum(each.scores.size for each in again.values())
        yield from _score_differences(label, again, stored, METRICS[inputs["metric"]].module in RUN_MODELS)


def _score_differences(
    label: str, again: Mapping[str, GroupScores], stored: Mapping[str, GroupScores], by_model: bool
) -> Iterator[str]:
    tolerance = OTHER_DEVICE if by_model else 0.0
    for group, own in again.items():
        other = stored.get(group)
        if other is None or other.prompt_ids != own.prompt_ids or other.scores.shape != own.scores.shape:
            yield f"{label}: the stored scores of {group} are of other prompts or samples than the generations"
            continue
        unlike = ~np.isclose(own.scores, other.scores, rtol=0, atol=tolerance, equal_nan=True)
        places = np.argwhere(unlike)
        for prompt, sample in places[:NAMED]:
            yield (
                f"{label}: stored score of prompt {own.prompt_ids[prompt]}, sample {sample}, is "
                f"{_shown(other.scores[prompt, sample])}; its text scores {_shown(own.scores[prompt, sample])}"
            )
        if len(places) > NAMED:
            yield f"{label}: {len(places) - NAMED} more stored scores of {group} are not those of their texts"


def _check_numbers(audit: Audit, rescored: _Rescored, store_root: Path) -> tuple[list[str], int]:
    """What of the audit's numbers and sentences the scores do not give, and how many numbers were compared."""
    asked = audit.asked
    stages = [
        ModelStages(
            model.name,
            model.role,
            {name: digest.folder for name, digest in model.stages.items()},
            {attack: {name: digest.folder for name, digest in of.items()} for attack, of in model.attacks.items()},
        )
        for model in audit.models
    ]
    try:
        found = find(asked, stages, audit.clusters, rescored.scores.__getitem__)
    except (UserError, ValueError, LookupError, TypeError) as error:
        return [f"the numbers cannot be computed from what the audit says was asked: {one_line(str(error))[:200]}"], 0
    models = [
        dataclasses.replace(model, findings=own.findings, leaked=own.leaked)
        for model, own in zip(audit.models, found, strict=True)
    ]
    differences, numbers = [], 0
    for stated, computed in zip(audit.models, models, strict=True):
        lines, count = _model_differences(stated, computed)
        differences += lines
        numbers += count
        differences += _text_differences(asked, stated, store_root)
    level, headline = level_of(asked, models), judged(models)[0].headline(asked)
    if level != audit.level:
        differences.append(f"level is {audit.level}, what was done is {level}: {LEVELS[level]}")
    size = (headline.prompts + headline.excluded, headline.clusters)
    if size != (audit.forgotten.prompts, audit.forgotten.clusters):
        differences.append(f"prompts and clusters are {size[0]} and {size[1]}, the audit says otherwise")
    sentences = (("follows", follows(asked, models)), ("does_not_follow", does_not_follow(asked, level, models)))
    differences += [
        f"{name}: the numbers do not give its sentences" for name, each in sentences if each != getattr(audit, name)
    ]
    return differences, numbers


def _model_differences(stated: AuditedModel, computed: AuditedModel) -> tuple[list[str], int]:
    differences, numbers = [], 0
    names = [[each.name for each in model.findings] for model in (stated, computed)]
    if names[0] != names[1]:
        return [f"{stated.name}: the audit has findings {names[0]}, the samples give {names[1]}"], 0
    for one, other in zip(stated.findings, computed.findings, strict=True):
        for place, said, given in _numberpairs(one, other):
            numbers += 1
            if not _equal(said, given):
                differences.append(
                    f"{stated.name}, {one.name}: {place} is {_shown(said)}, the generations give {_shown(given)}"
                )
    rows = [[(each.prompt_id, each.leak, each.excess) for each in model.leaked] for model in (stated, computed)]
    numbers += len(rows[1])
    same = len(rows[0]) == len(rows[1]) and all(
        one[0] == other[0] and _equal(one[1], other[1]) and _equal(one[2], other[2])
        for one, other in zip(*rows, strict=False)
    )
    if not same:
        differences.append(
            f"{stated.name}: the prompts that leak most are {[row[0] for row in rows[1]]}, or leak otherwise"
        )
    return differences, numbers


def _numberpairs(stated: Finding, computed: Finding) -> Iterator[tuple[str, object, object]]:
    """(name of the number, what the audit says, what was computed)."""
    for field in dataclasses.fields(Finding):
        said, given = getattr(stated, field.name), getattr(computed, field.name)
        if not isinstance(given, list) or not isinstance(said, list) or len(said) != len(given):
            yield field.name, said, given
            continue
        for k, one, other in zip(computed.k, said, given, strict=False):
            yield f"{field.name} at k = {k}", one, other


def _text_differences(asked: Asked, stated: AuditedModel, store_root: Path) -> Sequence[str]:
    """Where the texts that stand in an audit are not those of the store."""
    if not any(each.texts for each in stated.leaked):
        return []
    decoding = counted_decodings(asked)[0].name
    folders = [
        stated.stages[f"{kind} {decoding}{end}"].folder
        for kind, end in (("generations", ""), ("scores", f" {asked.metric}"))
    ]
    again = with_their_texts(stated.leaked, asked, *(store_root / folder for folder in folders))
    return [
        f"{stated.name}: the texts of prompt {one.prompt_id} are not those in the store"
        for one, other in zip(stated.leaked, again, strict=False)
        if one.texts != other.texts
    ]


def _equal(one: object, other: object) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return one == other


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "none" if math.isnan(value) else f"{value:.6g}"
    return "none" if value is None else str(value)
