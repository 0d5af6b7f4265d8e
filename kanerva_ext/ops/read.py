"""Reading with given addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._checks import Arg
from ._autograd import Operator
from ._declaration import Declaration, Result

OPERATOR = Declaration(
    "read",
    args=(
        Arg("mean", "KC", "state"),
        Arg("cov", "KK", "state"),
        Arg("weights", "TK", "data"),
    ),
    results=(
        Result("values", "TC"),
        Result("var", "T"),
    ),
)
_call = Operator(OPERATOR)


def read(
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    *,
    backend: str = "auto",
    check: bool = False,
) -> tuple[Tensor, Tensor]:
    """Read-out ``M'w`` of a memory ``M ~ MN(mean, cov, I)``: its mean and its variance.

    Args:
        mean: (B, K, C), float32 or float64; leading dimensions of all arguments broadcast.
        cov: (B, K, K), same dtype.
        weights: (B, T, K); float16, bfloat16, float32 or float64.
        backend, check: see `bayes_write`.

    Returns:
        values (B, T, C) = W R, and var (B, T) = w'U w, the predictive variance of every component
        of the read-out, without observation noise; both in the state's dtype. Below about
        ``eps sum_k w_k^2 U_kk``, with the eps of that dtype, a variance is rounding and may be 0:
        the covariance does not hold it. Batch items that hold a NaN are NaN throughout.

    Raises:
        TypeError, ValueError, RuntimeError: as `bayes_write`.

    >>> import torch
    >>> from kanerva_ext import ops
    >>> values, var = ops.read(torch.eye(2)[None], torch.eye(2)[None], torch.tensor([[[2.0, 1.0]]]))
    >>> values, var
    (tensor([[[2., 1.]]]), tensor([[5.]]))
    """
    if not torch.compiler.is_compiling():
        results = _call.direct(backend, check, mean, cov, weights)
        if results is not None:
            return results
    args, batch = (mean, cov, weights), None
    if torch.compiler.is_compiling() or not _is_raw(*args):
        args, batch = _checks.prepare("read", OPERATOR.args, args)
    results = _call(backend, *args)
    if batch is None and not check:
        return results
    return _checks.finish("read", OPERATOR.args, args, batch, check, results)


def _is_raw(mean, cov, weights) -> bool:
    try:
        batch, slots, code = mean.shape
        dtype = mean.dtype
        return (
            cov.shape == (batch, slots, slots)
            and weights.shape == (batch, weights.shape[1], slots)
            and cov.dtype == dtype
            and (dtype, weights.dtype) in _checks.RAW_PAIRS
            and cov.device == weights.device == mean.device
            and slots > 0
            and code > 0
        )
    except (AttributeError, TypeError, ValueError, IndexError):
        return False
