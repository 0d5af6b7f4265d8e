"""Where times come from: the host's clock or a GPU's events, and what a machine can do by them.

Both sources have one interface, so that what is measured does not depend on where. This module
needs PyTorch alone.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


class HostClock:
    """Times of calls that are done when they return.

    Attributes:
        device: where the tensors of a timed call are.
        cuda: the module that keeps a GPU's counts (`torch.cuda`); None: there is no GPU.
    """

    device = torch.device("cpu")
    cuda = None

    def synchronize(self) -> None:
        """Wait until all that was started is done."""

    def samples(self, call: Call, repeats: int) -> list[float]:
        """Seconds of each of ``repeats`` calls, after one that is not timed."""
        call()
        found = []
        for _ in range(repeats):
            start = time.perf_counter_ns()
            call()
            found.append((time.perf_counter_ns() - start) * 1e-9)
        return found

    def stopwatch(self) -> Callable[[], float]:
        """A function to be called before and after a call: the difference is its time."""
        return time.perf_counter


class DeviceEvents:
    """Times on a GPU by its own events, with nothing in its L2 cache that an earlier call left.

    Clearing the cache takes the GPU long enough for the host to launch a call's first kernels. A
    call whose launches take longer than its kernels is timed with the gaps between them.
    """

    def __init__(self, device: str | torch.device = "cuda", cuda=None) -> None:
        self.device = torch.device(device)
        self.cuda = torch.cuda if cuda is None else cuda
        cache = self.cuda.get_device_properties(0).L2_cache_size
        self._scratch = torch.empty(max(2 * cache, 4), dtype=torch.uint8, device=self.device)

    def synchronize(self) -> None:
        self.cuda.synchronize()

    def flush(self) -> None:
        """Write more than the L2 cache holds."""
        self._scratch.zero_()

    def samples(self, call: Call, repeats: int) -> list[float]:
        events = [self._pair() for _ in range(repeats)]
        call()
        for start, end in events:
            self.flush()
            start.record()
            call()
            end.record()
        self.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in events]

    def stopwatch(self) -> Callable[[], float]:
        start, end = self._pair()
        running = False

        def stopwatch() -> float:
            nonlocal running
            running = not running
            if running:
                self.flush()
                start.record()
                return 0.0
            end.record()
            end.synchronize()
            return start.elapsed_time(end) * 1e-3

        return stopwatch

    def _pair(self):
        return self.cuda.Event(enable_timing=True), self.cuda.Event(enable_timing=True)


Timer = HostClock | DeviceEvents
HOST = HostClock()


@functools.cache
def of(device: str) -> Timer:
    """The source for calls on ``device``, "cpu" or "cuda"."""
    return HOST if torch.device(device).type == "cpu" else DeviceEvents(device)


def finds_gpu() -> bool:
    return torch.cuda.is_available()


def default_device() -> str:
    return "cuda" if finds_gpu() else "cpu"


def quick_time(
    call: Call, budget: float = 0.05, calls: int = 10, timer: Timer = HOST, least: int = 2
) -> float:
    """Least of a few calls, in seconds: for choosing, not for reporting.

    ``least`` calls; then until both ``budget`` seconds and ``calls`` or 10 budgets are spent.
    """
    best, spent, count = float("inf"), 0.0, 0
    started = time.perf_counter()
    clock = timer.stopwatch()
    while count < least or spent < budget or (count < calls and spent < 10 * budget):
        start = clock()
        call()
        best, count = min(best, clock() - start), count + 1
        spent = time.perf_counter() - started
    return best


def median_seconds(call: Call, timer: Timer, seconds: float = 0.5) -> float:
    """Median of five calls at least, of as many as ``seconds`` allow, at most 1,001."""
    timer.samples(call, 2)
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - started < seconds and len(times) < 1001):
        times += timer.samples(call, 5)
    return statistics.median(times)


def copy_rate(timer: Timer, nbytes: int) -> float:
    """Bytes per second, read and written, of a copy that moves ``nbytes``."""
    source = torch.ones(nbytes // 8, device=timer.device)  # half of the bytes, of 4 each
    target = torch.empty_like(source)
    with torch.inference_mode():
        return nbytes / quick_time(lambda: target.copy_(source), 0.02, timer=timer)


def product_rate(timer: Timer, size: int, tf32: bool = False) -> float:
    """Operations per second of a float32 matrix product; with ``tf32`` in TensorFloat-32."""
    a = torch.ones(size, size, device=timer.device)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with torch.inference_mode():
            seconds = quick_time(functools.partial(torch.mm, a, a), 0.02, timer=timer)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * size**3 / seconds
