"""Recording a finished run in MLflow: one parent run, a child for each model, a grandchild for each round of RULE.

Results and their folder come in. Exactly once: a run that was recorded is not recorded again, one that was half
recorded is replaced. The names of all tags, parameters and metrics are in docs/recording.md.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping
from pathlib import Path

from engine.fingerprint import fingerprint
from engine.jsonl import JsonObject
from engine.redact import redact
from engine.reporting.records import AttackResult, Curve, RuleRound
from engine.reporting.results import ModelResult, Results, generations_stage
from engine.store.files import locked, write_atomic
from engine.store.replica import at_home, manifest_of, mirror_of, readable
from engine.tracking.artifacts import log_files
from engine.tracking.recorder import Measurement, Recorder, tracking_uri, user_name
from engine.tracking.system_metrics import read_system_metrics

MARK = "mlflow.json"
ROUND_METRICS = ("leak_at_m", "leaking_samples", "pool", "tokens", "utility")


def record(results: Results, folder: Path, store_root: Path) -> bool:
    """Record `results`, whose report and picture are in `folder`; False where they were recorded there already."""
    uri = tracking_uri(store_root)
    digest = results_digest(results)
    if _recorded(folder, uri) == digest:
        return False
    with locked(folder / ".mlflow.lock"):
        if _recorded(folder, uri) == digest:  # by another process while this one waited
            return False
        return _Recording(results, folder, store_root, digest).record()


def record_interrupted(run: Mapping[str, str], folder: Path, store_root: Path) -> None:
    """A run of status KILLED in the place of one that was asked to end; recording the finished one replaces it."""
    recorder = Recorder(store_root)
    tags = {"leakatk.recording": recording_of(folder), "leakatk.fingerprint": run["fingerprint"]}
    tags |= {"leakatk.benchmark": run["benchmark"], "leakatk.kind": "interrupted", "mlflow.source.name": "leakatk"}
    if "search" in run:
        tags["leakatk.search"] = run["search"]
    recorder.client.set_terminated(recorder.start(run["name"], tags), status="KILLED")


def results_digest(results: Results) -> str:
    """Identity of what was measured: the results without the wall-clock time that it took."""
    return fingerprint(dataclasses.asdict(results) | {"seconds": None})


class _Recording:
    """One run on its way into MLflow."""

    def __init__(self, results: Results, folder: Path, store_root: Path, digest: str) -> None:
        self.results, self.folder, self.store_root, self.digest = results, folder, store_root, digest
        self.recorder = Recorder(store_root)
        self.tags = _common_tags(results, folder, store_root)

    def record(self) -> bool:
        """False where another folder recorded the same results there."""
        same = self.recorder.runs({"leakatk.fingerprint": self.results.fingerprint})
        own = [run for run in same if run.data.tags.get("leakatk.recording") == self.tags["leakatk.recording"]]
        for run in same:
            if run.data.tags.get("leakatk.results") == self.digest and run.info.status == "FINISHED":
                self.recorder.delete(other for other in own if other.data.tags.get("leakatk.kind") == "live")
                _note(self.folder, self.recorder.uri, run.info.run_id, self.digest)
                return False
        self.recorder.delete(own)  # live runs, and what an interrupted recording, or one of older results, left
        _note(self.folder, self.recorder.uri, self._run(), self.digest)
        return True

    def _run(self) -> str:
        recorder, results = self.recorder, self.results
        own = {"leakatk.kind": "experiment", "leakatk.results": self.digest}
        parent = recorder.start(results.name, self.tags | own)
        recorder.log_params(parent, results.experiment)
        recorder.log_metrics(parent, read_system_metrics(self.folder))
        for model in results.models:
            self._model(model, parent)
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and path.name != MARK and not path.name.startswith("."):
                recorder.client.log_artifact(parent, str(path))
        recorder.client.set_terminated(parent)
        return parent

    def _model(self, model: ModelResult, parent: str) -> None:
        recorder = self.recorder
        folders = {
            f"leakatk.folder.{name.replace(' ', '.')}": str(self.store_root / path)
            for name, path in model.stages.items()
        }
        own = {"leakatk.kind": model.role, "leakatk.method": str(model.method.get("name", model.role))}
        run = recorder.start(model.name, self.tags | own | folders, parent)
        recorder.log_params(run, {"method": model.method, "role": model.role})
        measurements = _scalars(model)
        for curve in model.curves:
            measurements += _curve_metrics(curve, _suffix(self.results, model, curve))
        if "model" in model.stages:  # of an imported log there is none
            measurements += _history(at_home(Path(model.stages["model"]), self.store_root))
        for round_ in model.rounds:
            numbers = dataclasses.asdict(round_)
            for key in ROUND_METRICS:
                if numbers[key] is not None:
                    measurements.append(Measurement(f"rule.{key}", float(numbers[key]), round_.round))
            self._round(round_, own | {"leakatk.kind": "round"}, run)
        for attack in model.attacks:
            self._attack(attack, own | {"leakatk.kind": "attack", "leakatk.attack": attack.attack}, run)
        recorder.log_metrics(run, measurements)
        log_files(recorder.client, run, self.results, model, self.store_root)
        recorder.client.set_terminated(run)

    def _round(self, round_: RuleRound, own: dict[str, str], method_run: str) -> None:
        run = self.recorder.start(f"round {round_.round}", self.tags | own, method_run)
        values = dataclasses.asdict(round_)
        numbers = [Measurement(key, float(value)) for key, value in values.items() if isinstance(value, int | float)]
        numbers += [Measurement("leak_at_k", value, int(k)) for k, value in round_.leak.items()]
        self.recorder.log_metrics(run, numbers)
        self.recorder.client.set_terminated(run)

    def _attack(self, attack: AttackResult, own: dict[str, str], model_run: str) -> None:
        """A child run of its own, with the same keys as the model's: the curves compare side by side."""
        run = self.recorder.start(attack.attack, self.tags | own, model_run)
        measurements = _curve_metrics(attack.curve, "")
        measurements.append(Measurement("utility", attack.utility))
        for k, change in zip(attack.curve.k, attack.change or [], strict=False):
            measurements.append(Measurement("change", change, k))
        self.recorder.log_metrics(run, measurements)
        self.recorder.client.set_terminated(run)


