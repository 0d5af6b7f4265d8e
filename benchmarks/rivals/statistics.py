"""to_statistics: precision ``U^-1`` and shift ``U^-1 R``. Its inverse is the same computation."""

from __future__ import annotations

import torch

from kanerva_ext import ops, reference

from .spec import (
    FORWARD_BACKWARD,
    Operator,
    Rival,
    Shape,
    cholesky,
    compiled,
    inverse_from_factor,
    random_state,
)


def inputs(shape: Shape, generator: torch.Generator):
    return random_state(shape, generator)


def definition(mean, cov):
    shift, precision = reference.statistics(mean, cov)
    return precision, shift


def lapack(mean, cov):
    """potri, then a product."""
    precision = torch.cholesky_inverse(cholesky(cov))
    return precision, torch.bmm(precision, mean)


def products(mean, cov):
    """The inverse of the factor by a triangular solve, then products."""
    precision = inverse_from_factor(cholesky(cov))
    return precision, torch.bmm(precision, mean)


def solve(mean, cov):
    """One solve with [I | R] as right-hand sides."""
    slots = cov.shape[-1]
    eye = torch.eye(slots, dtype=cov.dtype, device=cov.device).expand_as(cov)
    solved = torch.cholesky_solve(torch.cat([eye, mean], -1), cholesky(cov))
    return solved[..., :slots], solved[..., slots:]


class ClosedForm(torch.autograd.Function):
    """`products` with dR = P gh and dU = -(P gP P + dR h'), P = U^-1, h = P R."""

    @staticmethod
    def forward(ctx, mean, cov):
        precision, shift = products(mean, cov)
        ctx.save_for_backward(precision, shift)
        return precision, shift

    @staticmethod
    def backward(ctx, d_precision, d_shift):
        precision, shift = ctx.saved_tensors
        d_mean = torch.bmm(precision, d_shift)
        d_cov = torch.bmm(torch.bmm(precision, d_precision), precision)
        return d_mean, d_cov.baddbmm_(d_mean, shift.mT, beta=-1, alpha=-1)


OPERATOR = Operator(
    "statistics",
    inputs,
    ops.to_statistics,
    lapack,
    definition,
    (
        Rival("lapack", lapack),
        Rival("products", products),
        Rival("solve", solve),
        Rival("closed(products)", ClosedForm.apply, FORWARD_BACKWARD, "closed"),
        compiled(Rival("products", products)),
    ),
)
