"""Sampling as a stage: a model and probes in, generations as parquet out, fanned over the cluster.

The work unit is a fixed group of prompts, whatever the number of workers. Knows nothing of metrics.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from benchmarks.base import Decoding, Probe
from engine.fanout import fan_out, unit_seconds
from engine.models import ModelSource, cached_model

SAMPLE_VERSION = 2  # part of every sampling's fingerprint: raise it when the sampler's results change
UNIT_ROWS = 2048
UNIT_PROMPTS = 64


@dataclasses.dataclass(frozen=True)
class SampleJob:
    """n samples of every probe from one model under one decoding (greedy: n = 1). retokenise: see data.retokenised."""

    model: ModelSource
    probes: tuple[Probe, ...]
    decoding: Decoding
    n: int
    max_new_tokens: int
    seed: int = 0
    template: str = "auto"
    system: str | None = None
    max_rows: int | None = None
    gpus: float = 0.0
    retokenise: bool = False

    @property
    def unit_prompts(self) -> int:
        """Prompts a unit: bounded in prompts and in samples, and the same for any number of workers."""
        return max(1, min(UNIT_PROMPTS, UNIT_ROWS // self.n))

    @property
    def units(self) -> int:
        return -(-len(self.probes) // self.unit_prompts)

    def compute(self, unit: int) -> tuple[Any, str]:
        """The generations of one unit as a table (one row a sample), and a note on the speed."""
        import torch

        on_gpu = self.gpus > 0
        if not on_gpu:
            torch.set_num_threads(1)
        device, precision = ("cuda", "bf16") if on_gpu else ("cpu", "fp32")
        model, tokenizer = cached_model(self.model, device, precision)
        probes = self.probes[unit * self.unit_prompts : (unit + 1) * self.unit_prompts]
        clock = time.monotonic()
        table = _table(probes, sample_probes(model, tokenizer, probes, self), tokenizer)
        tokens = sum(table["tokens"].to_pylist())
        return table, f"{tokens / max(time.monotonic() - clock, 1e-9):,.0f} tokens/s a worker"


def run_sampling(job: SampleJob, work: Path, report: Any, workers: int | None = None) -> dict[str, Any]:
    """Fill `work/units` with the generations of every unit; returns prompts, samples and tokens sampled."""
    import pyarrow.compute
    import pyarrow.dataset

    fan_out(job, job.units, work / "units", report, workers, job.gpus)
    table = pyarrow.dataset.dataset(work / "units", format="parquet").to_table(columns=["tokens"])
    tokens = pyarrow.compute.sum(table["tokens"]).as_py() or 0
    seconds = unit_seconds(work / "units")
    return {"prompts": len(job.probes), "samples": table.num_rows, "tokens": tokens, "seconds": seconds}


def sample_probes(model: Any, tokenizer: Any, probes: tuple[Probe, ...], job: SampleJob) -> list[list[Any]]:
    """The Samples (engine.decode) of each probe, in order: a list of job.n for each."""
    from engine.data import encode_prompt, retokenised, stop_token_ids
    from engine.decode import sample

    prompts = [encode_prompt(tokenizer, probe.prompt, job.template, job.system) for probe in probes]
    if job.retokenise:
        prompts = [retokenised(tokenizer, prompt) for prompt in prompts]
    return sample(
        model,
        prompts,
        job.n,
        max_new_tokens=job.max_new_tokens,
        temperature=job.decoding.temperature,
        top_p=job.decoding.top_p,
        top_k=job.decoding.top_k,
        seed=job.seed,
        prompt_ids=[probe.id for probe in probes],
        eos_token_id=stop_token_ids(tokenizer),
        max_rows=job.max_rows,
    )


def texts(samples: list[Any], tokenizer: Any) -> list[str]:
    """The text of each sample, without special tokens."""
    return tokenizer.batch_decode([sample.token_ids for sample in samples], skip_special_tokens=True)


def _table(probes: tuple[Probe, ...], samples: list[list[Any]], tokenizer: Any) -> Any:
    import pyarrow

    rows: dict[str, list[Any]] = {name: [] for name in ("prompt_id", "group", "prompt", "reference", "fact")}
    flat = [each for of_probe in samples for each in of_probe]
    for probe, of_probe in zip(probes, samples, strict=True):
        for name, value in zip(rows, (probe.id, probe.group, probe.prompt, probe.reference, probe.fact), strict=True):
            rows[name] += [value] * len(of_probe)
    columns: dict[str, Any] = {
        name: pyarrow.array(values, pyarrow.string()).dictionary_encode() for name, values in rows.items()
    }
    columns["sample"] = pyarrow.array(
        [index for of_probe in samples for index in range(len(of_probe))], pyarrow.int32()
    )
    columns["response"] = pyarrow.array(texts(flat, tokenizer), pyarrow.string())
    columns["token_ids"] = pyarrow.array([each.token_ids for each in flat], pyarrow.list_(pyarrow.int32()))
    columns["tokens"] = pyarrow.array([len(each.token_ids) + (each.finish == "stop") for each in flat], pyarrow.int32())
    columns["logprob"] = pyarrow.array([each.logprob for each in flat], pyarrow.float64())
    columns["model_logprob"] = pyarrow.array([each.model_logprob for each in flat], pyarrow.float64())
    columns["finish"] = pyarrow.array([each.finish for each in flat], pyarrow.string())
    return pyarrow.table(columns)


def read_units(folder: Path, columns: list[str] | None = None) -> Any:
    """All units of a finished stage as one table, in the order of prompts and samples."""
    import pyarrow
    import pyarrow.parquet

    return pyarrow.concat_tables(
        pyarrow.parquet.read_table(path, columns=columns) for path in sorted((folder / "units").glob("*.parquet"))
    )
