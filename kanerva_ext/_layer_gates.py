"""The gates of a sequence layer: how much each head forgets before a token."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._packing import Places

# Nats, of decay. What is never written at grows by as much, and must stay within the digits of
# float32.
FORGETTING_LIMIT = math.log(1e3)
LARGEST_RATE = 30.0  # of retention, nats a token: its square must not vanish in float32


class Gate(nn.Linear):
    """A projection to one gate per head whose biases start at given values."""

    def __init__(self, width: int, start: list[float]) -> None:
        self.start = start
        super().__init__(width, len(start))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.bias.copy_(torch.tensor(self.start, dtype=torch.float64))


def limited_decay(
    rate: Tensor, before: Tensor | None, where: Places | None
) -> tuple[Tensor, Tensor]:
    """Decays (B, H, T) of ``rate``, which stop at the limit, and how much each sequence has
    forgotten after its last token.

    ``before`` is how much it had before the first; ``where`` says where packed sequences are.
    """
    asked = rate.detach()
    total = asked.cumsum(-1)
    if where is None:
        forgotten = asked.sum(-1)
    else:
        sums = functional.pad(total[0], (1, 0))
        forgotten = (sums[:, where.first + where.count] - sums[:, where.first]).mT
        total = total - (total - asked)[..., where.start]
    if before is not None:
        at = before[..., None] if where is None else before[where.sequence].mT[None]
        total, forgotten = total + at, forgotten + before
    room = FORGETTING_LIMIT - (total - asked)
    rate = torch.minimum(rate, room.clamp(min=0))
    return torch.exp(-rate), forgotten.clamp(max=FORGETTING_LIMIT)


def retention_of(rate: Tensor) -> Tensor:
    """How much of a memory remains."""
    return torch.exp(-rate.clamp(max=LARGEST_RATE))


def inverse_softplus(x: float) -> float:
    return x + math.log(-math.expm1(-x))
