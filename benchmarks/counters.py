"""What one call launches and allocates, counted by PyTorch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

OPERATORS = ("aten::", "kanerva::", "kanerva_triton::")


class Counts(NamedTuple):
    """Of one call.

    Attributes:
        launches: kernels on a GPU; on a CPU calls of PyTorch operators that no other one makes.
        peak_bytes: of tensors alive at once beyond those from before. Scratch that a CPU kernel
            takes for itself is not in it: `benchmarks.memory` has the whole process.
    """

    launches: int
    peak_bytes: int


def count(call: Callable[[], object], device: str = "cpu") -> Counts:
    """Counts of one call, after one that does what only a first call does."""
    call()
    if torch.device(device).type != "cpu":
        return _count_on_gpu(call)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = call()
    launches = sum(
        _is_operator(event.name) and not _is_operator(getattr(event.cpu_parent, "name", ""))
        for event in profiler.events()
    )
    del results
    total = peak = 0
    memory = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(memory, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return Counts(launches, peak)


def _is_operator(name: str) -> bool:
    return name.startswith(OPERATORS)


def _count_on_gpu(call: Callable[[], object]) -> Counts:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        results = call()
        torch.cuda.synchronize()
    del results
    kernels = (e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    launches = sum(not event.name.startswith(("Memcpy", "Memset")) for event in kernels)
    return Counts(launches, torch.cuda.max_memory_allocated() - before)
