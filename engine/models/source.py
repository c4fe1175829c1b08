"""Where a model comes from: a folder or a hub name, checked before work starts, and the identity of its content.

Knows nothing of how a model is loaded or used.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from engine.errors import UserError
from engine.fingerprint import file_digest, fingerprint
from engine.models.lora import ADAPTER_WEIGHTS, adapter_base, check_adapter, is_adapter


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
