"""Exact removal of written items."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._checks import Arg
from ._autograd import Operator
from ._declaration import Declaration, Result
from .bayes_write import is_raw

OPERATOR = Declaration(
    "forget",
    args=(
        Arg("mean", "KC", "state"),
        Arg("cov", "KK", "state"),
        Arg("weights", "TK", "data"),
        Arg("values", "TC", "data"),
        Arg("noise_var", "T", "noise"),
        Arg("mask", "T", "mask", optional=True),
    ),
    results=(
        Result("mean", "KC", saved_as="rest_mean"),
        Result("cov", "KK", saved_as="rest_cov"),
    ),
)
_NOT_WRITTEN = "what is to be forgotten was not written"
_call = Operator(OPERATOR)


def forget(
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    noise_var: float | Tensor,
    *,
    mask: Tensor | None = None,
    backend: str = "auto",
    check: bool = False,
) -> tuple[Tensor, Tensor]:
    """Remove items as if they had never been written.

    After `bayes_write` of A and then of B, in any order of steps and without decay, ``forget`` of
    B with the same weights, values and noise gives the state of A alone. It is the write with
    negative noise: ``V - W U W'`` must be positive definite (Das et al., Larimar, ICML 2024,
    section 3.2). What rounding leaves of B grows with ``w'Uw / v`` before B was written: where it
    passes about 1e6 a float32 covariance no longer holds what is asked back.

    Args:
        mean: (B, K, C), float32 or float64; leading dimensions of all arguments broadcast.
        cov: (B, K, K), same dtype, symmetric positive definite.
        weights: (B, T, K) addresses that were written at; float16, bfloat16, float32 or float64.
        values: (B, T, C) codes that were written; same choice of dtypes.
        noise_var: their noise variance, > 0: a float, 0-d, or (B, T).
        mask: (B, T) bool; a False step is skipped exactly.
        backend: see `bayes_write`.
        check: raise for batch items that become NaN, see `bayes_write`.

    Returns:
        mean (B, K, C) and cov (B, K, K), exactly symmetric, in the state's dtype. A batch item
        where ``V - W U W'`` is not positive definite, so that less was written than is to be
        removed, is NaN throughout, without effect on other items. A step that was never written
        whose ``w'Uw`` is below its noise is not noticed. The arguments are not changed.

    Raises:
        TypeError, ValueError, RuntimeError: as `bayes_write`.

    Differentiable in every floating-point tensor.

    >>> import torch
    >>> from kanerva_ext import ops
    >>> prior = torch.zeros(1, 2, 3), torch.eye(2)[None]
    >>> item = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[4.0, 2.0, 0.0]]]), 1.0
    >>> mean, cov = ops.forget(*ops.bayes_write(*prior, *item)[:2], *item)
    >>> bool(torch.allclose(mean, prior[0], atol=1e-6) and torch.allclose(cov, prior[1]))
    True
    """
    if not torch.compiler.is_compiling():
        results = _call.direct(backend, check, mean, cov, weights, values, noise_var, mask)
        if results is not None:
            return results
    args, batch = (mean, cov, weights, values, noise_var, mask), None
    if torch.compiler.is_compiling() or not is_raw(*args, None):
        args, batch = _checks.prepare("forget", OPERATOR.args, args)
    elif type(noise_var) is float:
        args = (*args[:4], mean.new_full(weights.shape[:2], noise_var), mask)
    elif noise_var.dim() == 0:
        args = (*args[:4], noise_var.expand(weights.shape[:2]), mask)
    results = _call(backend, *args)
    if batch is None and not check:
        return results
    return _checks.finish("forget", OPERATOR.args, args, batch, check, results, _NOT_WRITTEN)