def _common_tags(results: Results, folder: Path, store_root: Path) -> dict[str, str]:
    """Tags of every MLflow run of this experiment. recording: tells what this run's folder recorded from all else."""
    model, curve = results.headline[0] if results.headline else (None, None)
    versions: Mapping[str, str] = {}
    if model is not None and curve is not None:
        versions = manifest_of(store_root / model.stages[generations_stage(curve.decoding)]).get("versions", {})
    commit = versions.get("leakatk_commit", "")
    tags = {
        "leakatk.recording": recording_of(folder),
        "leakatk.fingerprint": results.fingerprint,
        "leakatk.benchmark": results.benchmark["name"],
        "leakatk.split": str(results.benchmark.get("split", "")),
        "leakatk.model": str((results.experiment.get("model") or {}).get("path") or results.benchmark["name"]),
        "leakatk.decoding": curve.decoding if curve is not None else "",
        "leakatk.code_version": "+".join(filter(None, (versions.get("leakatk", ""), commit))),
        "mlflow.source.name": "leakatk",
        "mlflow.source.git.commit": commit.removesuffix(".dirty"),
        "mlflow.user": user_name(),
    }
    return {key: value for key, value in tags.items() if value}


def recording_of(folder: Path) -> str:
    """The id by which what this run folder recorded is known."""
    mark = _read_mark(folder)
    if not mark:  # on disk before anything is sent, so that what a kill leaves on the server is known again
        mirror = mirror_of(folder)  # all machines of a store record a run as the same
        shared = fingerprint([mirror.url, folder.name])[:32] if mirror is not None else None
        mark = {"recording": shared or uuid.uuid4().hex, "recorded": {}}
        write_atomic(folder / MARK, json.dumps(mark))
    return str(mark["recording"])


def _read_mark(folder: Path) -> JsonObject:
    """{"recording": id, "recorded": {uri: {"run": id, "results": digest}}}; empty where it is not there."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) and "recording" in mark else {}


def _recorded(folder: Path, uri: str) -> str | None:
    """Digest of the results that this folder recorded at `uri`."""
    entry = _read_mark(folder).get("recorded", {}).get(redact(uri))
    return entry["results"] if entry else None


def _note(folder: Path, uri: str, run: str, digest: str) -> None:
    mark = _read_mark(folder)
    mark["recorded"][redact(uri)] = {"run": run, "results": digest}
    write_atomic(folder / MARK, json.dumps(mark))


def _scalars(model: ModelResult) -> list[Measurement]:
    """The model's numbers that have no step."""
    numbers: dict[str, float | None] = {
        "utility": model.utility,
        "tokens_sampled": model.tokens,
        "seconds": model.seconds,
        "steps": model.steps,
        **{f"greedy.{group}": value for group, value in model.greedy.items()},
        **model.metrics,
    }
    return [Measurement(key, float(value)) for key, value in numbers.items() if value is not None]


def _suffix(results: Results, model: ModelResult, curve: Curve) -> str:
    """What tells this curve from the headline: leak_at_k.<metric> is the headline's own name."""
    headline = model.find_curve(results.leak_group, results.core_metric)
    suffix = "" if curve.group == results.leak_group else f".{curve.group}"
    return suffix if headline is None or curve.decoding == headline.decoding else f"{suffix}.{curve.decoding}"


def _curve_metrics(curve: Curve, suffix: str) -> list[Measurement]:
    """leak_at_k and its bounds with step = k, so that MLflow draws the curve."""
    series = {"leak_at_k": curve.leak, "leak_at_k_low": curve.low, "leak_at_k_high": curve.high}
    if curve.excess is not None:
        series["excess_leak_at_k"] = curve.excess
    return [
        Measurement(f"{name}.{curve.metric}{suffix}", value, k)
        for name, values in series.items()
        for k, value in zip(curve.k, values, strict=True)
    ]


def _history(model: Path) -> list[Measurement]:
    """The losses of the model's last training by step, and what was measured while it was trained."""
    if "history.json" not in manifest_of(model.parent).get("files", {}):
        return []
    history = readable(model.parent / "history.json")
    steps = json.loads(history.read_text() if isinstance(history, Path) else history.read())
    return [measurement for step, row in enumerate(steps, 1) for measurement in step_metrics(row, step)]


def step_metrics(row: Mapping[str, float], step: int) -> list[Measurement]:
    """One step of a training's history under its names in MLflow."""
    return [
        Measurement(key if key.startswith("watch.") else f"loss.{key}", float(value), step)
        for key, value in row.items()
    ]
