"""The raw operators ``torch.ops.kanerva.*``: schemas, shapes, and the kernels that are Python.

Raw arguments have exactly one batch dimension B, equal everywhere: mean (B, K, C), cov (B, K, K),
weights (B, T, K), values and queries (B, T, C), noise_var, mask and decay (B, T), ridge (B,).
``causal_scan`` has queries (B, T, K) and, with N + 1 ``cu_seqlens``, N sequences in every row of
weights and a state for each: item b N + n of mean and cov is that of sequence n of row b.
``causal_step`` takes one step, without the dimension T, and changes the state in place.
Compiled libraries register kernels for their device when they are loaded; GPUs without one run the
Triton kernels, and every other device runs the reference. ``torch.ops.kanerva_triton.*`` are the
same operators by Triton, whatever else serves the device. Gradients are attached in `._autograd`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _backend, reference

SCHEMAS = """
bayes_write(Tensor mean, Tensor cov, Tensor weights, Tensor values, Tensor noise_var,
    Tensor? mask, Tensor? decay, str method) -> (Tensor, Tensor, Tensor)
bayes_write_backward(Tensor? grad_mean, Tensor? grad_cov, Tensor? grad_log_evidence, Tensor mean,
    Tensor cov, Tensor weights, Tensor values, Tensor noise_var, Tensor? mask, Tensor? decay,
    str method, Tensor posterior_mean, Tensor posterior_cov)
    -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)
solve_addresses(Tensor mean, Tensor queries, Tensor ridge) -> Tensor
solve_addresses_backward(Tensor grad_weights, Tensor mean, Tensor queries, Tensor ridge,
    Tensor weights) -> (Tensor, Tensor, Tensor)
read(Tensor mean, Tensor cov, Tensor weights) -> (Tensor, Tensor)
read_backward(Tensor? grad_values, Tensor? grad_var, Tensor mean, Tensor cov, Tensor weights)
    -> (Tensor, Tensor, Tensor)
recall(Tensor mean, Tensor cov, Tensor queries, Tensor ridge) -> (Tensor, Tensor, Tensor)
recall_backward(Tensor? grad_values, Tensor? grad_var, Tensor? grad_weights, Tensor mean,
    Tensor cov, Tensor queries, Tensor ridge, Tensor weights) -> (Tensor, Tensor, Tensor, Tensor)
memory_kl(Tensor mean, Tensor cov, Tensor prior_mean, Tensor prior_cov) -> Tensor
memory_kl_backward(Tensor grad, Tensor mean, Tensor cov, Tensor prior_mean, Tensor prior_cov)
    -> (Tensor, Tensor, Tensor, Tensor)
statistics(Tensor mean, Tensor cov) -> (Tensor, Tensor)
adaptive_write(Tensor mean, Tensor cov, Tensor values, Tensor noise_var, Tensor ridge,
    Tensor? mask, int num_iters) -> (Tensor, Tensor, Tensor, Tensor, Tensor)
adaptive_write_backward(Tensor? grad_mean, Tensor? grad_cov, Tensor? grad_weights,
    Tensor? grad_step_kl, Tensor? grad_log_evidence, Tensor mean, Tensor cov, Tensor values,
    Tensor noise_var, Tensor ridge, Tensor? mask, int num_iters, Tensor weights)
    -> (Tensor, Tensor, Tensor, Tensor, Tensor)
forget(Tensor mean, Tensor cov, Tensor weights, Tensor values, Tensor noise_var, Tensor? mask)
    -> (Tensor, Tensor)
forget_backward(Tensor? grad_mean, Tensor? grad_cov, Tensor mean, Tensor cov, Tensor weights,
    Tensor values, Tensor noise_var, Tensor? mask, Tensor rest_mean, Tensor rest_cov)
    -> (Tensor, Tensor, Tensor, Tensor, Tensor)
causal_scan(Tensor mean, Tensor cov, Tensor weights, Tensor values, Tensor queries,
    Tensor noise_var, Tensor? mask, Tensor? decay, Tensor? cu_seqlens, int chunk_size)
    -> (Tensor, Tensor, Tensor, Tensor, Tensor)
causal_scan_backward(Tensor? grad_reads, Tensor? grad_read_var, Tensor? grad_mean,
    Tensor? grad_cov, Tensor? grad_log_evidence, Tensor mean, Tensor cov, Tensor weights,
    Tensor values, Tensor queries, Tensor noise_var, Tensor? mask, Tensor? decay,
    Tensor? cu_seqlens, int chunk_size)
    -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)
causal_step(Tensor(a!) mean, Tensor(b!) cov, Tensor weights, Tensor values, Tensor queries,
    Tensor noise_var, Tensor? mask, Tensor? decay) -> (Tensor, Tensor, Tensor)
