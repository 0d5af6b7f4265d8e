"""From when on a key counts as known, by what the memory itself says of its facts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .features import unit_rows

#: A key lies as densely as its so-manieth nearest fact of the sample is near.
NEIGHBOURS = 8
#: Facts that lie as densely as a key, by which its threshold is found; more for rare alarms.
WINDOW = 64


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
    none below 1 / (n + 1): then it is halfway between the smallest score of a fact itself and the
    largest of them below that.

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
    least = written.min().item()
    below = ordered[ordered < least]
    return ((below[-1].item() if len(below) else 0.0) + least) / 2


class Local:
    """A threshold for each key: that of the facts that lie as densely as it.

    Where facts lie densely, so does much else that was never written, and the memory knows
    something of all of it; where they are scattered, it knows less even of what was written. One
    threshold for both would be passed by the neighbours of the former, and not by the latter. (The
    localized conformal prediction of Guan, Biometrika 2023, along one axis: how near the sample's
    `NEIGHBOURS`-th nearest fact is.)

    Args:
        keys: (n, S), of a sample of the facts.
        left_out: (n,) their scores, each without itself.
        false_alarm: part of unknown keys that may be called known.
        normalize: whether keys are directions.
    """

    def __init__(self, keys: Tensor, left_out: Tensor, false_alarm: float, normalize: bool):
        self.normalize = normalize
        self.sample = self._rows(keys)
        window = self.window(false_alarm)
        near = self._near(self.sample)
        near.fill_diagonal_(-math.inf)
        order = (density := self._dense(near)).argsort()
        ordered = left_out[order].unfold(0, window, 1).sort(-1).values
        rank = math.ceil((1 - false_alarm) * (window + 1))
        self.thresholds = ordered[:, rank - 1].float()
        windows = density[order].unfold(0, window, 1)
        self.densities = (windows[1:, window // 2] + windows[:-1, window // 2]) / 2

    @staticmethod
    def window(false_alarm: float) -> int:
        return max(WINDOW, math.ceil(2 / false_alarm))

    def _rows(self, keys: Tensor) -> Tensor:
        rows = unit_rows(keys.double()) if self.normalize else keys
        return rows.float()

    def _near(self, rows: Tensor) -> Tensor:
        return rows @ self.sample.mT if self.normalize else -torch.cdist(rows, self.sample)

    @staticmethod
    def _dense(near: Tensor) -> Tensor:
        return near.topk(NEIGHBOURS, dim=-1).values[:, -1].contiguous()

    def __call__(self, keys: Tensor) -> Tensor:
        """Thresholds (T,) in float32 of keys (T, S)."""
        density = self._dense(self._near(self._rows(keys.detach()).to(self.sample)))
        return self.thresholds[torch.searchsorted(self.densities, density)]
