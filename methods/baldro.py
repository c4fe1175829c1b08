"""BalDRO: a base method with more weight on the samples that are hardest to forget, so that all go at one pace.

    dv      tau * log mean over samples of exp(l / tau), the worst case over weights that are a KL ball from equal ones
            (Donsker and Varadhan): its gradient weighs a sample by exp(l / tau)
    group   the base method's loss on the `share` of the samples that the model still finds likeliest (GroupDRO)

with l the base method's forget loss of one sample. The rest of the base method stays as it is.

Both are over the samples of a micro-batch, as in the authors' code: with one sample each they are the base method's.
The authors' code has the other sign of l and of tau, which gives the samples that are forgotten already the greater
weight; this is the worst case that the paper describes.
Source: Shao et al., arXiv 2601.09172; code github.com/nxZhai/BalDRO.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from methods.base import TokenBatch, UnlearnBatch, rows, sequence_nll
from methods.wrapper import Wrapper

if TYPE_CHECKING:
    from torch import Tensor


class BalDRO(Wrapper):
    """base: a method's name and hyperparameters. variant: dv or group; tau: how even the weights are (large: equal);
    share: of the samples, in (0, 1]."""

    variant: Literal["dv", "group"] = "dv"
    tau: float = Field(default=1.0, gt=0)
    share: float = Field(default=0.5, gt=0, le=1)

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        import torch

        assert batch.forget is not None
        base, count = self.base_method(), len(batch.forget.input_ids)
        if self.variant == "group":
            return base.forget_loss(model, _chosen(batch, self._hardest(model, batch.forget)))
        losses_B = torch.stack([base.forget_loss(model, _chosen(batch, [index])) for index in range(count)])
        return self.tau * ((losses_B / self.tau).logsumexp(dim=0) - math.log(count))

    def _hardest(self, model: Any, batch: TokenBatch) -> list[int]:
        """Rows with the lowest mean NLL."""
        import torch

        with torch.no_grad():
            nll_B, length_B = sequence_nll(model, batch)
        count = max(1, int(self.share * len(nll_B)))
        return sorted((nll_B / length_B).topk(count, largest=False).indices.tolist())


def _chosen(batch: UnlearnBatch, indices: list[int]) -> UnlearnBatch:
    """The batch with some of its forget samples and their alternates; one of them alone stands for itself."""

    def part(sequences: TokenBatch | None) -> TokenBatch | None:
        if sequences is None:
            return None
        chosen = rows(sequences, indices)
        return dataclasses.replace(chosen, weight=1.0) if len(indices) == 1 else chosen

    return dataclasses.replace(batch, forget=part(batch.forget), alternate=part(batch.alternate))
