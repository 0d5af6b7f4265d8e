"""read: ``W R`` and the variances ``w'U w``."""

from __future__ import annotations

import torch

from kanerva_ext import ops, reference

from .spec import FORWARD_BACKWARD, Operator, Rival, Shape, compiled, random_state, random_steps


def inputs(shape: Shape, generator: torch.Generator):
    mean, cov = random_state(shape, generator)
    return mean, cov, random_steps(shape, shape.slots, generator)


def einsum(mean, cov, weights):
    values = torch.einsum("btk,bkc->btc", weights, mean)
    return values, torch.einsum("btk,bkj,btj->bt", weights, cov, weights)


def products(mean, cov, weights):
    return torch.bmm(weights, mean), (torch.bmm(weights, cov) * weights).sum(-1)


def inner(mean, cov, weights):
    """The row sums as linalg.vecdot, in one pass."""
    return torch.bmm(weights, mean), torch.linalg.vecdot(torch.bmm(weights, cov), weights)


def inner_bmm(mean, cov, weights):
    """The row sums as T products of one row with one column."""
    batch, steps, slots = weights.shape
    half = torch.bmm(weights, cov).view(batch * steps, 1, slots)
    var = torch.bmm(half, weights.reshape(batch * steps, slots, 1))
    return torch.bmm(weights, mean), var.view(batch, steps)


def joint(mean, cov, weights):
    """[U | R] in one product."""
    slots = cov.shape[-1]
    both = torch.bmm(weights, torch.cat([cov, mean], -1))
    return both[..., slots:], (both[..., :slots] * weights).sum(-1)


class ClosedForm(torch.autograd.Function):
    """The adjoint by hand: w'U is kept, and the variance's part of dw is added in place."""

    @staticmethod
    def forward(ctx, mean, cov, weights):
        half = torch.bmm(weights, cov)
        ctx.save_for_backward(mean, half, weights)
        return torch.bmm(weights, mean), (half * weights).sum(-1)

    @staticmethod
    def backward(ctx, d_values, d_var):
        mean, half, weights = ctx.saved_tensors
        return adjoint(d_values, d_var, mean, half, weights)


def adjoint(d_values, d_var, mean, half, weights):
    """Gradients of mean, cov (its symmetric part) and weights; ``half`` is W U, U symmetric."""
    d_var = d_var[..., None]
    d_weights = torch.addcmul(torch.bmm(d_values, mean.mT), half, d_var, value=2)
    return torch.bmm(weights.mT, d_values), torch.bmm((weights * d_var).mT, weights), d_weights


OPERATOR = Operator(
    "read",
    inputs,
    ops.read,
    einsum,
    reference.read,
    (
        Rival("einsum", einsum),
        Rival("products", products),
        Rival("inner", inner),
        Rival("inner_bmm", inner_bmm),
        Rival("joint", joint),
        Rival("closed(products)", ClosedForm.apply, FORWARD_BACKWARD, "closed"),
        compiled(Rival("products", products)),
        compiled(Rival("closed(products)", ClosedForm.apply, FORWARD_BACKWARD)),
    ),
)
