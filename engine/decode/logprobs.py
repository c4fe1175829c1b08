"""The exact log-probability of answers that are given, by one teacher-forced pass of the model.

A causal LM, a prompt and answers as token ids come in; float64 log-probabilities under one or several decodings go out.
Knows nothing of texts or of where answers come from.
Shape letters: B answers, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.base import Decoding
from engine.decode.law import scores_and_total

if TYPE_CHECKING:
    from engine.models.causal_lm import CausalLM

FULL = Decoding()


def answer_log_probs(
    model: CausalLM,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    eos_token_id: int | Sequence[int],
    decoding: Decoding = FULL,
    *,
    whole: bool | Sequence[bool] = True,
) -> NDArray[np.float64]:
    """Log-probability that the model, sampled so, emits each answer: float64 [answers].

    prompt, answers: token ids, without an end token. eos_token_id: one, or all that end an answer. whole: exactly the
    answer and then an end token; False: an output that begins with the answer, whatever follows (then no answer given
    to leak_floor may begin another); or one of these an answer. One teacher-forced pass over all answers. -inf where
    the decoding cuts off a token of the answer.
    """
    return decoded_log_probs(model, prompt, answers, eos_token_id, [decoding], whole=whole)[0]


def decoded_log_probs(
    model: CausalLM,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    eos_token_id: int | Sequence[int],
    decodings: Sequence[Decoding],
    *,
    whole: bool | Sequence[bool] = True,
) -> NDArray[np.float64]:
    """`answer_log_probs` under several decodings by one pass of the model: float64 [decodings, answers]."""
    import torch

    ends = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id), device=model.device)
    ended = np.broadcast_to(whole, len(answers))
    lengths = np.array([len(answer) for answer in answers])
    longest = int(lengths.max()) + 1  # room for the end
    filler = int(ends[0])
    ids_BT = torch.tensor([[*prompt, *answer, *[filler] * (longest - len(answer))] for answer in answers])
    ids_BT = ids_BT.to(model.device)
    log_probs = np.empty((len(decodings), len(answers)))
    with torch.inference_mode():
        kept = model(input_ids=ids_BT, use_cache=False, logits_to_keep=longest + 1).logits
        for decoding, row in zip(decodings, log_probs, strict=True):
            scores_BTV, total_BT1 = scores_and_total(kept[:, :-1], decoding)
            token_BT1 = scores_BTV.gather(-1, ids_BT[:, len(prompt) :, None]).double() - total_BT1
            token_BT = token_BT1[..., 0].cpu().numpy()
            end_BT = (scores_BTV[..., ends].double() - total_BT1).logsumexp(-1).cpu().numpy()
            row[:] = [
                tokens[:length].sum() + (end[length] if is_whole else 0.0)
                for tokens, end, length, is_whole in zip(token_BT, end_BT, lengths, ended, strict=True)
            ]
    return log_probs
