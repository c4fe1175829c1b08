"""Whether the stages that an audit names are what it says: their digests, what was made of what, and how it was asked.

An Audit and the store's manifests come in; what differs comes out, a line each. No number is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from engine.audit.claim import Audit, StageDigest
from engine.audit.findings import counted_decodings
from engine.audit.make import IMPORTED, identity_of, trained_on
from engine.errors import one_line
from engine.fingerprint import fingerprint
from engine.jsonl import JsonObject
from engine.reporting.formatting import without_folders
from engine.reporting.results import generations_stage, scores_stage
from engine.store.files import matches
from engine.store.manifest import MANIFEST, DamagedError, Manifest, parse_manifest
from engine.store.replica import present


def stages(audit: Audit) -> list[tuple[str, StageDigest]]:
    """Every stage once, with what it is called."""
    found: dict[str, tuple[str, StageDigest]] = {}
    for model in audit.models:
        for name, digest in model.stages.items():
            found.setdefault(digest.folder, (f"{model.name}: {name}", digest))
        for attack, of in model.attacks.items():
            for name, digest in of.items():
                found.setdefault(digest.folder, (f"{model.name} after {attack}: {name}", digest))
    return list(found.values())


def pairs(audit: Audit) -> list[tuple[str, StageDigest, StageDigest]]:
    """(what it is called, generations, their scores) of every sampling, each once."""
    found: dict[str, tuple[str, StageDigest, StageDigest]] = {}
    for model in audit.models:
        for where, of in (("", model.stages), *((f" after {attack}", of) for attack, of in model.attacks.items())):
            for name, scores in of.items():
                if name.startswith("scores "):
                    sampled = name.removeprefix("scores ").replace(f" {audit.asked.metric}", "", 1)
                    generations = of[f"generations {sampled}"]
                    found.setdefault(scores.folder, (f"{model.name}{where} {sampled}", generations, scores))
    return list(found.values())


def check_stage(label: str, digest: StageDigest, store_root: Path) -> tuple[Manifest | None, list[str]]:
    """The stage's manifest, None where it cannot be read, and what differs: manifest, files, fingerprint."""
    folder = present(store_root / digest.folder)
    if not folder.is_dir():
        return None, [f"{label}: {digest.folder} is not in the store"]
    try:
        manifest = parse_manifest((folder / MANIFEST).read_text(encoding="utf-8"), digest.folder)
    except (OSError, DamagedError, UnicodeDecodeError) as error:
        return None, [f"{label}: {one_line(str(error))}"]
    found = []
    if manifest["sha256"] != digest.sha256:
        found.append(
            f"{label}: digest of {digest.folder} is {manifest['sha256'][:12]}, the audit has {digest.sha256[:12]}"
        )
    of_inputs = fingerprint({"kind": manifest.get("kind"), "inputs": manifest.get("inputs")})
    if not of_inputs == manifest.get("fingerprint") == digest.fingerprint:
        found.append(f"{label}: {digest.folder} was made of other inputs than its fingerprint, or the audit's, says")
    for name, facts in manifest["files"].items():
        try:
            whole = matches(folder / name, facts)
        except OSError:
            whole = False
        if not whole:
            found.append(f"{label}: {digest.folder}/{name} is not the file that its digest says")
    return manifest, found


def check_chain(audit: Audit, manifests: Mapping[str, Manifest]) -> Iterator[str]:
    """What was made of what: scores of their generations, generations of the model and of the prompts."""
    for label, generations, scores in pairs(audit):
        source = manifests.get(scores.folder, {}).get("inputs", {}).get("generations")
        if source is not None and source != generations.fingerprint:
            yield f"{label}: the scores are of other generations than the audit names"
    for model in audit.models:
        first = model.stages[generations_stage(counted_decodings(audit.asked)[0].name)]
        manifest = manifests.get(first.folder)
        if manifest is None:
            continue
        if identity_of(manifest) != model.identity:
            yield f"{model.name}: digest of the model is {identity_of(manifest)}, the audit has {model.identity}"
        inputs = manifest["inputs"]
        prompts = inputs.get("probes", inputs.get("items"))
        stated = audit.forgotten.data.get("prompts")
        imported = manifest["kind"] == IMPORTED  # where each log's answers are part of it
        if prompts != stated and not (imported and model is not audit.models[0]):
            yield f"{model.name}: digest of the prompts is {prompts}, the audit has {stated}"
        trained = manifests.get(model.stages["model"].folder) if "model" in model.stages else None
        if trained is not None and trained_on(trained) != model.trained_on:
            yield f"{model.name}: its training data have digests {trained_on(trained)}, in the audit {model.trained_on}"


def check_asked(audit: Audit, manifests: Mapping[str, Manifest]) -> Iterator[str]:
    """Where samples were drawn, or scored, otherwise than the audit says; of a log's answers it is not known."""
    asked = audit.asked
    settings: JsonObject = {name: getattr(asked, name) for name in ("max_new_tokens", "template", "system", "seed")}
    if asked.adaptive is None:
        settings["n"] = asked.n
    if asked.template is not None:
        settings["retokenise"] = asked.compat is not None
    for model in audit.models:
        for decoding in counted_decodings(asked):
            stage = model.stages[generations_stage(decoding.name)]
            drawn = manifests.get(stage.folder, {}).get("inputs", {})
            for name, said in (settings | {"decoding": decoding.model_dump()}).items():
                if name in drawn and drawn[name] != said:
                    yield f"{model.name}: its samples were drawn with {name} {drawn[name]}, the audit says {said}"
            scores = manifests.get(model.stages[scores_stage(decoding.name, asked.metric)].folder, {})
            options = without_folders(scores.get("inputs", {}).get("options", {}))
            if scores and options != asked.metric_options:
                yield f"{model.name}: its samples were scored with {options}, the audit says {asked.metric_options}"
