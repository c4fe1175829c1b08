"""What an audit says, as typed records that go to audit.json and back.

What was to be forgotten, how it was asked for, what was found of which models, and the digests by which all of it can
be checked. Knows nothing of how the numbers are made or shown.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path, PurePosixPath

from engine.errors import UserError
from engine.fingerprint import fingerprint
from engine.jsonl import JsonObject

AUDIT_FILE = "audit.json"
AUDIT_VERSION = 1
LEVELS = (  # by what was done; the number of a level is its place
    "one greedy answer a prompt",
    "sampled",
    "sampled and attacked",
    "sampled, attacked, with a retain model",
)


@dataclasses.dataclass(frozen=True)
class StageDigest:
    """A finished stage: its folder below the store, its fingerprint, and the digest of its manifest, which holds the
    digest of every file."""

    folder: str
    fingerprint: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Forgotten:
    """What was to be forgotten: the benchmark with its options, digests of its parts by name, how many items it has
    (None: not known), and the prompts that ask for it with the clusters that they are of."""

    benchmark: JsonObject
    data: dict[str, str]
    items: int | None
    prompts: int
    clusters: int


@dataclasses.dataclass(frozen=True)
class Asked:
    """How it was asked for. decodings: names, and settings, in the order of the experiment. n: samples of a prompt;
    adaptive: how many more were drawn, None where n was all. template, seed: None where the answers are a log's.
    attacks: sections of the experiment file."""

    metric: str
    metric_options: JsonObject
    leak_group: str
    confidence: float
    k: list[int]
    n: int
    adaptive: JsonObject | None
    decodings: list[JsonObject]
    max_new_tokens: int | None
    template: str | None
    system: str | None
    compat: str | None
    seed: int | None
    attacks: list[JsonObject]


@dataclasses.dataclass(frozen=True)
class Finding:
    """leak@k of one model by the core metric: on one group of prompts under one decoding, after one attack ("": none).

    leak, low, high: for prompts like these; here_low, here_high: the interval for these very prompts; bound: upper
    bound on leak@k over the prompts; any_prompt: on every prompt's own; excess: over the retain model. Lists over k,
    None where there is no such number.
    """

    attack: str
    group: str
    decoding: str
    k: list[int]
    leak: list[float]
    low: list[float]
    high: list[float]
    here_low: list[float] | None
    here_high: list[float] | None
    bound: list[float] | None
    any_prompt: list[float] | None
    excess: list[float] | None
    excess_low: list[float] | None
    excess_high: list[float] | None
    prompts: int
    clusters: int
    samples: int
    failed: int
    excluded: int

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.attack or self.group, f"under {self.decoding}")))


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts of a prompt that leaks: they stand in an audit only where they are asked for."""

    prompt: str
    reference: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Leaked:
    """A prompt that leaks, by its id: leak@k at the largest k, and its excess over the retain model's, if there is one;
    texts: with its highest-scoring sample."""

    prompt_id: str
    leak: float
    excess: float | None
    texts: Texts | None = None


@dataclasses.dataclass(frozen=True)
class AuditedModel:
    """One model. identity: digest of its weights, or name and commit, None where a log does not tell. trained_on:
    digests of the forget and the retain set of its last training, where the store holds it. stages: digests by name, as
    in results.json; attacks: the same of each attack. leaked: the prompts that leak most, worst first."""

    name: str
    role: str
    method: JsonObject
    identity: str | None
    trained_on: dict[str, str]
    stages: dict[str, StageDigest]
    attacks: dict[str, dict[str, StageDigest]]
    findings: list[Finding]
    leaked: list[Leaked]

    def headline(self, asked: Asked) -> Finding:
        """What the audit is about: no attack, the leak group, the first decoding."""
        return next(each for each in self.findings if not each.attack and each.group == asked.leak_group)


@dataclasses.dataclass(frozen=True)
class Audit:
    """One run's claim. clusters: the number of each prompt's cluster, by the prompt's id. follows, does_not_follow:
    sentences. samples_made_by: versions that drew the samples; audited_by: that made the audit."""

    run: str
    fingerprint: str
    level: int
    forgotten: Forgotten
    asked: Asked
    models: list[AuditedModel]
    clusters: dict[str, int]
    follows: list[str]
    does_not_follow: list[str]
    samples_made_by: dict[str, str]
    audited_by: dict[str, str]
    version: int = AUDIT_VERSION

    def as_json(self) -> JsonObject:
        """Plain values with the digest of all of them, "sha256"."""
        values = dataclasses.asdict(self)
        return values | {"sha256": fingerprint(values)}


@dataclasses.dataclass(frozen=True)
class ReadAudit:
    """An audit file. unchanged: whether its own digest is that of what it says."""

    audit: Audit
    unchanged: bool


def read_audit(path: Path) -> ReadAudit:
    """An audit.json. UserError where it is none, or of a version that this one does not know."""
    from pydantic import TypeAdapter, ValidationError

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        stated = values.pop("sha256")
        if values.get("version") != AUDIT_VERSION:
            raise UserError(
                f"{path}: version {values.get('version')} of the audit's form, this leakatk reads {AUDIT_VERSION}; "
                "take the version that wrote it"
            )
        audit = TypeAdapter(Audit).validate_python(values)
        _check_folders(audit)
        return ReadAudit(audit, stated == fingerprint(values))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); `leakatk audit RUN` writes one"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: not an audit of leakatk: {where}: {first['msg']}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not an audit of leakatk ({type(error).__name__}: {error})") from error


def _check_folders(audit: Audit) -> None:
    """ValueError where a stage is not a folder below the store: the file may be another's."""
    for model in audit.models:
        for stages in (model.stages, *model.attacks.values()):
            for stage in stages.values():
                parts = PurePosixPath(stage.folder)
                if parts.is_absolute() or ".." in parts.parts or len(parts.parts) != 2:
                    raise ValueError(f"{stage.folder!r} is no folder of a store")
