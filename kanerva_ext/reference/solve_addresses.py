"""Least-squares addresses by a Cholesky factor of the smaller normal equations."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import cholesky, full_precision, has_nan, poison, solve, wide


@full_precision
def solve_addresses(mean: Tensor, queries: Tensor, ridge: Tensor) -> Tensor:
    """``w = (R R' + ridge I)^-1 R z``, which equals ``R (R'R + ridge I)^-1 z``."""
    slots, code = mean.shape[1:]
    queries = queries.to(mean.dtype)
    if slots <= code:
        weights = solve(_system(mean, ridge), mean @ queries.mT).mT
    else:
        weights = (mean @ solve(_system(mean.mT, ridge), queries.mT)).mT
    bad = ~(ridge > 0) | has_nan(mean, weights)
    return poison(bad, weights)[0]


@full_precision
def solve_addresses_backward(
    grad_weights: Tensor, mean: Tensor, queries: Tensor, ridge: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of mean, queries and ridge: with ``y = A^-1 gw``, ``dR = y z' - (y w' + w y') R``,
    ``dz = R'y`` and ``d ridge = -y.w``, summed over the queries."""
    dtype, dtypes = wide(mean), (mean.dtype, queries.dtype, ridge.dtype)
    grad_weights, mean, queries, ridge, weights = (
        x.to(dtype) for x in (grad_weights, mean, queries, ridge, weights)
    )
    y = solve(_system(mean, ridge), grad_weights.mT).mT
    d_mean = y.mT @ (queries - weights @ mean) - weights.mT @ (y @ mean)
    grads = (d_mean, y @ mean, -(y * weights).sum((1, 2)))
    grads = poison(~(ridge > 0) | has_nan(mean, weights), *grads)
    return tuple(g.to(t) for g, t in zip(grads, dtypes, strict=True))


def _system(rows: Tensor, ridge: Tensor) -> Tensor:
    eye = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    return cholesky(rows @ rows.mT + ridge[:, None, None] * eye)
