"""Facts for the time of a training step: what a memory would read, with gradients everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _calibration
from ._core import Core
from ._reads import EpisodicRead


class Episode:
    """The facts alone, in a memory of the settings of another one.

    With N facts at addresses W (N, K), ``(W'W + r I)^-1 W'`` is ``W' (W W' + r I)^-1``: the N x N
    system gives what `EpisodicMemory` reads, and is the smaller one for the facts of a step.

    Args:
        memory: whose features, noise and sizes are meant; it is not changed.
        keys: (N, S), with gradients or without.
        values: (N, C), likewise.
    """

    def __init__(self, memory: Core, keys: Tensor, values: Tensor):
        self.memory, self.ridge = memory, memory.ridge
        self.address = memory._address(keys, wide=True)
        self.values = values.to(self.address)
        gram = self.address @ self.address.mT
        self.factor = torch.linalg.cholesky(gram + self.ridge * torch.eye(len(gram)).to(gram))
        with torch.no_grad():
            _, leverage = self._parts(self.address)
            left_out = _calibration.without_itself(leverage)
            both = [_calibration.scores(x, self.address, self.ridge) for x in (leverage, left_out)]
            self.threshold = _calibration.threshold(*both, memory.false_alarm)

    def __len__(self) -> int:
        return len(self.address)

    def _parts(self, address: Tensor) -> tuple[Tensor, Tensor]:
        """What each fact has in each read, (T, N), and the leverages (T,)."""
        cross = self.address @ address.mT
        shares = torch.cholesky_solve(cross, self.factor)
        left = address.square().sum(-1) - (cross * shares).sum(0)
        return shares.mT, left.clamp(min=torch.finfo(left.dtype).tiny) / self.ridge

    def shares(self, keys: Tensor) -> Tensor:
        """(T, N): a read is the sum over facts of share times value."""
        return self._parts(self.memory._address(keys, wide=True))[0]

    def read(self, keys: Tensor) -> EpisodicRead:
        """As `EpisodicMemory.read`, for keys (T, S)."""
        address = self.memory._address(keys, wide=True)
        shares, leverage = self._parts(address)
        score = _calibration.scores(leverage, address, self.ridge)
        out = shares @ self.values, score, self.memory.noise_var * leverage
        values, score, read_var = (x.to(keys.dtype) for x in out)
        return EpisodicRead(values, score, score > self.threshold, read_var)
