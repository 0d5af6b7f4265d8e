"""memory_kl: KL divergence between two matrix-normal beliefs."""

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
    return *random_state(shape, generator), *random_state(shape, generator)


def kanerva(mean, cov, prior_mean, prior_cov):
    return (ops.memory_kl(mean, cov, prior_mean, prior_cov),)


def definition(mean, cov, prior_mean, prior_cov):
    return (reference.memory_kl(mean, cov, prior_mean, prior_cov),)


def _logs(factor):
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def distributions(mean, cov, prior_mean, prior_cov):
    """torch.distributions, a K-dimensional normal for every column."""
    left, right = (
        torch.distributions.MultivariateNormal(
            m.mT, scale_tril=cholesky(u)[:, None], validate_args=False
        )
        for m, u in ((mean, cov), (prior_mean, prior_cov))
    )
    return (torch.distributions.kl_divergence(left, right).sum(-1),)


def half_solve(mean, cov, prior_mean, prior_cov):
    """With U0 = F0 F0' and U = F F': |F0^-1 F|^2 and |F0^-1 (R - R0)|^2, in one solve."""
    slots, code = mean.shape[-2:]
    factor, prior = cholesky(cov), cholesky(prior_cov)
    right = torch.cat([factor * code**0.5, mean - prior_mean], -1)
    white = torch.linalg.solve_triangular(prior, right, upper=False)
    energy = white.square().sum((-2, -1)) / 2
    return (energy + code * (_logs(prior) - _logs(factor) - slots / 2),)


def half_solves(mean, cov, prior_mean, prior_cov):
    """The same without joining the two right-hand sides."""
    slots, code = mean.shape[-2:]
    factor, prior = cholesky(cov), cholesky(prior_cov)
    trace = torch.linalg.solve_triangular(prior, factor, upper=False).square().sum((-2, -1))
    shift = torch.linalg.solve_triangular(prior.mT, (mean - prior_mean).mT, upper=True, left=False)
    energy = (code * trace + shift.square().sum((-2, -1))) / 2
    return (energy + code * (_logs(prior) - _logs(factor) - slots / 2),)


def inverse(mean, cov, prior_mean, prior_cov):
    """U0^-1, then products and sums alone."""
    slots, code = mean.shape[-2:]
    factor, prior = cholesky(cov), cholesky(prior_cov)
    precision = inverse_from_factor(prior)
    difference = mean - prior_mean
    energy = (precision * cov).sum((-2, -1)) * code
    energy = energy + (torch.bmm(precision, difference) * difference).sum((-2, -1))
    return (energy / 2 + code * (_logs(prior) - _logs(factor) - slots / 2),)


class ClosedForm(torch.autograd.Function):
    """`inverse` with dU = C/2 (U0^-1 - U^-1), dR = U0^-1 D and
    dU0 = 1/2 (C U0^-1 - C U0^-1 U U0^-1 - dR dR')."""

    @staticmethod
    def forward(ctx, mean, cov, prior_mean, prior_cov):
        slots, code = mean.shape[-2:]
        factor, prior = cholesky(cov), cholesky(prior_cov)
        precision = inverse_from_factor(prior)
        difference = mean - prior_mean
        shift = torch.bmm(precision, difference)
        energy = (precision * cov).sum((-2, -1)) * code + (shift * difference).sum((-2, -1))
        ctx.save_for_backward(cov, factor, precision, shift)
        return energy / 2 + code * (_logs(prior) - _logs(factor) - slots / 2)

    @staticmethod
    def backward(ctx, grad):
        cov, factor, precision, shift = ctx.saved_tensors
        grad, code = grad[:, None, None], shift.shape[-1]
        d_mean = shift * grad
        scaled = grad * (code / 2)
        d_cov = (precision - inverse_from_factor(factor)).mul_(scaled)
        trace = torch.bmm(precision, torch.bmm(cov, precision))
        d_prior_cov = (precision - trace).mul_(scaled).baddbmm_(d_mean, shift.mT, alpha=-0.5)
        return d_mean, d_cov, -d_mean, d_prior_cov


def closed(mean, cov, prior_mean, prior_cov):
    return (ClosedForm.apply(mean, cov, prior_mean, prior_cov),)


OPERATOR = Operator(
    "memory_kl",
    inputs,
    kanerva,
    half_solve,
    definition,
    (
        Rival(
            "distributions",
            distributions,
            fits=lambda shape, direction: shape.batch * shape.code * shape.slots**2 < 1 << 27,
        ),
        Rival("half_solve", half_solve),
        Rival("half_solves", half_solves),
        Rival("inverse", inverse),
        Rival("closed(inverse)", closed, FORWARD_BACKWARD, "closed"),
        compiled(Rival("half_solves", half_solves)),
        compiled(Rival("inverse", inverse)),
    ),
    symmetric=(1, 3),
)
