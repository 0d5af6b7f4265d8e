"""Helpers shared by the reference operators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable)


def full_precision(function: F) -> F:
    """Run ``function`` outside autocast: a half-precision system matrix is never formed."""

    @functools.wraps(function)
    def wrapper(*args):
        device = next(a for a in args if isinstance(a, Tensor)).device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return function(*args)
        with torch.autocast(device, enabled=False):
            return function(*args)

    return wrapper  # type: ignore[return-value]


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype in which closed-form gradients are evaluated: float64 where the device has it."""
    return tensor.dtype if tensor.device.type == "mps" else torch.float64


def symmetric(matrix: Tensor) -> Tensor:
    """(M + M') / 2; exact when ``matrix`` is symmetric already."""
    return (matrix + matrix.mT) / 2


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor; NaN for the batch items that are not positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    return poison(info != 0, factor)[0]


def solve(factor: Tensor, right: Tensor) -> Tensor:
    """``(factor factor')^-1 right``."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def log_det(factor: Tensor) -> Tensor:
    """``ln det(factor factor')``."""
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def running_product(x: Tensor) -> Tensor:
    """``x.cumprod(1)`` of (B, L), by doubling: deterministic on every device, its gradient too."""
    step = 1
    while step < x.shape[1]:
        x = torch.cat([x[:, :step], x[:, step:] * x[:, :-step]], 1)
        step *= 2
    return x


def sum_from(x: Tensor) -> Tensor:
    """Of (B, L): the sums from each element to the last, by doubling as `running_product`."""
    step = 1
    while step < x.shape[1]:
        x = torch.cat([x[:, :-step] + x[:, step:], x[:, -step:]], 1)
        step *= 2
    return x


def sum_of_no_steps(*tensors: Tensor) -> Tensor:
    """(B,) zeros, a function of all ``tensors`` (B, ...) for autograd: where sums over steps begin,
    so that without a step, too, they have a gradient."""
    parts = (t[:, :0].flatten(1).sum(1).to(tensors[0].dtype) for t in tensors)
    return functools.reduce(torch.add, parts)


def has_nan(*tensors: Tensor) -> Tensor:
    """(B,) bool: which batch items hold a NaN in any of ``tensors``."""
    return functools.reduce(torch.logical_or, (torch.isnan(t).flatten(1).any(1) for t in tensors))


def poison(bad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """NaN in every element of the items flagged by ``bad`` (B,), in values and in gradients."""
    factor = torch.where(bad, torch.nan, 1.0)
    return tuple(t * factor.to(t.dtype).view(-1, *(1,) * (t.dim() - 1)) for t in tensors)
