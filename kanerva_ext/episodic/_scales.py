"""How large what was summed is: when taking something away leaves the rounding of its size."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor

#: What has been in a sum may be larger than what is in it by so many powers of two: a part of
#: 2^-53 of the former, what rounding leaves, is then 1e-10 of the latter.
ROOM = 20
#: The power of zero: below that of every other number, also after additions.
ZERO = -(10**6)


class Scales:
    """Counts of the items in two sums, W'W and W'Z, by the power of two of their largest entry.

    Of W'Z for each column of the values: one of them may be large where another is small.
    Integers, so that they are right whatever is added and taken away.

    Args:
        ridge: what is added to W'W: below it, an entry does not matter.
        value_size: C.
    """

    def __init__(self, ridge: float, value_size: int):
        self._least, self._columns = math.frexp(ridge)[1], value_size
        self.clear()

    def clear(self) -> None:
        self._addresses: Counter[int] = Counter()
        self._peak = ZERO
        # Row i counts entries of the power low + i in each column.
        self._low = 0
        self._counts = torch.zeros(0, self._columns, dtype=torch.int64)
        self._totals = torch.zeros(self._columns, dtype=torch.int64)
        self._peaks = torch.full((self._columns,), ZERO)

    def add(self, weights: Tensor, values: Tensor, sign: int) -> None:
        """Items at addresses (T, K) with values (T, C) come (sign 1) or go (-1)."""
        powers = _powers(weights.abs().amax(-1, keepdim=True))
        for power, count in Counter(powers.flatten().tolist()).items():
            if power > ZERO:
                self._addresses[2 * power] += sign * count
                if not self._addresses[2 * power]:
                    del self._addresses[2 * power]
                self._peak = max(self._peak, 2 * power)
        self._add(powers, values, sign)

    def move(self, weights: Tensor, old: Tensor, new: Tensor) -> None:
        """Values of items become others: of W'Z alone."""
        powers = _powers(weights.abs().amax(-1, keepdim=True))
        self._add(powers, old, -1)
        self._add(powers, new, 1)

    def _add(self, address: Tensor, values: Tensor, sign: int) -> None:
        powers = address + _powers(values)
        there = powers > ZERO // 2
        if not there.any():
            return
        self._reach(int(powers.where(there, -ZERO).min()), int(powers.max()))
        # Zeros are counted in a row of their own, before the others.
        row = torch.where(there, powers - self._low + 1, 0)
        index = row * self._columns + torch.arange(self._columns, device=row.device)
        size = (len(self._counts) + 1) * self._columns
        counts = torch.bincount(index.flatten(), minlength=size).view(-1, self._columns)[1:].cpu()
        self._counts += sign * counts
        self._totals += sign * counts.sum(0)
        self._peaks = torch.maximum(self._peaks, self._top(counts))

    def _reach(self, low: int, high: int) -> None:
        """Rows for these powers."""
        if not len(self._counts):
            self._low = low
        before = max(0, self._low - low)
        after = max(0, high + 1 - self._low - len(self._counts))
        if before or after:
            self._counts = torch.nn.functional.pad(self._counts, (0, 0, before, after))
            self._low -= before

    def _top(self, counts: Tensor) -> Tensor:
        """The largest power that each column counts."""
        power = self._low + torch.arange(len(counts))[:, None]
        return torch.where(counts > 0, power, ZERO).amax(0)

    def emptied(self) -> Tensor | None:
        """Columns in which nothing but zeros is left, (n,): what rounding left is to be cleared."""
        empty = (self._totals == 0) & (self._peaks > ZERO)
        if not empty.any():
            return None
        self._peaks[empty] = ZERO
        return empty.nonzero().flatten()

    def lost(self) -> bool:
        """Whether the sums are to be made anew: what remains is lost in the rounding of what was
        there, or something else was taken away than had been added."""
        if any(count < 0 for count in self._addresses.values()) or (self._counts < 0).any():
            return True
        if self._peak - max([self._least, *self._addresses]) > ROOM:
            return True
        if not len(self._counts):
            return False
        return bool(((self._peaks - self._top(self._counts) > ROOM) & (self._totals > 0)).any())

    def tables(self) -> dict[str, Tensor]:
        """All of it in float64, by name: of W'W rows (power, count), the peak with a count of 0; of
        W'Z, with C columns, the lowest power, the peaks and the counts from that power up."""
        rows = [*self._addresses.items(), (self._peak, 0)]
        low = torch.full((1, self._columns), self._low)
        return {
            "scales": torch.tensor(rows, dtype=torch.float64),
            "columns": torch.cat([low, self._peaks[None], self._counts]).double(),
        }

    def load(self, scales: Tensor, columns: Tensor) -> None:
        """Take what `tables` gave."""
        self.clear()
        for power, count in scales.long().tolist():
            if count:
                self._addresses[power] = count
            self._peak = max(self._peak, power)
        table = columns.long()
        self._low, self._peaks, self._counts = int(table[0, 0]), table[1], table[2:]
        self._totals = self._counts.sum(0)


def _powers(numbers: Tensor) -> Tensor:
    """The power of two above each number; `ZERO` of zeros."""
    return torch.where(numbers == 0, ZERO, torch.frexp(numbers)[1].long())
