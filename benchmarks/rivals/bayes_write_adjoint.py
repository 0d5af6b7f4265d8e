"""The closed-form adjoint of a write around any way to compute it.

With the posterior (R, U), A = V^-1 (Z - W R), G = V^-1 W U, J = I - G'W, incoming gradients gR and
gU (its symmetric part)::

    dZ = G gR         dW = A gR'U - G gR R' - 2 G gU U      dv = rowsum(G gU * G - G gR * A)
    dR0 = J'gR        dU0 = J'gU J + J'gR A'W               (of which the symmetric part counts)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function

from .spec import add_diagonal_, cholesky, inverse_from_factor, right_solve


def closed(form: Callable) -> Callable:
    """``form`` with the adjoint above; only the inputs and the posterior are kept."""

    class ClosedForm(Function):
        @staticmethod
        def forward(ctx, mean, cov, weights, values, noise_var):
            mean, cov = form(mean, cov, weights, values, noise_var)
            ctx.save_for_backward(mean, cov, weights, values, noise_var)
            return mean, cov

        @staticmethod
        def backward(ctx, d_mean, d_cov):
            mean, cov, weights, values, noise_var = ctx.saved_tensors
            noise_var = noise_var[..., None]
            gain = torch.bmm(weights, cov).div_(noise_var)
            error = torch.baddbmm(values, weights, mean, alpha=-1).div_(noise_var)
            return adjoint(d_mean, d_cov, mean, cov, weights, gain, error)

    return ClosedForm.apply


class Gain(Function):
    """`bayes_write_block.gain`, keeping the gain."""

    @staticmethod
    def forward(ctx, mean, cov, weights, values, noise_var):
        cross = torch.bmm(weights, cov)
        factor = cholesky(add_diagonal_(torch.bmm(cross, weights.mT), noise_var))
        gain = right_solve(cross.mT, factor)
        mean = torch.baddbmm(mean, gain, torch.baddbmm(values, weights, mean, alpha=-1))
        cov = torch.baddbmm(cov, gain, cross, alpha=-1)
        ctx.save_for_backward(mean, cov, weights, values, noise_var, gain)
        return mean, cov

    @staticmethod
    def backward(ctx, d_mean, d_cov):
        mean, cov, weights, values, noise_var, gain = ctx.saved_tensors
        error = torch.baddbmm(values, weights, mean, alpha=-1).div_(noise_var[..., None])
        return adjoint(d_mean, d_cov, mean, cov, weights, gain.mT, error)


class Inverse(Function):
    """`bayes_write_block.inverse`, keeping G = S^-1 X and A = S^-1 D: nothing is formed twice."""

    @staticmethod
    def forward(ctx, mean, cov, weights, values, noise_var):
        cross = torch.bmm(weights, cov)
        factor = cholesky(add_diagonal_(torch.bmm(cross, weights.mT), noise_var))
        system = inverse_from_factor(factor)
        error = torch.bmm(system, torch.baddbmm(values, weights, mean, alpha=-1))
        gain = torch.bmm(system, cross)
        mean = torch.baddbmm(mean, cross.mT, error)
        cov = torch.baddbmm(cov, cross.mT, gain, alpha=-1)
        ctx.save_for_backward(mean, cov, weights, gain, error)
        return mean, cov

    @staticmethod
    def backward(ctx, d_mean, d_cov):
        return adjoint(d_mean, d_cov, *ctx.saved_tensors)


def adjoint(
    d_mean: Tensor,
    d_cov: Tensor,
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    gain: Tensor,
    error: Tensor,
) -> tuple[Tensor, ...]:
    """The formulas above, with G as ``gain`` (B, T, K) and A as ``error`` (B, T, C)."""
    d_cov = torch.lerp(d_cov, d_cov.mT, 0.5)
    d_values = torch.bmm(gain, d_mean)
    gain_d_cov = torch.bmm(gain, d_cov)
    inner = torch.baddbmm(gain_d_cov, error, d_mean.mT, alpha=-1)  # G gU - A gR'
    d_noise = torch.linalg.vecdot(inner, gain)
    d_mean = torch.baddbmm(d_mean, weights.mT, d_values, alpha=-1)
    kept = torch.baddbmm(d_cov, weights.mT, gain_d_cov, alpha=-1)  # J'gU
    d_weights = torch.bmm(inner.add_(gain_d_cov), cov)
    d_weights.baddbmm_(d_values, mean.mT, beta=-1, alpha=-1)
    right = torch.bmm(d_mean, error.mT).baddbmm_(kept, gain.mT, alpha=-1)
    return d_mean, torch.baddbmm(kept, right, weights), d_weights, d_values, d_noise
