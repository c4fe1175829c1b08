"""Log-probabilities of samples that are there already, as a stage: what another model or decoding says of each.

A model, a finished sampling and decodings come in; one log-probability a sample and decoding comes out, as parquet: one
teacher-forced pass over the distinct samples, far cheaper than sampling. Knows nothing of what they are used for.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from benchmarks.base import Decoding
from engine.cluster.fan_out import fan_out
from engine.cluster.reporter import Report
from engine.cluster.units import read_unit, read_units, unit_path, unit_seconds
from engine.decode.law import tie_inputs
from engine.decode.logprobs import decoded_log_probs
from engine.jsonl import JsonObject
from engine.models.loading import worker_model
from engine.stages.base import Stage
from engine.stages.prompting import encoded_prompts
from engine.stages.sample import SampleJob
from engine.store.replica import readable

if TYPE_CHECKING:
    from pyarrow import Table


RELOG_VERSION = 1  # part of every stage's fingerprint: raise it when the numbers change
BATCH_LOGITS = {"cpu": 2**23, "cuda": 2**28}  # held at once, float64


@dataclasses.dataclass(frozen=True)
class RelogJob(Stage):
    """Log-probabilities, under `sampling`'s model and each of `decodings`, of the samples of its probes that stand in
    `generations/units`, drawn from this or another model with the same tokenizer."""

    sampling: SampleJob
    generations: str
    decodings: tuple[Decoding, ...]
    kind: ClassVar[str] = "relog"
    title: ClassVar[str] = "log-probabilities"

    @property
    def units(self) -> int:
        return self.sampling.units

    def inputs(self) -> JsonObject:
        return self.sampling.prompting() | {
            "n": self.sampling.n,
            "generations": Path(self.generations).name,
            "decodings": [decoding.model_dump() for decoding in self.decodings],
            "version": RELOG_VERSION,
            **tie_inputs(self.decodings, bf16=self.sampling.bf16),
        }

    def run(self, work: Path, report: Report) -> JsonObject:
        """Fill `work/units`; returns seconds of work."""
        sampling = self.sampling
        fan_out(
            self,
            self.units,
            work / "units",
            report,
            sampling.workers,
            sampling.gpus,
            cpus=sampling.cpus,
            portable=sampling.portable,
        )
        return {"seconds": unit_seconds(work / "units")}

    def compute(self, unit: int) -> tuple[Table, str]:
        """One row a sample: prompt_id, group and a column of float64 for each decoding, named by its index."""
        import pyarrow

        from engine.models.chat_template import stop_token_ids

        model, tokenizer = worker_model(self.sampling.model, self.sampling.gpus > 0, self.sampling.bf16)
        n = self.sampling.n
        size = self.sampling.unit_size
        prompts = encoded_prompts(tokenizer, self.sampling.probes[unit * size : (unit + 1) * size], self.sampling)
        columns = ["prompt_id", "group", "token_ids", "tokens"]
        table = read_unit(readable(unit_path(Path(self.generations) / "units", unit)), columns)
        rows = zip(table["token_ids"].to_pylist(), table["tokens"].to_pylist(), strict=True)
        outcomes = [(tuple(tokens), drawn > len(tokens)) for tokens, drawn in rows]  # with its end token or without
        ends = stop_token_ids(tokenizer, self.sampling.template_options)
        found = np.empty((len(self.decodings), len(outcomes)))
        vocabulary = model.get_output_embeddings().weight.shape[0]
        for place, prompt in enumerate(prompts):
            own = outcomes[place * n : (place + 1) * n]
            distinct = sorted(dict.fromkeys(own), key=lambda outcome: len(outcome[0]))
            known: dict[tuple[tuple[int, ...], bool], np.ndarray] = {}
            while distinct:
                longest = len(distinct[-1][0]) + 1
                most = max(1, BATCH_LOGITS[model.device.type] // (longest * vocabulary))
                chosen, distinct = distinct[-most:], distinct[:-most]
                tokens, whole = zip(*chosen, strict=True)
                values = decoded_log_probs(model, prompt, tokens, ends, self.decodings, whole=whole)
                known.update(zip(chosen, values.T, strict=True))
            found[:, place * n : (place + 1) * n] = np.stack([known[each] for each in own], axis=1)
        out = table.select(["prompt_id", "group"])
        for index, values in enumerate(found):
            out = out.append_column(str(index), pyarrow.array(values, pyarrow.float64()))
        return out, ""


def read_relog(folder: Path, job: RelogJob) -> dict[str, np.ndarray]:
    """The log-probabilities by group of prompts: float64 [decodings, prompts, n]."""
    table = read_units(folder)
    groups = np.array(table["group"].to_pylist())
    values = np.stack([table[str(index)].to_numpy() for index in range(len(job.decodings))])
    return {
        group: values[:, groups == group].reshape(len(job.decodings), -1, job.sampling.n)
        for group in dict.fromkeys(groups.tolist())
    }
