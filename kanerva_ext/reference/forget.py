"""Exact removal of written items: the recursion of the write with negative noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import full_precision, has_nan, poison, symmetric, wide


@full_precision
def forget(
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    noise_var: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``kanerva::forget`` one step at a time: ``c = U w; s = v - w'c; d = z - R'w``, then
    ``R -= c d'/s`` and ``U += c c'/s``. An s that is not positive means that the step was never
    written; the item becomes NaN."""
    weights, values, noise_var, bad = _prepare(mean.dtype, weights, values, noise_var, mask)
    mean, cov = mean.clone(), symmetric(cov)
    for t in range(weights.shape[1]):
        w = weights[:, t]
        c = (cov @ w[..., None])[..., 0]
        s = noise_var[:, t] - (w * c).sum(-1)
        bad = bad | ~(s > 0)
        scale = s.sqrt()[:, None]
        g, e = c / scale, (values[:, t] - (w[:, None] @ mean)[:, 0]) / scale
        mean = mean - g[:, :, None] * e[:, None, :]
        cov = cov + g[:, :, None] * g[:, None, :]
    return poison(bad | has_nan(mean, cov), mean, cov)


@full_precision
def forget_backward(
    grad_mean: Tensor | None,
    grad_cov: Tensor | None,
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    noise_var: Tensor,
    mask: Tensor | None,
    rest_mean: Tensor,
    rest_cov: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of mean, cov (symmetrised), weights, values and noise_var.

    The adjoint of a write from its posterior (docs/operators/bayes_write.md), with ``-v`` for the
    noise and what remains for the posterior R, U. With ``A = -(Z - W R) / v``, ``G = -W U / v``:
    ``dZ = G gR``, ``dW = A gR'U - dZ R' - 2 G gU U``, ``dR0 = gR - W'dZ``,
    ``dv = rowsum(dZ * A) - rowsum(G gU * G)`` and, with ``J' = I - W'G``,
    ``dU0 = J' gU J + sym(J' gR A'W)``. Nothing cancels: forgetting only adds.
    """
    dtype = wide(mean)
    dtypes = [x.dtype for x in (mean, cov, weights, values, noise_var)]
    weights, values, noise_var, bad = _prepare(dtype, weights, values, noise_var.to(dtype), mask)
    mean, cov = rest_mean.to(dtype), symmetric(rest_cov.to(dtype))
    d_mean = torch.zeros_like(mean) if grad_mean is None else grad_mean.to(dtype)
    d_cov = torch.zeros_like(cov) if grad_cov is None else symmetric(grad_cov.to(dtype))
    scale = -1 / noise_var[..., None]
    residual, gains = scale * (values - weights @ mean), scale * (weights @ cov)
    d_values, half = gains @ d_mean, gains @ d_cov
    d_weights = (residual @ d_mean.mT - 2 * half) @ cov - d_values @ mean.mT
    d_noise = (half * gains).sum(-1) - (d_values * residual).sum(-1)
    keep = torch.eye(mean.shape[1], dtype=dtype, device=mean.device) - weights.mT @ gains
    mixed = keep @ d_mean @ (residual.mT @ weights)
    grads = (
        keep @ d_mean,
        keep @ d_cov @ keep.mT + symmetric(mixed),
        d_weights,
        d_values,
        -d_noise,
    )
    if mask is not None:
        kept = mask[..., None]
        steps = (torch.where(kept, g, 0) for g in grads[2:4])
        grads = (*grads[:2], *steps, torch.where(mask, grads[4], 0))
    grads = poison(bad | has_nan(mean, cov), *grads)
    return tuple(g.to(t) for g, t in zip(grads, dtypes, strict=True))


def _prepare(dtype, weights, values, noise_var, mask):
    """Masked steps as steps that change nothing, and which items have a noise out of its domain."""
    weights, values = weights.to(dtype), values.to(dtype)
    bad = ~(noise_var > 0)
    if mask is None:
        return weights, values, noise_var, bad.any(1)
    kept = mask[..., None]
    weights, values = torch.where(kept, weights, 0), torch.where(kept, values, 0)
    return weights, values, torch.where(mask, noise_var, 1), (bad & mask).any(1)
