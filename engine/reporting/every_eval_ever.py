"""A run in the form of Every Eval Ever (arXiv 2606.14516), the shared form in which evaluations are collected.

Results and the store come in; for each model one JSON value with every leak@k and its uncertainty comes out, and rows
of samples where texts may be given away. The form's schema is version 0.2.2 of github.com/evaleval/every_eval_ever.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.base import Decoding
from engine.jsonl import JsonObject
from engine.leak.estimator import prompt_leak, valid_samples
from engine.reporting.export import stage_folder
from engine.reporting.formatting import Estimate, without_folders
from engine.reporting.records import Curve
from engine.reporting.results import ModelResult, Results, generations_stage, scores_stage
from engine.stages.score import group_scores
from engine.store.manifest import versions
from engine.store.replica import manifest_of

SCHEMA = "0.2.2"
LEAK, EXCESS, UTILITY = "leakatk.leak_at_k", "leakatk.excess_leak_at_k", "leakatk.utility"
DESCRIPTIONS = {
    LEAK: "expected largest score of k samples of a prompt about what was to be forgotten, mean over the prompts",
    EXCESS: "leak@k minus that of a retain model, which never saw the data, on the same prompts",
    UTILITY: "what the model still does on prompts that are not about the forget set",
}
RANGES = {LEAK: (0.0, 1.0), EXCESS: (-1.0, 1.0), UTILITY: (0.0, 1.0)}


@dataclasses.dataclass(frozen=True)
class Record:
    """One model's evaluation. name: of its files, the same whenever the run is written. place: their folders."""

    name: str
    place: Path
    evaluation: JsonObject

    def with_samples(self, file: str, checksum: str, rows: int) -> JsonObject:
        """The evaluation with a reference to its file of samples."""
        detailed = {"format": "jsonl", "file_path": file, "hash_algorithm": "sha256", "checksum": checksum}
        return self.evaluation | {"detailed_evaluation_results": detailed | {"total_rows": rows}}


def every_eval_ever(results: Results, model: ModelResult, store_root: Path, organization: str) -> Record:
    """One model's record. organization: who evaluated, as the form wants to know."""
    benchmark = str(results.benchmark["name"])
    identity = _model_id(results, model)
    now = str(int(time.time()))
    name = str(uuid.uuid5(uuid.NAMESPACE_URL, f"leakatk/{results.fingerprint}/{model.name}"))
    version = versions().get("leakatk", "unknown")
    first = model.curves[0] if model.curves else None
    drawn = _manifest(model, first, store_root)
    evaluation = {
        "schema_version": SCHEMA,
        "evaluation_id": f"{benchmark}/{identity.replace('/', '_')}/{now}",
        "retrieved_timestamp": now,
        **({"evaluation_timestamp": drawn["finished_at"]} if "finished_at" in drawn else {}),
        "source_metadata": {
            "source_name": results.name,
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": "other",
        },
        "eval_library": {
            "name": "leakatk",
            "version": version,
            "additional_details": {"run_fingerprint": results.fingerprint},
        },
        "model_info": {
            "name": model.name,
            "id": identity,
            "additional_details": _strings({"role": model.role, "digest": _digest(drawn), **_flat(model.method)}),
        },
        "evaluation_results": [*_of_curves(results, model), *_utility(results, model)],
    }
    return Record(name, Path(benchmark, *identity.split("/")), evaluation)


def sample_rows(results: Results, model: ModelResult, store_root: Path, evaluation: JsonObject) -> Iterator[JsonObject]:
    """A row for each prompt of the headline's group with all its samples, of the first round that was drawn."""
    from engine.cluster.units import read_units

    curve = model.find_curve(results.leak_group, results.core_metric)
    if curve is None:
        return
    folders = [
        stage_folder(model, stage, store_root)
        for stage in (generations_stage(curve.decoding), scores_stage(curve.decoding, results.core_metric))
    ]
    scores = group_scores(folders[1])[results.leak_group]
    columns = ["group", "prompt_id", "prompt", "reference", "response"]
    rows = [row for row in read_units(folders[0], columns).to_pylist() if row["group"] == results.leak_group]
    n, k = scores.scores.shape[1], min(curve.k[-1], scores.scores.shape[1])
    for index, prompt_id in enumerate(scores.prompt_ids):
        values_N, own = scores.scores[index], rows[index * n : (index + 1) * n]
        if valid_samples(values_N[None])[0] < k:
            continue  # it is no part of the mean either
        best = int(np.nanargmax(values_N))
        prompt, reference = own[0]["prompt"], own[0]["reference"]
        answer = {
            "turn_idx": 0,
            "source": f"output.raw[{best}]",
            "extracted_value": own[best]["response"] or "",
            "extraction_method": f"highest score of {n} samples by {results.core_metric}",
            "is_terminal": True,
        }
        yield {
            "schema_version": SCHEMA,
            "evaluation_id": evaluation["evaluation_id"],
            "model_id": evaluation["model_info"]["id"],
            "evaluation_name": _name(results, curve.group),
            "evaluation_result_id": _result_id(LEAK, curve, curve.k[-1]),
            "sample_id": prompt_id,
            "sample_hash": hashlib.sha256(f"{prompt}{reference}".encode()).hexdigest(),
            "interaction_type": "single_turn",
            "input": {"raw": prompt, "reference": [reference]},
            "output": {"raw": [row["response"] or "" for row in own]},
            "answer_attribution": [answer],
            "evaluation": {
                "score": float(prompt_leak(values_N[None], np.array([k]))[0, 0]),
                "is_correct": bool(values_N[best] == 1.0),
            },
            "metadata": {"without_a_score": str(int(np.isnan(values_N).sum())), "decoding": curve.decoding},
        }


