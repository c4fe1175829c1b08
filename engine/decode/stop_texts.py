"""Stop texts while sampling: whether a sample's tokens so far spell one, decoded only where the last token may end one.

A tokenizer and each prompt's stop texts come in. Knows nothing of models or of how samples are drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from engine.models.tokenization import Tokenizer


class StopTexts:
    """Called with prompts' indices [R] and their samples' tokens [R, T]: which of them spell a stop text, bool [R].

    Texts are decoded without special tokens, as `engine.stages.sample.texts` does, which cuts them before the stop
    text.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[tuple[str, ...]]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.enders = {stop: _enders(tokenizer, stop) for stop in set(stops)}

    def __call__(self, prompt_R: np.ndarray, tokens_RT: np.ndarray) -> np.ndarray:
        ended_R = np.zeros(len(prompt_R), dtype=bool)
        for row, (prompt, tokens) in enumerate(zip(prompt_R.tolist(), tokens_RT, strict=True)):
            stop = self.stops[prompt]
            if self.enders[stop][tokens[-1]]:
                text = self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
                ended_R[row] = any(whole in text for whole in stop)
        return ended_R


def _enders(tokenizer: Tokenizer, stop: tuple[str, ...]) -> np.ndarray:
    """bool [vocabulary]: tokens whose own text holds a stop text or begins with the end of one, or is part of a
    character, so that what they add is not known."""
    ends = {whole[start:] for whole in stop for start in range(len(whole))}

    def may_end(piece: str) -> bool:
        return "\ufffd" in piece or any(piece.startswith(end) for end in ends) or any(whole in piece for whole in stop)

    pieces = _pieces(tokenizer)
    return np.array([bool(stop) and (may_end(first) or may_end(later)) for first, later in pieces])


@functools.lru_cache(maxsize=2)
def _pieces(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The text of every token id at the start of a text and after another token, which may differ by a space."""
    ids = range(len(tokenizer))
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1]
    before = len(tokenizer.decode([anchor]))
    first = tokenizer.batch_decode([[token] for token in ids])
    later = tokenizer.batch_decode([[anchor, token] for token in ids])
    return [(one, two[before:]) for one, two in zip(first, later, strict=True)]