statistics_backward(Tensor? grad_shift, Tensor? grad_precision, Tensor mean, Tensor cov,
    Tensor shift, Tensor precision) -> (Tensor, Tensor)
"""

NATIVE, TRITON = "kanerva", "kanerva_triton"
LIBRARIES = {name: torch.library.Library(name, "DEF") for name in (NATIVE, TRITON)}


def raw(namespace: str, name: str) -> torch._ops.OpOverload:
    return getattr(getattr(torch.ops, namespace), name).default


def _kernel(name: str) -> Callable:
    """The reference as a kernel: one warning, and results that own contiguous memory."""
    function = getattr(reference, name)

    def kernel(*args):
        inputs = [a for a in args if isinstance(a, Tensor)]
        _backend.warn_reference(name, inputs[0].device)
        result = function(*args)
        if isinstance(result, Tensor):
            return _owned(result, inputs)
        return tuple(_owned(r, inputs) for r in result)

    return kernel


def _triton_kernel(name: str) -> Callable:
    def kernel(*args):
        return getattr(importlib.import_module("kanerva_ext.triton"), name)(*args)

    return kernel


@functools.cache  # once
def serve_gpus_by_triton() -> None:
    """Make Triton serve ``torch.ops.kanerva.*`` on NVIDIA and AMD GPUs."""
    for name in FAKES:
        LIBRARIES[NATIVE].impl(name, _triton_kernel(name), "CUDA")


def _owned(result: Tensor, inputs: list[Tensor]) -> Tensor:
    storage = result.untyped_storage()._cdata
    if any(i.untyped_storage()._cdata == storage for i in inputs):
        return result.clone(memory_format=torch.contiguous_format)
    return result.contiguous()


def _state_shape(mean: Tensor, cov: Tensor) -> tuple[int, int, int]:
    torch._check(mean.dim() == 3, lambda: f"mean must be (B, K, C), got {tuple(mean.shape)}")
    batch, slots, code = mean.shape
    torch._check(
        cov.shape == (batch, slots, slots),
        lambda: f"cov must be (B, K, K) = {(batch, slots, slots)}, got {tuple(cov.shape)}",
    )
    torch._check(cov.dtype == mean.dtype, lambda: f"cov must be {mean.dtype}, got {cov.dtype}")
    return batch, slots, code


def _like(state: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=state.dtype, device=state.device)


def _same(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Contiguous, with the shapes and dtypes of ``tensors``: the fakes of gradients."""
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors)


def _check_shape(name: str, tensor: Tensor, *shape: int) -> None:
    torch._check(
        tensor.shape == shape, lambda: f"{name} must have shape {shape}, got {tuple(tensor.shape)}"
    )


def _fake_bayes_write(mean, cov, weights, values, noise_var, mask, decay, method):
    batch, slots, code = _state_shape(mean, cov)
    steps = weights.shape[1]
    _check_shape("weights", weights, batch, steps, slots)
    _check_shape("values", values, batch, steps, code)
    _check_shape("noise_var", noise_var, batch, steps)
    for name, tensor in (("mask", mask), ("decay", decay)):
        if tensor is not None:
            _check_shape(name, tensor, batch, steps)
    return *_same(mean, cov), _like(mean, batch)


def _fake_bayes_write_backward(g_mean, g_cov, g_log, *args):
    mean, cov, weights, values, noise_var, _, decay, *_ = args
    grads = _same(mean, cov, weights, values, noise_var)
    return *grads, _like(mean, 0) if decay is None else _same(decay)[0]


def _fake_solve_addresses(mean, queries, ridge):
    batch, slots, code = mean.shape
    steps = queries.shape[1]
    _check_shape("queries", queries, batch, steps, code)
    _check_shape("ridge", ridge, batch)
    return _like(mean, batch, steps, slots)


def _fake_read(mean, cov, weights):
    batch, slots, code = _state_shape(mean, cov)
    steps = weights.shape[1]
    _check_shape("weights", weights, batch, steps, slots)
    return _like(mean, batch, steps, code), _like(mean, batch, steps)


def _fake_recall(mean, cov, queries, ridge):
    weights = _fake_solve_addresses(mean, queries, ridge)
    return *_fake_read(mean, cov, weights), weights


def _fake_memory_kl(mean, cov, prior_mean, prior_cov):
    batch, slots, code = _state_shape(mean, cov)
    _check_shape("prior_mean", prior_mean, batch, slots, code)
    _check_shape("prior_cov", prior_cov, batch, slots, slots)
    return _like(mean, batch)


def _fake_statistics(mean, cov):
    _state_shape(mean, cov)
    return _same(mean, cov)


