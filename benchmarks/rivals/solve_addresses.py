"""solve_addresses: ``(R R' + ridge I)^-1 R z`` for every query."""

from __future__ import annotations

import torch

from kanerva_ext import ops, reference

from .spec import (
    FORWARD_BACKWARD,
    Operator,
    Rival,
    Shape,
    add_diagonal_,
    cholesky,
    compiled,
    inverse_from_factor,
    random_state,
    random_steps,
    right_solve,
)


def inputs(shape: Shape, generator: torch.Generator):
    mean, _ = random_state(shape, generator)
    queries = random_steps(shape, shape.code, generator)
    ridge = 0.5 + torch.rand(shape.batch, generator=generator, dtype=torch.float64)
    return mean, queries, ridge


def kanerva(mean, queries, ridge):
    return (ops.solve_addresses(mean, queries, ridge),)


def definition(mean, queries, ridge):
    return (reference.solve_addresses(mean, queries, ridge),)


def factor_gram(mean, ridge):
    """Cholesky factor of R R' + ridge I."""
    return cholesky(add_diagonal_(torch.bmm(mean, mean.mT), ridge[:, None]))


def solve(mean, queries, ridge):
    right = torch.bmm(mean, queries.mT)
    return (torch.cholesky_solve(right, factor_gram(mean, ridge)).mT,)


def solve_right(mean, queries, ridge):
    """The queries' side solved from the right, without copies."""
    return (right_solve(torch.bmm(queries, mean.mT), factor_gram(mean, ridge)),)


def inverse(mean, queries, ridge):
    """The inverse, then products alone."""
    system = inverse_from_factor(factor_gram(mean, ridge))
    return (torch.bmm(torch.bmm(queries, mean.mT), system),)


def inverse_lapack(mean, queries, ridge):
    system = torch.cholesky_inverse(factor_gram(mean, ridge))
    return (torch.bmm(torch.bmm(queries, mean.mT), system),)


def encoder(mean, queries, ridge):
    """The C x K map from queries to addresses, for many queries: one product each."""
    system = inverse_from_factor(factor_gram(mean, ridge))
    return (torch.bmm(queries, torch.bmm(system, mean).mT),)


class ClosedForm(torch.autograd.Function):
    """`inverse` with its closed-form adjoint, y = A^-1 gw: dR = y'Z - (y'w + w'y) R, dZ = y R."""

    @staticmethod
    def forward(ctx, mean, queries, ridge):
        system = inverse_from_factor(factor_gram(mean, ridge))
        weights = torch.bmm(torch.bmm(queries, mean.mT), system)
        ctx.save_for_backward(mean, queries, weights, system)
        return weights

    @staticmethod
    def backward(ctx, d_weights):
        mean, queries, weights, system = ctx.saved_tensors
        return adjoint(d_weights, mean, queries, weights, system)


def adjoint(d_weights, mean, queries, weights, system):
    """Gradients of mean, queries and ridge through the solve; ``system`` is the inverse."""
    y = torch.bmm(d_weights, system)
    outer = torch.bmm(y.mT, weights)
    d_mean = torch.bmm(y.mT, queries).baddbmm_(outer + outer.mT, mean, alpha=-1)
    return d_mean, torch.bmm(y, mean), outer.diagonal(dim1=-2, dim2=-1).sum(-1).neg_()


def closed(mean, queries, ridge):
    return (ClosedForm.apply(mean, queries, ridge),)


OPERATOR = Operator(
    "solve_addresses",
    inputs,
    kanerva,
    solve,
    definition,
    (
        Rival("solve", solve),
        Rival("solve_right", solve_right),
        Rival("inverse", inverse),
        Rival("inverse_lapack", inverse_lapack),
        Rival("encoder", encoder),
        Rival("closed(inverse)", closed, FORWARD_BACKWARD, "closed"),
        compiled(Rival("solve_right", solve_right)),
    ),
    symmetric=(),
)
