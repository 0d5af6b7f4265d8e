"""The benchmark of a memory that moves: its rivals are right, and a wrong one is found."""

import pytest
import torch

from benchmarks import moving
from benchmarks.rivals.spec import Shape

SHAPE = Shape(2, 32, 6, 5)


@pytest.mark.parametrize("run", [moving.forward, moving.with_gradient])
def test_rivals_are_the_recursion(run):
    inputs = moving.arguments(SHAPE, torch.float64)
    direction = "forward" if run is moving.forward else "gradient"
    truth = run(moving.recursion, inputs)
    everyone = {"ours": moving.moving, **moving.rivals(direction, SHAPE.steps)}
    assert {"ours", "chunks of 16", "chunks of 32"} <= set(everyone)
    for name, function in everyone.items():
        found = run(function, inputs)
        both = (found, truth) if run is moving.forward else map(moving.symmetrised, (found, truth))
        assert moving.error(*both) < 1e-10, name


def test_a_row_is_printed_where_all_are_right(capsys, monkeypatch):
    moving.measure(SHAPE, "forward", 1)
    assert capsys.readouterr().out.startswith("| 2x32x6x5 | forward |")
    monkeypatch.setattr(moving, "steps_inplace", lambda *x: moving.decaying(*x))
    with pytest.raises(SystemExit, match="steps in place, forward: off by"):
        moving.measure(SHAPE, "forward", 1)


def test_shapes_that_are_none_are_refused_by_name(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["moving", "--shapes", "8x2048"])
    with pytest.raises(SystemExit):
        moving.main()
    assert "--shapes: BxTxKxC,... of sizes from 1 on, got '8x2048'" in capsys.readouterr().err
