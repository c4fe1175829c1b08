"""All that an experiment will load, looked at before its first stage: models, their tokenizers, metrics' models.

An experiment and the sources of its models come in; a UserError names the key that asked for what cannot be used.
Reads configurations and tokenizers alone, no weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.config.experiment import Experiment
from engine.config.sections import ModelSection
from engine.errors import UserError, one_line
from engine.evaluation.benchmark_metrics import greedy_metrics
from engine.metrics import check_metric
from engine.models.chat_template import check_template
from engine.models.lora import adapter_base, is_adapter
from engine.models.source import ModelSource
from engine.models.tokenization import encode_prompt, load_tokenizer, pad_token_id, uses_chat

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from benchmarks.base import Benchmark

QUESTION = "Who wrote it?"
OTHER_LAYERS = ("conv", "linear", "mamba", "recurrent")  # in the names of layers without keys and values


def check_metrics(experiment: Experiment, benchmark: Benchmark) -> None:
    """UserError unless every metric of the experiment has what it loads."""
    for name in dict.fromkeys((*(experiment.metrics or ()), *greedy_metrics(benchmark))):
        check_metric(name, experiment.metric_options.get(name, {}))


def check_model(source: ModelSource, model: ModelSection, where: str) -> None:
    """UserError unless the model at `source` can be trained and sampled as the experiment's section says.

    where: the key that names it. Looks at the architecture, at the tokenizer against the embedding, and at what the
    chat template makes of `model.system` and `model.template_options`.
    """
    base = _below_adapter(source)
    config = _config(base, where)
    _check_architecture(config, base, where)
    tokenizer = load_tokenizer(source.path, source.trust_remote_code, source.revision)
    if uses_chat(tokenizer, model.template):
        check_template(tokenizer, model.system, model.template_options)
    rows = getattr(config.get_text_config(), "vocab_size", None)
    prompt = encode_prompt(tokenizer, QUESTION, model.template, model.system, model.template_options)
    for name, token in (("padding", pad_token_id(tokenizer)), *(("prompt", token) for token in prompt)):
        if rows is not None and token >= rows:
            raise UserError(
                f"{where}: the tokenizer's {name} token {tokenizer.convert_ids_to_tokens(token)!r} has the id {token}, "
                f"but the model's embedding has {rows} rows; save them together (resize_token_embeddings)"
            )


def _below_adapter(source: ModelSource) -> ModelSource:
    if not is_adapter(Path(source.path)):
        return source
    path, revision = adapter_base(Path(source.path))
    return ModelSource(path, "", revision, source.trust_remote_code)


def _config(source: ModelSource, where: str) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: its configuration cannot be read ({one_line(str(error))[:160]})") from error


def _check_architecture(config: PretrainedConfig, source: ModelSource, where: str) -> None:
    """UserError unless the model is a decoder whose layers keep keys and values: what the sampler appends to."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if source.trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return  # its own code, of which nothing is known before it runs
    name = config.model_type
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"{where}: {name} is no causal language model; give one that transformers loads as such")
    layers = getattr(config.get_text_config(), "layer_types", None) or ()
    other = any(kind in layer for layer in layers for kind in OTHER_LAYERS)
    if other or _keeps_states(name) or not getattr(config, "is_decoder", True):
        raise UserError(
            f"{where}: {name} models cannot be sampled here: not all of their layers keep keys and values (state-space "
            "and recurrent layers, encoders); give a decoder, or a server that has the model (model.endpoint)"
        )


def _keeps_states(model_type: str) -> bool:
    """Whether transformers marks the architecture as one that carries a state from token to token. Its code is read and
    not imported: that takes seconds, and some of it prints."""
    import transformers
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    module = model_type_to_module_name(model_type)
    code = Path(transformers.__file__).parent / "models" / module / f"modeling_{module}.py"
    return code.exists() and "_is_stateful = True" in code.read_text(encoding="utf-8")
