"""KL divergence between two beliefs about a memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._checks import Arg
from ._autograd import Operator
from ._declaration import Declaration, Result

OPERATOR = Declaration(
    "memory_kl",
    args=(
        Arg("mean", "KC", "state"),
        Arg("cov", "KK", "state"),
        Arg("prior_mean", "KC", "state"),
        Arg("prior_cov", "KK", "state"),
    ),
    results=(Result("", "", is_sum=True),),
)
_call = Operator(OPERATOR)


def memory_kl(
    mean: Tensor,
    cov: Tensor,
    prior_mean: Tensor,
    prior_cov: Tensor,
    *,
    backend: str = "auto",
    check: bool = False,
) -> Tensor:
    """KL divergence of ``MN(mean, cov, I)`` from ``MN(prior_mean, prior_cov, I)``, in nats.

    ``1/2 [C tr(U0^-1 U) + tr((R - R0)' U0^-1 (R - R0)) - K C - C (ln|U| - ln|U0|)]``.

    Args:
        mean, prior_mean: (B, K, C), float32 or float64; leading dimensions broadcast.
        cov, prior_cov: (B, K, K), same dtype, symmetric positive definite.
        backend, check: see `bayes_write`.

    Returns:
        (B,) in the state's dtype; NaN for batch items with a covariance that is not positive
        definite.

    Raises:
        TypeError, ValueError, RuntimeError: as `bayes_write`.

    >>> import torch
    >>> from kanerva_ext import ops
    >>> mean, cov = torch.zeros(1, 2, 3), torch.eye(2)[None]
    >>> ops.memory_kl(mean + 1, cov, mean, cov).round(decimals=3)
    tensor([3.])
    """
    if not torch.compiler.is_compiling():
        results = _call.direct(backend, check, mean, cov, prior_mean, prior_cov)
        if results is not None:
            return results
    args, batch = (mean, cov, prior_mean, prior_cov), None
    if torch.compiler.is_compiling() or not _is_raw(*args):
        args, batch = _checks.prepare("memory_kl", OPERATOR.args, args)
    results = _call(backend, *args)
    if batch is None and not check:
        return results
    return _checks.finish("memory_kl", OPERATOR.args, args, batch, check, results)


def _is_raw(mean, cov, prior_mean, prior_cov) -> bool:
    try:
        batch, slots, code = mean.shape
        return (
            cov.shape == prior_cov.shape == (batch, slots, slots)
            and prior_mean.shape == mean.shape
            and mean.dtype in _checks.STATE_DTYPES
            and cov.dtype == prior_cov.dtype == prior_mean.dtype == mean.dtype
            and cov.device == prior_cov.device == prior_mean.device == mean.device
            and slots > 0
            and code > 0
        )
    except (AttributeError, TypeError, ValueError):
        return False
