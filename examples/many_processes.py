"""One memory, many processes: steps, batch, columns or a sequence split over them, and a stream.

    torchrun --nproc-per-node=2 examples/many_processes.py
    python examples/many_processes.py    # one process

Every layout gives what one process gives; the differences are printed. On GPUs the same program
runs with the backend "nccl" and the tensors on `cuda`.
"""

import os
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

from kanerva_ext import distributed, ops

B, T, K, C = 2, 600, 16, 24


def inputs():
    """The same on every process, so that each can take its part and compare with the whole."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(B, T, K, generator=generator)
    values = torch.randn(B, T, C, generator=generator)
    return torch.zeros(B, K, C), torch.eye(K).expand(B, K, K).contiguous(), weights, values


def steps_split():
    """Each process has some of the steps: one all-reduce, the posterior of all of them."""
    mean, cov, weights, values = inputs()
    own = slice(dist.get_rank(), None, dist.get_world_size())
    state, _ = distributed.write((mean, cov), weights[:, own], values[:, own], 0.5)
    return state.mean, ops.bayes_write(mean, cov, weights, values, 0.5)[0]


def sequence_split():
    """Each process has a part of one sequence and reads at every step of it."""
    mean, cov, weights, values = inputs()
    rank, count = dist.get_rank(), dist.get_world_size()
    own = slice(T * rank // count, T * (rank + 1) // count)
    parts = weights[:, own], values[:, own], weights[:, own]
    reads = distributed.causal_scan(mean, cov, *parts, 0.5)[0]
    return reads, ops.causal_scan(mean, cov, weights, values, weights, 0.5)[0][:, own]


def batch_split():
    """Each process has some of the memories: nothing is sent."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    split = [distribute_tensor(x, mesh, [Shard(0)]) for x in inputs()]
    return ops.bayes_write(*split, 0.5)[0].full_tensor(), ops.bayes_write(*inputs(), 0.5)[0]


def columns_split():
    """Each process has some of the columns; an address costs one all-reduce."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    placements = [Shard(2)], [Replicate()], [Replicate()], [Shard(2)]
    split = [distribute_tensor(x, mesh, p) for x, p in zip(inputs(), placements, strict=True)]
    mean, cov, _ = ops.bayes_write(*split, 0.5)
    found = ops.recall(mean, cov, split[3], 0.5)[0].full_tensor()
    values = inputs()[3]
    return found, ops.recall(*ops.bayes_write(*inputs(), 0.5)[:2], values, 0.5)[0]


def stream():
    """More than memory holds: batches, a checkpoint, and after any kill on from there."""
    mean, cov, weights, values = inputs()
    parts = list(zip(weights.split(50, 1), values.split(50, 1), strict=True))
    own = parts[dist.get_rank() :: dist.get_world_size()]
    with tempfile.TemporaryDirectory() as folder:
        options = {"noise_var": 0.5, "progress": False}
        path = f"{folder}/stream.safetensors"
        state, _ = distributed.write_stream(own, (mean, cov), path, **options)
    return state.mean, ops.bayes_write(mean, cov, weights, values, 0.5)[0]


def main():
    alone = "RANK" not in os.environ
    if alone:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group("gloo")
    worst = 0.0
    for layout in (steps_split, sequence_split, batch_split, columns_split, stream):
        got, want = layout()
        difference = (got - want).abs().max()
        dist.all_reduce(difference, dist.ReduceOp.MAX)
        worst = max(worst, difference.item())
        if dist.get_rank() == 0:
            count = dist.get_world_size()
            print(f"{layout.__name__:15} over {count} differs by {difference.item():.1e}")
    dist.barrier()
    dist.destroy_process_group()
    return worst


if __name__ == "__main__":
    assert main() < 1e-4
