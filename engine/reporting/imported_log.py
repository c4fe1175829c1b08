"""A log of someone else's evaluation as what it holds: prompts with the answers that were given, and figures.

A file comes in, an ImportedLog comes out, whoever wrote it. Knows nothing of what is made of the answers.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from benchmarks.base import Decoding
from engine.errors import UserError, one_line
from engine.fingerprint import file_digest
from engine.jsonl import JsonObject, JsonValue
from engine.reporting.eval_logs import Recomputed

READ = (
    "OpenUnlearning's TOFU_EVAL.json and MUSE_EVAL.json, TOFU's eval_log_aggregated.json, "
    "lm-evaluation-harness's samples_*.jsonl (--log_samples), Inspect's .eval and .json logs"
)
GROUP = "forget"  # of logs that ask one set of prompts


@dataclasses.dataclass(frozen=True)
class Item:
    """One prompt and what a model answered to it, None where it did not answer. `id` is unique in its group; `cluster`
    names what the prompt shares with others."""

    id: str
    group: str
    prompt: str
    reference: str
    responses: tuple[str | None, ...]
    cluster: str | None = None


@dataclasses.dataclass(frozen=True)
class ImportedLog:
    """tool: who wrote the log. benchmark: its name and options, as far as the log tells. items: empty where the log
    holds no texts. figures: computed from the items, beside what the log states. core_metric: what its answers are
    scored by unless the reader wants another. decoding: how the answers were drawn. notes: what a reader must know.
    digest: SHA-256 of the file."""

    tool: str
    benchmark: JsonObject
    items: tuple[Item, ...]
    figures: Recomputed
    core_metric: str
    decoding: Decoding
    digest: str
    notes: tuple[str, ...] = ()

    @property
    def leak_group(self) -> str:
        """The group of prompts about what was to be forgotten that leak@k is taken on."""
        groups = dict.fromkeys(item.group for item in self.items if item.group.startswith(GROUP))
        return GROUP if GROUP in groups or not groups else next(iter(groups))

    @property
    def answers(self) -> list[Item]:
        """The items of that group; without any the log makes no run."""
        return [item for item in self.items if item.group == self.leak_group]


def read_log(path: Path, retain: Path | None = None) -> tuple[ImportedLog, ImportedLog | None]:
    """A log, and the retain model's, on whose items some of the first one's figures rest. UserError for what is no log
    of a known kind, and for two logs of different kinds."""
    from engine.reporting.inspect_log import is_inspect, read_inspect_log
    from engine.reporting.lm_eval_log import is_lm_eval, read_lm_eval_log
    from engine.reporting.openunlearning_log import openunlearning_log

    paths = [each for each in (path, retain) if each is not None]
    if all(is_lm_eval(each) for each in paths):
        found = [read_lm_eval_log(each) for each in paths]
    elif all(is_inspect(each) for each in paths):
        found = [read_inspect_log(each) for each in paths]
    else:
        values = [_json(each) for each in paths]
        found = [openunlearning_log(values[0], file_digest(path), values[1] if values[1:] else None)]
        if retain is not None:
            found.append(openunlearning_log(values[1], file_digest(retain)))
    return found[0], found[1] if found[1:] else None


def _json(path: Path) -> JsonValue:
    """A log of OpenUnlearning's or TOFU's kind, parsed."""
    from engine.reporting.eval_logs import is_eval_log

    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: no evaluation log ({one_line(str(error))[:120]}); read are {READ}; generations: `leakatk score`"
        ) from error
    if not is_eval_log(value):
        raise UserError(f"{path}: no evaluation log; read are {READ}")
    return value
