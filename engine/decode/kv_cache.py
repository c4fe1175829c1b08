"""A key-value cache whose rows are sampled prefixes: rows are appended to in place, split, moved and dropped.

transformers' DynamicCache copies all it holds at every token and again at every choice of rows. Here the buffers have
room to spare: a step writes one column, and only rows that are new or that fill the gap of a dropped one are copied.
Knows nothing of samples or tokens. Sliding-window layers are kept whole; the model's own mask hides what is too old.
Shape letters: R rows, H heads, T positions, D width of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from engine.decode.token_sampling import sent

# BLAS takes other kernels for the last few rows of a batch and for batches of eight rows or fewer, whose last bits
# differ; with the number of rows padded to a multiple of eight, and to sixteen at least, a row's result is the same in
# any batch (float32 on a CPU, one thread).
ROW_MULTIPLE = 8
LEAST_ROWS = 16
# Positions to spare: gaps between rows slow a CPU's attention down; on a GPU they cost memory only.
SPARE_POSITIONS_CPU = 8
SPARE_POSITIONS_GPU = 64


def padded(count: int) -> int:
    """`count` rounded up to a multiple of ROW_MULTIPLE, at least LEAST_ROWS."""
    return max(LEAST_ROWS, -(-count // ROW_MULTIPLE) * ROW_MULTIPLE)


class _Layer(CacheLayerMixin):
    """Buffers keys, values [rows with room to spare, H, positions with room to spare, D], filled up to `length`."""

    is_sliding = False
    keys: Any  # Tensor, once `update` has made it
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True  # the buffers are made by `update`

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append positions to the first rows; returns all that these rows hold, as views."""
        start, end = self.length, self.length + key_states.shape[2]
        rows = len(key_states)
        self.lazy_initialization(key_states, value_states)
        self.keys = _with_room(self.keys, key_states, rows, start, end)
        self.values = _with_room(self.values, value_states, rows, start, end)
        self.keys[:rows, :, start:end] = key_states
        self.values[:rows, :, start:end] = value_states
        self.length = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class KVRows(Cache):
    """The cache of a model's layers, by row. Rows past those in use hold old or zero values, never unset memory."""

    layers: list[Any]  # _Layer

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Layer)

    def arrange(self, parent_R: np.ndarray) -> np.ndarray:
        """Make the rows those of parent_R (sorted, may repeat), in place; returns the row where each now stands.

        A parent's first child stays where it is; the others go to free rows, so that no row to be read is written
        (a call cut off by lack of memory can be made again). The rows are then 0..len(parent_R) - 1.
        """
        count = len(parent_R)
        stays_R = parent_R < count
        stays_R[1:] &= parent_R[1:] != parent_R[:-1]
        if stays_R.all():
            return parent_R
        free = np.ones(count, dtype=bool)
        free[parent_R[stays_R]] = False
        row_R = parent_R.copy()
        row_R[~stays_R] = np.flatnonzero(free)
        moves = self._on_devices(np.stack([parent_R[~stays_R], row_R[~stays_R]]))
        for layer in self.layers:
            source, target = moves[layer.keys.device]
            layer.keys = _with_room(layer.keys, layer.keys, padded(count), layer.length, layer.length)
            layer.values = _with_room(layer.values, layer.values, padded(count), layer.length, layer.length)
            for buffer in (layer.keys, layer.values):
                held = buffer[:, :, : layer.length]
                held.index_copy_(0, target, held.index_select(0, source))
        return row_R

    def taken(self, rows_R: np.ndarray, device: torch.device | None = None) -> KVRows:
        """A new cache of the given rows, on `device` or where they are; this one stays as it is."""
        new, rows = KVRows(), self._on_devices(rows_R)
        for layer in self.layers:
            copy = _Layer()
            copy.is_initialized, copy.length = True, layer.length
            index = rows[layer.keys.device]
            copy.keys = layer.keys[:, :, : layer.length].index_select(0, index).to(device or layer.keys.device)
            copy.values = layer.values[:, :, : layer.length].index_select(0, index).to(device or layer.keys.device)
            new.layers.append(copy)
        return new

    def _on_devices(self, indices: np.ndarray) -> dict[torch.device, Tensor]:
        """The indices on every device that holds a layer, sent once."""
        return {device: sent(indices, device) for device in {layer.keys.device for layer in self.layers}}

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""
        for layer in self.layers:
            layer.length = min(layer.length, length)


def _with_room(buffer: Tensor | None, like: Tensor, rows: int, filled: int, end: int) -> Tensor:
    """`buffer` if it has `rows` rows and `end` positions, else a larger one with its `filled` positions; shaped as
    `like` otherwise."""
    old_rows, old_end = (0, 0) if buffer is None else (buffer.shape[0], buffer.shape[2])
    if buffer is not None and rows <= old_rows and end <= old_end:
        return buffer
    # A quarter more rows than asked for, so that growth row by row is copied only now and then.
    new_rows = old_rows if rows <= old_rows else rows if buffer is None else rows + rows // 4
    spare = SPARE_POSITIONS_CPU if like.device.type == "cpu" else SPARE_POSITIONS_GPU
    larger = like.new_zeros((new_rows, like.shape[1], max(old_end, end + spare), like.shape[3]))
    if buffer is not None:
        larger[:old_rows, :, :filled] = buffer[:, :, :filled]
    return larger
