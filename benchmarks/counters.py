"""What one call launches and allocates, counted by PyTorch's profiler."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from .timers import HOST, DeviceEvents, Timer

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


def count(call: Callable[[], object], timer: Timer = HOST) -> Counts:
    """Counts of one call, after one that does what only a first call does."""
    call()
    if timer.cuda is not None:
        return _count_on_gpu(call, timer)
    profiler = _profiled(call)
    launches = sum(
        _is_operator(event.name) and not _is_operator(getattr(event.cpu_parent, "name", ""))
        for event in profiler.events()
    )
    return Counts(launches, _peak(profiler))


def peak_bytes(call: Callable[[], object], timer: Timer = HOST) -> int:
    """`Counts.peak_bytes` alone: quick for calls of thousands of operators."""
    return (
        _count_on_gpu(call, timer).peak_bytes if timer.cuda is not None else _peak(_profiled(call))
    )


@contextlib.contextmanager
def _quiet():
    """The profiler writes two lines to stderr whenever it starts."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _profiled(call: Callable[[], object]) -> profile:
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = call()
    del results
    return profiler


def _peak(profiler: profile) -> int:
    total = peak = 0
    memory = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(memory, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def _is_operator(name: str) -> bool:
    return name.startswith(OPERATORS)


def _count_on_gpu(call: Callable[[], object], timer: DeviceEvents) -> Counts:
    cuda = timer.cuda
    timer.synchronize()
    before = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    results = call()
    timer.synchronize()
    peak = cuda.max_memory_allocated() - before
    del results
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with _quiet(), profile(activities=activities) as profiler:
        call()
        timer.synchronize()
    return Counts(kernels(profiler.profiler.kineto_results.events()), peak)


def kernels(events) -> int:
    """How many of the profiler's raw events are kernels: not copies, fills or what the host did."""
    return sum(
        event.device_type() == torch.autograd.DeviceType.CUDA and event.activity_type() == "kernel"
        for event in events
    )
