"""One decoding step in buffers that never move, so that a GPU replays it as a CUDA graph.

With few rows a GPU waits for Python to launch the step's hundreds of kernels; a graph launches them at once. Keys and
values stand in buffers of fixed size, the position to write is a number on the device, and the model's own mask hides
what was not written yet. Whatever cannot be captured is computed plainly. Knows nothing of samples.
Shape letters: R rows, H heads, T positions, D width of a head.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.decode.kv_cache import LEAST_ROWS, KVRows, _Layer
from engine.decode.token_sampling import sent
from engine.models.causal_lm import CausalLM

MOST_ROWS = 256  # beyond it a step's arithmetic outlasts its launching


class _FixedLayer(_Layer):
    """Buffers [most rows, H, most positions, D]; a step writes at `column`, a number on the device."""

    is_compileable = True

    def __init__(self, like: _Layer, rows: int, length: int, column: Tensor) -> None:
        super().__init__()
        self.is_initialized, self.column = True, column
        self.keys = like.keys.new_zeros((rows, like.keys.shape[1], length, like.keys.shape[3]))
        self.values = like.values.new_zeros((rows, like.values.shape[1], length, like.values.shape[3]))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        rows, column = len(key_states), self.column.reshape(1)
        keys, values = self.keys[:rows], self.values[:rows]
        keys.index_copy_(2, column, key_states)
        values.index_copy_(2, column, value_states)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2], 0

    def get_seq_length(self) -> Any:
        return self.column


class FixedRows(KVRows):
    """A cache of at most `rows` rows and `length` positions, and the model's step on it. One branch uses it at a time.

    like: a cache of the same model. capture: replay the step as a CUDA graph (a GPU only).
    """

    def __init__(self, model: CausalLM, like: KVRows, rows: int, length: int, capture: bool) -> None:
        super().__init__()
        device = model.device
        self.model, self.rows, self.most_positions, self.capture = model, rows, length, capture
        self.column = torch.zeros((), dtype=torch.int64, device=device)
        self.token = torch.zeros((rows, 1), dtype=torch.int64, device=device)
        self.position = torch.zeros((rows, 1), dtype=torch.int64, device=device)
        self.mask = torch.ones((rows, length), dtype=torch.bool, device=device)
        self.layers = [_FixedLayer(layer, rows, length, self.column) for layer in like.layers]
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.pool = torch.cuda.graph_pool_handle() if capture else None

    def hold(self, cache: KVRows, rows_R: np.ndarray) -> None:
        """Take over the given rows of another cache."""
        for layer, other in zip(self.layers, cache.taken(rows_R, self.model.device).layers, strict=True):
            layer.length = other.length
            layer.keys[: len(rows_R), :, : other.length] = other.keys
            layer.values[: len(rows_R), :, : other.length] = other.values

    def step(self, token_R: np.ndarray, pad_R: np.ndarray | None) -> Tensor:
        """Append a token to each row, padded as told on its left; the next token's logits [R, V], good until the next
        step."""
        count, written = len(token_R), self.layers[0].length
        rows = max(LEAST_ROWS, 1 << (count - 1).bit_length())  # few sizes, so few graphs
        tokens, pads = np.zeros((2, rows, 1), dtype=np.int64)  # the rows to spare are computed too, and must be finite
        tokens[:count, 0] = token_R
        if pad_R is not None:
            pads[:count, 0] = pad_R
        device = self.model.device
        self.column.copy_(sent(np.array(written), device))
        self.token[:rows].copy_(sent(tokens, device))
        self.position[:rows].copy_(sent(written - pads, device))
        self.mask[:rows].copy_(sent(np.arange(self.most_positions) >= pads, device))
        logits = self._replayed(rows) if self.capture else self._forward(rows)
        for layer in self.layers:
            layer.length = written + 1
        return logits[:count]

    def _forward(self, rows: int) -> Tensor:
        """The step on the first rows: works in the buffers alone and never waits for the device."""
        logits = self.model(
            input_ids=self.token[:rows],
            attention_mask=self.mask[:rows],
            position_ids=self.position[:rows],
            past_key_values=self,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]

    def _replayed(self, rows: int) -> Tensor:
        if rows not in self.graphs:
            plain = self._forward(rows).clone()
            try:
                graph, logits = self._captured(rows)
                graph.replay()
                if not torch.allclose(logits, plain, rtol=0.02, atol=0.02, equal_nan=True):
                    raise RuntimeError("its logits are not the model's")
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                first = str(error).splitlines()[0]
                warnings.warn(f"sampling without a CUDA graph, which this model does not allow: {first}", stacklevel=2)
                self.capture = False
                return plain
            self.graphs[rows] = graph, logits
            return logits
        graph, logits = self.graphs[rows]
        graph.replay()
        return logits

    def _captured(self, rows: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The step as a graph, and the logits that it fills. Made again, a step writes what it wrote before."""
        with torch.cuda.device(self.model.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries set themselves up before the capture
                for _ in range(2):
                    self._forward(rows)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                logits = self._forward(rows)
        return graph, logits


def fixed_rows(model: CausalLM, like: KVRows, rows: int, length: int) -> FixedRows | None:
    """A fixed cache of the model for `length` positions and at most `rows` rows, MOST_ROWS if that is less; None where
    the model is not on one GPU, or there is no room."""
    devices = {layer.keys.device for layer in like.layers}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return None
    most = min(MOST_ROWS, 1 << (rows.bit_length() - 1))
    try:
        return FixedRows(model, like, most, length, capture=True)
    except torch.OutOfMemoryError:
        return None
