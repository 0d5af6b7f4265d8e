"""The read-out and its predictive variance."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import full_precision, has_nan, poison, symmetric, wide


@full_precision
def read(mean: Tensor, cov: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """``values = W R`` and ``var_t = w_t' U w_t``."""
    weights, cov = weights.to(mean.dtype), symmetric(cov)
    values, var = weights @ mean, ((weights @ cov) * weights).sum(-1)
    return poison(has_nan(mean, cov, values, var), values, var)


@full_precision
def read_backward(
    grad_values: Tensor | None,
    grad_var: Tensor | None,
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of mean, cov and weights."""
    dtype, dtypes = wide(mean), (mean.dtype, cov.dtype, weights.dtype)
    mean, cov, weights = mean.to(dtype), symmetric(cov.to(dtype)), weights.to(dtype)
    grads = [torch.zeros_like(x) for x in (mean, cov, weights)]
    if grad_values is not None:
        grad_values = grad_values.to(dtype)
        grads[0] = weights.mT @ grad_values
        grads[2] = grad_values @ mean.mT
    if grad_var is not None:
        weighted = grad_var.to(dtype)[..., None] * weights
        grads[1] = symmetric(weights.mT @ weighted)
        grads[2] = grads[2] + 2 * weighted @ cov
    grads = poison(has_nan(mean, cov, weights), *grads)
    return tuple(g.to(t) for g, t in zip(grads, dtypes, strict=True))
