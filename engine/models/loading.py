"""Where models come from: identity, checks and loading of a Hugging Face causal LM from a folder or the hub.

Knows nothing of how a model is used. Only safetensors weights are read.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.fingerprint import file_digest, fingerprint
from engine.models.lora import ADAPTER_WEIGHTS, adapter_base, check_adapter, is_adapter, merged
from engine.store.replica import at_home, mirror_of, present


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model to load: folder or hub name, revision, and whether its own code may run. `identity` names its content."""

    path: str
    identity: str
    revision: str | None = None
    trust_remote_code: bool = False


def model_source(
    path: str, revision: str | None = None, trust_remote_code: bool = False, where: str = "model.path"
) -> ModelSource:
    """Resolve and check a model before work starts: a ModelSource whose identity is a digest or a hub commit.

    A local folder is known by the bytes of its files, a hub name by the commit that it stands at now. UserError for a
    folder without config, tokenizer or safetensors weights, or a name that the hub does not know.
    """
    folder = Path(path).expanduser()
    if folder.is_dir() and is_adapter(folder):
        check_adapter(folder)
        below = model_source(*adapter_base(folder), trust_remote_code, f"{where}: base model of the adapter {folder}")
        weights = file_digest(folder / ADAPTER_WEIGHTS)
        return ModelSource(str(folder.resolve()), fingerprint([below.identity, weights]), None, trust_remote_code)
    if folder.is_dir():
        _check_folder(folder, where)
        files = sorted(each for each in folder.rglob("*") if each.is_file() and not each.name.startswith("."))
        digests = {each.relative_to(folder).as_posix(): file_digest(each) for each in files}
        return ModelSource(str(folder.resolve()), fingerprint(digests), None, trust_remote_code)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{where}: there is no folder {path}; give a model folder or a hub name such as org/model")
    commit = _hub_commit(path, revision, where)
    return ModelSource(path, f"{path}@{commit}", commit, trust_remote_code)


def _check_folder(folder: Path, where: str) -> None:
    def missing(what: str, *patterns: str) -> None:
        if not any(list(folder.glob(pattern)) for pattern in patterns):
            raise UserError(f"{where}: {folder} has no {what} ({' or '.join(patterns)}); is it a whole saved model?")

    missing("model configuration", "config.json")
    missing("tokenizer", "tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    missing("safetensors weights", "*.safetensors")


def _hub_commit(name: str, revision: str | None, where: str) -> str:
    """The commit that `name` stands at: from the hub, or from the local cache when the hub cannot be reached."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return str(HfApi().model_info(name, revision=revision, timeout=20).sha)
    except HFValidationError as error:
        raise UserError(f"{where}: {name!r} is neither a folder nor a hub name such as org/model") from error
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", "?")
        raise UserError(f"{where}: the hub does not give {name!r} (HTTP {code}); gated models need HF_TOKEN") from error
    except Exception as error:  # no network: whatever the http library raises
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        raise UserError(f"{where}: no folder {name!r} here, and the hub cannot be reached for a model of it") from error


def load_model(source: ModelSource, device: str = "cpu", precision: str = "fp32") -> Any:
    """The causal LM of `source` in evaluation mode, its weights in float32 or bfloat16 on `device`; an adapter folder
    gives its base model with the adapter merged."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    present(source.path)
    if is_adapter(Path(source.path)):
        path, revision = adapter_base(Path(source.path))
        mirror = mirror_of(Path(source.path))
        path = str(at_home(Path(path), Path(mirror.root))) if mirror is not None else path
        base = load_model(ModelSource(path, "", revision, source.trust_remote_code), device, precision)
        return merged(base, Path(source.path)).eval()
    model: Any = AutoModelForCausalLM.from_pretrained(
        source.path,
        revision=source.revision,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        use_safetensors=True,
        trust_remote_code=source.trust_remote_code,
    )
    return model.to(device).eval()


def context_length(model: Any) -> int | None:
    """Most tokens that the model takes, None where its configuration does not say."""
    config = getattr(model, "module", model).config  # DeepSpeed's engine has a configuration of its own
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


@functools.lru_cache(maxsize=2)
def cached_model(source: ModelSource, device: str, precision: str) -> tuple[Any, Any]:
    """(model, tokenizer) of `source`, kept in this process: a warm worker does not load the same model again."""
    from engine.models.tokenization import load_tokenizer

    tokenizer = load_tokenizer(source.path, source.trust_remote_code, source.revision)
    return load_model(source, device, precision), tokenizer
