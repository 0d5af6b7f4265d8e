"""Which tests run where: marks by what a test costs, and a pairwise design of parameters.

``make test`` leaves out the marks ``slow`` (one test takes long) and ``exhaustive`` (the rest of a
grid of which a covering part runs: every value of every parameter with every value of every other
one). ``make test-all`` runs both.

The operators' tests also run on engines that are slower than the CPU's kernels. A test that one of
them cannot afford is marked ``not_on(engine, reason=...)``, and conftest leaves it out there. The
slowest run a grid's every value at least once and not every pair: the mark ``pair`` is on the rest.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

INTERPRETER = "interpreter"  # Triton's: a tenth of a second for every few tiles
PTX = "ptx"  # the instructions that nvcc makes of the CUDA kernels, one after another
TEAMS = "teams"  # the same, with a team of blocks for every memory
SANITIZED = "sanitized"  # the CPU's kernels, with every access and operation checked
ENGINES = (INTERPRETER, PTX, TEAMS, SANITIZED)
#: Where every value of a parameter runs, and not every two together: PTX runs the pairs as well.
SLOWEST = (INTERPRETER, TEAMS)


def engine() -> str | None:
    """What runs the kernels under test; None for the library as it is installed."""
    if "TRITON_INTERPRET" in os.environ:
        return INTERPRETER
    if "KANERVA_TEST_LIBRARY" in os.environ:
        return TEAMS if "KANERVA_TEAM_WORK" in os.environ else PTX
    if "KANERVA_TEST_SANITIZED" in os.environ:
        return SANITIZED
    return None


def is_left_out(item: pytest.Item) -> bool:
    """Whether the engine cannot afford this test. There a grid is a covering part.

    ``pytest --whole`` leaves nothing out, for hours.
    """
    now = engine()
    if now is None or item.config.getoption("whole"):
        return False
    names = {now, PTX} if now in (TEAMS, SANITIZED) else {now}
    if any(names & set(mark.args) for mark in item.iter_markers("not_on")):
        return True
    rest = ("exhaustive", "pair") if now in SLOWEST else ("exhaustive",)
    return any(item.get_closest_marker(mark) is not None for mark in rest)


def not_on(*engines: str, reason: str) -> pytest.MarkDecorator:
    """A mark for tests that these engines cannot afford, or that say nothing there."""
    unknown = set(engines) - set(ENGINES)
    if unknown:
        raise ValueError(f"no such engine: {sorted(unknown)}; there are {ENGINES}")
    return pytest.mark.not_on(*engines, reason=reason)


#: For tests of the reference's own formulas.
REFERENCE_ALONE = not_on(*ENGINES, reason="no kernel runs")
#: For tests of autograd, dispatch and compilation, which are the same for all kernels.
MANY_CALLS = not_on(
    INTERPRETER, PTX, reason="hundreds of calls, or compilation, around few kernels"
)

#: For tests of what is done before a kernel is called, and after.
AROUND_A_KERNEL = not_on(INTERPRETER, reason="the same around all kernels, and many calls")


def covering(rows: Sequence[tuple], strength: int = 2) -> list[int]:
    """Indices of rows in which every two values that share a row somewhere share one.

    Each row has one value for each parameter. Greedy, so nearly as few as can be. Rows without
    a pair of values are all alike: the first stands for them. With a ``strength`` of 1 every value
    is in a row.
    """

    def sets(row: tuple) -> set:
        return set(itertools.combinations(enumerate(row), strength))

    left = [(index, sets(row)) for index, row in enumerate(rows)]
    missing = set().union(*(found for _, found in left)) if left else set()
    chosen = [] if missing else [index for index, _ in left[:1]]
    while missing:
        index, found = max(left, key=lambda each: len(each[1] & missing))
        chosen.append(index)
        missing -= found
        left = [each for each in left if each[1] & missing]
    return sorted(chosen)


def grid(
    *axes: Iterable[Any],
    values: Callable[..., tuple] = lambda *row: row,
    allowed: Callable[..., bool] = lambda *row: True,
    name: Callable[..., str] = lambda *row: "-".join(map(str, row)),
    marks: Callable[..., Iterable[pytest.MarkDecorator]] = lambda *row: (),
) -> list:
    """The product of the axes for ``parametrize``; what its covering part leaves is ``exhaustive``,
    and of that part what every value can do without is ``pair``.

    Args:
        axes: the values of each parameter.
        values: what counts as the values of a row in the covering; default: the row.
        allowed: whether a row is one of the grid.
        name: a row's id.
        marks: more marks of a row.
    """
    rows = [row for row in itertools.product(*axes) if allowed(*row)]
    counted = [values(*row) for row in rows]
    pairs = covering(counted)
    singles = {pairs[i] for i in covering([counted[i] for i in pairs], strength=1)}

    def rank(index: int) -> list[pytest.MarkDecorator]:
        if index in singles:
            return []
        return [pytest.mark.pair if index in pairs else pytest.mark.exhaustive]

    return [
        pytest.param(*row, id=name(*row), marks=[*marks(*row), *rank(index)])
        for index, row in enumerate(rows)
    ]
