"""causal_scan in Triton, forward: the kernel of `bayes_write`, which reads as well, chunk by chunk
(`_reads`), and packed sequences (`_sequences`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ._finish import finish
from ._launch import empty, plain
from ._sequences import checked
from .bayes_write import SMALL_ITEM, Pass, passes, write


def scan_passes(
    mean: Tensor, steps: int, chunk_size: int, *, small: bool = False, moves: bool = False
) -> list[Pass]:
    """`passes` with chunks of at most ``chunk_size`` steps; 0: of as many as there is room for.
    ``small``: in float64 at once."""
    _, slots, code = mean.shape
    small = small or steps * slots * code <= SMALL_ITEM
    plans = passes(mean, slots, small=small, method="auto", moves=moves)
    return [plan._replace(steps=min(plan.steps, chunk_size or plan.steps)) for plan in plans]


def causal_scan(
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    queries: Tensor,
    noise_var: Tensor,
    mask: Tensor | None = None,
    decay: Tensor | None = None,
    retention: Tensor | None = None,
    stationary_cov: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_size: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``kanerva::causal_scan``."""
    inputs = [plain(x) for x in (mean, cov, weights, values, noise_var)]
    rows, steps, _ = weights.shape
    items, _, code = mean.shape
    reads, variances = mean.new_empty(rows, steps, code), mean.new_empty(rows, steps)
    mean_out, cov_out = torch.empty_like(inputs[0]), torch.empty_like(inputs[1])
    evidence = empty(mean, items, dtype=mean.dtype)
    bounds, sequences = checked(cu_seqlens, steps)
    plans = scan_passes(mean, steps, chunk_size, moves=retention is not None)
    partials = write(
        inputs, mask, decay, plans, mean_out, cov_out, (plain(queries), reads, variances), bounds,
        sequences, (retention, stationary_cov),
    )  # fmt: skip
    finish(partials, mean_out, cov_out, total=evidence)
    finish(partials, reads, variances, bounds=bounds, sequences=sequences)
    return reads, variances, mean_out, cov_out, evidence