def _of_curves(results: Results, model: ModelResult) -> Iterator[JsonObject]:
    """A result for each k of each curve, before and after attacks."""
    curves = [("", curve) for curve in model.curves]
    curves += [(attack.attack, attack.curve) for attack in model.attacks]
    for attack, curve in curves:
        for place, k in enumerate(curve.k):
            details: JsonObject = {"prompts": curve.prompts, "clusters": curve.clusters, "failed_samples": curve.failed}
            if curve.bound is not None:
                details["upper_bound"] = curve.bound[place]
            yield _result(results, curve, LEAK, k, attack, curve.at(k), _standard_error(curve, place), details)
            if model.role != "retain" and (excess := curve.excess_at(k)) is not None:
                p = {} if curve.excess_p is None else {"p_value": curve.excess_p[place]}
                yield _result(results, curve, EXCESS, k, attack, excess, None, p)


def _result(
    results: Results,
    curve: Curve,
    metric: str,
    k: int,
    attack: str,
    estimate: Estimate | None,
    standard_error: float | None,
    details: JsonObject,
) -> JsonObject:
    assert estimate is not None
    value, low, high = estimate
    over = "clusters" if curve.clusters not in (None, curve.prompts) else "prompts"
    uncertainty: JsonObject = {
        "confidence_interval": {
            "lower": low,
            "upper": high,
            "confidence_level": results.confidence,
            "method": f"analytic, over {over}",
        },
        "num_samples": curve.prompts,
    }
    if standard_error is not None:
        uncertainty["standard_error"] = {"value": standard_error, "method": f"analytic, over {over}"}
    parameters = {"k": k, "n": curve.samples, "score": curve.metric} | ({"attack": attack} if attack else {})
    return {
        "evaluation_result_id": _result_id(metric, curve, k),
        "evaluation_name": _name(results, curve.group),
        "source_data": _source(results),
        "metric_config": _metric(metric, f"{'excess leak' if metric == EXCESS else 'leak'}@{k}", parameters),
        "score_details": {"score": value, "details": _strings(details), "uncertainty": uncertainty},
        "generation_config": _generation(results, curve.decoding),
    }


def _utility(results: Results, model: ModelResult) -> Iterator[JsonObject]:
    if model.utility is not None:
        yield {
            "evaluation_result_id": UTILITY,
            "evaluation_name": _name(results, "utility"),
            "source_data": _source(results),
            "metric_config": _metric(UTILITY, "utility", {}),
            "score_details": {"score": model.utility},
        }


def _metric(metric: str, name: str, parameters: JsonObject) -> JsonObject:
    least, most = RANGES[metric]
    return {
        "evaluation_description": DESCRIPTIONS[metric],
        "metric_id": metric,
        "metric_name": name,
        "metric_kind": metric.partition(".")[2],
        "metric_unit": "proportion",
        "metric_parameters": parameters,
        "lower_is_better": metric != UTILITY,
        "score_type": "continuous",
        "min_score": least,
        "max_score": most,
    }


def _generation(results: Results, decoding: str) -> JsonObject:
    """The settings of the decoding of that name."""
    sampling = results.experiment["sampling"]
    found = next((each for each in map(_decoding, sampling["decoding"]) if each.name == decoding), None)
    arguments: JsonObject = {}
    if found is not None:
        arguments = {"temperature": found.temperature, "top_p": found.top_p, "top_k": found.top_k}
    if sampling.get("max_new_tokens"):
        arguments["max_tokens"] = sampling["max_new_tokens"]
    details = {"samples_a_prompt": sampling["n"], "seed": results.experiment.get("seed")}
    return {"generation_args": arguments, "additional_details": _strings(details)}


def _decoding(raw: JsonObject) -> Decoding:
    return Decoding(**raw)


def _source(results: Results) -> JsonObject:
    """What the prompts are of."""
    options = without_folders({key: value for key, value in results.benchmark.items() if key != "name"})
    return {
        "dataset_name": str(results.benchmark["name"]),
        "source_type": "other",
        "additional_details": _strings(options),
    }


def _model_id(results: Results, model: ModelResult) -> str:
    """developer/model: the hub's name of a model that was taken as it is, else one of this run."""
    section = results.experiment.get("model") or {}
    given = {"target": section.get("path"), "retain": section.get("retain")}.get(model.role)
    if isinstance(given, str) and given.count("/") == 1 and not given.startswith((".", "/", "~")):
        return given
    return f"leakatk/{results.name}-{model.name}"


def _name(results: Results, group: str) -> str:
    return f"{results.benchmark['name']}.{group}"


def _result_id(metric: str, curve: Curve, k: int) -> str:
    return f"{metric}.{curve.group}.{curve.metric}.{curve.decoding}.k{k}"


def _standard_error(curve: Curve, place: int) -> float | None:
    """Of all sources together: samples, prompts and clusters add up in variance."""
    parts = [
        each[place] for each in (curve.sampling_error, curve.prompt_error, curve.cluster_error) if each is not None
    ]
    known = [part for part in parts if part is not None]
    return math.hypot(*known) if known and len(known) == len(parts) else None


def _manifest(model: ModelResult, curve: Curve | None, store_root: Path) -> JsonObject:
    stage = generations_stage(curve.decoding) if curve is not None else ""
    return dict(manifest_of(store_root / model.stages[stage])) if stage in model.stages else {}


def _digest(drawn: JsonObject) -> str | None:
    return drawn.get("inputs", {}).get("model")


def _flat(method: JsonObject) -> JsonObject:
    return {f"method.{key}": value for key, value in method.items()}


def _strings(values: JsonObject) -> dict[str, str]:
    """The form takes texts alone in its details."""
    return {key: str(value) for key, value in values.items() if value is not None}
