"""From when on a key counts as known, by what the memory itself says of its facts."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def scores(leverage: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """Nats that the memory knows of each element of the value at an address (T, K).

    Args:
        leverage: ``w'(gram + ridge I)^-1 w``, (T,): the predictive variance over ``noise_var``.
        weights: w, (T, K).
        ridge: noise variance / prior variance.

    Returns:
        ``-1/2 ln(variance / prior variance)``, at least 0; 0 at an address of zero.
    """
    least = torch.finfo(weights.dtype).tiny
    squares = weights.square().sum(-1)
    ratio = torch.where(squares > 0, ridge * leverage / squares.clamp(min=least), 1)
    return -0.5 * ratio.clamp(least, 1).log()


def without_itself(leverage: Tensor) -> Tensor:
    """The leverage that a written item's address would have if it had not been written."""
    return leverage / (1 - leverage).clamp(min=1e-12)


def threshold(written: Tensor, left_out: Tensor, false_alarm: float) -> float:
    """The score above which a key is called known.

    Scores of facts that were left out are a sample of the scores of keys that were never written,
    if those come from where the facts' keys come from. The smallest threshold that a part
    ``false_alarm`` of such keys passes on average is an order statistic of them (split conformal
    prediction: Vovk et al., Algorithmic Learning in a Random World, 2005). With n facts there is
    none below 1 / (n + 1): then it is halfway between the largest of them and the smallest score
    of a fact itself.

    Args:
        written: (n,) scores of facts in the memory.
        left_out: (n,) scores of the same facts, each without itself.
        false_alarm: part of unknown keys that may be called known.
    """
    count = len(left_out)
    if not count:
        return math.inf
    ordered = left_out.sort().values
    rank = math.ceil((1 - false_alarm) * (count + 1))
    if rank <= count:
        return ordered[rank - 1].item()
    largest, least = ordered[-1].item(), written.min().item()
    return max(largest, (largest + least) / 2)
