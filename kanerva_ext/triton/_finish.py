"""The end of every operator: what its programs found out about an item, put together.

Each program leaves a float64 partial: its share of a sum (a log evidence, a divergence), or zero;
NaN when something failed. An item with a NaN among its partials becomes NaN throughout.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import VARYING, Config, launch
from ._sequences import locate
from ._tiles import fill

MOST_OUTPUTS = 6


@triton.jit(do_not_specialize=VARYING)
def finish_kernel(
    partials, splits, total, out_0, size_0, out_1, size_1, out_2, size_2, out_3, size_3,
    out_4, size_4, out_5, size_5, bounds, sequences, T, S: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64)
    sums = tl.zeros((S,), tl.float64)
    for start in range(0, splits, S):
        i = start + tl.arange(0, S)
        sums += tl.load(partials + item * splits + i, mask=i < splits, other=0.0)
    result = tl.sum(sums, axis=0)
    if total is not None:
        tl.store(total + item, result)
    if result != result:
        nan = float("nan")
        count = 1
        if bounds is not None:
            row, first, count = locate(bounds, item, sequences, T)
            item = row * T + first
        if out_0 is not None:
            fill(out_0 + item * size_0, nan, count * size_0, N)
        if out_1 is not None:
            fill(out_1 + item * size_1, nan, count * size_1, N)
        if out_2 is not None:
            fill(out_2 + item * size_2, nan, count * size_2, N)
        if out_3 is not None:
            fill(out_3 + item * size_3, nan, count * size_3, N)
        if out_4 is not None:
            fill(out_4 + item * size_4, nan, count * size_4, N)
        if out_5 is not None:
            fill(out_5 + item * size_5, nan, count * size_5, N)


def finish(
    partials: Tensor,
    *outputs: Tensor | None,
    total: Tensor | None = None,
    bounds: Tensor | None = None,
    sequences: int = 1,
) -> None:
    """NaN in every element of ``outputs`` (B, ...) of items with a NaN in ``partials`` (B, splits);
    ``total`` (B,) gets the sums of the partials. With ``bounds``, outputs are (B / N, T, ...) and
    those elements are its steps."""
    sized, dims, steps = [], 1 if bounds is None else 2, 0
    for i in range(MOST_OUTPUTS):
        out = outputs[i] if i < len(outputs) else None
        sized += [out, 0 if out is None else math.prod(out.shape[dims:])]
        if bounds is not None and out is not None:
            steps = out.shape[1]
    batch, splits = partials.shape
    launch(
        finish_kernel, batch, Config(16, 16, 4), partials, splits, total, *sized, bounds,
        sequences, steps, S=64, N=1024,
    )  # fmt: skip


def no_partials(like: Tensor, splits: int) -> Tensor:
    """Room for the partials of every item: (B, splits)."""
    return torch.empty((len(like), splits), dtype=torch.float64, device=like.device)
