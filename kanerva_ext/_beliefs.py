"""What can be said of beliefs about a memory, and done with them, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import ops
from ._checks import check_number
from ._state import MemoryState

DECAYED_STEPS = 16  # whose decays are multiplied up, and must not underflow


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Contiguous normal noise of the shape, dtype and device of ``like``."""
    options = {} if generator is None else {"generator": generator}  # exported sizes take none
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, **options)


def sample_memory(state: MemoryState, generator: torch.Generator | None = None) -> Tensor:
    """One memory matrix from the belief; NaN where the covariance has no Cholesky factor."""
    factor, info = torch.linalg.cholesky_ex(state.cov)
    noise = standard_normal(state.mean, generator)
    return state.mean + (factor * torch.where(info == 0, 1.0, torch.nan)[..., None, None]) @ noise


def log_normal(x: Tensor, var: float | Tensor) -> Tensor:
    """ln N(x; 0, var I) over the last dimension, nats; ``var`` broadcasts to the others."""
    log_var = var.log() if isinstance(var, Tensor) else math.log(var)
    return -(x.square().sum(-1) / var + x.shape[-1] * (math.log(2 * math.pi) + log_var)) / 2


def wide(parameter: Tensor) -> Tensor:
    """At least float32: beliefs are never kept in half precision."""
    half = parameter.dtype in (torch.float16, torch.bfloat16)
    return parameter.float() if half else parameter


def smallest_var(cov: Tensor, weights: Tensor) -> Tensor:
    """Below this a variance w'Uw is rounding: ``eps * sum_k w_k^2 U_kk``, (..., T)."""
    diagonal = cov.diagonal(dim1=-2, dim2=-1)[..., None, :]
    squares = weights.to(cov.dtype).square()
    return torch.finfo(cov.dtype).eps * (squares * diagonal).sum(-1)


def merge(states: Sequence[MemoryState], prior: MemoryState, backend: str) -> MemoryState:
    """The belief after all that any of ``states`` holds, each written from ``prior``.

    Their natural parameters add up, less the prior's for all but one; in float64.
    """
    dtype = prior.mean.dtype
    parts = [[x.double() for x in state] for state in (*states, prior)]
    statistics = [ops.to_statistics(*part, backend=backend) for part in parts]
    *each, (precision, shift) = statistics
    more = len(each) - 1
    total = [sum(s[i] for s in each) - more * own for i, own in enumerate((precision, shift))]
    merged = ops.from_statistics(*total, backend=backend)
    return MemoryState(*(x.to(dtype) for x in merged))


def log_marginal(
    mean: Tensor, queries: Tensor, reads: Tensor, weights: Tensor, noise_var, weight_std: float
) -> Tensor:
    """ln N(z; 0, weight_std^2 R'R + noise_var I) of queries z (..., T, C), nats.

    ``weights`` are their addresses ``(R R' + ridge I)^-1 R z`` and ``reads`` is R'w: at that
    maximum the exponent is ``|z - R'w|^2 / noise_var + |w|^2 / weight_std^2``, where nothing
    cancels. The determinant is that of the K x K or the C x C system, in float64.
    """
    slots, code = mean.shape[-2:]
    exponent = log_normal(queries.to(reads.dtype) - reads, noise_var)
    exponent = exponent - weights.square().sum(-1) / (2 * weight_std**2)
    wide_mean = mean.double()
    system = wide_mean @ wide_mean.mT if slots <= code else wide_mean.mT @ wide_mean
    ratio = weight_std**2 / noise_var
    ratio = ratio.double() if isinstance(ratio, Tensor) else ratio
    size = system.shape[-1]
    system = ratio * system + torch.eye(size, dtype=system.dtype, device=system.device)
    factor, info = torch.linalg.cholesky_ex(system)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_det = torch.where(info == 0, log_det, torch.nan)
    return exponent - log_det.to(exponent.dtype)[..., None] / 2


def log_memoryless(queries: Tensor, noise_var: float | Tensor) -> Tensor:
    """ln N(z; 0, s^2 I) of each query at the s^2 >= noise_var that suits it best, nats: what a
    source of that size without a memory explains."""
    power = queries.square().mean(-1)
    if isinstance(noise_var, Tensor):
        var = torch.maximum(power, noise_var.to(power.dtype))
    else:
        var = power.clamp(min=noise_var)
    return log_normal(queries, var)


