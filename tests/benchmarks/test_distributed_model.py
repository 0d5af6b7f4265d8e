"""The benchmark of writes over processes: its formulas, its model, and that it measures."""

import pytest
from checkout import ROOT

from benchmarks import distributed
from benchmarks.compare import tomllib

CONSTANTS = tomllib.loads(distributed.CONSTANTS.read_text())


def test_bytes_by_formula():
    assert distributed.bytes_of_a_write(3, 10, 7) == 8 * 3 * (55 + 70 + 1)
    assert distributed.bytes_of_a_write(1, 512, 768) == 4_196_360


def test_every_constant_says_where_it_was_published():
    lines = distributed.CONSTANTS.read_text().splitlines()
    for name in ("nvlink", "infiniband", "ring_simple", "gpu"):
        at = lines.index(f"[{name}]")
        around = " ".join(lines[max(0, at - 5) : at + 3])
        assert any(word in around for word in ("data sheet", "tuning.cc")), name


def test_a_reduction_by_hand():
    """A ring of 8 in one node: 14 steps over NVLink, 7/8 of the bytes twice."""
    nbytes = 64e6
    seconds, protocol = distributed.reduction_seconds(nbytes, 8, CONSTANTS)
    assert protocol == "ring_simple"
    assert seconds == pytest.approx(8.4e-6 + 14 * 3.4e-6 + 1.75 * nbytes / 450e9)
    # Few bytes over many nodes: a tree, whose latency grows as the logarithm of the nodes.
    seconds, protocol = distributed.reduction_seconds(8.0, 4096, CONSTANTS)
    assert protocol == "tree_low_latency"
    wait = 4.4e-6 + 2 * (7 * 0.52e-6 + 9 * 5.0e-6)
    assert seconds == pytest.approx(wait + 16 / (50e9 * 0.237))
    assert distributed.reduction_seconds(1e6, 1, CONSTANTS)[0] == 0


def test_the_model_stops_scaling_where_the_guide_says():
    shape = (1, 2**30, 512, 768)
    points = {n: distributed.simulate(shape, n, CONSTANTS) for n in (1, 8, 4096)}
    assert points[1].seconds / points[8].seconds == pytest.approx(8, rel=1e-2)
    efficiency = points[1].seconds / points[4096].seconds / 4096
    text = (ROOT / "docs/guides/scaling.md").read_text()
    assert f"| 4,096 | {points[4096].sums * 1e3:.1f} |" in text
    assert f"| {100 * efficiency:.1f} % |" in text
    short = [distributed.simulate(distributed.SHAPE, n, CONSTANTS).seconds for n in (1, 8, 32)]
    assert short[0] / short[1] == pytest.approx(1.9, abs=0.05) and short[2] > short[1]
    assert distributed.main(["model"]) == 0


@pytest.mark.slow
def test_it_measures_what_it_verified(capfd):
    assert distributed.main(["measure", "--shape", "1,3000,16,24", "--rounds", "2"]) == 0
    found = capfd.readouterr().out
    assert "strong scaling" in found and "times as fast as bayes_write" in found
    assert distributed.main(["bytes"]) == 0
    found = capfd.readouterr().out
    assert "by formula 557,584 bytes, counted 557,584" in found
