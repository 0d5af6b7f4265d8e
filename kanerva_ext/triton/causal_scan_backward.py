"""causal_scan in Triton, backward: the kernels of `bayes_write_backward`, which add what the reads
of a chunk contribute (`_reads`)."""

from __future__ import annotations

from torch import Tensor

from ._finish import finish
from ._launch import plain
from ._sequences import checked
from .bayes_write_backward import present, reverse
from .causal_scan import scan_passes

#: Hardness up to which float32 serves: its errors are then at most 0.8 of what the tests allow a
#: gradient, twice a float32 recursion's; at 16, where the write's own gradient ends, 1.01.
EASY_FOR_FLOAT32 = 8.0


def causal_scan_backward(
    grad_reads: Tensor | None,
    grad_read_var: Tensor | None,
    grad_mean: Tensor | None,
    grad_cov: Tensor | None,
    grad_evidence: Tensor | None,
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
) -> tuple[Tensor, ...]:
    """``kanerva::causal_scan_backward``. Gradients of decays cancel, and are never done in float32,
    nor are those of a memory that moves."""
    inputs = [plain(x) for x in (mean, cov, weights, values, noise_var)]
    steps = weights.shape[1]
    bounds, sequences = checked(cu_seqlens, steps)
    moves = retention is not None
    plans = scan_passes(mean, steps, chunk_size, small=moves or decay is not None, moves=moves)
    plans = [plan if plan.last else plan._replace(limit=EASY_FOR_FLOAT32) for plan in plans]
    out, d_dynamics, d_queries, partials = reverse(
        (grad_mean, grad_cov, grad_evidence), inputs, mask, (decay, retention, stationary_cov),
        plans, (queries, grad_reads, grad_read_var), bounds, sequences,
    )  # fmt: skip
    d_mean, d_cov, d_weights, d_values, d_noise = out
    d_decay, d_retention, d_sigma = d_dynamics
    finish(partials, d_mean, d_cov, d_sigma)
    d_steps = (d_weights, d_values, d_queries, d_noise, d_decay, d_retention)
    finish(partials, *d_steps, bounds=bounds, sequences=sequences)
    return d_mean, d_cov, *d_steps[:4], *present(d_dynamics, mean)
