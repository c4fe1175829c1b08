"""Decoding: from a model and prompts to sampled token ids and their exact probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.decode.prefix_tree import Sample
    from engine.decode.sampler import sample

__all__ = ["Sample", "sample"]


def __getattr__(name: str) -> Any:  # lazy, for it imports torch
    if name not in __all__:
        raise AttributeError(name)
    from engine.decode import sampler

    return getattr(sampler, name)
