"""KL divergence between two matrix-normal beliefs."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import cholesky, full_precision, has_nan, log_det, poison, solve, symmetric, wide


@full_precision
def memory_kl(mean: Tensor, cov: Tensor, prior_mean: Tensor, prior_cov: Tensor) -> Tensor:
    """``1/2 [C tr(U0^-1 U) + tr(D' U0^-1 D) - K C - C (ln|U| - ln|U0|)]``, ``D = R - R0``."""
    slots, code = mean.shape[1:]
    cov, prior_cov = symmetric(cov), symmetric(prior_cov)
    factor, prior_factor = cholesky(cov), cholesky(prior_cov)
    spread = torch.linalg.solve_triangular(prior_factor, factor, upper=False)
    shift = torch.linalg.solve_triangular(prior_factor, mean - prior_mean, upper=False)
    trace = spread.square().sum((1, 2)) - slots + log_det(prior_factor) - log_det(factor)
    kl = (code * trace + shift.square().sum((1, 2))) / 2
    return poison(has_nan(kl[:, None]), kl)[0]


@full_precision
def memory_kl_backward(
    grad: Tensor, mean: Tensor, cov: Tensor, prior_mean: Tensor, prior_cov: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of mean, cov, prior_mean and prior_cov."""
    dtype, out = wide(mean), mean.dtype
    grad, mean, cov, prior_mean, prior_cov = (
        x.to(dtype) for x in (grad, mean, cov, prior_mean, prior_cov)
    )
    code = mean.shape[-1]
    eye = torch.eye(mean.shape[1], dtype=dtype, device=mean.device).expand_as(cov)
    precision = solve(cholesky(symmetric(cov)), eye)
    prior_precision = solve(cholesky(symmetric(prior_cov)), eye)
    scaled = prior_precision @ (mean - prior_mean)
    d_cov = code / 2 * (prior_precision - precision)
    d_prior_cov = code * (prior_precision - prior_precision @ symmetric(cov) @ prior_precision)
    d_prior_cov = (d_prior_cov - scaled @ scaled.mT) / 2
    scale = grad[:, None, None]
    grads = (scale * scaled, scale * symmetric(d_cov), -scale * scaled)
    grads = poison(has_nan(precision, prior_precision), *grads, scale * symmetric(d_prior_cov))
    return tuple(g.to(out) for g in grads)
