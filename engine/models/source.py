"""Where a model comes from: a folder or a hub name, checked before work starts, and the identity of its content.

Knows nothing of how a model is loaded or used.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from engine.errors import UserError
from engine.fingerprint import fingerprint, kept_digests, refuse_pointer, visible_files
from engine.models.lora import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_base,
    adapter_settings,
    check_adapter,
    is_adapter,
)

# what names of files end in that transformers reads
READ = {
    ".json",
    ".safetensors",
    ".model",
    ".txt",
    ".tiktoken",
    ".vocab",
    ".bpe",
    ".spm",
}
NOTES = {"README", "LICENSE", "NOTICE", "USE_POLICY"}


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model to load: folder or hub name, revision, and whether its own code may run. `identity` names its content."""

    path: str
    identity: str
    revision: str | None = None
    trust_remote_code: bool = False


def model_source(
    path: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    where: str = "model.path",
    identified: bool = True,
) -> ModelSource:
    """Resolve and check a model before work starts: a ModelSource whose identity is a digest or a hub commit.

    A local folder is known by the bytes of its files, which takes minutes for 100 GB and is left out, with an empty
    identity, unless it is to be `identified`; a hub name by the commit that it stands at now. UserError for a folder
    without config, tokenizer or safetensors weights, or a name that the hub does not know.
    """
    folder = Path(path).expanduser()
    if folder.is_dir() and is_adapter(folder):
        check_adapter(folder)
        said = f"{where}: base model of the adapter {folder}"
        below = model_source(*adapter_base(folder), trust_remote_code, said, identified)
        refuse_pointer(folder / ADAPTER_WEIGHTS, where)
        check_safetensors(folder / ADAPTER_WEIGHTS, where)
        if not identified:
            return ModelSource(str(folder.resolve()), "", None, trust_remote_code)
        files = [path for path in visible_files(folder) if _decides(path.relative_to(folder))]
        own = kept_digests([path for path in files if path.name != ADAPTER_CONFIG], folder)
        identity = fingerprint([below.identity, own, adapter_settings(folder)])
        return ModelSource(str(folder.resolve()), identity, None, trust_remote_code)
    if folder.is_dir():
        _check_folder(folder, where)
        files = [path for path in visible_files(folder) if _decides(path.relative_to(folder))]
        for file in files:
            refuse_pointer(file, where)
        _check_weights(folder, where)
        identity = fingerprint(kept_digests(files, folder)) if identified else ""
        if identity and trust_remote_code and "auto_map" in (folder / "config.json").read_text(encoding="utf-8"):
            identity = fingerprint([identity, "by its own code"])  # which may compute otherwise than transformers' own
        return ModelSource(str(folder.resolve()), identity, None, trust_remote_code)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{where}: there is no folder {path}; give a model folder or a hub name such as org/model")
    commit = _hub_commit(path, revision, where)
    code = " by its own code" if trust_remote_code else ""
    return ModelSource(path, f"{path}@{commit}{code}", commit, trust_remote_code)


def _check_folder(folder: Path, where: str) -> None:
    def missing(what: str, *patterns: str) -> None:
        if not any(list(folder.glob(pattern)) for pattern in patterns):
            raise UserError(f"{where}: {folder} has no {what} ({' or '.join(patterns)}); is it a whole saved model?")

    missing("model configuration", "config.json")
    missing("tokenizer", "tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    missing("safetensors weights", "*.safetensors")


def _decides(path: Path) -> bool:
    """Whether a file of a model folder, by its path in it, may decide results: what transformers reads is the
    configuration, the tokenizer and the weights at the top, and code and templates anywhere; not read-mes, pictures,
    optimizers or the same weights in another format."""
    if path.suffix in (".py", ".jinja"):
        return True
    return len(path.parts) == 1 and path.suffix in READ and path.stem.upper() not in NOTES


def _check_weights(folder: Path, where: str) -> None:
    """UserError unless every shard that the index names is there, and each file of weights is whole."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{where}: {index} is no index of weights; download the model again") from error
        missing = sorted(shard for shard in shards if not (folder / str(shard)).exists())
        if missing:
            raise UserError(f"{where}: {folder} lacks {missing[0]}, one of the model's {len(shards)} files of weights")
    for path in sorted(folder.glob("*.safetensors")):
        check_safetensors(path, where)


def check_safetensors(path: Path, where: str) -> None:
    """UserError unless the file's header fits its size: one that was cut, or that holds something else, has no weights.

    Source: the safetensors format, 8 bytes of the header's length, the header in JSON, then the tensors.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length) if length < size else b"")
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = bool(ends) and 8 + length + max(ends) == size
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        whole = False
    if not whole:
        raise UserError(f"{where}: {path} holds no whole safetensors weights; download or save the model again")


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
