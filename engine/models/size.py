"""How large a model is: its shape and how many parameters it has, by its files and its configuration.

Reads no weights, and of a model of the hub its configuration alone. Knows nothing of bytes that this takes anywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import struct
from pathlib import Path

from engine.jsonl import JsonObject
from engine.models.lora import ADAPTER_CONFIG, LoraSection, adapter_base, is_adapter
from engine.models.source import ModelSource
from engine.store.replica import manifest_of


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """A decoder's shape. query, kv: widths of all query and of all key (or value) heads together."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    query: int
    kv: int
    vocabulary: int

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        return self.hidden * (2 * self.query + 2 * self.kv + 3 * self.intermediate + 2)

    def reached(self, layers: int | None) -> int:
        """Parameters that a loss of the first decoder layers gives gradients; None: of all layers and the head."""
        if layers is None:
            return self.parameters
        return self.vocabulary * self.hidden + min(layers, self.layers) * self.layer

    def adapter(self, lora: LoraSection) -> int:
        """Parameters of a LoRA adapter: rank * (inputs + outputs) of each layer that gets one."""
        h, i, q, kv = self.hidden, self.intermediate, self.query, self.kv
        shapes = {"q_proj": h + q, "k_proj": h + kv, "v_proj": h + kv, "o_proj": q + h}
        shapes |= {"gate_proj": h + i, "up_proj": h + i, "down_proj": i + h}
        chosen = shapes if isinstance(lora.targets, str) else [name for name in lora.targets if name in shapes]
        return lora.rank * self.layers * sum(shapes[name] for name in chosen)


def model_size(source: ModelSource) -> ModelSize | None:
    """The size of a model of a folder or of the hub (its configuration alone is read); None where it does not say."""
    folder = Path(source.path)
    if is_adapter(folder):
        path, revision = adapter_base(folder)
        return model_size(ModelSource(path, "", revision))
    try:
        config = json.loads(_config_file(source).read_text(encoding="utf-8"))
        size = size_of(config.get("text_config") or config)
        counted = stored_parameters(folder) if folder.is_dir() else 0
    except Exception:  # no network, another layout: a plan is no reason to stop
        return None
    return dataclasses.replace(size, parameters=counted) if counted else size


def parameters_of(source: ModelSource) -> int:
    """How many parameters a model has, the one below an adapter: by what the manifest of its stage says, whether its
    files are at hand or not, by its files, or else by its configuration; 0 where none says."""
    folder = Path(source.path)
    noted = manifest_of(folder.parent).get("files", {})
    weights = [name for name in noted if name.startswith(f"{folder.name}/") and name.endswith(".safetensors")]
    if weights and f"{folder.name}/{ADAPTER_CONFIG}" not in noted:
        return int(sum(noted[name]["bytes"] for name in weights)) // 4  # written in float32
    if folder.is_dir() and not is_adapter(folder) and (stored := stored_parameters(folder)):
        return stored
    size = model_size(source)
    return 0 if size is None else size.parameters


@functools.lru_cache(maxsize=16)  # each of many stages asks
def _config_file(source: ModelSource) -> Path:
    if Path(source.path).is_dir():
        return Path(source.path) / "config.json"
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source.path, "config.json", revision=source.revision))


def size_of(config: JsonObject) -> ModelSize:
    """The size from a configuration of Llama's kind: gated MLP, grouped heads. KeyError where a key is missing."""
    hidden, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    heads, inner = config["num_attention_heads"], config["intermediate_size"]
    width = config.get("head_dim") or hidden // heads
    query, kv = heads * width, (config.get("num_key_value_heads") or heads) * width
    size = ModelSize(0, layers, hidden, inner, query, kv, vocabulary)
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings", True) else 2)
    return dataclasses.replace(size, parameters=layers * size.layer + embeddings + hidden)


def stored_parameters(folder: Path) -> int:
    """Elements of all tensors of a folder's safetensors files, by their headers; tied weights are stored once."""
    shapes: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        shapes |= {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
    return sum(math.prod(shape) for shape in shapes.values())
