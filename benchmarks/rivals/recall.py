"""recall: least-squares addresses, the read-out there and its variance."""

from __future__ import annotations

import torch

from kanerva_ext import ops, reference

from . import read, solve_addresses
from .spec import (
    FORWARD_BACKWARD,
    Operator,
    Rival,
    Shape,
    compiled,
    inverse_from_factor,
    random_state,
    random_steps,
)


def inputs(shape: Shape, generator: torch.Generator):
    mean, cov = random_state(shape, generator)
    queries = random_steps(shape, shape.code, generator)
    ridge = 0.5 + torch.rand(shape.batch, generator=generator, dtype=torch.float64)
    return mean, cov, queries, ridge


def composed(solve, reading=read.inner):
    """A form of the solve followed by a form of the read."""

    def recall(mean, cov, queries, ridge):
        (weights,) = solve(mean, queries, ridge)
        return *reading(mean, cov, weights), weights

    return recall


class ClosedForm(torch.autograd.Function):
    """`solve_addresses.inverse` and the read, with their closed-form adjoints in one."""

    @staticmethod
    def forward(ctx, mean, cov, queries, ridge):
        system = inverse_from_factor(solve_addresses.factor_gram(mean, ridge))
        weights = torch.bmm(torch.bmm(queries, mean.mT), system)
        half = torch.bmm(weights, cov)
        ctx.save_for_backward(mean, queries, weights, system, half)
        return torch.bmm(weights, mean), (half * weights).sum(-1), weights

    @staticmethod
    def backward(ctx, d_values, d_var, d_weights):
        mean, queries, weights, system, half = ctx.saved_tensors
        d_read, d_cov, d_weights_read = read.adjoint(d_values, d_var, mean, half, weights)
        d_mean, d_queries, d_ridge = solve_addresses.adjoint(
            d_weights + d_weights_read, mean, queries, weights, system
        )
        return d_mean.add_(d_read), d_cov, d_queries, d_ridge


OPERATOR = Operator(
    "recall",
    inputs,
    ops.recall,
    composed(solve_addresses.solve, read.einsum),
    reference.recall,
    (
        Rival("solve", composed(solve_addresses.solve)),
        Rival("solve_right", composed(solve_addresses.solve_right)),
        Rival("solve_right+joint", composed(solve_addresses.solve_right, read.joint)),
        Rival("inverse", composed(solve_addresses.inverse)),
        Rival("inverse_lapack", composed(solve_addresses.inverse_lapack)),
        Rival("encoder", composed(solve_addresses.encoder)),
        Rival("closed(inverse)", ClosedForm.apply, FORWARD_BACKWARD, "closed"),
        compiled(Rival("solve_right", composed(solve_addresses.solve_right))),
        compiled(Rival("closed(inverse)", ClosedForm.apply, FORWARD_BACKWARD)),
    ),
)
