"""Least-squares addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._checks import Arg
from ._autograd import Operator
from ._declaration import Declaration, Result

OPERATOR = Declaration(
    "solve_addresses",
    args=(Arg("mean", "KC", "state"), Arg("queries", "TC", "data"), Arg("ridge", "", "ridge")),
    results=(Result("weights", "TK", saved_as="weights"),),
)
_call = Operator(OPERATOR)


def solve_addresses(
    mean: Tensor,
    queries: Tensor,
    ridge: float | Tensor,
    *,
    backend: str = "auto",
    check: bool = False,
) -> Tensor:
    """Least-squares address of each query: ``(R R' + ridge I)^-1 R z`` with R = ``mean``.

    It minimises ``|z - R'w|^2 + ridge |w|^2``, the posterior mean of an address with a standard
    normal prior (Wu et al., Learning Attractor Dynamics for Generative Memory, NeurIPS 2018).

    Args:
        mean: (B, K, C), float32 or float64; leading dimensions of all arguments broadcast.
        queries: (B, T, C); float16, bfloat16, float32 or float64.
        ridge: noise variance over address prior variance, > 0: a float, 0-d, or (B,).
        backend, check: see `bayes_write`.

    Returns:
        weights (B, T, K) in the state's dtype; NaN in batch items whose ridge is not positive or
        that hold a NaN.

    Raises:
        TypeError, ValueError, RuntimeError: as `bayes_write`.

    >>> import torch
    >>> from kanerva_ext import ops
    >>> mean, queries = torch.eye(2)[None], torch.tensor([[[3.0, 0.0]]])
    >>> ops.solve_addresses(mean, queries, ridge=0.5).round(decimals=3)
    tensor([[[2., 0.]]])
    """
    if not torch.compiler.is_compiling():
        results = _call.direct(backend, check, mean, queries, ridge)
        if results is not None:
            return results
    args, batch = (mean, queries, ridge), None
    if torch.compiler.is_compiling() or not is_raw(*args):
        args, batch = _checks.prepare("solve_addresses", OPERATOR.args, args)
    elif type(ridge) is float:
        args = (mean, queries, mean.new_full((mean.shape[0],), ridge))
    elif ridge.dim() == 0:
        args = (mean, queries, ridge.expand(mean.shape[0]))
    results = _call(backend, *args)
    if batch is None and not check:
        return results
    return _checks.finish("solve_addresses", OPERATOR.args, args, batch, check, results)


def is_raw(mean, queries, ridge) -> bool:
    """Whether nothing has to be cast, expanded or reshaped (but for a scalar ``ridge``)."""
    try:
        batch, slots, code = mean.shape
        dtype, device = mean.dtype, mean.device
        if type(ridge) is float:
            if not _checks.holds(dtype, ridge):
                return False
        elif not (
            (ridge.shape == (batch,) or ridge.dim() == 0)
            and ridge.dtype == dtype
            and ridge.device == device
        ):
            return False
        return (
            queries.shape == (batch, queries.shape[1], code)
            and (dtype, queries.dtype) in _checks.RAW_PAIRS
            and queries.device == device
            and slots > 0
            and code > 0
        )
    except (AttributeError, TypeError, ValueError, IndexError):
        return False
