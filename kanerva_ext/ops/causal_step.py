"""One step of `causal_scan`, in place: for decoding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _backend, _checks, reference
from .._checks import Arg
from . import _library
from ._declaration import Declaration, Result
from ._dynamics import check_dynamics, is_raw_dynamics

OPERATOR = Declaration(
    "causal_step",
    args=(
        Arg("mean", "KC", "state"),
        Arg("cov", "KK", "state"),
        Arg("weights", "K", "data"),
        Arg("values", "C", "data"),
        Arg("queries", "K", "data"),
        Arg("noise_var", "", "noise"),
        Arg("mask", "", "mask", optional=True),
        Arg("decay", "", "decay", optional=True),
        Arg("retention", "", "decay", optional=True),
        Arg("stationary_cov", "KK", "covariance", optional=True),
    ),
    results=(
        Result("reads", "C"),
        Result("read_var", ""),
        Result("log_evidence", "", is_sum=True),
    ),
    in_place=2,
)
_library.declare(OPERATOR)
_native = _library.raw(_library.NATIVE, "causal_step")
_triton = _library.raw(_library.TRITON, "causal_step")
_AFTER_VERSIONS = torch._C._after_ADInplaceOrView_keyset


def causal_step(
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    queries: Tensor,
    noise_var: float | Tensor,
    *,
    mask: Tensor | None = None,
    decay: float | Tensor | None = None,
    retention: float | Tensor | None = None,
    stationary_cov: float | Tensor | None = None,
    backend: str = "auto",
    check: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of `causal_scan`, which it equals: move, write, read. **Changes mean and cov.**

    Nothing is allocated but the results, and nothing waits for the device, so that it can be part
    of a CUDA graph. Autograd knows of the change: a gradient that needs the state as it was raises.
    Under `torch.vmap` mean and cov must be mapped over, and every item's change in its place.

    Args:
        mean: (B, K, C), float32 or float64, contiguous; becomes the mean after the step. B stands
            for any leading dimensions; the other arguments broadcast to those of mean.
        cov: (B, K, K), same dtype, contiguous, symmetric positive definite; likewise.
        weights: (B, K), the address, or key; float16, bfloat16, float32 or float64.
        values: (B, C); same choice of dtypes.
        queries: (B, K), the address to read at; same choice of dtypes.
        noise_var: observation noise variance, > 0: a float, 0-d, or (B,).
        mask: (B,) bool; where False nothing is written, decays or drifts.
        decay: in (0, 1]; a float, 0-d, or (B,).
        retention: in (0, 1], not with decay; a float, 0-d, or (B,). See `bayes_write`.
        stationary_cov: (B, K, K), a float or 0-d, see `bayes_write`; it is not changed.
        backend, check: see `bayes_write`.

    Returns:
        reads (B, C), read_var (B,) and log_evidence (B,) of this step, in nats, in the state's
        dtype. An item with a noise that is not positive, a decay or retention out of (0, 1] or a
        NaN, or whose factorisation fails, becomes NaN, its state too.

    Raises:
        TypeError, ValueError, RuntimeError: as `bayes_write`; RuntimeError where a gradient would
            be needed, which a state that is overwritten cannot give: use `causal_scan`.
        NotImplementedError: in forward mode (`torch.func.jvp`), but by the reference.

    >>> import torch
    >>> from kanerva_ext import ops
    >>> mean, cov, key = torch.zeros(1, 2, 1), torch.eye(2)[None], torch.tensor([[1.0, 0.0]])
    >>> reads, var, _ = ops.causal_step(mean, cov, key, torch.tensor([[4.0]]), key, 1.0)
    >>> reads.round(decimals=3), var.round(decimals=3), mean[0, :, 0].round(decimals=3)
    (tensor([[2.]]), tensor([0.5000]), tensor([2., 0.]))
    """
    if retention is not None or stationary_cov is not None:
        check_dynamics("causal_step", decay, retention, stationary_cov)
    dynamics = (decay, retention, stationary_cov)
    args = (mean, cov, weights, values, queries, noise_var, mask, *dynamics)
    for name, state in (("mean", mean), ("cov", cov)):
        if isinstance(state, Tensor) and not state.is_contiguous():
            raise ValueError(
                f"causal_step: {name} must be contiguous, because it is changed in place, got "
                f"strides {state.stride()}"
            )
    if type(mean) is not Tensor and hasattr(mean, "placements"):
        check_placements(mean, cov)
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
        raise RuntimeError(
            "causal_step: the state is changed in place, so there is no gradient, and an argument "
            "requires one; use causal_scan, or call it under torch.no_grad()"
        )
    raw, batch = args, None
    if torch.compiler.is_compiling() or not _is_raw(*args):
        raw, batch = _checks.prepare("causal_step", OPERATOR.args, args)
        _check_leading(args, batch)
    before = [x.clone() for x in raw[:2]] if check else raw[:2]
    results = _choose(backend, mean)(*raw)
    if batch is None and not check:
        return results
    raw = [*before, *raw[2:]]
    return _checks.finish("causal_step", OPERATOR.args, raw, batch, check, results)


def _choose(backend: str, mean: Tensor):
    if backend != "auto" or _backend.must_choose:
        choice = _backend.choose(backend, mean.device)
        if choice == "reference":
            return reference.causal_step
        if choice == "triton":
            return _triton
    return _native


