"""Reading with least-squares addresses, in one operator."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._checks import Arg
from ._autograd import Operator
from ._declaration import Declaration, Result
from .solve_addresses import is_raw

OPERATOR = Declaration(
    "recall",
    args=(
        Arg("mean", "KC", "state"),
        Arg("cov", "KK", "state"),
        Arg("queries", "TC", "data"),
        Arg("ridge", "", "ridge"),
    ),
    results=(
        Result("values", "TC"),
        Result("var", "T"),
        Result("weights", "TK", saved_as="weights"),
    ),
)
_call = Operator(OPERATOR)


def recall(
    mean: Tensor,
    cov: Tensor,
    queries: Tensor,
    ridge: float | Tensor,
    *,
    backend: str = "auto",
    check: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """`solve_addresses` and `read` in one: what the memory holds nearest to each query.

    Args:
        mean: (B, K, C), float32 or float64; leading dimensions of all arguments broadcast.
        cov: (B, K, K), same dtype.
        queries: (B, T, C); float16, bfloat16, float32 or float64.
        ridge: noise variance over address prior variance, > 0: a float, 0-d, or (B,).
        backend, check: see `bayes_write`.

    Returns:
        values (B, T, C), var (B, T) (as `read`) and weights (B, T, K), in the state's dtype; NaN in
        batch items whose ridge is not positive or that hold a NaN.

    Raises:
        TypeError, ValueError, RuntimeError: as `bayes_write`.

    >>> import torch
    >>> from kanerva_ext import ops
    >>> mean = torch.eye(2)[None]
    >>> values, var, weights = ops.recall(mean, mean, torch.tensor([[[3.0, 0.0]]]), ridge=0.5)
    >>> values.round(decimals=3), var.round(decimals=3)
    (tensor([[[2., 0.]]]), tensor([[4.]]))
    """
    if not torch.compiler.is_compiling():
        results = _call.direct(backend, check, mean, cov, queries, ridge)
        if results is not None:
            return results
    args, batch = (mean, cov, queries, ridge), None
    if torch.compiler.is_compiling() or not _is_raw(*args):
        args, batch = _checks.prepare("recall", OPERATOR.args, args)
    elif type(ridge) is float:
        args = (mean, cov, queries, mean.new_full((mean.shape[0],), ridge))
    elif ridge.dim() == 0:
        args = (mean, cov, queries, ridge.expand(mean.shape[0]))
    results = _call(backend, *args)
    if batch is None and not check:
        return results
    return _checks.finish("recall", OPERATOR.args, args, batch, check, results)


def _is_raw(mean, cov, queries, ridge) -> bool:
    return (
        is_raw(mean, queries, ridge)
        and isinstance(cov, Tensor)
        and cov.shape == (mean.shape[0], mean.shape[1], mean.shape[1])
        and cov.dtype == mean.dtype
        and cov.device == mean.device
    )