def _fake_adaptive_write(mean, cov, values, noise_var, ridge, mask, num_iters):
    batch, slots, code = _state_shape(mean, cov)
    steps = values.shape[1]
    _check_shape("values", values, batch, steps, code)
    _check_shape("noise_var", noise_var, batch, steps)
    _check_shape("ridge", ridge, batch)
    if mask is not None:
        _check_shape("mask", mask, batch, steps)
    weights, step_kl = _like(mean, batch, steps, slots), _like(mean, batch, steps)
    return *_same(mean, cov), weights, step_kl, _like(mean, batch)


def _fake_adaptive_write_backward(g_mean, g_cov, g_weights, g_kl, g_log, *args):
    mean, cov, values, noise_var, ridge, *_ = args
    return _same(mean, cov, values, noise_var, ridge)


def _fake_forget(mean, cov, weights, values, noise_var, mask):
    return _fake_bayes_write(mean, cov, weights, values, noise_var, mask, None, "auto")[:2]


def _fake_causal_scan(
    mean, cov, weights, values, queries, noise_var, mask, decay, cu_seqlens, chunk_size
):
    batch, slots, code = _state_shape(mean, cov)
    steps, rows = weights.shape[1], batch
    if cu_seqlens is not None:
        torch._check(cu_seqlens.dim() == 1, lambda: "cu_seqlens must have one dimension")
        rows = weights.shape[0]
        torch._check(
            batch == rows * (cu_seqlens.shape[0] - 1),
            lambda: f"mean must hold {rows} x {cu_seqlens.shape[0] - 1} states, got {batch}",
        )
    for name, tensor, wide in (
        ("weights", weights, slots),
        ("values", values, code),
        ("queries", queries, slots),
    ):
        _check_shape(name, tensor, rows, steps, wide)
    for name, tensor in (("noise_var", noise_var), ("mask", mask), ("decay", decay)):
        if tensor is not None:
            _check_shape(name, tensor, rows, steps)
    reads, read_var = _like(mean, rows, steps, code), _like(mean, rows, steps)
    return reads, read_var, *_same(mean, cov), _like(mean, batch)


def _fake_causal_scan_backward(g_reads, g_var, g_mean, g_cov, g_log, *args):
    mean, decay = args[0], args[7]
    return *_same(*args[:6]), _like(mean, 0) if decay is None else _same(decay)[0]


def _fake_causal_step(mean, cov, weights, values, queries, noise_var, mask, decay):
    batch, slots, code = _state_shape(mean, cov)
    for name, tensor, shape in (
        ("weights", weights, (batch, slots)),
        ("values", values, (batch, code)),
        ("queries", queries, (batch, slots)),
        ("noise_var", noise_var, (batch,)),
        ("mask", mask, (batch,)),
        ("decay", decay, (batch,)),
    ):
        if tensor is not None:
            _check_shape(name, tensor, *shape)
    return _like(mean, batch, code), _like(mean, batch), _like(mean, batch)


FAKES: dict[str, Callable] = {
    "bayes_write": _fake_bayes_write,
    "bayes_write_backward": _fake_bayes_write_backward,
    "solve_addresses": _fake_solve_addresses,
    "solve_addresses_backward": lambda g, mean, queries, ridge, w: _same(mean, queries, ridge),
    "read": _fake_read,
    "read_backward": lambda g, h, mean, cov, weights: _same(mean, cov, weights),
    "recall": _fake_recall,
    "recall_backward": lambda g, h, k, mean, cov, z, ridge, w: _same(mean, cov, z, ridge),
    "memory_kl": _fake_memory_kl,
    "memory_kl_backward": lambda g, *args: _same(*args),
    "adaptive_write": _fake_adaptive_write,
    "adaptive_write_backward": _fake_adaptive_write_backward,
    "forget": _fake_forget,
    "forget_backward": lambda g, h, *args: _same(*args[:5]),
    "causal_scan": _fake_causal_scan,
    "causal_scan_backward": _fake_causal_scan_backward,
    "causal_step": _fake_causal_step,
    "statistics": _fake_statistics,
    "statistics_backward": lambda g, h, mean, cov, shift, precision: _same(mean, cov),
}


def _define() -> None:
    for namespace, library in LIBRARIES.items():
        for schema in SCHEMAS.replace("\n    ", " ").strip().splitlines():
            library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        for name, fake in FAKES.items():
            torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
    for name in FAKES:
        LIBRARIES[NATIVE].impl(name, _kernel(name), "CompositeExplicitAutograd")
        for key in ("CUDA", "CPU"):  # AMD GPUs are CUDA to PyTorch; the CPU is the interpreter's
            LIBRARIES[TRITON].impl(name, _triton_kernel(name), key)


_define()
