"""What this project needs of a causal language model: the part of Hugging Face's models that it calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class CausalLM(Protocol):
    """A Hugging Face causal LM. Called with input_ids [rows, positions] and the like, it gives an output with `logits`
    [rows, positions, vocabulary] and, where asked for, `past_key_values`."""

    training: bool

    @property
    def config(self) -> Any: ...  # transformers' configurations are typed by architecture alone

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, **inputs: Any) -> Any: ...

    def get_output_embeddings(self) -> Any: ...  # a torch module with `weight` [vocabulary, width]