def _per_step(name: str, value, mean: Tensor, values: Tensor) -> Tensor:
    """A number, or a tensor, for each step: (..., T) in the state's dtype."""
    check_number("write", name, value, decay=name in ("decay", "retention"))
    try:
        value = torch.as_tensor(value, dtype=mean.dtype, device=mean.device)
        return value.expand(*values.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"write: {name} must have shape (..., T) = {tuple(values.shape[:-1])}, a number or "
            f"0-d, got {tuple(value.shape)}"
        ) from None


def write_decaying(
    state: MemoryState, values: Tensor, noise_var, ridge, decay, mask, num_iters: int, backend: str
):
    """`ops.adaptive_write` with exponential forgetting: mean, cov, weights and log evidence.

    A covariance divided by decays whose product is b gains what the undivided one gains at the
    noise ``b v``, so that the addresses come from a write at that noise, of a few steps at a time;
    the write at these addresses is `ops.bayes_write`.
    """
    mean, cov = state
    steps = values.shape[-2]
    factors = _per_step("decay", decay, mean, values)
    if mask is not None:
        factors = torch.where(mask, factors, 1)
    noise = _per_step("noise_var", noise_var, mean, values)
    evidence: Tensor | float = 0.0
    weights = []
    for start in range(0, max(steps, 1), DECAYED_STEPS):
        span = slice(start, start + DECAYED_STEPS)
        part, own = values[..., span, :], None if mask is None else mask[..., span]
        of_step = noise[..., span] * factors[..., span].cumprod(-1)
        addresses = ops.adaptive_write(
            mean, cov, part, of_step, ridge, mask=own, num_iters=num_iters, backend=backend
        )[2]
        mean, cov, more = ops.bayes_write(
            *(mean, cov, addresses, part, noise[..., span]),
            mask=own,
            decay=factors[..., span],
            backend=backend,
        )
        evidence = evidence + more
        weights.append(addresses)
    return mean, cov, torch.cat(weights, -2), evidence


def write_drifting(
    state: MemoryState, prior: MemoryState, weights, values, noise_var, retention, mask, backend
):
    """`ops.bayes_write` at known addresses into a memory that drifts back to its prior: mean, cov
    and log evidence.

    What decays is the memory less the prior's mean R0, and ``(M - R0)'w`` is a value less ``R0'w``.
    """
    predicted = ops.read(*prior, weights, backend=backend)[0]
    values = values.to(predicted.dtype) - predicted
    mean, cov, evidence = ops.bayes_write(
        *(state.mean - prior.mean, state.cov, weights, values, noise_var),
        mask=mask,
        retention=retention,
        stationary_cov=prior.cov,
        backend=backend,
    )
    return mean + prior.mean, cov, evidence


def write_drifting_adaptive(
    state: MemoryState,
    prior: MemoryState,
    values: Tensor,
    noise_var,
    ridge,
    retention,
    mask,
    num_iters: int,
    backend: str,
):
    """`ops.adaptive_write` into a memory that drifts back to its prior, code by code: mean, cov,
    weights and log evidence."""
    mean, cov = state
    noise = _per_step("noise_var", noise_var, mean, values)
    kept = _per_step("retention", retention, mean, values)
    kept = torch.where((kept > 0) & (kept <= 1), kept, torch.nan)
    if mask is not None:
        kept = torch.where(mask, kept, 1)
    evidence: Tensor | float = 0.0
    weights = []
    for t in range(max(values.shape[-2], 1)):
        at = slice(t, t + 1)
        own = None if mask is None else mask[..., at]
        if values.shape[-2]:
            a = kept[..., at, None]
            mean = prior.mean + a * (mean - prior.mean)
            cov = a * a * cov + (1 - a) * (1 + a) * prior.cov
        mean, cov, address, _, more = ops.adaptive_write(
            *(mean, cov, values[..., at, :], noise[..., at], ridge),
            mask=own,
            num_iters=num_iters,
            backend=backend,
            return_evidence=True,
        )
        evidence = evidence + more
        weights.append(address)
    return mean, cov, torch.cat(weights, -2), evidence


def other_than(state: MemoryState, which: str, prior) -> MemoryState:
    """In the place of ``state``, of the same shape: the beliefs of the items before it in the
    batch ("other"), or ``prior(leading dimensions)`` ("prior")."""
    if which == "prior":
        return prior(torch.broadcast_shapes(state.mean.shape[:-2], state.cov.shape[:-2]))
    if state.mean.dim() < 3 or state.mean.shape[0] < 2:
        raise ValueError(
            "compare_memories: a batch of at least 2 memories must be read, so that each can be "
            f"read from another's, got a mean of shape {tuple(state.mean.shape)}"
        )
    return MemoryState(state.mean.roll(1, 0), state.cov.roll(1, 0))
