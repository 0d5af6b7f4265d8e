"""Memory modules that write together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import ops
from .._checks import prepare
from ..memory import FusedKanervaMemory, MemoryState
from ..ops.adaptive_write import OPERATOR
from ._collectives import Group, recorded
from ._write import gather_steps, write

_OP = "distributed.shared_writes"


@contextmanager
def shared_writes(module: nn.Module, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Within, a `FusedKanervaMemory` in ``module`` holds what all processes of the group write.

    Every call of ``write`` (or ``forward``) is one of all ranks, with the same state; each gives
    its own part of the episode and gets the posterior of all, its own addresses, and the evidence
    and KL of all. At given addresses or keys that is `write`; with least-squares addressing, where
    one address depends on the codes before, the codes are gathered, in the order of the ranks, and
    written by every rank. Reads are a rank's own.

    Losses are the ranks' own, and their sum (or, as DistributedDataParallel has it, their mean) is
    what the gradients are of: every rank must call `backward`.

    Args:
        module: a memory, or a model that has some.
        group: of processes; None: all.

    Raises:
        ValueError: there is no memory in the module; in ``write``, with ``decay`` or ``retention``.
        RuntimeError: as `write`.
    """
    members = Group(_OP, group)
    memories = [m for m in module.modules() if isinstance(m, FusedKanervaMemory)]
    if not memories:
        raise ValueError(
            f"{_OP}: module must have a FusedKanervaMemory, got {type(module).__name__}"
        )
    before = [memory._together for memory in memories]
    for memory in memories:
        memory._together = _Together(members)
    try:
        yield
    finally:
        for memory, old in zip(memories, before, strict=True):
            memory._together = old


class _Together:
    """The writes of a memory's episode, of which each rank has a part."""

    def __init__(self, members: Group) -> None:
        self.members = members

    def __deepcopy__(self, memo):  # a group of processes has no copy
        return self

    def bayes_write(
        self, mean, cov, weights, values, noise_var, decay, retention, *, mask, backend
    ):
        _refuse_order(decay=decay, retention=retention)
        state = MemoryState(mean, cov)
        options = {"mask": mask, "group": self.members.group, "loss": "sum"}
        state, evidence = write(state, weights, values, noise_var, **options)
        return *state, evidence

    def adaptive_write(
        self, mean, cov, values, noise_var, ridge, decay, retention, *, mask, **options
    ):
        _refuse_order(decay=decay, retention=retention)
        members = self.members
        given = (mean, cov, values, noise_var, ridge, mask)
        args, batch = prepare(_OP, OPERATOR.args, given)
        mean, cov, values, noise_var, ridge, mask = args
        sizes = "x".join(map(str, mean.shape))
        words = f"state {sizes} {mean.dtype}", mean.device.type, recorded(args)
        counts = members.announce(words, None, values.shape[1], (mean, cov)).wait()
        if mask is None:  # another rank may have one
            mask = torch.ones_like(noise_var, dtype=torch.bool)
        parts = values, noise_var, mask
        values, noise_var, mask = gather_steps(members, counts, "sum", mean.dtype, *parts)
        mean, cov, weights, _, evidence = ops.adaptive_write(
            *(mean, cov, values, noise_var, ridge), mask=mask != 0, return_evidence=True, **options
        )
        own = weights.split(counts, 1)[members.rank]
        return tuple(_leading(x, batch) for x in (mean, cov, own, evidence))


def _refuse_order(**given) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{_OP}: {name} must be None, since what ranks write has no order")


def _leading(tensor: Tensor, batch: torch.Size) -> Tensor:
    return tensor if len(batch) == 1 else tensor.reshape(batch + tensor.shape[1:])
