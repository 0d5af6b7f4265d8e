"""How large what was summed is: when taking something away leaves the rounding of its size."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor

#: What has been in a sum may be larger than what is in it by so many powers of two: a part of
#: 2^-53 of the former, what rounding leaves, is then 1e-10 of the latter.
ROOM = 20


class Scales:
    """Counts of the items in two sums, W'W and W'Z, by the power of two of their largest entry.

    Integers, so that they are right whatever is added and taken away.

    Args:
        ridge: what is added to W'W: below it, an entry does not matter.
    """

    def __init__(self, ridge: float):
        self._least = (math.frexp(ridge)[1], -math.inf)
        self.clear()

    def clear(self) -> None:
        self._counts: tuple[Counter, Counter] = Counter(), Counter()
        self._peaks = [-math.inf, -math.inf]

    def add(self, weights: Tensor, values: Tensor, sign: int) -> None:
        """Items at addresses (T, K) with values (T, C) come (sign 1) or go (-1)."""
        first, second = _power(weights), _power(values)
        both = [power for w, z in zip(first, second, strict=True) for power in _sum(w, z)]
        self._count(0, [2 * w for w in first if w is not None], sign)
        self._count(1, both, sign)

    def move(self, weights: Tensor, old: Tensor, new: Tensor) -> None:
        """Values of items become others: of W'Z alone."""
        first = _power(weights)
        for values, sign in ((old, -1), (new, 1)):
            pairs = zip(first, _power(values), strict=True)
            self._count(1, [power for w, z in pairs for power in _sum(w, z)], sign)

    def _count(self, which: int, powers: list[int], sign: int) -> None:
        for power, count in Counter(powers).items():
            self._counts[which][power] += sign * count
            if not self._counts[which][power]:
                del self._counts[which][power]
            self._peaks[which] = max(self._peaks[which], power)

    def lost(self) -> bool:
        """Whether the sums are to be made anew: what remains is lost in the rounding of what was
        there, or something else was taken away than had been added."""
        for counts, peak, least in zip(self._counts, self._peaks, self._least, strict=True):
            if any(count < 0 for count in counts.values()):
                return True
            if peak > -math.inf and peak - max([least, *counts]) > ROOM:
                return True
        return False

    def table(self) -> Tensor:
        """All of it as rows (sum, power, count) in float64; a count of 0 is the peak's."""
        rows = [(i, power, n) for i in (0, 1) for power, n in self._counts[i].items()]
        rows += [(i, peak, 0) for i, peak in enumerate(self._peaks) if peak > -math.inf]
        return torch.tensor(rows, dtype=torch.float64).view(-1, 3)

    def load(self, table: Tensor) -> None:
        """Take what `table` gave."""
        self.clear()
        for which, power, count in table.long().tolist():
            if count:
                self._counts[which][power] = count
            self._peaks[which] = max(self._peaks[which], power)


def _power(rows: Tensor) -> list[int | None]:
    """The power of two above each row's largest entry; None of zeros."""
    largest = rows.abs().amax(-1).tolist()
    return [math.frexp(x)[1] if x else None for x in largest]


def _sum(w: int | None, z: int | None) -> list[int]:
    return [] if w is None or z is None else [w + z]
