"""Bayesian linear regression from addresses to values: sums in float64, and what reads need.

The belief is that of `kanerva_ext.ops.bayes_write` from a prior of mean zero. What is kept are its
additive statistics, ``gram = W'W`` and ``cross = W'Z``, so that the order of writes and how they
were cut into calls change them by rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._state import MemoryState
from ._scales import Scales

#: Columns of a block of the gram matrix: only blocks on and below the diagonal are computed.
BLOCK = 256
#: Changes that wait to be added to the sums: one by one they would each move the whole matrix.
PENDING = 256
#: A read's half factor is changed in place by up to this part of its rows before it is made anew.
UPDATES = 0.5
#: The largest part of its rows that one change may have; more are cheaper by a new factorisation.
BATCH = 1 / 16
#: Least 1 - w'Uw/v at which a forgotten item is taken out in place: below, rounding is amplified.
LEAST = 1e-8


class IllConditioned(ArithmeticError):
    """The addresses do not determine the memory in float64."""


class _Reader:
    """The posterior as reads want it: ``(gram + ridge I)^-1 = half' half`` and the mean."""

    def __init__(self, gram: Tensor, cross: Tensor, ridge: float):
        system = gram.clone()
        system.diagonal().add_(ridge)
        factor, info = torch.linalg.cholesky_ex(system)
        if info.item():
            raise IllConditioned(
                f"the memory's {gram.shape[-1]} x {gram.shape[-1]} system has no Cholesky factor "
                f"with the ridge {ridge:g} (noise_var / prior_var); give a larger noise_var"
            )
        eye = torch.eye(len(system), dtype=system.dtype, device=system.device)
        self.half = torch.linalg.solve_triangular(factor, eye, upper=False)
        self.mean = torch.cholesky_solve(cross, factor)
        self.updates = 0
        self._narrow: dict[str, Tensor] = {}

    def narrow(self, name: str, dtype: torch.dtype) -> Tensor:
        """``half`` or ``mean`` in the dtype of the reads, copied when it has changed."""
        own = getattr(self, name)
        if dtype == own.dtype:
            return own
        kept = self._narrow.get(name)
        if kept is None or kept.dtype != dtype:
            kept = self._narrow[name] = own.to(dtype)
        return kept

    def edit(self, weights: Tensor, difference: Tensor) -> None:
        """Values at these addresses become others: the covariance stays as it is."""
        gain = (self.half @ weights.mT).mT @ self.half
        self.mean.addmm_(gain.mT, difference)
        self._narrow.pop("mean", None)

    def clear(self, columns: Tensor) -> None:
        """Nothing is left in these columns of the values."""
        self.mean[:, columns] = 0
        self._narrow.pop("mean", None)

    def update(self, weights: Tensor, values: Tensor, sign: int) -> bool:
        """Write (sign 1) or forget (-1) T items; False, unchanged, where it would lose digits.

        ``half <- (I + sign phi phi')^-1/2 half`` with ``phi = half W'``: with the eigenvectors E
        of ``phi'phi`` and ``s^2 = 1 + sign eigenvalue`` the root is
        ``I - phi E diag(sign / (s^2 + s)) E' phi'``, where nothing is divided by an eigenvalue.
        """
        phi = self.half @ weights.mT
        eigenvalues, vectors = torch.linalg.eigh(phi.mT @ phi)
        square = 1 + sign * eigenvalues.clamp(min=0)
        if square.min() < LEAST:
            return False
        gain = phi.mT @ self.half
        root = square.sqrt()
        innovation = values - weights @ self.mean
        solved = vectors @ ((vectors.mT @ innovation) / square[:, None])
        self.mean.addmm_(gain.mT, solved, alpha=sign)
        right = (vectors * (sign / (square + root))) @ vectors.mT @ gain
        self.half.addmm_(phi, right, alpha=-1)
        self.updates += len(weights)
        self._narrow.clear()
        return True


