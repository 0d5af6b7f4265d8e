"""Sequences packed one after another in every row of steps: item ``b N + n`` is the n-th of row b,
at steps ``bounds[n] .. bounds[n + 1]``. Without bounds an item is a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import VARYING, Config, launch


@triton.jit(do_not_specialize=VARYING)
def bounds_kernel(cu_seqlens, bounds, sequences, T, N: tl.constexpr):
    """``cu_seqlens`` and 1 behind them or, where they do not rise from 0 to T, bounds that give
    the first sequence everything, and 0."""
    wrong = tl.where(tl.load(cu_seqlens) != 0, 1, 0)
    wrong += tl.where(tl.load(cu_seqlens + sequences) != T, 1, 0)
    for start in range(0, sequences, N):
        i = start + tl.arange(0, N)
        a = tl.load(cu_seqlens + i, mask=i < sequences, other=0)
        b = tl.load(cu_seqlens + i + 1, mask=i < sequences, other=0)
        wrong += tl.sum(tl.where(b < a, 1, 0), axis=0)
    for start in range(0, sequences + 1, N):
        i = start + tl.arange(0, N)
        x = tl.load(cu_seqlens + i, mask=i <= sequences, other=0)
        x = tl.where(wrong > 0, tl.where(i > 0, T, 0), x)
        tl.store(bounds + i, x, mask=i <= sequences)
    tl.store(bounds + sequences + 1, tl.where(wrong > 0, 0, 1))


def checked(cu_seqlens: Tensor | None, steps: int) -> tuple[Tensor | None, int]:
    """What the kernels take as ``bounds``, memory-safe whatever ``cu_seqlens`` hold, and how many
    sequences a row has."""
    if cu_seqlens is None:
        return None, 1
    sequences = len(cu_seqlens) - 1
    bounds = torch.empty(sequences + 2, dtype=torch.int64, device=cu_seqlens.device)
    config = Config(16, 16, 4)
    launch(bounds_kernel, 1, config, cu_seqlens.contiguous(), bounds, sequences, steps, N=1024)
    return bounds, sequences


@triton.jit
def locate(bounds, item, sequences, T):
    """The row of an item (int64), its first step there and how many it has."""
    row = item
    first = tl.zeros((), tl.int64)
    count = T
    if bounds is not None:
        row = item // sequences
        here = bounds + item % sequences
        first = tl.load(here)
        count = (tl.load(here + 1) - first).to(tl.int32)
    return row, first, count


@triton.jit
def are_bounds_wrong(bounds, sequences):
    wrong = False
    if bounds is not None:
        wrong = tl.load(bounds + sequences + 1) == 0
    return wrong
