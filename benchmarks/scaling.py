"""How times grow with T, K, C and B: ``python -m benchmarks.scaling --json``.

One dimension at a time, ours and the fastest PyTorch composition of each point, verified against
float64 before they are timed. The slope is that of log time over log size between the last two
points that are at least a factor of four apart: 1 is linear.

A composition that would need more than 4 GB or 20 s at a point, by how it grew over the points
before, is left out there; so is one that was ten times slower than the fastest at the two sizes
before. Every point records which were left out and why. torch.compile is not among them.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from . import counters, machine, timers
from .compare import QUIET, RESULTS, write_json
from .measure import KANERVA, MAX_ERROR, Problem, WrongResult, interleaved, mode, ours
from .rivals import DIRECTIONS, OPERATORS, Rival, Shape
from .timers import HOST, Timer, quick_time

#: dimension -> shapes that differ in it alone
AXES: dict[str, list[Shape]] = {
    "T": [Shape(1, 2**n, 32, 100) for n in (5, 6, 8, 10, 12, 14, 16)],
    "K": [Shape(4, 64, 2**n, 128) for n in range(3, 11)],
    "C": [Shape(4, 64, 64, 2**n) for n in range(4, 11)],
    "B": [Shape(2**n, 32, 32, 100) for n in range(0, 9)],
}
MEASURED = ("bayes_write", "recall", "solve_addresses", "read")
LIMIT_SECONDS, LIMIT_BYTES = 20.0, 4e9  # of one call
SLOWER = 10.0  # times the fastest rival's time, from which on a rival is left out
COSTLY = 2e-3  # seconds; what is quicker is never too slow to be run again
SLOW = 0.5  # seconds of a call from which on a few rounds must do

TOO_LONG = f"would need more than {LIMIT_SECONDS:.0f} s"
TOO_LARGE = f"would need more than {LIMIT_BYTES / 1e9:.0f} GB"
TOO_SLOW = f"over {SLOWER:.0f} times slower than the fastest at two smaller sizes"
NOT_HERE = "not made for the shape"
WRONG = f"off by more than {MAX_ERROR:.0e}"


@dataclass
class Row:
    """One point of a curve; times in milliseconds per call."""

    operator: str
    direction: str
    axis: str
    shape: str
    size: int
    ours_ms: float
    rival_ms: float | None  # None: none was left to be timed
    rival: str | None
    error: float
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason -> rivals
    other_load: float | None = None  # cores that other processes kept busy

    def line(self) -> str:
        rival = "" if self.rival_ms is None else f"{self.rival_ms:10.3f}  {self.rival}"
        return (
            f"{self.operator:15} {self.direction:17} {self.axis} {self.shape:16} "
            f"{self.ours_ms:10.3f} {rival}"
        )


class Seen(NamedTuple):
    """What a rival took at a point."""

    size: int
    seconds: float
    nbytes: int


class History:
    """What the rivals took at the points of a curve so far."""

    def __init__(self) -> None:
        self._seen: dict[str, list[Seen]] = {}
        self._slow: dict[str, int] = {}  # at how many points in a row

    def add(self, size: int, points: dict[str, tuple[float, int]]) -> None:
        """Seconds and bytes of every rival at the next point."""
        fastest = min((seconds for seconds, _ in points.values()), default=0.0)
        for name, (seconds, nbytes) in points.items():
            self._seen.setdefault(name, []).append(Seen(size, seconds, nbytes))
            slow = seconds > max(SLOWER * fastest, COSTLY)
            self._slow[name] = self._slow.get(name, 0) + 1 if slow else 0

    def why_not(self, name: str, size: int) -> str | None:
        """The reason to leave a rival out at a size."""
        if self._slow.get(name, 0) >= 2:  # once may be another program's doing
            return TOO_SLOW
        seen = self._seen.get(name)
        if not seen:
            return None
        if _extrapolate(seen, size, "seconds") > LIMIT_SECONDS:
            return TOO_LONG
        return TOO_LARGE if _extrapolate(seen, size, "nbytes") > LIMIT_BYTES else None


def _extrapolate(seen: list[Seen], size: int, what: str) -> float:
    """A power of the size, by the last two points; from one alone its square.

    At most the cube, as no composition grows faster: a hiccup must not count for more.
    """
    *_, last = seen
    value, exponent = getattr(last, what), 2.0
    if len(seen) > 1:
        before = getattr(seen[-2], what)
        grown = math.log(max(value, 1e-9) / max(before, 1e-9))
        exponent = min(3.0, grown / math.log(last.size / seen[-2].size))
    return value * (size / last.size) ** exponent


def why_unfit(rival: Rival, shape: Shape, direction: str) -> str | None:
    """The rival's own reason not to be run at a shape, where it says one."""
    if rival.fits(shape, direction):
        return None
    stated = (rival.fits.__doc__ or "").strip().rstrip(".")
    return f"{NOT_HERE}: {stated[0].lower()}{stated[1:]}" if stated else NOT_HERE


