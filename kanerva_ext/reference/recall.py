"""Least-squares addressing followed by a read."""

from __future__ import annotations

from torch import Tensor

from ._common import has_nan, poison
from .read import read, read_backward
from .solve_addresses import solve_addresses, solve_addresses_backward


def recall(
    mean: Tensor, cov: Tensor, queries: Tensor, ridge: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Read-out, predictive variance and the address of each query."""
    weights = solve_addresses(mean, queries, ridge)
    values, var = read(mean, cov, weights)
    return values, var, poison(has_nan(var), weights)[0]


def recall_backward(
    grad_values: Tensor | None,
    grad_var: Tensor | None,
    grad_weights: Tensor | None,
    mean: Tensor,
    cov: Tensor,
    queries: Tensor,
    ridge: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of mean, cov, queries and ridge."""
    d_mean, d_cov, d_weights = read_backward(grad_values, grad_var, mean, cov, weights)
    if grad_weights is not None:
        d_weights = d_weights + grad_weights
    more_mean, d_queries, d_ridge = solve_addresses_backward(
        d_weights, mean, queries, ridge, weights
    )
    return d_mean + more_mean, d_cov, d_queries, d_ridge
