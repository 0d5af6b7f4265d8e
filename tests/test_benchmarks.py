"""What the benchmarks count and report, and that their checks can fail."""

import json
from pathlib import Path

import pytest
import torch

import kanerva_ext
from benchmarks import ceilings, compare, costs, counters, overhead, report, scaling
from benchmarks.measure import KANERVA, Problem, WrongResult, on_backends, providers
from benchmarks.reproduction_page import TABLES, write_page
from benchmarks.rivals import OPERATORS, Rival, Shape

ROOT = Path(__file__).parents[1]
SHAPE = Shape(2, 4, 3, 5)


def test_counts_of_a_known_call():
    a = torch.ones(100, 100)

    def call():
        b = a + a  # 40,000 bytes
        c = b @ b  # 40,000 more, both alive
        return c.sum()

    counts = counters.count(call)
    assert counts.launches == 3
    assert 80_000 <= counts.peak_bytes < 81_000


def test_the_share_of_a_ceiling():
    rate = ceilings.product_rate()
    at_half = ceilings.share(1.0, 0.0, rate / 2)
    assert at_half.binds == "arithmetic" and at_half.share == pytest.approx(0.5)
    assert at_half.gflop_per_s == pytest.approx(rate / 2e9)
    nbytes = 2.0**20
    copied = ceilings.share(nbytes / ceilings.copy_rate(nbytes), nbytes, 1.0)
    assert copied.binds == "bandwidth" and copied.share == pytest.approx(1.0)


@pytest.mark.parametrize("operator", OPERATORS)
def test_costs_grow_with_every_dimension(operator):
    small = costs.flops(operator, SHAPE, "forward")
    assert costs.flops(operator, SHAPE, "forward_backward") == 3 * small > 0
    has_steps = operator not in ("memory_kl", "statistics")
    for i, axis in enumerate(("batch", "steps", "slots", "code")):
        larger = costs.flops(operator, SHAPE._replace(**{axis: 4 * SHAPE[i]}), "forward")
        assert larger == small if axis == "steps" and not has_steps else larger > small


def test_read_costs_two_products():
    assert costs.read_flops(Shape(1, 7, 5, 3)) == 2 * 7 * 5 * 3 + 2 * 7 * 5 * 5 + 2 * 7 * 5


def test_the_traffic_of_a_call_is_its_tensors():
    problem = Problem("read", SHAPE, "forward")
    b, t, k, c = SHAPE
    inputs, outputs = b * (k * c + k * k + t * k), b * t * (c + 1)
    assert problem.nbytes == 4 * (inputs + outputs)
    assert Problem("read", SHAPE, "forward_backward").nbytes == 4 * (2 * inputs + outputs)


def test_a_wrong_provider_is_not_timed():
    problem = Problem("read", SHAPE, "forward")
    spec = OPERATORS["read"]
    wrong = Rival("wrong", lambda *x: [1.01 * y for y in spec.kanerva(*x)])
    with pytest.raises(WrongResult, match=r"wrong has a relative error of 1\.0e-02"):
        problem.verify(wrong, problem.bind(wrong))


def test_every_backend_that_is_here_is_a_provider():
    names = [provider.name for provider in on_backends("read")]
    here = [name for name, status in kanerva_ext.backends().items() if status == "available"]
    assert names == [f"{KANERVA}[{name}]" for name in here] and "reference" in here
    problem = Problem("read", SHAPE, "forward")
    for provider in on_backends("read"):
        assert problem.verify(provider, problem.bind(provider)) < 1e-5


def test_a_ratio_below_its_floor_fails(capsys, monkeypatch):
    arguments = ["--op", "read", "--shapes", "2x4x3x5", "--direction", "forward"]
    arguments += ["--seconds", "0.05", "--patience", "0", "--threads", "1", "--check"]
    floors = '[read."2x4x3x5"]\nforward = {0}\n[ci.read."2x4x3x5"]\nforward = {1}\n'
    monkeypatch.setattr(compare, "FLOORS", _Text(floors.format(1e9, 1e-9)))
    assert compare.main(arguments) == 1
    assert "1 of 1 floors are not met" in capsys.readouterr().out
    assert compare.main([*arguments, "--floors", "ci"]) == 0


class _Text:
    def __init__(self, text):
        self.text = text

    def read_text(self):
        return self.text


def test_floors_name_what_is_compared():
    floors = compare.tomllib.loads((ROOT / "benchmarks" / "floors.toml").read_text())
    tables = [(name, shapes) for name, shapes in floors["ci"].items()]
    tables += [(n, s) for n, s in floors.items() if n not in ("ci", "memory")]
    for operator, shapes in tables:
        assert operator in OPERATORS
        for shape in shapes:
            assert len(Shape(*map(int, shape.split("x")))) == 4


