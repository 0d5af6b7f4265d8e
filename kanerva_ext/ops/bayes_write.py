"""The exact Bayesian write of an episode."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._checks import Arg
from ._autograd import Operator
from ._declaration import Declaration, Result
from ._dynamics import check_dynamics, is_raw_dynamics

OPERATOR = Declaration(
    "bayes_write",
    args=(
        Arg("mean", "KC", "state"),
        Arg("cov", "KK", "state"),
        Arg("weights", "TK", "data"),
        Arg("values", "TC", "data"),
        Arg("noise_var", "T", "noise"),
        Arg("mask", "T", "mask", optional=True),
        Arg("decay", "T", "decay", optional=True),
        Arg("retention", "T", "decay", optional=True),
        Arg("stationary_cov", "KK", "covariance", optional=True),
    ),
    results=(
        Result("mean", "KC", saved_as="posterior_mean"),
        Result("cov", "KK", saved_as="posterior_cov"),
        Result("log_evidence", "", is_sum=True),
    ),
    options=("str method",),
)
_call = Operator(OPERATOR)


def bayes_write(
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    noise_var: float | Tensor,
    *,
    mask: Tensor | None = None,
    decay: float | Tensor | None = None,
    retention: float | Tensor | None = None,
    stationary_cov: float | Tensor | None = None,
    method: str = "auto",
    backend: str = "auto",
    check: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact posterior of the memory after writing a whole episode in order.

    The belief is ``M ~ MN(mean, cov, I)``; step t observes ``values[t] = M' weights[t] + noise``.
    Equivalent to T recursive least-squares steps (Wu et al., The Kanerva Machine, ICLR 2018,
    section 3.3; with ``decay``, recursive least squares with exponential forgetting).

    Args:
        mean: (B, K, C), float32 or float64; B stands for any leading dimensions, and those of all
            arguments broadcast.
        cov: (B, K, K), same dtype, symmetric positive definite.
        weights: (B, T, K) addresses; float16, bfloat16, float32 or float64.
        values: (B, T, C) codes; same choice of dtypes.
        noise_var: observation noise variance, > 0: a float, 0-d, or (B, T).
        mask: (B, T) bool; a False step is skipped exactly, as if it were not in the episode.
        decay: in (0, 1]: cov is divided by it before the step; a float, 0-d, or (B, T).
        retention: a_t in (0, 1], of a memory that drifts back to mean zero and a stationary
            covariance: before the step ``M <- a M + sqrt(1 - a^2) N`` with ``N ~ MN(0,
            stationary_cov, I)``, so that ``mean <- a mean`` and ``cov <- a^2 cov + (1 - a^2)
            stationary_cov``, which stays bounded (an Ornstein-Uhlenbeck prior; the filter is
            Kalman's). A float, 0-d, or (B, T); not with decay.
        stationary_cov: (B, K, K), dtype of the state, symmetric positive semi-definite, or a float
            or 0-d >= 0 that multiplies the identity; None: the identity. With retention only.
        method: ``"chunk"`` (in chunks of steps, in order), ``"information"`` (sums over the
            episode, for T >> K; not with decay or retention), ``"sqrt"`` (square roots, for extreme
            conditioning) or ``"auto"``, which chooses by cost and by an estimate of conditioning.
            All give the same posterior; a form that would lose digits gives way to a more robust
            one, item by item, whatever was asked for; the reference ignores it.
        backend: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``.
        check: raise for batch items that become NaN (costs a device synchronisation; not under
            torch.compile or torch.func).

    Returns:
        mean (B, K, C), cov (B, K, K) exactly symmetric, and log_evidence (B,) =
        ln p(values | weights) in nats; all in the state's dtype. A batch item with a noise that
        is not positive, a decay or retention out of (0, 1] or a NaN, in a step that counts, or
        whose factorisation fails, is NaN throughout, without effect on other items.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape, device, number or method; or ``check`` found a bad item.
        RuntimeError: the backend cannot serve.

    Differentiable in every floating-point tensor. The gradients of ``cov`` and ``stationary_cov``
    are the symmetrised ones.

    >>> import torch
    >>> from kanerva_ext import ops
    >>> mean, cov = torch.zeros(1, 2, 3), torch.eye(2)
    >>> weights, values = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[4.0, 2.0, 0.0]]])
    >>> mean, cov, log_evidence = ops.bayes_write(mean, cov, weights, values, 1.0)
    >>> mean.round(decimals=3)
    tensor([[[2., 1., 0.],
             [0., 0., 0.]]])
    >>> cov.round(decimals=3)
    tensor([[[0.5000, 0.0000],
             [0.0000, 1.0000]]])
    """
    if retention is not None or stationary_cov is not None:
        check_dynamics("bayes_write", decay, retention, stationary_cov)
        _check_method(method, decay, retention)
    elif method not in _checks.METHODS or decay is not None:
        _check_method(method, decay, retention)
    rest = (mask, decay, retention, stationary_cov)
    if not torch.compiler.is_compiling():
        results = _call.direct(backend, check, mean, cov, weights, values, noise_var, *rest, method)
        if results is not None:
            return results
    args, batch = (mean, cov, weights, values, noise_var, *rest), None
    if torch.compiler.is_compiling() or not is_raw(*args):
        args, batch = _checks.prepare("bayes_write", OPERATOR.args, args)
    elif type(noise_var) is float:
        noise_var = mean.new_full(weights.shape[:2], noise_var)
        args = (mean, cov, weights, values, noise_var, *rest)
    elif noise_var.dim() == 0:
        noise_var = noise_var.expand(weights.shape[:2])
        args = (mean, cov, weights, values, noise_var, *rest)
    results = _call(backend, *args, method)
    if batch is None and not check:
        return results
    return _checks.finish("bayes_write", OPERATOR.args, args, batch, check, results)


def _check_method(method: str, decay, retention) -> None:
    _checks.check_choice("bayes_write", "method", method, _checks.METHODS)
    for name, value in (("decay", decay), ("retention", retention)):
        if method == "information" and value is not None:
            raise ValueError(
                f'bayes_write: method="information" sums over the steps and has no {name}; use '
                f'"chunk", "sqrt" or "auto", or {name}=None'
            )


def is_raw(
    mean, cov, weights, values, noise_var, mask, decay, retention=None, stationary_cov=None
) -> bool:
    """Whether nothing has to be cast, expanded or reshaped (but for a scalar ``noise_var``)."""
    try:
        batch, slots, code = mean.shape
        steps = weights.shape[1]
        dtype, device, per_step = mean.dtype, mean.device, (batch, steps)
        if type(noise_var) is float:
            if not _checks.holds(dtype, noise_var):
                return False
        elif not (
            (noise_var.shape == per_step or noise_var.dim() == 0)
            and noise_var.dtype == dtype
            and noise_var.device == device
        ):
            return False
        return (
            cov.shape == (batch, slots, slots)
            and weights.shape == (batch, steps, slots)
            and values.shape == (batch, steps, code)
            and cov.dtype == dtype
            and (dtype, weights.dtype, values.dtype) in _checks.RAW_TRIPLES
            and cov.device == weights.device == values.device == device
            and slots > 0
            and code > 0
            and (
                mask is None
                or (mask.shape == per_step and mask.dtype == torch.bool and mask.device == device)
            )
            and (
                decay is None
                or (decay.shape == per_step and decay.dtype == dtype and decay.device == device)
            )
            and (
                retention is None
                or is_raw_dynamics(retention, stationary_cov, mean, per_step, (batch, slots, slots))
            )
        )
    except (AttributeError, TypeError, ValueError, IndexError):
        return False
