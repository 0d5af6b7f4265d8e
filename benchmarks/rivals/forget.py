"""forget: exact removal of written items, the write with negative noise."""

from __future__ import annotations

import torch

from kanerva_ext import ops, reference

from .spec import (
    FORWARD,
    FORWARD_BACKWARD,
    Operator,
    Rival,
    Shape,
    cholesky,
    compiled,
    random_state,
    random_steps,
)


def inputs(shape: Shape, generator: torch.Generator):
    """A memory in which the episode was written last."""
    mean, cov = random_state(shape, generator)
    weights = random_steps(shape, shape.slots, generator) / shape.slots**0.5
    values = random_steps(shape, shape.code, generator)
    noise = 0.5 + torch.rand(shape.batch, shape.steps, generator=generator, dtype=torch.float64)
    mean, cov, _ = ops.bayes_write(mean, cov, weights, values, noise)
    return mean, cov, weights, values, noise


def steps(mean, cov, weights, values, noise_var):
    """The recursion, mean and covariance side by side."""
    code, state = mean.shape[-1], torch.cat([mean, cov], -1)
    for w, z, v in zip(weights.unbind(1), values.unbind(1), noise_var.unbind(1), strict=True):
        read = torch.bmm(w[:, None], state)
        d, c = z[:, None] - read[..., :code], read[..., code:]
        s = v[:, None, None] - torch.bmm(c, w[..., None])
        state = torch.baddbmm(state, c.mT / s, torch.cat([d, -c], -1), alpha=-1)
    return state[..., :code], state[..., code:]


def block(mean, cov, weights, values, noise_var):
    """One factor for the episode."""
    gains = torch.bmm(weights, cov)
    factor = cholesky(torch.diag_embed(noise_var) - torch.bmm(gains, weights.mT))
    right = torch.cat([gains, values - torch.bmm(weights, mean)], -1)
    white = torch.linalg.solve_triangular(factor, right, upper=False)
    p, e = white[..., : cov.shape[-1]], white[..., cov.shape[-1] :]
    return torch.baddbmm(mean, p.mT, e, alpha=-1), torch.baddbmm(cov, p.mT, p)


def information(mean, cov, weights, values, noise_var):
    """By the precision: ``U^-1 - W'V^-1 W``, for more steps than slots."""
    factor = cholesky(cov)
    half = torch.bmm(weights, factor)
    scaled = half / noise_var[..., None]
    eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
    inner = cholesky(eye - torch.bmm(half.mT, scaled))
    root = torch.linalg.solve_triangular(inner, factor.mT, upper=False)
    rest = torch.bmm(root.mT, root)
    shift = torch.bmm((weights / noise_var[..., None]).mT, values - torch.bmm(weights, mean))
    return torch.baddbmm(mean, rest, shift, alpha=-1), rest


class ClosedForm(torch.autograd.Function):
    """`block` with the adjoint of the reference."""

    @staticmethod
    def forward(ctx, *args):
        rest = block(*args)
        ctx.save_for_backward(*args, *rest)
        return rest

    @staticmethod
    def backward(ctx, d_mean, d_cov):
        *_, weights, values, noise_var, mean, cov = ctx.saved_tensors
        d_cov = (d_cov + d_cov.mT) / 2
        scale = -1 / noise_var[..., None]
        residual = scale * (values - torch.bmm(weights, mean))
        gains = scale * torch.bmm(weights, cov)
        d_values, half = torch.bmm(gains, d_mean), torch.bmm(gains, d_cov)
        inner = torch.bmm(residual, d_mean.mT) - 2 * half
        d_weights = torch.baddbmm(torch.bmm(inner, cov), d_values, mean.mT, alpha=-1)
        d_noise = (d_values * residual).sum(-1) - (half * gains).sum(-1)
        turned = weights.mT
        d_prior = torch.baddbmm(d_mean, turned, d_values, alpha=-1)
        left = torch.baddbmm(d_cov, turned, half, alpha=-1)
        left = torch.baddbmm(left, torch.bmm(left, gains.mT), weights, alpha=-1)
        mixed = torch.bmm(torch.bmm(d_prior, residual.mT), weights)
        return d_prior, left + (mixed + mixed.mT) / 2, d_weights, d_values, d_noise


OPERATOR = Operator(
    "forget",
    inputs,
    ops.forget,
    steps,
    reference.forget,
    (
        Rival("steps", steps, FORWARD, "steps"),
        Rival("block", block),
        Rival("information", information),
        Rival("closed(block)", ClosedForm.apply, FORWARD_BACKWARD, "closed"),
        compiled(Rival("block", block)),
    ),
)
