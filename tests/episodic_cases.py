"""Facts and episodic memories of given sizes."""

from __future__ import annotations

import torch

from kanerva_ext.episodic import EpisodicMemory


def cases(key_size: int, value_size: int, slots: int):
    """``facts``, ``make`` and ``filled`` for memories of these sizes."""

    def facts(count, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        sizes = (key_size, value_size)
        return tuple(torch.randn(count, n, generator=generator).to(dtype) for n in sizes)

    def make(store=None, **options):
        return EpisodicMemory(
            key_size, value_size, options.pop("slots", slots), store=store, **options
        )

    def filled(count=5, **options):
        memory = make(**options)
        keys, values = facts(count)
        memory.write(keys, values)
        return memory, keys, values

    return facts, make, filled
