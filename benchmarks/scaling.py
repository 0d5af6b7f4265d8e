"""How times grow with T, K, C and B: ``python -m benchmarks.scaling --json``.

One dimension at a time, ours and the fastest PyTorch composition of each point, verified against
float64 before they are timed. The slope is that of log time over log size between the last two
points that are at least a factor of four apart: 1 is linear.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from . import machine
from .compare import RESULTS, write_json
from .measure import KANERVA, Problem, WrongResult, interleaved, mode, providers, quick_time
from .rivals import DIRECTIONS, Shape

#: dimension -> shapes that differ in it alone
AXES: dict[str, list[Shape]] = {
    "T": [Shape(1, 2**n, 32, 100) for n in (5, 7, 9, 11, 13)],
    "K": [Shape(4, 64, 2**n, 128) for n in range(3, 11)],
    "C": [Shape(4, 64, 64, 2**n) for n in range(4, 11)],
    "B": [Shape(2**n, 32, 32, 100) for n in range(0, 9)],
}
OPERATORS = ("bayes_write", "adaptive_write", "recall")
SLOW = 1.0  # seconds of a call from which on a rival is not timed again
LONGEST = 8192  # what the truths in float64 hold in memory


@dataclass
class Row:
    """One point of a curve; times in milliseconds per call."""

    operator: str
    direction: str
    axis: str
    shape: str
    size: int
    ours_ms: float
    rival_ms: float | None  # None: none was fast enough to be timed
    rival: str | None
    error: float

    def line(self) -> str:
        rival = "" if self.rival_ms is None else f"{self.rival_ms:10.3f}  {self.rival}"
        return (
            f"{self.operator:15} {self.direction:17} {self.axis} {self.shape:16} "
            f"{self.ours_ms:10.3f} {rival}"
        )


def candidates(problem: Problem) -> tuple[dict, dict[str, float]]:
    """Verified calls of ours and the two fastest rivals, and errors by name."""
    calls, errors, first = {}, {}, {}
    for rival in providers(problem.operator, problem.shape, problem.direction):
        if rival.family == "compile" or (rival.family == "steps" and problem.shape.steps > 64):
            continue
        call = problem.bind(rival)
        start = time.perf_counter()
        try:
            errors[rival.name] = problem.verify(rival, call)
        except WrongResult:
            if rival.name == KANERVA:
                raise
            continue
        if time.perf_counter() - start > SLOW and rival.name != KANERVA:
            continue
        calls[rival.name] = call
        with mode(problem.direction):
            first[rival.name] = quick_time(call, 0.02)
    fastest = sorted((n for n in calls if n != KANERVA), key=first.__getitem__)[:2]
    return {name: calls[name] for name in [KANERVA, *fastest]}, errors


def measure(operator: str, direction: str, axis: str, shape: Shape, seconds: float) -> Row:
    problem = Problem(operator, shape, direction)
    calls, errors = candidates(problem)
    with mode(direction):
        times = interleaved(calls, 15, seconds)
    medians = {name: statistics.median(t) for name, t in times.items()}
    rivals = [name for name in medians if name != KANERVA]
    best = min(rivals, key=medians.__getitem__, default=None)
    return Row(
        operator,
        direction,
        axis,
        str(shape),
        shape["BTKC".index(axis)],
        medians[KANERVA] * 1e3,
        None if best is None else medians[best] * 1e3,
        best,
        errors[KANERVA],
    )


def points(axis: str) -> list[Shape]:
    return [shape for shape in AXES[axis] if shape.steps <= LONGEST]


def slope(sizes: list[int], times: list[float]) -> float:
    """Exponent between the last point and the last one before it at least four times smaller."""
    end = len(sizes) - 1
    start = max((i for i in range(end) if 4 * sizes[i] <= sizes[end]), default=0)
    return math.log(times[end] / times[start]) / math.log(sizes[end] / sizes[start])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--op", action="append", choices=OPERATORS, help="default: all")
    parser.add_argument("--axis", action="append", choices=list(AXES), help="default: all")
    parser.add_argument("--direction", choices=DIRECTIONS, help="default: both")
    parser.add_argument("--seconds", type=float, default=1.0, help="per point (default 1)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, nargs="?", const=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    about = machine.describe()
    print(machine.headline(about))
    rows = []
    for operator in options.op or OPERATORS:
        for direction in [options.direction] if options.direction else DIRECTIONS:
            for axis in options.axis or AXES:
                curve = []
                for shape in points(axis):
                    curve.append(measure(operator, direction, axis, shape, options.seconds))
                    print(curve[-1].line(), flush=True)
                if len(curve) > 1:
                    exponent = slope([r.size for r in curve], [r.ours_ms for r in curve])
                    print(f"{operator} {direction}: time grows as {axis}^{exponent:.2f} at the end")
                rows += curve
    if options.json:
        print(f"written to {write_json(options.json, 'scaling', about, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
