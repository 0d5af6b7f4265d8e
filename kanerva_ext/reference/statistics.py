"""Sufficient statistics of a belief; the map is its own inverse."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import cholesky, full_precision, has_nan, poison, solve, symmetric, wide


@full_precision
def statistics(mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """``shift = U^-1 R`` and ``precision = U^-1``."""
    factor = cholesky(symmetric(cov))
    eye = torch.eye(cov.shape[1], dtype=cov.dtype, device=cov.device).expand_as(cov)
    shift, precision = solve(factor, mean), symmetric(solve(factor, eye))
    return poison(has_nan(shift, precision), shift, precision)


@full_precision
def statistics_backward(
    grad_shift: Tensor | None,
    grad_precision: Tensor | None,
    mean: Tensor,
    cov: Tensor,
    shift: Tensor,
    precision: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of mean and cov, from the saved results: no system is solved again."""
    dtype, out = wide(mean), mean.dtype
    shift, precision = shift.to(dtype), symmetric(precision.to(dtype))
    d_mean, d_cov = torch.zeros_like(shift), torch.zeros_like(precision)
    if grad_shift is not None:
        d_mean = precision @ grad_shift.to(dtype)
        d_cov = d_cov - symmetric(d_mean @ shift.mT)
    if grad_precision is not None:
        d_cov = d_cov - precision @ symmetric(grad_precision.to(dtype)) @ precision
    grads = poison(has_nan(shift, precision), d_mean, symmetric(d_cov))
    return tuple(g.to(out) for g in grads)
