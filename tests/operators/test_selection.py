"""The pairwise design, and the marks by which engines choose."""

import itertools
from types import SimpleNamespace

import pytest
from helpers import CASES, METHODS
from selection import (
    ENGINES,
    INTERPRETER,
    PTX,
    SANITIZED,
    TEAMS,
    covering,
    engine,
    grid,
    is_left_out,
    not_on,
)


def quick_rows(params):
    """What ``make test`` runs of a grid."""
    return [p.values for p in params if "exhaustive" not in [mark.name for mark in p.marks]]


def pairs_of(rows):
    return {pair for row in rows for pair in itertools.combinations(enumerate(row), 2)}


@pytest.mark.parametrize("sizes", [(3, 4, 5), (2, 2, 2, 2, 2, 2), (6, 5, 4, 2), (1, 7)], ids=str)
def test_a_covering_holds_every_pair(sizes):
    rows = list(itertools.product(*(range(size) for size in sizes)))
    chosen = [rows[i] for i in covering(rows)]
    assert pairs_of(chosen) == pairs_of(rows)
    largest, second = sorted(sizes)[:-3:-1]
    assert largest * second <= len(chosen) <= max(largest * second, len(rows) // 2)


def test_a_covering_of_rows_that_are_not_a_product():
    rows = [(0, 0, 0), (0, 1, 1), (1, 0, 1), (2, 2, 2)]
    assert covering(rows) == [0, 1, 2, 3]  # no two share a pair
    assert covering([]) == [] and covering([(1, 2), (1, 2)]) == [0]


def test_the_rest_of_a_grid_is_exhaustive():
    params = grid("abc", (1, 2), (True, False), allowed=lambda a, b, c: a != "c" or b == 1)
    assert len(params) == 10
    quick = quick_rows(params)
    assert pairs_of(quick) == pairs_of([p.values for p in params])
    assert len(quick) < 10
    assert all([m.name for m in p.marks] in ([], ["pair"], ["exhaustive"]) for p in params)


def test_without_the_pairs_every_value_is_left():
    params = grid("abc", (1, 2), (True, False), allowed=lambda a, b, c: a != "c" or b == 1)
    few = [p.values for p in params if not p.marks]
    assert [set(values) for values in zip(*few, strict=True)] == [{*"abc"}, {1, 2}, {True, False}]
    assert len(few) < len(quick_rows(params))


@pytest.mark.parametrize(
    ("variables", "left"),
    [
        ((), {"one", "pair", "exhaustive"}),
        (("KANERVA_TEST_SANITIZED",), {"one", "pair"}),
        (("KANERVA_TEST_LIBRARY",), {"one", "pair"}),
        (("KANERVA_TEST_LIBRARY", "KANERVA_TEAM_WORK"), {"one"}),
        (("TRITON_INTERPRET",), {"one"}),
    ],
)
def test_what_an_engine_runs_of_a_grid(monkeypatch, variables, left):
    set_engine(monkeypatch, variables)
    items = [_Item(mark) for mark in ("one", "pair", "exhaustive")]
    assert {item.mark for item in items if not is_left_out(item)} == left


def set_engine(monkeypatch, variables):
    """What chooses an engine: these variables and no others."""
    names = ("TRITON_INTERPRET", "KANERVA_TEST_LIBRARY", "KANERVA_TEAM_WORK")
    for name in (*names, "KANERVA_TEST_SANITIZED"):
        monkeypatch.delenv(name, raising=False)
    for name in variables:
        monkeypatch.setenv(name, "0")


class _Item:
    """As much of a pytest.Item as is asked for."""

    def __init__(self, mark):
        self.mark = mark
        self.config = SimpleNamespace(getoption=lambda name: False)

    def iter_markers(self, name):
        return iter(())

    def get_closest_marker(self, name):
        return name if name == self.mark else None


def test_every_kind_of_hard_data_meets_every_method_and_both_dtypes():
    params = grid(CASES, METHODS, (32, 64), values=lambda c, m, d: (*c[:2], m, d))
    quick = quick_rows(params)
    for what in ("kind", "noise"):
        met = {(getattr(c, what), m, d) for c, m, d in quick}
        assert {x[:2] for x in met} == {(getattr(c, what), m) for c in CASES for m in METHODS}
        assert {(x[0], x[2]) for x in met} == {
            (getattr(c, what), d) for c in CASES for d in (32, 64)
        }
    assert len(quick) < len(params) / 4


def test_engines_that_do_not_exist_are_refused():
    assert not_on(*ENGINES, reason="because").args == ENGINES
    with pytest.raises(ValueError, match=r"no such engine: \['gpu'\]; there are \('interpreter'"):
        not_on("gpu", reason="because")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ((), None),
        (("TRITON_INTERPRET",), INTERPRETER),
        (("KANERVA_TEST_LIBRARY",), PTX),
        (("KANERVA_TEST_LIBRARY", "KANERVA_TEAM_WORK"), TEAMS),
        (("KANERVA_TEAM_WORK",), None),
        (("KANERVA_TEST_SANITIZED",), SANITIZED),
    ],
)
def test_the_engine_under_test(monkeypatch, variables, expected):
    set_engine(monkeypatch, variables)
    assert engine() == expected