class Regression:
    """Sums of one memory, and its posterior when it is read.

    Args:
        slots: K.
        value_size: C.
        ridge: noise variance / prior variance.
        device: of its tensors, all of float64.
    """

    def __init__(self, slots: int, value_size: int, ridge: float, device: torch.device):
        options = {"dtype": torch.float64, "device": device}
        # Of gram, the lower blocks are kept and the rest is mirrored when it is read.
        self._gram = torch.zeros(slots, slots, **options)
        self._cross = torch.zeros(slots, value_size, **options)
        self.ridge = ridge
        self.scales = Scales(ridge, value_size)
        self._pending: list[tuple[Tensor, Tensor, int]] = []
        self._reader: _Reader | None = None

    @property
    def slots(self) -> int:
        return self._gram.shape[-1]

    @property
    def device(self) -> torch.device:
        return self._gram.device

    def write(self, weights: Tensor, values: Tensor, sign: int = 1) -> None:
        """Add (or with sign -1 take away) items at addresses (T, K), values (T, C), in float64."""
        self.scales.add(weights, values, sign)
        self._add(weights, values, sign)
        reader = self._reader
        if reader is None:
            self._clear_emptied()
            return
        small = len(weights) <= max(1, BATCH * self.slots)
        room = reader.updates + len(weights) <= UPDATES * self.slots
        if not (small and room and reader.update(weights, values, sign)):
            self._reader = None
        self._clear_emptied()

    def edit(self, weights: Tensor, old: Tensor, new: Tensor) -> None:
        """Values (T, C) at addresses (T, K), written before, become others."""
        self.scales.move(weights, old, new)
        difference = new - old
        self._add(weights, difference, 0)
        if self._reader is not None:
            self._reader.edit(weights, difference)
        self._clear_emptied()

    def _clear_emptied(self) -> None:
        """Columns of the values that are zero in all items are zero in the sums, not almost."""
        empty = self.scales.emptied()
        if empty is None:
            return
        self._flush()
        self._cross[:, empty] = 0
        if self._reader is not None:
            self._reader.clear(empty)

    def _add(self, weights: Tensor, values: Tensor, sign: int) -> None:
        if len(weights) >= PENDING:
            self._sum(weights, values, sign)
            return
        self._pending.append((weights, values, sign))
        if sum(len(item[0]) for item in self._pending) >= PENDING:
            self._flush()

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        for sign in (1, -1, 0):
            of_sign = [item for item in pending if item[2] == sign]
            if of_sign:
                self._sum(*(torch.cat([item[i] for item in of_sign]) for i in range(2)), sign)

    def _sum(self, weights: Tensor, values: Tensor, sign: int) -> None:
        self._cross.addmm_(weights.mT, values, alpha=sign or 1)
        if not sign:
            return
        for start in range(0, self.slots, BLOCK):
            rows, end = weights[:, start : start + BLOCK], start + BLOCK
            self._gram[start:end, :end].addmm_(rows.mT, weights[:, :end], alpha=sign)

    def sums(self) -> tuple[Tensor, Tensor]:
        """gram (K, K), of which the lower triangle counts, and cross (K, C)."""
        self._flush()
        return self._gram, self._cross

    def load(self, gram: Tensor, cross: Tensor, scales: Tensor, columns: Tensor) -> None:
        """Take sums, as `sums` and `scales.tables` gave them."""
        self._pending, self._reader = [], None
        self.scales.load(scales, columns)
        self._gram.copy_(gram)
        self._cross.copy_(cross)

    def clear(self) -> None:
        self._pending, self._reader = [], None
        self.scales.clear()
        self._gram.zero_()
        self._cross.zero_()

    def reader(self) -> _Reader:
        """The posterior.

        Raises:
            IllConditioned: it has none in float64.
        """
        if self._reader is None:
            gram, cross = self.sums()
            # cholesky_ex reads the lower triangle alone.
            self._reader = _Reader(gram, cross, self.ridge)
        return self._reader

    def prepare(self, dtype: torch.dtype) -> None:
        """Make what reads in ``dtype`` need, under the caller's mode of gradients."""
        reader = self.reader()
        reader.narrow("mean", dtype)
        reader.narrow("half", dtype)

    def read(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Means (T, C) and ``w'(gram + ridge I)^-1 w`` (T,) in the dtype of ``weights``."""
        reader = self.reader()
        values = weights @ reader.narrow("mean", weights.dtype)
        scaled = weights @ reader.narrow("half", weights.dtype).mT
        return values, scaled.square().sum(-1)

    def state(self, noise_var: float) -> MemoryState:
        """The belief (mean, cov) in float64."""
        reader = self.reader()
        cov = noise_var * (reader.half.mT @ reader.half)
        return MemoryState(reader.mean.clone(), (cov + cov.mT) / 2)

    def to(self, device: torch.device) -> Callable[[], None]:
        """Copy to a device. What is returned takes the copies: until then nothing has changed."""
        gram, cross = self._gram.to(device), self._cross.to(device)
        pending = [(w.to(device), z.to(device), s) for w, z, s in self._pending]

        def take() -> None:
            self._gram, self._cross, self._pending = gram, cross, pending
            self._reader = None

        return take
