"""How PyTorch may split the operators' DTensor arguments."""

from __future__ import annotations

import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from ..ops import _library
from ..ops.causal_step import check_placements


def _register(op: torch._ops.OpOverload) -> None:
    names = [argument.name for argument in op._schema.arguments]
    tensors = ["Tensor" in str(argument.type) for argument in op._schema.arguments]
    results = len(op._schema.returns)
    mutable = op._schema.is_mutable

    @register_sharding(op)
    def placements(*args):
        given = [
            is_tensor and arg is not None for is_tensor, arg in zip(tensors, args, strict=True)
        ]

        def alike(placement):
            inputs = [placement if is_given else None for is_given in given]
            return [placement] * results, inputs

        if mutable:
            check_placements(*args[:2])
            return [alike(args[0].placements[0])]
        packed = "cu_seqlens" in names and given[names.index("cu_seqlens")]
        return [alike(Replicate())] if packed else [alike(Replicate()), alike(Shard(0))]


def register() -> None:
    """Register every raw operator, once."""
    for namespace in _library.LIBRARIES:
        for name in _library.NAMES:
            _register(_library.raw(namespace, name))
