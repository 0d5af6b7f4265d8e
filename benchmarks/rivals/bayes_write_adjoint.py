"""The closed-form adjoint of a write around any way to compute it.

Only the inputs and the posterior are kept. With the posterior (R, U), A = V^-1 (Z - W R) and
G = V^-1 W U, incoming gradients gR and gU (made symmetric) and J = I - G'W::

    dZ = G gR         dW = A gR'U - G gR R' - 2 G gU U      dv = rowsum(G gU * G - G gR * A)
    dR0 = J'gR        dU0 = J'gU J + J'gR A'W               (its symmetric part)
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def closed(form: Callable) -> Callable:
    """``form`` with the adjoint above for its gradient."""

    class ClosedForm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, mean, cov, weights, values, noise_var):
            mean, cov = form(mean, cov, weights, values, noise_var)
            ctx.save_for_backward(mean, cov, weights, values, noise_var)
            return mean, cov

        @staticmethod
        def backward(ctx, d_mean, d_cov):
            mean, cov, weights, values, noise_var = ctx.saved_tensors
            scale = noise_var.reciprocal()[..., None]
            gain = torch.bmm(weights, cov).mul_(scale)
            error = torch.baddbmm(values, weights, mean, alpha=-1).mul_(scale)
            return adjoint(d_mean, d_cov, mean, cov, weights, gain, error)

    return ClosedForm.apply


class GainClosedForm(torch.autograd.Function):
    """`bayes_write_block.gain`, whose factor gives G and A, so that nothing is computed twice."""

    @staticmethod
    def forward(ctx, mean, cov, weights, values, noise_var):
        cross = torch.bmm(weights, cov)
        system = torch.bmm(cross, weights.mT)
        system.diagonal(dim1=-2, dim2=-1).add_(noise_var)
        factor = torch.linalg.cholesky_ex(system)[0]
        half = torch.linalg.solve_triangular(factor.mT, cross.mT, upper=True, left=False)
        gain = torch.linalg.solve_triangular(factor, half, upper=False, left=False)
        mean = torch.baddbmm(mean, gain, torch.baddbmm(values, weights, mean, alpha=-1))
        cov = torch.baddbmm(cov, gain, cross, alpha=-1)
        ctx.save_for_backward(mean, cov, weights, values, noise_var, gain)
        return mean, cov

    @staticmethod
    def backward(ctx, d_mean, d_cov):
        mean, cov, weights, values, noise_var, gain = ctx.saved_tensors
        error = torch.baddbmm(values, weights, mean, alpha=-1).div_(noise_var[..., None])
        return adjoint(d_mean, d_cov, mean, cov, weights, gain.mT, error)


def adjoint(d_mean, d_cov, mean, cov, weights, gain, error):
    """The formulas above in twelve operators, G as ``gain`` (B, T, K) and A as ``error``."""
    d_cov = d_cov + d_cov.mT  # 2 gU
    d_values = torch.bmm(gain, d_mean)
    gain_d_cov = torch.bmm(gain, d_cov)
    inner = torch.baddbmm(gain_d_cov, error, d_mean.mT, beta=-1)  # A gR' - 2 G gU
    d_weights = torch.bmm(inner, cov).baddbmm_(d_values, mean.mT, alpha=-1)
    d_noise = torch.add(inner, gain_d_cov, alpha=0.5).mul_(gain).sum(-1).neg_()
    d_mean = torch.baddbmm(d_mean, weights.mT, d_values, alpha=-1)
    kept = torch.baddbmm(d_cov, weights.mT, gain_d_cov, alpha=-1)  # 2 J'gU
    right = torch.bmm(d_mean, error.mT).baddbmm_(kept, gain.mT, alpha=-0.5)
    d_cov = torch.baddbmm(kept, right, weights, beta=0.5)
    return d_mean, d_cov, d_weights, d_values, d_noise
