"""Whether a model uses its memory: three numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ._state import register_for_loading
from .memory import FusedKanervaMemory


class MemoryComparison(NamedTuple):
    """What `compare_memories` returns: the mean loss with each memory.

    A memory is used where ``own`` is well below the other two. Where all three are alike, nothing
    of the episode is read: the memory holds nothing, or the model does not look, or it reads
    another memory than the one that was given.

    Attributes:
        own: reading what was given, as in training.
        other: reading the memory of the item before in the batch: another episode.
        prior: reading the prior, which holds no episode.
    """

    own: float
    other: float
    prior: float


register_for_loading(MemoryComparison)


def compare_memories(
    memory: FusedKanervaMemory, loss: Callable[[], Tensor | float], seed: int = 0
) -> MemoryComparison:
    """Evaluate a loss with the right memory, with another episode's, and with the prior alone.

    A loss that falls in training does not show that the memory is used: a model may learn to do
    without it. This swaps what every read of ``memory`` reads from (`FusedKanervaMemory.read`,
    ``forward``, ``attractor`` and ``generate``), and leaves writes alone.

    Args:
        memory: of the model.
        loss: computes it, without arguments, on held-out episodes: a float or a tensor, whose mean
            is taken. The model should be in evaluation mode, and the batch of at least 2 episodes.
        seed: of PyTorch's random numbers, the same for each of the three.

    Returns:
        `MemoryComparison`.

    Raises:
        TypeError: ``memory`` is no `FusedKanervaMemory`; ``loss`` cannot be called, or returns
            neither a number nor a tensor.
        ValueError: a batch of one is read.

    While it runs, every read of ``memory`` is swapped, those of other threads too.

    >>> import torch, kanerva_ext
    >>> memory = kanerva_ext.FusedKanervaMemory(memory_size=8, code_size=16, noise_std=0.1)
    >>> codes = torch.randn(4, 6, 16)
    >>> errors = kanerva_ext.compare_memories(
    ...     memory, lambda: (memory(codes).values - codes).square()
    ... )
    >>> errors.own < 0.5 * errors.other and errors.own < 0.5 * errors.prior
    True
    """
    if not isinstance(memory, FusedKanervaMemory):
        raise TypeError(
            f"compare_memories: memory must be a FusedKanervaMemory, got {type(memory).__name__}"
        )
    if not callable(loss):
        raise TypeError(f"compare_memories: loss must be callable, got {type(loss).__name__}")
    results = []
    before = memory._read_from
    devices = {p.device for p in memory.parameters() if p.device.type == "cuda"}
    try:
        for which in (None, "other", "prior"):
            memory._read_from = which
            with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
                torch.manual_seed(seed)
                found = loss()
            if not isinstance(found, (Tensor, int, float)):
                raise TypeError(
                    "compare_memories: loss must return a float or a tensor, got "
                    f"{type(found).__name__}"
                )
            results.append(float(torch.as_tensor(found).double().mean()))
    finally:
        memory._read_from = before
    return MemoryComparison(*results)