class Candidates(NamedTuple):
    """Verified calls of ours and the two fastest rivals, all errors, and who was left out."""

    calls: dict[str, Callable]
    errors: dict[str, float]
    left_out: dict[str, list[str]]
    slowest: float  # of the calls, in seconds


def candidates(problem: Problem, size: int, history: History, timer: Timer) -> Candidates:
    operator, shape, direction = problem.operator, problem.shape, problem.direction
    calls, errors, points, left_out = {}, {}, {}, {}
    for rival in (ours(operator), *OPERATORS[operator].rivals):
        own = rival.name == KANERVA
        if rival.family == "compile" or direction not in rival.directions:
            continue
        reason = why_unfit(rival, shape, direction) or history.why_not(rival.name, size)
        if reason is not None and not own:
            left_out.setdefault(reason, []).append(rival.name)
            continue
        call = problem.bind(rival)
        start = time.perf_counter()
        try:
            errors[rival.name] = problem.verify(rival, call)
        except WrongResult:
            if own:
                raise
            left_out.setdefault(WRONG, []).append(rival.name)
            continue
        calls[rival.name] = call
        least = 2 if time.perf_counter() - start < SLOW else 1
        with mode(direction):
            seconds = quick_time(call, 0.02, timer=timer, calls=5, least=least)
            points[rival.name] = seconds, 0 if own else counters.peak_bytes(call, timer)
    first = {name: seconds for name, (seconds, _) in points.items()}
    points.pop(KANERVA)
    history.add(size, points)
    chosen = [KANERVA, *sorted(points, key=first.__getitem__)[:2]]
    slowest = max(first[name] for name in chosen)
    return Candidates({name: calls[name] for name in chosen}, errors, left_out, slowest)


def measure(
    operator: str,
    direction: str,
    axis: str,
    shape: Shape,
    seconds: float,
    history: History | None = None,
    timer: Timer = HOST,
) -> Row:
    """One point; ``history`` is that of the curve's points before."""
    size = shape["BTKC".index(axis)]
    problem = Problem(operator, shape, direction, device=timer.device)
    with machine.OtherLoad() as load:
        found = candidates(problem, size, history or History(), timer)
        rounds = 15 if found.slowest < SLOW else 3
        with mode(direction):
            times = interleaved(found.calls, rounds, seconds, timer=timer)
    medians = {name: statistics.median(t) for name, t in times.items()}
    rivals = [name for name in medians if name != KANERVA]
    best = min(rivals, key=medians.__getitem__, default=None)
    return Row(
        operator,
        direction,
        axis,
        str(shape),
        size,
        medians[KANERVA] * 1e3,
        None if best is None else medians[best] * 1e3,
        best,
        found.errors[KANERVA],
        found.left_out,
        load.cores,
    )


def quietest(
    point: tuple[str, str, str, Shape],
    seconds: float,
    history: History,
    timer: Timer,
    deadline: float,
) -> tuple[Row, History]:
    """A point, measured again until ``deadline`` while others use the cores; the new history."""
    kept = None
    while True:
        attempt = copy.deepcopy(history)
        row = measure(*point, seconds, attempt, timer)
        if kept is None or row.other_load < kept[0].other_load:
            kept = row, attempt
        if (row.other_load or 0) <= QUIET or time.monotonic() > deadline:
            return kept


def slope(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Exponent between the last point and the last one before it at least four times smaller."""
    end = len(sizes) - 1
    start = max((i for i in range(end) if 4 * sizes[i] <= sizes[end]), default=0)
    return math.log(times[end] / times[start]) / math.log(sizes[end] / sizes[start])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument(
        "--op", action="append", choices=list(OPERATORS), help=f"default: {', '.join(MEASURED)}"
    )
    parser.add_argument("--axis", action="append", choices=list(AXES), help="default: all")
    parser.add_argument("--longest", type=int, default=65_536, help="T at most (default 65536)")
    parser.add_argument("--direction", choices=DIRECTIONS, help="default: both")
    parser.add_argument("--seconds", type=float, default=0.5, help="per point (default 0.5)")
    parser.add_argument(
        "--patience", type=float, default=240.0, help="seconds in which busy points are repeated"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=timers.default_device())
    parser.add_argument("--json", type=Path, nargs="?", const=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    timer = timers.of(options.device)
    about = machine.describe(timer)
    print(machine.headline(about))
    rows, deadline = [], time.monotonic() + options.patience
    directions = [options.direction] if options.direction else DIRECTIONS
    curves = itertools.product(options.op or MEASURED, directions, options.axis or AXES)
    for operator, direction, axis in curves:
        curve, history = [], History()
        for shape in (s for s in AXES[axis] if s.steps <= options.longest):
            point = (operator, direction, axis, shape)
            row, history = quietest(point, options.seconds, history, timer, deadline)
            curve.append(row)
            print(row.line(), flush=True)
        if len(curve) > 1:
            exponent = slope([r.size for r in curve], [r.ours_ms for r in curve])
            print(f"{operator} {direction}: time grows as {axis}^{exponent:.2f} at the end")
        rows += curve
    if options.json:
        print(f"written to {write_json(options.json, 'scaling', about, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
