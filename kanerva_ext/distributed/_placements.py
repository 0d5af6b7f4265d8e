"""How PyTorch may split the operators' DTensor arguments.

Over the batch, ``Shard(0)``: nothing is sent. Over the memory's columns: mean, values, queries and
what is read are ``Shard(-1)``; covariance, addresses, noise and variances are the same everywhere.
An evidence or a KL is a sum over the columns then, ``Partial()``, and in a gradient what is the
same everywhere comes as each rank's term of a sum. What has to look across the columns is in
`._columns`.
"""

from __future__ import annotations

import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from ..ops import _library
from ..ops.causal_step import check_placements

#: Operators whose addresses are solved against all columns.
ACROSS_COLUMNS = ("solve_addresses", "recall", "adaptive_write")
_STEP = "causal_step"


def _columns(dims: str) -> Shard | Replicate:
    """How a tensor of these dimensions (letters, without the batch) is split over the columns."""
    return Shard(len(dims)) if dims.endswith("C") else Replicate()


def _transposed(placement):
    """Of the gradient of what is placed so."""
    if isinstance(placement, Shard):
        return placement
    return Partial() if isinstance(placement, Replicate) else Replicate()


def _register(op: torch._ops.OpOverload, name: str) -> None:
    declaration = _library.OPERATORS[name.removesuffix("_backward")]
    is_gradient = name.endswith("_backward")
    arguments = [argument.name for argument in op._schema.arguments]
    tensors = ["Tensor" in str(argument.type) for argument in op._schema.arguments]
    mutable = op._schema.is_mutable
    results = [Partial() if r.is_sum else _columns(r.dims) for r in declaration.results]
    inputs = [_columns(arg.dims) for arg in declaration.args]
    splits = declaration.name not in (*ACROSS_COLUMNS, _STEP)

    def over_columns(given):
        taken, made = dict(zip([a.name for a in declaration.args], inputs, strict=True)), results
        if is_gradient:
            for r, placement in zip(declaration.results, results, strict=True):
                taken[f"grad_{r.name}" if r.name else "grad"] = _transposed(placement)
                if r.saved_as:
                    taken[r.saved_as] = placement
            made = [_transposed(inputs[i]) for i in declaration.differentiable]
            absent = [declaration.args[i].name for i in declaration.differentiable]
            present = dict(zip(arguments, given, strict=True))
            # The gradient of what is not there is a tensor without elements.
            made = [m if present[n] else Replicate() for m, n in zip(made, absent, strict=True)]
        return made, [
            taken[argument] if is_given else None
            for argument, is_given in zip(arguments, given, strict=True)
        ]

    @register_sharding(op)
    def placements(*args):
        given = [
            is_tensor and arg is not None for is_tensor, arg in zip(tensors, args, strict=True)
        ]

        def alike(placement):
            taken = [placement if is_given else None for is_given in given]
            return [placement] * len(op._schema.returns), taken

        if mutable:
            check_placements(*args[:2])
            return [alike(args[0].placements[0])]
        packed = "cu_seqlens" in arguments and given[arguments.index("cu_seqlens")]
        if not is_gradient:
            _check(name, declaration.args, args, splits and not packed)
        if packed:
            return [alike(Replicate())]
        may = [alike(Replicate()), alike(Shard(0))]
        mean = args[arguments.index("mean")]
        if splits and mean.shape[-1] >= mean.mesh.size():
            may.append(over_columns(given))
        return may


def _check(name: str, specs, args, splits: bool) -> None:
    """What is split in a way that no operator knows would be gathered without a word.

    Raises:
        ValueError: names the argument, its placement and those that it may have.
    """
    for spec, arg in zip(specs, args, strict=False):
        if arg is None:
            continue
        may = {"Replicate()": Replicate(), "Shard(0)": Shard(0)}
        if splits and spec.dims.endswith("C"):
            may[f"Shard({len(spec.dims)}), over the columns"] = Shard(len(spec.dims))
        for placement in arg.placements:
            if placement not in may.values() and not placement.is_partial():
                hint = ""
                if isinstance(placement, Shard) and spec.dims[placement.dim - 1 :][:1] == "T":
                    hint = (
                        "; kanerva_ext.distributed.write and causal_scan take steps that are "
                        "split over processes"
                    )
                raise ValueError(
                    f"{name}: {spec.name} must be placed as {' or '.join(may)}, got "
                    f"{placement}{hint}"
                )


def register() -> None:
    """Register every raw operator, once."""
    for namespace in _library.LIBRARIES:
        for name in _library.NAMES:
            _register(_library.raw(namespace, name), name)
