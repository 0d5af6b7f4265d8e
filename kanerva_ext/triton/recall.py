"""recall in Triton: the kernels of `solve_addresses`, which read where they are given a
covariance."""

from __future__ import annotations

from torch import Tensor

from .solve_addresses import address, address_backward


def recall(
    mean: Tensor, cov: Tensor, queries: Tensor, ridge: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``kanerva::recall``."""
    return address(mean, cov, queries, ridge)


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
    """``kanerva::recall_backward``."""
    return address_backward(grad_values, grad_var, grad_weights, mean, cov, queries, ridge, weights)
