"""What this machine can do at most, measured in the same run: copies and matrix products."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

import kanerva_ext  # noqa: F401  (defines the operators)

from . import timers
from .timers import HOST, Timer


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


def share(seconds: float, nbytes: float, flops: float, timer: Timer = HOST) -> Share:
    """Of a call that moves ``nbytes`` and computes ``flops`` in ``seconds``."""
    copying = nbytes / copy_rate(nbytes, timer)
    computing = flops / product_rate(timer)
    binds = "arithmetic" if computing > copying else "bandwidth"
    least = max(computing, copying)
    return Share(nbytes / seconds / 1e9, flops / seconds / 1e9, binds, least / seconds)


def copy_rate(nbytes: float, timer: Timer = HOST) -> float:
    """Bytes per second, read and written, of a copy that moves about ``nbytes``.

    On a CPU what fits into a cache is copied at the cache's speed, as an operator of that size may
    expect; on a GPU the cache is cleared first, as before every call that is timed there.
    """
    return _copy_rate(max(14, min(29, round(math.log2(max(nbytes, 1))))), timer)


@functools.cache
def _copy_rate(log_bytes: int, timer: Timer) -> float:
    return timers.copy_rate(timer, 2**log_bytes)


def product_rate(timer: Timer = HOST, tf32: bool = False) -> float:
    """Operations per second of a float32 matrix product, the best of a few sizes.

    On a CPU of PyTorch's product and of the library's own: neither is the faster one everywhere.
    """
    return _product_rate(timer, tf32)


@functools.cache
def _product_rate(timer: Timer, tf32: bool) -> float:
    sizes = (256, 512, 1024, 2048) if timer.device.type == "cpu" else (2048, 4096, 8192)
    rates = [timers.product_rate(timer, size, tf32) for size in sizes]
    return max(*rates, _own_product_rate(timer))


def _own_product_rate(timer: Timer) -> float:
    """Of sums over steps, one item for each thread; 0 without the compiled library."""
    name = "kanerva::episode_sums"
    on_cpu = timer.device.type == "cpu"
    if not on_cpu or not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"):
        return 0.0
    items, steps, slots, code = torch.get_num_threads(), 2048, 256, 512
    given = (
        torch.empty(items, slots, code),
        torch.ones(items, steps, slots),
        torch.ones(items, steps, code),
        torch.ones(items, steps, dtype=torch.float64),
    )
    call = functools.partial(torch.ops.kanerva.episode_sums, None, *given)
    return 2 * items * steps * slots * code / timers.quick_time(call, 0.02, timer=timer)
