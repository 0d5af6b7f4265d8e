"""Additive sufficient statistics of a belief: summing them merges memories exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._checks import Arg
from .._state import MemoryState
from ._autograd import Operator
from ._declaration import Declaration, Result

OPERATOR = Declaration(
    "statistics",
    args=(Arg("mean", "KC", "state"), Arg("cov", "KK", "state")),
    results=(
        Result("shift", "KC", saved_as="shift"),
        Result("precision", "KK", saved_as="precision"),
    ),
)
_STATISTICS = (Arg("precision", "KK", "state"), Arg("shift", "KC", "state"))
_call = Operator(OPERATOR)


def to_statistics(
    mean: Tensor | MemoryState,
    cov: Tensor | None = None,
    *,
    backend: str = "auto",
    check: bool = False,
) -> tuple[Tensor, Tensor]:
    """Natural parameters of a belief: ``precision = cov^-1`` and ``shift = cov^-1 mean``.

    Writing adds ``W'W / v`` to the precision and ``W'Z / v`` to the shift. Memories written
    separately from one prior merge exactly: of both statistics, the sum less (n - 1) times the
    prior's, brought back by `from_statistics`, is the belief after all n episodes.

    Args:
        mean: (B, K, C), float32 or float64, or a `MemoryState` (then without ``cov``).
        cov: (B, K, K), same dtype, symmetric positive definite; leading dimensions broadcast.
        backend, check: see `bayes_write`.

    Returns:
        precision (B, K, K), exactly symmetric, and shift (B, K, C).

    Raises:
        TypeError, ValueError, RuntimeError: as `bayes_write`.

    >>> import torch
    >>> from kanerva_ext import ops
    >>> precision, shift = ops.to_statistics(torch.ones(1, 2, 3), 0.5 * torch.eye(2))
    >>> precision.round(decimals=3)
    tensor([[[2., 0.],
             [0., 2.]]])
    >>> ops.from_statistics(precision, shift).mean.round(decimals=3)
    tensor([[[1., 1., 1.],
             [1., 1., 1.]]])

    Two memories of one prior, merged:

    >>> prior = torch.zeros(1, 2, 3), torch.eye(2)[None]
    >>> weights, values = torch.randn(1, 8, 2), torch.randn(1, 8, 3)
    >>> first = ops.bayes_write(*prior, weights[:, :5], values[:, :5], 0.5)[:2]
    >>> second = ops.bayes_write(*prior, weights[:, 5:], values[:, 5:], 0.5)[:2]
    >>> (a, s), (b, t), (p, r) = (ops.to_statistics(*x) for x in (first, second, prior))
    >>> merged = ops.from_statistics(a + b - p, s + t - r)
    >>> both = ops.bayes_write(*prior, weights, values, 0.5)
    >>> all(torch.allclose(x, y, atol=1e-5) for x, y in zip(merged, both))
    True
    """
    if isinstance(mean, MemoryState):
        if cov is not None:
            raise TypeError("to_statistics: cov must be None when mean is a MemoryState")
        mean, cov = mean
    if not torch.compiler.is_compiling():
        results = _call.direct(backend, check, mean, cov)
        if results is not None:
            return results[1], results[0]
    args, batch = (mean, cov), None
    if torch.compiler.is_compiling() or not _is_raw(mean, cov):
        args, batch = _checks.prepare("to_statistics", OPERATOR.args, args)
    results = _call(backend, *args)
    shift, precision = _checks.finish("to_statistics", OPERATOR.args, args, batch, check, results)
    return precision, shift


def from_statistics(
    precision: Tensor, shift: Tensor, *, backend: str = "auto", check: bool = False
) -> MemoryState:
    """The belief with these natural parameters: ``cov = precision^-1``, ``mean = cov shift``.

    The inverse of `to_statistics`, which shows how memories are merged.

    Args:
        precision: (B, K, K), float32 or float64, symmetric positive definite.
        shift: (B, K, C), same dtype; leading dimensions broadcast.
        backend, check: see `bayes_write`.

    Returns:
        `MemoryState` (mean, cov), with cov exactly symmetric.

    Raises:
        TypeError, ValueError, RuntimeError: as `bayes_write`.
    """
    if not torch.compiler.is_compiling():
        results = _call.direct(backend, check, shift, precision)
        if results is not None:
            return MemoryState(*results)
    args, batch = (precision, shift), None
    if torch.compiler.is_compiling() or not _is_raw(shift, precision):
        args, batch = _checks.prepare("from_statistics", _STATISTICS, args)
    results = _call(backend, args[1], args[0])
    return MemoryState(*_checks.finish("from_statistics", _STATISTICS, args, batch, check, results))


def _is_raw(mean, cov) -> bool:
    try:
        batch, slots, code = mean.shape
        return (
            cov.shape == (batch, slots, slots)
            and mean.dtype in _checks.STATE_DTYPES
            and cov.dtype == mean.dtype
            and cov.device == mean.device
            and slots > 0
            and code > 0
        )
    except (AttributeError, TypeError, ValueError):
        return False