def _check_leading(args, batch: torch.Size) -> None:
    """Raise unless mean and cov have all leading dimensions; names the argument that has others."""
    own = args[0].shape[:-2]
    for spec, value in zip(OPERATOR.args, args, strict=True):
        if not isinstance(value, Tensor) or (value.dim() == 0 and not spec.dims):
            continue
        lead = value.shape[: value.dim() - len(spec.dims)]
        if spec.name == "cov" and lead != own:
            raise ValueError(
                f"causal_step: cov must have the leading dimensions {tuple(own)} of mean, because "
                f"both are changed in place, got {tuple(lead)}"
            )
        if torch.broadcast_shapes(lead, own) != own:
            letters = ", ".join(("...", *spec.dims))
            raise ValueError(
                f"causal_step: {spec.name} must have shape ({letters}) with leading dimensions "
                f"that broadcast to those of mean, {tuple(own)}, because mean is changed in "
                f"place, got {tuple(value.shape)}"
            )


def check_placements(mean, cov) -> None:
    """Of DTensors or their specs: what had to be moved first would be changed as a copy."""
    placements = [p for state in (mean, cov) for p in state.placements]
    if all(p.is_shard(0) for p in placements) or all(p.is_replicate() for p in placements):
        return
    given = f"{tuple(mean.placements)} and {tuple(cov.placements)}"
    raise ValueError(
        "causal_step: mean and cov must both be Shard(0) or both be Replicate(), since they are "
        f"changed in place, got {given}"
    )


def _is_raw(
    mean, cov, weights, values, queries, noise_var, mask, decay, retention, stationary_cov
) -> bool:
    """Whether nothing has to be cast, expanded or reshaped."""
    try:
        batch, slots, code = mean.shape
        dtype, device, items = mean.dtype, mean.device, (batch,)
        return (
            cov.shape == (batch, slots, slots)
            and weights.shape == queries.shape == (batch, slots)
            and values.shape == (batch, code)
            and noise_var.shape == items
            and cov.dtype == noise_var.dtype == dtype
            and (dtype, weights.dtype, values.dtype) in _checks.RAW_TRIPLES
            and (dtype, queries.dtype) in _checks.RAW_PAIRS
            and cov.device == weights.device == values.device == device
            and queries.device == noise_var.device == device
            and slots > 0
            and code > 0
            and (
                mask is None
                or (mask.shape == items and mask.dtype == torch.bool and mask.device == device)
            )
            and (
                decay is None
                or (decay.shape == items and decay.dtype == dtype and decay.device == device)
            )
            and (
                retention is None
                or is_raw_dynamics(retention, stationary_cov, mean, items, (batch, slots, slots))
            )
        )
    except (AttributeError, TypeError, ValueError):
        return False


def _version_kernel(raw):
    """Tells autograd that the state was changed: a compiled kernel does not by itself.

    A kernel would drop tangents without a word, so these are refused.
    """

    def kernel(keyset, mean, cov, *rest):
        if forward_ad._current_level >= 0 and any(map(_may_have_tangent, (mean, cov, *rest))):
            raise NotImplementedError(
                "causal_step: the state is changed in place, so there are no tangents (jvp); use "
                "causal_scan"
            )
        torch.autograd.graph.increment_version((mean, cov))
        return raw.redispatch(keyset & _AFTER_VERSIONS, mean, cov, *rest)

    return kernel


def _may_have_tangent(arg) -> bool:
    """In torch.func that is whatever was made inside it, whose tangents are out of sight."""
    if not isinstance(arg, Tensor):
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(arg):
        if torch._C._functorch.is_gradtrackingtensor(arg):
            return True
        arg = torch._C._functorch.get_unwrapped(arg)
    return forward_ad.unpack_dual(arg).tangent is not None


def _fold_vmap(raw):
    """`torch.vmap` of a step: the mapped dimension becomes part of the batch dimension of a view,
    so that the state of every item is changed in its place."""

    def fold(info, in_dims, mean, cov, *rest):
        for name, dim in zip(("mean", "cov"), in_dims, strict=False):
            if dim is None:
                raise RuntimeError(
                    f"causal_step: {name} must be mapped over by torch.vmap, because it is changed "
                    "in place and each call needs its own"
                )
        size = info.batch_size
        states = []
        for name, x, dim in zip(("mean", "cov"), (mean, cov), in_dims, strict=False):
            x = x.movedim(dim, 0)
            if not x.is_contiguous():
                raise ValueError(
                    f"causal_step: {name} must be contiguous with the dimension that torch.vmap "
                    "maps over first, because it is changed in place"
                )
            states.append(x.flatten(0, 1))
        rest = [
            x
            if x is None
            else (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
            for x, dim in zip(rest, in_dims[2:], strict=True)
        ]
        results = raw(*states, *rest)
        return tuple(r.unflatten(0, (size, r.shape[0] // size)) for r in results), (0, 0, 0)

    return fold


for _namespace, _raw in ((_library.NATIVE, _native), (_library.TRITON, _triton)):
    _library.LIBRARIES[_namespace].impl(
        "causal_step", _version_kernel(_raw), "ADInplaceOrView", with_keyset=True
    )
    torch.library.register_vmap(_raw, _fold_vmap(_raw))
