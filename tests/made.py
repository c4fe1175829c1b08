"""A run made from texts: the folders that an experiment leaves, without training or sampling anything."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from engine.fingerprint import fingerprint
from engine.leak.curve import leak_curve
from engine.metrics import score
from engine.reporting.records import Curve
from engine.reporting.results import ModelResult, ModelResults, Results
from engine.reporting.scores import write_scores

GROUP, METRIC, DECODING = "forget", "exact_fact", "T1-p1"


def make_run(store, name, models, facts, k=(1, 2, 4), benchmark=None, retain="retain"):
    """Write a run of `models` {(name, role): responses [prompts][samples]} below `store`; returns its folder.

    facts: the forgotten fact of each prompt, which is its reference too.
    """
    scores = {}
    for (model, _), responses in models.items():
        flat = [text for row in responses for text in row]
        wanted = [fact for row, fact in zip(responses, facts, strict=True) for _ in row]
        scores[model] = np.array(score(METRIC, flat, wanted, prompts=wanted)).reshape(len(responses), -1)
    rows = [_model(store, model, role, scores, models[model, role], facts, k, retain) for model, role in models]
    decoding = [{"temperature": 1.0, "top_p": 1.0, "top_k": None}, {"temperature": 0.0, "top_p": 1.0, "top_k": None}]
    sampling = {"n": len(next(iter(models.values()))[0]), "decoding": decoding, "gpus": 0.0, "max_new_tokens": 8}
    results = Results(
        name=name,
        fingerprint=fingerprint([name, str(models)]),
        benchmark=benchmark or {"name": "made", "split": "forget01"},
        core_metric=METRIC,
        leak_group=GROUP,
        confidence=0.95,
        models=ModelResults(rows),
        failed={},
        seconds=1.0,
        experiment={"name": name, "seed": 0, "sampling": sampling, "leak": {"k": list(k)}, "model": {"path": None}},
    )
    folder = Path(store) / "runs" / f"{name}-{results.fingerprint[:8]}"
    folder.mkdir(parents=True)
    results.write(folder)
    write_scores(results, folder, Path(store))
    return folder


def _model(store, name, role, scores, responses, facts, k, retain):
    stage_name = fingerprint([role, responses, facts])[:20]
    stages = {"model": str(Path(store) / "train" / stage_name / "model")}
    rows = [(p, s, text) for p, row in enumerate(responses) for s, text in enumerate(row)]
    generations = {
        "prompt_id": [f"p{p}" for p, _, _ in rows],
        "group": [GROUP] * len(rows),
        "prompt": [f"Who is {p}?" for p, _, _ in rows],
        "reference": [facts[p] for p, _, _ in rows],
        "fact": [facts[p] for p, _, _ in rows],
        "sample": [s for _, s, _ in rows],
        "response": [text for _, _, text in rows],
    }
    scored = {key: generations[key] for key in ("prompt_id", "group", "sample")} | {
        "score": scores[name].ravel().tolist()
    }
    facts_of_stage = {"prompts": len(facts), "samples": len(rows), "tokens": 5 * len(rows), "seconds": 2.0}
    for stage, table in ((f"generations {DECODING}", generations), (f"scores {DECODING} {METRIC}", scored)):
        path = Path(store) / stage.split()[0] / stage_name
        (path / "units").mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(table), path / "units" / "0.parquet")
        inputs = {"probes": fingerprint(facts)}
        (path / "manifest.json").write_text(json.dumps({"facts": facts_of_stage, "inputs": inputs}))
        stages[stage] = path.relative_to(store).as_posix()
    yardstick = scores.get(retain)
    found = leak_curve(scores[name], list(k), retain_scores=yardstick).as_dict()
    found = {key.name: found[key.name] for key in dataclasses.fields(Curve) if key.name in found}
    curve = Curve(group=GROUP, metric=METRIC, decoding=DECODING, bound=[1.0] * len(k), **found)
    greedy = {GROUP: float(scores[name][:, 0].mean())}
    method = {"name": "npo", "beta": 0.1} if role == "unlearned" else {}
    return ModelResult(name, role, method, greedy, [curve], 0.9, 5 * len(rows), 3.0, stages=stages)
