"""The exact write of an episode with a read after every step."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._checks import Arg
from .._packing import check_cu_seqlens
from ._autograd import Operator
from ._declaration import Declaration, Result, check_shapes, empty_results
from ._dynamics import check_dynamics
from .bayes_write import is_raw

_STATE = (Arg("mean", "KC", "state"), Arg("cov", "KK", "state"))
_STATES = (Arg("mean", "NKC", "state"), Arg("cov", "NKK", "state"))  # of packed sequences
_STEPS = (
    Arg("weights", "TK", "data"),
    Arg("values", "TC", "data"),
    Arg("queries", "TK", "data"),
    Arg("noise_var", "T", "noise"),
    Arg("mask", "T", "mask", optional=True),
    Arg("decay", "T", "decay", optional=True),
    Arg("retention", "T", "decay", optional=True),
)
_STATIONARY = Arg("stationary_cov", "KK", "covariance", optional=True)
_PACKED = (*_STATES, *_STEPS, _STATIONARY._replace(dims="NKK"))
OPERATOR = Declaration(
    "causal_scan",
    args=(*_STATE, *_STEPS, _STATIONARY),
    results=(
        Result("reads", "TC"),
        Result("read_var", "T"),
        Result("mean", "KC"),
        Result("cov", "KK"),
        Result("log_evidence", "", is_sum=True),
    ),
    options=("Tensor? cu_seqlens", "int chunk_size"),
)


def _fake(*args):
    """With packed sequences the states have a batch of their own: N for each row of steps."""
    (mean, cov), steps, (stationary_cov, cu_seqlens, _) = args[:2], args[2:9], args[9:]
    if cu_seqlens is None:
        return OPERATOR.fake(*args)
    sizes = check_shapes((*_STATE, _STATIONARY), (mean, cov, stationary_cov), {})
    of_states = dict(sizes)
    del sizes["B"]
    of_steps = check_shapes(_STEPS, steps, sizes)
    torch._check(cu_seqlens.dim() == 1, lambda: "cu_seqlens must have one dimension")
    states = of_steps["B"] * (cu_seqlens.shape[0] - 1)
    torch._check(
        of_states["B"] == states,
        lambda: f"mean must hold {states} states, as cu_seqlens says, got {of_states['B']}",
    )
    reads = empty_results(OPERATOR.results[:2], of_steps, mean)
    return *reads, *empty_results(OPERATOR.results[2:], of_states, mean)


_call = Operator(OPERATOR, _fake)


def causal_scan(
    mean: Tensor | None,
    cov: Tensor | None,
    weights: Tensor,
    values: Tensor,
    queries: Tensor,
    noise_var: float | Tensor,
    *,
    mask: Tensor | None = None,
    decay: float | Tensor | None = None,
    retention: float | Tensor | None = None,
    stationary_cov: float | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
    backend: str = "auto",
    check: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Write an episode in order and read at every step from the memory as it stands after it.

    The belief is ``M ~ MN(mean, cov, I)``; step t observes ``values[t] = M' weights[t] + noise``
    (recursive least squares; Wu et al., The Kanerva Machine, ICLR 2018, section 3.3) and is then
    asked for ``M' queries[t]``: the exact causal least-squares layer that DeltaNet (Yang et al.,
    2024), MesaNet (von Oswald et al., 2025) and Gated KalmaNet (2025) approximate or iterate
    towards, with its uncertainty. Chunks of steps are conditioned on at once; memory grows as
    T (K + C), for the gradient as well.

    Args:
        mean: (B, K, C), float32 or float64: the belief before the first step; B stands for any
            leading dimensions, and those of all arguments broadcast. None: zero.
        cov: (B, K, K), same dtype, symmetric positive definite. None: the identity.
        weights: (B, T, K) addresses, or keys; float16, bfloat16, float32 or float64.
        values: (B, T, C) codes; same choice of dtypes.
        queries: (B, T, K) addresses to read at; same choice of dtypes.
        noise_var: observation noise variance, > 0: a float, 0-d, or (B, T).
        mask: (B, T) bool; at a False step nothing is written, decays or drifts, as if it were not
            in the episode; its query reads the unchanged memory.
        decay: in (0, 1]: cov is divided by it before the step (exponential forgetting); a float,
            0-d, or (B, T). Directions that are never written at grow without bound.
        retention: in (0, 1], not with decay: before the step the memory drifts back to mean zero
            and ``stationary_cov``, as in `bayes_write`; a float, 0-d, or (B, T). Nothing grows.
        stationary_cov: (B, K, K), a float or 0-d, see `bayes_write`. With ``cu_seqlens`` it is a
            state: (B, N, K, K), broadcast.
        cu_seqlens: (N + 1,) int32 or int64, 0 first, never falling, T last: the T steps are N
            sequences one after another, ``cu_seqlens[n] .. cu_seqlens[n + 1]``, that know nothing
            of each other. Each has its own state: mean is (B, N, K, C), cov (B, N, K, K).
        chunk_size: steps conditioned on at once; None chooses by shape. A backend may use fewer;
            results differ by rounding alone.
        backend, check: see `bayes_write`. ``check`` also looks at ``cu_seqlens`` on a GPU, which
            costs a synchronisation; on the CPU they are always looked at, under torch.compile too.

    Returns:
        reads (B, T, C) = queries[t]' R_t, read_var (B, T) = queries[t]' U_t queries[t], the
        predictive variance of every component without observation noise, mean and cov after the
        last step, with cov exactly symmetric, and log_evidence (B,) = ln p(values | weights) in
        nats, (B, N) for packed sequences; all in the state's dtype. A batch item, or sequence,
        with a noise that is not positive, a decay or retention out of (0, 1] or a NaN, in a step
        that counts, or whose factorisation fails, is NaN throughout, without effect on others; a
        NaN in a query makes that read NaN.

    Raises:
        TypeError, ValueError, RuntimeError: as `bayes_write`.

    Differentiable in every floating-point tensor.

    >>> import torch
    >>> from kanerva_ext import ops
    >>> keys = torch.eye(2)[[0, 1, 0]][None]
    >>> values = torch.tensor([[[4.0], [2.0], [4.0]]])
    >>> queries = keys[:, [0, 0, 0]]
    >>> reads, var, *_ = ops.causal_scan(None, None, keys, values, queries, 1.0)
    >>> reads[0, :, 0].round(decimals=3), var[0].round(decimals=3)
    (tensor([2.0000, 2.0000, 2.6670]), tensor([0.5000, 0.5000, 0.3330]))
    """
    chunk = _checks.check_int("causal_scan", "chunk_size", chunk_size, optional=True) or 0
    if mean is None or cov is None:
        mean, cov = _default_state(mean, cov, weights, values, cu_seqlens)
    if retention is not None or stationary_cov is not None:
        check_dynamics("causal_scan", decay, retention, stationary_cov)
    rest = (mask, decay, retention, stationary_cov)
    args = (mean, cov, weights, values, queries, noise_var, *rest)
    if cu_seqlens is not None:
        return _packed(args, cu_seqlens, chunk, backend, check)
    batch = None
    if not torch.compiler.is_compiling():
        results = _call.direct(backend, check, *args, None, chunk)
        if results is not None:
            return results
    if torch.compiler.is_compiling() or not _is_raw(*args):
        args, batch = _checks.prepare("causal_scan", OPERATOR.args, args)
    elif type(noise_var) is float:
        args = (*args[:5], mean.new_full(weights.shape[:2], noise_var), *rest)
    elif noise_var.dim() == 0:
        args = (*args[:5], noise_var.expand(weights.shape[:2]), *rest)
    results = _call(backend, *args, None, chunk)
    if batch is None and not check:
        return results
    return _checks.finish("causal_scan", OPERATOR.args, args, batch, check, results)


