"""Into how many segments a sequence of a memory that moves is cut: csrc/cuda/segment_plan.cuh, by
the same count of operations."""

from __future__ import annotations

import os
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ._launch import VARYING, processors

LEAST = 64  # steps of a segment, with which there is something to gain
MOST_SLOTS = 128


class Cut(NamedTuple):
    count: int = 1  # segments of an item, at most; 1: there are none
    least: int = 1  # steps of a segment, at least


def of_environment() -> int | None:
    """KANERVA_SEGMENTS, which cuts every sequence into so many; 1: into none."""
    text = os.environ.get("KANERVA_SEGMENTS", "")
    if text == "":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise RuntimeError(f"KANERVA_SEGMENTS must be a number of segments, 1 to 65535, got {text}")
    return int(text)


def plan_segments(
    mean: Tensor, steps: int, sequences: int, work: tuple[float, float], *, adjoint: bool
) -> Cut:
    """For items ``mean`` (B, K, C) in rows of ``steps`` steps and ``sequences`` items. ``work`` are
    the multiply-adds of a step by the program that has the most, and by one that does all."""
    if steps < 2 or len(mean) == 0:
        return Cut()
    forced = of_environment()
    if forced is not None:
        return Cut(min(forced, steps))
    return Cut(count_segments(mean, steps / sequences, work, adjoint), LEAST)


def count_segments(mean: Tensor, steps: float, work: tuple[float, float], adjoint: bool) -> int:
    """What the longest program multiplies and adds, in operations of a step's products, of which it
    does 8 a clock as a block of CUDA's kernels is counted to; a pivot takes 300 clocks, a matrix
    500 for each of its rows, the launches 20 us."""
    worth_it, rate, launches, fewest = 0.75, 8.0, 3e5, 3
    pivot = 300.0 * rate
    items, slots, code = mean.shape
    most = processors(mean.device) // items
    if slots > MOST_SLOTS or most < fewest:
        return 1
    whole, segment = work
    element = slots * (5 * slots + 64.0) + code * (3 * slots + 16.0) + pivot
    belief = slots * slots * (5 * slots + 4 * code) / 3 + 500 * rate * slots
    one = element + segment + pivot
    whole += pivot
    if adjoint:
        one = element + 2 * (2 * segment + 3 * pivot)
        whole = 2 * work[0] + 3 * pivot
        belief += slots * slots * (5 * slots + 3 * code) / 3
    best, least = 1, worth_it * steps * whole
    for count in range(fewest, min(most, int(steps // LEAST)) + 1):
        operations = steps / count * one + count * belief + launches
        if operations < least:
            best, least = count, operations
    return best


def work_of_write(
    slots: int, columns: tuple[int, int], steps: int, *, reads: bool, identity: bool
) -> tuple[float, float]:
    """Multiply-adds of a step of a write in chunks of ``steps``, with each number of columns."""
    more = 1.0 if reads else 0.0
    settled = (0.0 if identity else (1.0 + more) * slots) + steps
    half = slots * (2 * slots + 2 * steps + more * (slots + steps) + settled)
    column = 2 * slots + steps + more * (slots + steps)
    few, all_of_them = columns
    return half + column * few, half + column * all_of_them


def work_of_adjoint(slots: int, code: int, *, reads: bool) -> tuple[float, float]:
    work = slots * (5.0 * slots + 8 * code + (2 * slots + 3 * code if reads else 0.0))
    return work, work


@triton.jit(do_not_specialize=VARYING)
def cut_kernel(bounds, cut, sequences, segments, least, T, N: tl.constexpr):
    """``cut`` becomes the bounds (`_sequences`) of ``segments`` for each sequence, whole vectors of
    steps where a segment is many of them. Where they would have fewer than ``least`` steps, those
    after the first have none."""
    count = sequences * segments
    for start in range(0, count, N):
        at = start + tl.arange(0, N)
        inside = at < count
        n, i = at // segments, at % segments
        begins = tl.zeros((N,), tl.int64)
        length = begins + T
        if bounds is not None:
            begins = tl.load(bounds + n, mask=inside, other=0)
            length = tl.load(bounds + n + 1, mask=inside, other=0) - begins
        used = tl.minimum(tl.maximum(length // least, 1), segments)
        i = tl.where(i == 0, 0, tl.maximum(i - (segments - used), 1))
        step = length * i // used
        step = tl.where((i < used) & (length >= 128 * used), step // 16 * 16, step)
        tl.store(cut + at, begins + step, mask=inside)
    tl.store(cut + count, T)
    right = tl.full((), 1, tl.int64)
    if bounds is not None:
        right = tl.load(bounds + sequences + 1)
    tl.store(cut + count + 1, right)
