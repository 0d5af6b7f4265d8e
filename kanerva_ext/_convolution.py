"""The short causal convolution of a sequence layer, with padding, packing and a history."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._packing import Places


class ShortConvolution(nn.Module):
    """Depthwise causal convolution of ``size`` taps, and ``silu``."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(size, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.size)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(
        self,
        x: Tensor,
        history: Tensor | None = None,
        counts: Tensor | None = None,
        places: Places | None = None,
        leave_history: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Convolve the tokens of each sequence after its ``history``.

        Args:
            x: (B, T, width); with ``places`` (1, T, width), N sequences one after another.
            history: (B, size - 1, width), with ``places`` (N, ...); None: zeros.
            counts: (B,), tokens of each row that count, the first ones; None: all.
            places: of packed sequences.
            leave_history: also return what the tokens that count leave, in memory of its own.
        """
        if places is not None:
            return self._packed(x, history, places, leave_history)
        batch, steps, width = x.shape
        back = self.size - 1
        if history is None:
            history = x.new_zeros(batch, back, width)
        padded = torch.cat([history.to(x.dtype), x], 1)
        total = None
        for tap in range(self.size):
            term = padded[:, tap : tap + steps] * self.weight[tap]
            total = term if total is None else total + term
        left = None
        if leave_history and counts is None:
            left = padded[:, steps:].clone()  # a view would keep the whole prompt alive
        elif leave_history:
            at = counts[:, None] + torch.arange(back, device=x.device)
            left = padded.gather(1, at[..., None].expand(batch, back, width))
        return functional.silu(total), left

    def _packed(self, x, history, places, leave_history):
        steps, width = x.shape[1:]
        back = self.size - 1
        total = x[0] * self.weight[back]
        for distance in range(1, self.size):
            inside = places.place >= distance
            term = x[0].roll(distance, 0).masked_fill(~inside[:, None], 0)
            if history is not None:
                at = (back + places.place - distance).clamp(0, back - 1)
                before = history.to(x.dtype)[places.sequence, at]
                term = torch.where(inside[:, None], term, before)
            total = total + term * self.weight[back - distance]
        left = None
        if leave_history:
            count = places.count[:, None]
            at = count + torch.arange(back, device=x.device)  # in the history and the sequence
            left = x.new_zeros(count.shape[0], back, width)
            if history is not None:
                left = history.to(x.dtype).gather(
                    1, at.clamp(max=back - 1)[..., None].expand(*at.shape, width)
                )
            if steps > 0:
                own = x[0][(places.first[:, None] + at - back).clamp(0, steps - 1)]
                left = torch.where((at >= back)[..., None], own, left)
        return functional.silu(total)[None], left
