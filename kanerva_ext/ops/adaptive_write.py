"""The Dynamic Kanerva Machine's write."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._checks import Arg
from ._autograd import Operator
from ._declaration import Declaration, Result

OPERATOR = Declaration(
    "adaptive_write",
    args=(
        Arg("mean", "KC", "state"),
        Arg("cov", "KK", "state"),
        Arg("values", "TC", "data"),
        Arg("noise_var", "T", "noise"),
        Arg("ridge", "", "ridge"),
        Arg("mask", "T", "mask", optional=True),
    ),
    results=(
        Result("mean", "KC"),
        Result("cov", "KK"),
        Result("weights", "TK", saved_as="weights"),
        Result("step_kl", "T"),
        Result("log_evidence", "", is_sum=True),
    ),
    options=("int num_iters",),
)
_call = Operator(OPERATOR)


def adaptive_write(
    mean: Tensor,
    cov: Tensor,
    values: Tensor,
    noise_var: float | Tensor,
    ridge: float | Tensor,
    *,
    num_iters: int = 1,
    mask: Tensor | None = None,
    return_evidence: bool = False,
    backend: str = "auto",
    check: bool = False,
) -> tuple[Tensor, ...]:
    """Write an episode at addresses that are solved, step by step, against the memory as it stands.

    Step t takes ``w = (R R' + ridge I)^-1 R values[t]`` with the current mean R (`solve_addresses`)
    and makes the exact Bayesian update with it (`bayes_write`). Each further iteration solves
    against the mean after that update and updates the memory before it again (Wu et al., Learning
    Attractor Dynamics for Generative Memory, NeurIPS 2018, section 3.3 and appendix).

    Args:
        mean: (B, K, C), float32 or float64; leading dimensions of all arguments broadcast.
        cov: (B, K, K), same dtype, symmetric positive definite.
        values: (B, T, C) codes; float16, bfloat16, float32 or float64.
        noise_var: observation noise variance, > 0: a float, 0-d, or (B, T).
        ridge: noise variance over address prior variance, > 0: a float, 0-d, or (B,).
        num_iters: solves per step, at least 1.
        mask: (B, T) bool; a False step is skipped exactly, its address and KL are 0.
        return_evidence: also return the log evidence.
        backend, check: see `bayes_write`.

    Returns:
        mean (B, K, C), cov (B, K, K) exactly symmetric, weights (B, T, K), the addresses written
        at, and step_kl (B, T), KL in nats of the belief after a step from that before it (their
        sum is not the KL of the posterior from the prior, which is `memory_kl`). With
        ``return_evidence`` also (B,) ln p(values | weights) in nats. All in the state's dtype; a
        batch item whose noise or ridge is not positive, whose factorisation fails or which holds
        a NaN in a step that counts is NaN throughout, without effect on other items.

    Raises:
        TypeError, ValueError, RuntimeError: as `bayes_write`.

    Differentiable in every floating-point tensor, through the addresses too.

    >>> import torch
    >>> from kanerva_ext import ops
    >>> mean, cov = torch.eye(2)[None], torch.eye(2)[None]
    >>> values = torch.tensor([[[2.0, 0.0]]])
    >>> mean, cov, weights, step_kl = ops.adaptive_write(mean, cov, values, 1.0, 1.0)
    >>> weights, mean[0, 0, 0]
    (tensor([[[1., 0.]]]), tensor(1.5000))
    """
    if type(num_iters) is not int or num_iters < 1:
        num_iters = _checks.check_int("adaptive_write", "num_iters", num_iters)
    args, batch = (mean, cov, values, noise_var, ridge, mask), None
    if not torch.compiler.is_compiling():
        results = _call.direct(backend, check, *args, num_iters)
        if results is not None:
            return results if return_evidence else results[:4]
    if torch.compiler.is_compiling() or not _is_raw(*args):
        args, batch = _checks.prepare("adaptive_write", OPERATOR.args, args)
    else:
        if type(noise_var) is float:
            noise_var = mean.new_full(values.shape[:2], noise_var)
        elif noise_var.dim() == 0:
            noise_var = noise_var.expand(values.shape[:2])
        if type(ridge) is float:
            ridge = mean.new_full((mean.shape[0],), ridge)
        elif ridge.dim() == 0:
            ridge = ridge.expand(mean.shape[0])
        args = (mean, cov, values, noise_var, ridge, mask)
    results = _call(backend, *args, num_iters)
    if batch is not None or check:
        results = _checks.finish("adaptive_write", OPERATOR.args, args, batch, check, results)
    return results if return_evidence else results[:4]


def _is_raw(mean, cov, values, noise_var, ridge, mask) -> bool:
    """Whether nothing has to be cast, expanded or reshaped (but for scalars)."""
    try:
        batch, slots, code = mean.shape
        steps = values.shape[1]
        dtype, device, per_step = mean.dtype, mean.device, (batch, steps)
        for number, shape in ((noise_var, per_step), (ridge, (batch,))):
            if type(number) is float:
                if not _checks.holds(dtype, number):
                    return False
            elif not (
                (number.shape == shape or number.dim() == 0)
                and number.dtype == dtype
                and number.device == device
            ):
                return False
        return (
            cov.shape == (batch, slots, slots)
            and values.shape == (batch, steps, code)
            and cov.dtype == dtype
            and (dtype, values.dtype) in _checks.RAW_PAIRS
            and cov.device == values.device == device
            and slots > 0
            and code > 0
            and (
                mask is None
                or (mask.shape == per_step and mask.dtype == torch.bool and mask.device == device)
            )
        )
    except (AttributeError, TypeError, ValueError, IndexError):
        return False