def test_slopes():
    sizes = [32, 64, 128, 256]
    assert scaling.slope(sizes, [1.0, 1.0, 3.0, 9.0]) == pytest.approx(1.585, abs=1e-3)
    assert scaling.slope(sizes, [s**2.0 for s in sizes]) == pytest.approx(2.0)


def test_a_point_of_a_curve():
    row = scaling.measure("recall", "forward", "K", Shape(1, 4, 8, 5), 0.05)
    assert (row.axis, row.size, row.shape) == ("K", 8, "1x4x8x5")
    assert row.ours_ms > 0 and row.rival_ms > 0 and row.error < 1e-5
    assert row.rival in [p.name for p in providers("recall", Shape(1, 4, 8, 5), "forward")]


def test_the_layers_of_a_call_add_up():
    for operator in overhead.OPERATORS:
        rows = overhead.measure(operator, 0.2)
        *layers, empty = rows
        assert len(layers) == 4 and all(row.total_us > 0 for row in rows)
        assert sum(row.own_us for row in layers) == pytest.approx(layers[-1].total_us)
        assert empty.own_us == empty.total_us


def test_a_report_has_the_newest_of_each_device(tmp_path, monkeypatch):
    def save(stamp, cpu, ms, **about):
        machine = {"cpu": cpu, "date": "2026-01-02T", "commit": "0123456789abc", "torch": "2"}
        machine |= {"threads": 2, "simd": "avx512", "gemm_gflops": 9.0} | about
        row = {"operator": "read", "shape": "1x2x3x4", "direction": "forward", "against": "all"}
        row |= {"ours_ms": ms, "rival_ms": 1.0, "ratio": 1 / ms, "rival": "plain"}
        row |= {"ours_error": 1e-7, "other_load": 0.7}
        content = {"benchmark": "compare", "machine": machine, "rows": [row]}
        (tmp_path / f"compare-{stamp}-x.json").write_text(json.dumps(content))

    save("20260101T000000", "A", 8.0)
    save("20260102T000000", "A", 2.0)
    save("20260101T000001", "B", 0.25)
    text = report.page(report.newest(tmp_path))
    assert "## A" in text and "## B" in text and "8.000 ms" not in text
    assert "| (1, 2, 3, 4) | 2.000 ms | 1.000 ms | **0.50** | `plain` | 1e-07 |" in text
    assert "| 0.250 ms | 1.000 ms | 4.00 | `plain` |" in text
    assert "0 of 1 rows are at least as fast" in text and "1 of 1 rows" in text
    assert "kept up to 0.7 cores busy" in text


def test_the_page_of_the_reproduction(tmp_path):
    def run(bound, **more):
        terms = {"bound": bound, "reconstruction": bound - 20, "kl_z": 20.0}
        return {"steps": 1000, "seconds": 60.0, "test": terms | more}

    def experiment(*bounds, **more):
        runs = {f"s{i}": run(bound, **more) for i, bound in enumerate(bounds)}
        return {"command": "kanerva train x", "runs": runs}

    noise = {"corrupted": 0.08, "after_read": [0.04, 0.03, 0.025]}
    kanerva = experiment(60.0, 66.0)
    kanerva["runs"]["s0"]["aware"] = noise
    results = {
        "machine": {"cpu": "C", "cores": 2, "torch": "2", "commit": "c" * 40, "date": "2026-01-02"},
        "experiments": {
            "kanerva": kanerva,
            "vae": experiment(90.0),
            "cifar-vae": experiment(-9000.0, bits_per_dim=5.25),
            "dnc-lr1e-3": experiment(120.0, 130.0),
            "short-kanerva-lr1e-3": experiment(95.0),
        },
        "capacity": "label,length,bound,clean_error,noisy_error\na,8,60,.01,.02\na,8,70,.03,.04\n",
    }
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {n} -->\nold\n<!-- /{n} -->\n" for n in TABLES))
    for _ in range(2):  # also over its own tables
        write_page(results, page)
    text = page.read_text()
    assert "old" not in text
    assert (
        "| Kanerva Machine | 1,000 | 60 s | 60.0, 66.0 | 43.0 | - | 20.0 | - | - | 0.70 |" in text
    )
    assert "| VAE, same coders | 1,000 | 60 s | 90.0 | 70.0 | - | 20.0 | - | - | 1.00 |" in text
    assert "| -9020.0 | - | 20.0 | - | - | 5.25 |" in text
    assert "and the noise that it knows of | 8.0% | 4.0% | 3.0% | 2.5% |" in text
    assert "| Differentiable Neural Computer | 120.0, 130.0 |" in text
    assert "| a | 65 |" in text and "| a | 2.0% |" in text and "| a | 3.0% |" in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="no markers of origin"):
        write_page(results, page)
