"""Sampling as a stage: a model and probes in, generations as parquet out, fanned over the cluster.

The work unit is a fixed group of prompts, whatever the number of workers. Knows nothing of metrics.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from benchmarks.base import Decoding, Probe
from engine.fanout import counted, fan_out, unit_counts, unit_seconds
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
    def units(self) -> int:
        return -(-len(self.probes) // unit_prompts(self.n))

    def compute(self, unit: int) -> tuple[Any, str]:
        """The generations of one unit as a table (one row a sample), and a note on the speed."""
        import torch

        on_gpu = self.gpus > 0
        if not on_gpu:
            torch.set_num_threads(1)
        device, precision = ("cuda", "bf16") if on_gpu else ("cpu", "fp32")
        model, tokenizer = cached_model(self.model, device, precision)
        size = unit_prompts(self.n)
        probes = self.probes[unit * size : (unit + 1) * size]
        clock = time.monotonic()
        table = _table(probes, sample_probes(model, tokenizer, probes, self), tokenizer)
        tokens = sum(table["tokens"].to_pylist())
        return counted(
            table, {"tokens": tokens}
        ), f"{tokens / max(time.monotonic() - clock, 1e-9):,.0f} tokens/s a worker"


def run_sampling(job: SampleJob, work: Path, report: Any, workers: int | None = None) -> dict[str, Any]:
    """Fill `work/units` with the generations of every unit; returns prompts, samples and tokens sampled."""
    fan_out(job, job.units, work / "units", report, workers, job.gpus)
    return {
        "prompts": len(job.probes),
        "samples": len(job.probes) * job.n,
        "tokens": unit_counts(work / "units").get("tokens", 0),
        "seconds": unit_seconds(work / "units"),
    }


def unit_prompts(n: int) -> int:
    """Prompts a unit: bounded in prompts and in samples, and the same for any number of workers."""
    return max(1, min(UNIT_PROMPTS, UNIT_ROWS // n))


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

    columns = prompt_columns(probes, len(samples[0]))
    flat = [each for of_probe in samples for each in of_probe]
    columns["response"] = pyarrow.array(texts(flat, tokenizer), pyarrow.string())
    columns["token_ids"] = pyarrow.array([each.token_ids for each in flat], pyarrow.list_(pyarrow.int32()))
    columns["tokens"] = pyarrow.array([len(each.token_ids) + (each.finish == "stop") for each in flat], pyarrow.int32())
    columns["logprob"] = pyarrow.array([each.logprob for each in flat], pyarrow.float64())
    columns["model_logprob"] = pyarrow.array([each.model_logprob for each in flat], pyarrow.float64())
    columns["finish"] = pyarrow.array([each.finish for each in flat], pyarrow.string())
    return pyarrow.table(columns)


def prompt_columns(probes: tuple[Probe, ...], n: int) -> dict[str, Any]:
    """The columns of a table of generations that say which sample of which probe a row is, n rows a probe."""
    import pyarrow

    values = {"prompt_id": "id", "group": "group", "prompt": "prompt", "reference": "reference", "fact": "fact"}
    columns: dict[str, Any] = {
        name: pyarrow.array([getattr(probe, field) for probe in probes for _ in range(n)], pyarrow.string())
        for name, field in values.items()
    }
    columns = {name: column.dictionary_encode() for name, column in columns.items()}
    columns["sample"] = pyarrow.array([index for _ in probes for index in range(n)], pyarrow.int32())
    return columns


def read_units(folder: Path, columns: list[str] | None = None) -> Any:
    """All units of a finished stage as one table, in the order of prompts and samples."""
    import pyarrow
    import pyarrow.parquet

    return pyarrow.concat_tables(
        pyarrow.parquet.read_table(path, columns=columns) for path in sorted((folder / "units").glob("*.parquet"))
    )
