"""Memories over many processes: exact writes of what all of them hold, and DTensor arguments.

A posterior is a sum of sufficient statistics, so that a write over many machines is exact with one
reduction: `write`. Everything runs on PyTorch's own engine (gloo, NCCL); start the processes by
torchrun.

``import kanerva_ext.distributed`` also tells PyTorch how the operators may be split when their
arguments are DTensors: over the batch (``Shard(0)``), with no communication; over the memory's
columns (``Shard(-1)`` of mean, values and queries of codes, ``Replicate()`` of the rest), where
addresses that are solved cost one all-reduce; or not at all (``Replicate()``). A placement of
another kind is an error that names it.

    import kanerva_ext.distributed
    from torch.distributed.tensor import Shard, distribute_tensor

    mean = distribute_tensor(mean, mesh, [Shard(0)])  # (B, K, C); and cov, weights, values
    mean, cov, log_evidence = kanerva_ext.ops.bayes_write(mean, cov, weights, values, 0.1)

Gradients follow. A step in place (``causal_step``) changes its state where it lies, so mean and cov
must be alike, split over the batch or not at all. Packed sequences (``cu_seqlens``) are not split:
each process has all of them.
"""

from . import _columns, _placements
from ._collectives import count_bytes
from ._modules import shared_writes
from ._scan import causal_scan
from ._stream import write_stream
from ._write import write

__all__ = ["causal_scan", "count_bytes", "shared_writes", "write", "write_stream"]

_placements.register()
_columns.register()
