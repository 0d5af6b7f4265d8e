"""The operators over many processes: `torch.distributed.tensor.DTensor` arguments.

``import kanerva_ext.distributed`` tells PyTorch how the operators may be split: over the batch
(``Shard(0)``), with no communication, or not at all (``Replicate()``). An argument that is split in
another way is gathered first, as everywhere in DTensor.

    import kanerva_ext.distributed
    from torch.distributed.tensor import Shard, distribute_tensor

    mean = distribute_tensor(mean, mesh, [Shard(0)])  # (B, K, C); and cov, weights, values
    mean, cov, log_evidence = kanerva_ext.ops.bayes_write(mean, cov, weights, values, 0.1)

Gradients follow. A step in place (``causal_step``) changes its state where it lies, so mean and cov
must be alike, split over the batch or not at all. Packed sequences (``cu_seqlens``) are not split:
each process has all of them.
"""

from __future__ import annotations

import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from .ops import _library
from .ops.causal_step import check_placements

__all__: list[str] = []


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


for _namespace in _library.LIBRARIES:
    for _name in _library.NAMES:
        _register(_library.raw(_namespace, _name))