def _packed(args, cu_seqlens, chunk, backend, check):
    weights = args[2]
    if isinstance(weights, Tensor) and weights.dim() >= 2:  # else prepare() says what is wrong
        cu_seqlens = check_cu_seqlens(
            "causal_scan", cu_seqlens, weights.shape[-2], weights.device, "weights", check
        )
    stationary_cov = args[-1]
    if isinstance(stationary_cov, Tensor) and stationary_cov.dim() == 2:
        args = (*args[:-1], stationary_cov[None])
    args, batch = _checks.prepare("causal_scan", _PACKED, args)
    count = cu_seqlens.shape[0] - 1
    if args[0].shape[1] != count:
        raise ValueError(
            f"causal_scan: mean must have shape (..., N, K, C) with N (sequences) = {count} as in "
            f"cu_seqlens, got N = {args[0].shape[1]}"
        )
    mean, cov, stationary_cov = (
        None if x is None else x.flatten(0, 1) for x in (*args[:2], args[-1])
    )
    results = _call(backend, mean, cov, *args[2:-1], stationary_cov, cu_seqlens, chunk)
    results = (*results[:2], *(r.unflatten(0, args[0].shape[:2]) for r in results[2:]))
    return _checks.finish("causal_scan", _PACKED, args, batch, check, results)


def _default_state(mean, cov, weights, values, cu_seqlens):
    """What stands for an absent mean or covariance: leading dimensions come by broadcasting."""
    for name, value in (("weights", weights), ("values", values)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"causal_scan: {name} must be a torch.Tensor, got {type(value).__name__}"
            )
        if value.dim() < 2:
            raise ValueError(
                f"causal_scan: {name} must have shape (..., T, {'K' if name == 'weights' else 'C'})"
                f", got {tuple(value.shape)}"
            )
    given = cov if mean is None else mean
    dtype = torch.float64 if weights.dtype == torch.float64 else torch.float32
    if isinstance(given, Tensor):
        dtype = given.dtype
    slots, code = weights.shape[-1], values.shape[-1]
    if mean is None:
        mean = torch.zeros(slots, code, dtype=dtype, device=weights.device)
    if cov is None:
        cov = torch.eye(slots, dtype=dtype, device=weights.device)
    if isinstance(cu_seqlens, Tensor) and cu_seqlens.dim() == 1:
        count = max(cu_seqlens.shape[0] - 1, 0)
        mean = mean.expand(count, slots, code) if mean.dim() == 2 else mean
        cov = cov.expand(count, slots, slots) if cov.dim() == 2 else cov
    return mean, cov


def _is_raw(
    mean, cov, weights, values, queries, noise_var, mask, decay, retention, stationary_cov
) -> bool:
    try:
        return (
            queries.shape == weights.shape
            and (mean.dtype, queries.dtype) in _checks.RAW_PAIRS
            and queries.device == mean.device
            and type(noise_var) in (float, Tensor)
            and is_raw(
                mean, cov, weights, values, noise_var, mask, decay, retention, stationary_cov
            )
        )
    except (AttributeError, TypeError):
        return False
