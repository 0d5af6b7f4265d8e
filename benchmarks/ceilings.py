"""What this machine can do at most, measured in the same run: copies and matrix products."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from .measure import quick_time


class Share(NamedTuple):
    """How near a time comes to what the machine allows.

    Attributes:
        gb_per_s: bytes over time.
        gflop_per_s: operations over time.
        binds: "bandwidth" or "arithmetic", whichever takes longer at its ceiling.
        share: that least time over the time measured; above 1 where the counts are no true least.
    """

    gb_per_s: float
    gflop_per_s: float
    binds: str
    share: float


def share(seconds: float, nbytes: float, flops: float, device: str = "cpu") -> Share:
    """Of a call that moves ``nbytes`` and computes ``flops`` in ``seconds``."""
    copying = nbytes / copy_rate(nbytes, device)
    computing = flops / product_rate(device)
    binds = "arithmetic" if computing > copying else "bandwidth"
    least = max(computing, copying)
    return Share(nbytes / seconds / 1e9, flops / seconds / 1e9, binds, least / seconds)


def copy_rate(nbytes: float, device: str = "cpu") -> float:
    """Bytes per second, read and written, of a copy that moves about ``nbytes``.

    What fits into a cache is copied at the cache's speed, as an operator of that size may expect.
    """
    return _copy_rate(max(14, min(29, round(math.log2(max(nbytes, 1))))), device)


@functools.cache
def _copy_rate(log_bytes: int, device: str) -> float:
    source = torch.ones(2**log_bytes // 8, device=device)  # half of the bytes, of 4 each
    target = torch.empty_like(source)
    return 2**log_bytes / _seconds(lambda: target.copy_(source), device)


def product_rate(device: str = "cpu") -> float:
    """Operations per second of a float32 matrix product, the best of a few sizes; no TF32."""
    return _product_rate(device)


@functools.cache
def _product_rate(device: str) -> float:
    best = 0.0
    for size in (256, 512, 1024, 2048) if device == "cpu" else (2048, 4096, 8192):
        a = torch.ones(size, size, device=device)
        best = max(best, 2 * size**3 / _seconds(functools.partial(torch.mm, a, a), device))
    return best


def _seconds(call, device: str) -> float:
    if torch.device(device).type == "cpu":
        with torch.inference_mode():
            return quick_time(call, 0.02)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    least = math.inf
    for _ in range(10):
        start.record()
        call()
        end.record()
        end.synchronize()
        least = min(least, start.elapsed_time(end) * 1e-3)
    return least
