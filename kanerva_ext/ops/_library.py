"""The raw operators ``torch.ops.kanerva.*``: their namespaces, and the kernels that are Python.

Raw arguments have exactly one batch dimension B, equal everywhere: mean (B, K, C), cov (B, K, K),
weights (B, T, K), values and queries (B, T, C), noise_var, mask, decay and retention (B, T),
stationary_cov (B, K, K), ridge (B,).
``causal_scan`` has queries (B, T, K) and, with N + 1 ``cu_seqlens``, N sequences in every row of
weights and a state for each: item b N + n of mean and cov is that of sequence n of row b.
``causal_step`` takes one step, without the dimension T, and changes the state in place.
Compiled libraries register kernels for their device when they are loaded; GPUs without one run the
Triton kernels, and every other device runs the reference. ``torch.ops.kanerva_triton.*`` are the
same operators by Triton, whatever else serves the device. `declare` defines an operator and its
gradient in both; `._autograd` attaches the one to the other.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _backend, reference
from ._declaration import Declaration

NATIVE, TRITON = "kanerva", "kanerva_triton"
LIBRARIES = {name: torch.library.Library(name, "DEF") for name in (NATIVE, TRITON)}
#: By name; `declare` adds to them.
OPERATORS: dict[str, Declaration] = {}
#: Of all raw operators, gradients among them.
NAMES: list[str] = []
#: By name, what serves raw arguments that are split over processes in a way that no raw operator
#: can, or gives NotImplemented; `kanerva_ext.distributed` adds to them.
SPLIT: dict[str, Callable] = {}

#: Parts of operators that the library itself calls, by name: their schemas. The CPU alone has them.
PARTS = {
    "episode_sums": "episode_sums(Tensor(a!)? g, Tensor(b!) h, Tensor weights, Tensor values, "
    "Tensor scale) -> Tensor",
    "posterior_of_sums": "posterior_of_sums(Tensor(a!) mean_out, Tensor(b!) cov_out, Tensor mean, "
    "Tensor cov, Tensor triangle, Tensor h, Tensor square, bool in_float32, bool always) -> Tensor",
}
for _schema in PARTS.values():
    LIBRARIES[NATIVE].define(_schema)


def raw(namespace: str, name: str) -> torch._ops.OpOverload:
    return getattr(getattr(torch.ops, namespace), name).default


def declare(operator: Declaration, fake: Callable | None = None) -> None:
    """Define an operator and its gradient, if it has one, in both namespaces.

    ``fake`` stands in place of the declaration's own, where shapes do not follow by its rule.
    """
    OPERATORS[operator.name] = operator
    _define(operator.name, operator.schema, fake or operator.fake)
    if operator.differentiable:
        _define(f"{operator.name}_backward", operator.backward_schema, operator.backward_fake)


def _define(name: str, schema: str, fake: Callable) -> None:
    for namespace, library in LIBRARIES.items():
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
    LIBRARIES[NATIVE].impl(name, _reference_kernel(name), "CompositeExplicitAutograd")
    for key in ("CUDA", "CPU"):  # AMD GPUs are CUDA to PyTorch; the CPU is the interpreter's
        LIBRARIES[TRITON].impl(name, _triton_kernel(name), key)
    NAMES.append(name)


@functools.cache  # once
def serve_gpus_by_triton() -> None:
    """Make Triton serve ``torch.ops.kanerva.*`` on NVIDIA and AMD GPUs."""
    for name in NAMES:
        LIBRARIES[NATIVE].impl(name, _triton_kernel(name), "CUDA")


def _reference_kernel(name: str) -> Callable:
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
        function = getattr(importlib.import_module("kanerva_ext.triton"), name, None)
        if function is None:
            raise NotImplementedError(
                f"{name} has no Triton kernel in kanerva_ext.triton; "
                'backend="reference" runs it as plain PyTorch'
            )
        return function(*args)

    return kernel


def _owned(result: Tensor, inputs: list[Tensor]) -> Tensor:
    storage = result.untyped_storage()._cdata
    if any(i.untyped_storage()._cdata == storage for i in inputs):
        return result.clone(memory_format=torch.contiguous_format)
    return result.contiguous()
