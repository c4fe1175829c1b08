"""Making an audit of a run: its results and the store come in, an Audit with the digests of all that it rests on out.

The numbers are computed anew from the stored scores. Knows nothing of how they are shown or checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from engine.audit.claim import Asked, Audit, AuditedModel, Forgotten, Leaked, StageDigest, Texts
from engine.audit.findings import Found, ModelStages, ScoresOf, counted_decodings, find
from engine.audit.sentences import does_not_follow, follows, judged
from engine.errors import UserError
from engine.jsonl import JsonObject
from engine.leak.clusters import clusters_of
from engine.reporting.formatting import without_folders
from engine.reporting.results import ModelResult, Results, generations_stage, scores_stage
from engine.stages.score import GroupScores, group_scores
from engine.store.manifest import Manifest, versions
from engine.store.replica import at_home, manifest_of, present

IMPORTED = "import"  # the kind of stage that holds a log's answers


def make_audit(results: Results, store_root: Path, with_texts: bool = False) -> Audit:
    """The audit of a run. UserError where its samples are not in the store, or its models answer to different prompts.

    with_texts: with the texts of the prompts that leak most; else ids alone stand in it.
    """
    if len(results.experiment.get("requests") or ()) > 1:
        raise UserError(
            f"{results.name}: the forget set was unlearned in several requests, and each model was asked for another "
            "part of it; an audit is of one request: run it without `requests`"
        )
    if not results.headline:
        raise UserError(f"{results.name}: no model in it has a leak@k curve; there is nothing to audit")
    asked = _asked(results, store_root)
    stages = [_stages(model, asked) for model in results.models]
    folders = {each for model in stages for of in (model.stages, *model.attacks.values()) for each in of.values()}
    digests = {folder: stage_digest(folder, store_root) for folder in folders}

    def scores_of(folder: str) -> Mapping[str, GroupScores]:
        return group_scores(present(store_root / folder))

    clusters = _cluster_numbers(results, asked, stages[0], scores_of)
    found = find(asked, stages, clusters, scores_of)
    models = [
        _audited(asked, model, own, each, digests, store_root, with_texts)
        for model, own, each in zip(results.models, stages, found, strict=True)
    ]
    level = level_of(asked, models)
    first = manifest_of(store_root / _folder(results.models[0], generations_stage(counted_decodings(asked)[0].name)))
    headline = judged(models)[0].headline(asked)
    return Audit(
        run=results.name,
        fingerprint=results.fingerprint,
        level=level,
        forgotten=Forgotten(
            benchmark=without_folders(results.benchmark),
            data=_data(results, first),
            items=results.forget.get("examples"),
            prompts=headline.prompts + headline.excluded,
            clusters=headline.clusters,
        ),
        asked=asked,
        models=models,
        clusters=clusters,
        follows=follows(asked, models),
        does_not_follow=does_not_follow(asked, level, models),
        samples_made_by=first.get("versions", {}),
        audited_by=versions(),
    )


def level_of(asked: Asked, models: Iterable[AuditedModel]) -> int:
    """The place in claim.LEVELS of what was done."""
    rows = list(models)
    if all(decoding.greedy for decoding in counted_decodings(asked)):
        return 0
    if not any(model.attacks for model in rows):
        return 1
    return 3 if any(model.role == "retain" for model in rows) else 2


def stage_digest(folder: str, store_root: Path) -> StageDigest:
    """UserError where the stage is not in the store."""
    manifest = manifest_of(store_root / folder)
    if "sha256" not in manifest or "fingerprint" not in manifest:
        raise UserError(f"{folder} is not in the store {store_root}; give the store that has the samples: --store")
    return StageDigest(folder, manifest["fingerprint"], manifest["sha256"])


def identity_of(generations: Manifest) -> str | None:
    """Which model gave the samples, by their manifest."""
    inputs = generations.get("inputs", {})
    identity = inputs.get("model", inputs.get("endpoint"))
    return None if identity is None else str(identity)


def trained_on(manifest: Manifest) -> dict[str, str]:
    """Digests of what a model was trained on, by the manifest of its training."""
    inputs = manifest.get("inputs", {})
    return {part: str(inputs[part]) for part in ("forget", "retain") if inputs.get(part)}


def _asked(results: Results, store_root: Path) -> Asked:
    experiment, (first, curve) = results.experiment, results.headline[0]
    drawn = manifest_of(store_root / _folder(first, generations_stage(curve.decoding)))
    ours = drawn.get("kind") != IMPORTED
    sampling, model = experiment["sampling"], experiment.get("model") or {}
    options = (experiment.get("metric_options") or {}).get(results.core_metric, {})
    return Asked(
        metric=results.core_metric,
        metric_options=without_folders(options),
        leak_group=results.leak_group,
        confidence=results.confidence,
        k=list(experiment["leak"]["k"]),
        n=sampling["n"],
        adaptive=sampling.get("adaptive"),
        decodings=list(sampling["decoding"]),
        max_new_tokens=sampling.get("max_new_tokens"),
        template=(model.get("template") or "auto") if ours else None,
        system=model.get("system"),
        compat=sampling.get("compat"),
        seed=experiment.get("seed", 0) if ours else None,
        attacks=[without_folders(attack) for attack in experiment.get("attacks") or ()],
    )


def _folder(model: ModelResult, stage: str) -> str:
    if stage not in model.stages:
        raise UserError(f"{model.name}: the run names no {stage!r}; an older version made it: run the experiment again")
    return model.stages[stage]


def _stages(model: ModelResult, asked: Asked) -> ModelStages:
    """The stages that the audit rests on: samples, and scores by the core metric."""
    decodings = counted_decodings(asked)
    for decoding in decodings:
        _folder(model, scores_stage(decoding.name, asked.metric))
    lost = [attack.attack for attack in model.attacks if not attack.stages]
    if lost:
        raise UserError(
            f"{model.name}: the run does not name the samples under {lost[0]}; an older version made it: run the "
            "experiment again, its samples are found"
        )
    attacks = {attack.attack: _chosen(attack.stages, asked, decodings[0].name) for attack in model.attacks}
    return ModelStages(model.name, model.role, _chosen(model.stages, asked), attacks)


def _chosen(stages: Mapping[str, str], asked: Asked, decoding: str | None = None) -> dict[str, str]:
    names = [decoding] if decoding is not None else [each.name for each in counted_decodings(asked)]
    found: dict[str, str] = {}
    for name in names:
        number = 1
        while (scores := scores_stage(name, asked.metric, number)) in stages:
            generations = generations_stage(name, number)
            found |= {generations: stages[generations], scores: stages[scores]}
            number += 1
    return found


def _cluster_numbers(results: Results, asked: Asked, model: ModelStages, scores_of: ScoresOf) -> dict[str, int]:
    """The number of each prompt's cluster, by the prompt's id: the names of clusters may be those of persons."""
    decoding = counted_decodings(asked)[0].name
    by_group = scores_of(model.stages[scores_stage(decoding, asked.metric)])
    ids = list(dict.fromkeys(each for of_group in by_group.values() for each in of_group.prompt_ids))
    ids = [each for each in ids if each in results.clusters]
    partition = clusters_of([results.clusters[each] for each in ids], len(ids))
    return dict(zip(ids, partition.of_prompt.tolist(), strict=True))


def _audited(
    asked: Asked,
    model: ModelResult,
    stages: ModelStages,
    found: Found,
    digests: Mapping[str, StageDigest],
    store_root: Path,
    with_texts: bool,
) -> AuditedModel:
    first = generations_stage(counted_decodings(asked)[0].name)
    identity = identity_of(manifest_of(store_root / stages.stages[first]))
    own = {name: digests[folder] for name, folder in stages.stages.items()}
    trained = at_home(Path(model.stages.get("model", "")), store_root).parent
    data: dict[str, str] = {}
    if trained.is_relative_to(store_root) and manifest_of(trained).get("fingerprint") == identity:
        own["model"] = stage_digest(trained.relative_to(store_root).as_posix(), store_root)
        data = trained_on(manifest_of(trained))
    leaked = found.leaked
    if with_texts:
        scores = stages.stages[scores_stage(counted_decodings(asked)[0].name, asked.metric)]
        leaked = with_their_texts(leaked, asked, store_root / stages.stages[first], store_root / scores)
    return AuditedModel(
        name=model.name,
        role=model.role,
        method=without_folders(model.method),
        identity=identity,
        trained_on=data,
        stages=own,
        attacks={
            attack: {name: digests[folder] for name, folder in of.items()} for attack, of in stages.attacks.items()
        },
        findings=found.findings,
        leaked=leaked,
    )


def with_their_texts(leaked: list[Leaked], asked: Asked, generations: Path, scores: Path) -> list[Leaked]:
    """The prompts with their texts and their highest-scoring sample, of the first round that was drawn."""
    import pyarrow.compute

    from engine.cluster.units import read_units

    columns = ["group", "prompt_id", "prompt", "reference", "response"]
    table = read_units(present(generations), columns).append_column("score", read_units(present(scores))["score"])
    table = table.filter(pyarrow.compute.equal(table["group"].cast("string"), asked.leak_group))
    best: dict[str, JsonObject] = {}
    for row in table.filter(pyarrow.compute.is_valid(table["score"])).to_pylist():
        if row["prompt_id"] not in best or row["score"] > best[row["prompt_id"]]["score"]:
            best[row["prompt_id"]] = row
    return [
        dataclasses.replace(each, texts=Texts(row["prompt"], row["reference"], row["response"] or ""))
        for each in leaked
        if (row := best.get(each.prompt_id)) is not None
    ]


def _data(results: Results, generations: Manifest) -> dict[str, str]:
    """Digests of the data by name: the forget set, the prompts."""
    found = {name: str(value) for name, value in results.benchmark.items() if name.startswith("data of ")}
    if "sha256" in results.forget:
        found["forget set"] = results.forget["sha256"]
    prompts = generations.get("inputs", {})
    if "probes" in prompts or "items" in prompts:
        found["prompts"] = str(prompts.get("probes", prompts.get("items")))
    return found
