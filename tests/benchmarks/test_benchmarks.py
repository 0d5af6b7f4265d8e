"""What the benchmarks count and report, and that their checks can fail."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from checkout import ROOT
from fake_device import FakeCuda, FakeDevice

import kanerva_ext
from benchmarks import (
    ceilings,
    compare,
    costs,
    counters,
    overhead,
    report,
    scaling,
    timers,
    truths,
)
from benchmarks.measure import KANERVA, Problem, WrongResult, interleaved, on_backends, providers
from benchmarks.reproduction_page import TABLES, write_page
from benchmarks.rivals import OPERATORS, Rival, Shape
from kanerva_ext import ops

SHAPE = Shape(2, 4, 3, 5)


def test_device_times_are_of_events_with_the_cache_cleared():
    timer = FakeDevice()
    assert timer._scratch.nbytes > FakeCuda.L2
    log = timer.cuda.log
    assert timer.samples(lambda: log.append("call"), 2) == [0.25e-3] * 2
    kinds = [x if isinstance(x, str) else "event" for x in log]
    assert kinds == ["call", *["flush", "event", "call", "event"] * 2, "wait"]
    assert len({id(x) for x in log if not isinstance(x, str)}) == 4
    log.clear()
    watch = timer.stopwatch()
    for _ in range(2):
        start = watch()
        log.append("call")
        assert watch() - start == 0.25e-3
    kinds = [x if isinstance(x, str) else "event" for x in log]
    assert kinds == ["flush", "event", "call", "event", "wait"] * 2


def test_both_sources_of_times_have_one_interface():
    for timer in (timers.HOST, FakeDevice()):
        assert all(t > 0 for t in timer.samples(lambda: None, 3))
        assert timers.quick_time(lambda: None, 1e-3, timer=timer) > 0
        assert timers.median_seconds(lambda: None, timer, 1e-3) > 0
        times = interleaved({"a": lambda: None, "b": lambda: None}, 3, 0.01, timer=timer)
        assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3}
        assert timers.copy_rate(timer, 2**14) > 0 and timers.product_rate(timer, 64) > 0
    assert times["a"] == [0.25e-3] * 3
    assert timers.copy_rate(timer, 2**14) == pytest.approx(2**14 / 0.25e-3)
    assert timers.product_rate(timer, 64, tf32=True) == pytest.approx(2 * 64**3 / 0.25e-3)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert timers.of("cpu") is timers.HOST and timers.default_device() in ("cpu", "cuda")


def test_counts_on_a_gpu():
    timer = FakeDevice()
    counts = counters.count(lambda: None, timer)
    assert counts == (0, 500) and counters.peak_bytes(lambda: None, timer) == 500
    assert "reset" in timer.cuda.log

    def event(device, kind):
        return SimpleNamespace(device_type=lambda: device, activity_type=lambda: kind)

    gpu, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [event(gpu, "kernel"), event(gpu, "gpu_memcpy"), event(gpu, "gpu_memset")]
    events += [event(cpu, "cpu_op"), event(gpu, "gpu_user_annotation"), event(gpu, "kernel")]
    assert counters.kernels(events) == 2


def test_backends_of_a_device():
    assert "cpu" not in [p.name for p in on_backends("read", "cuda")]
    assert f"{KANERVA}[cuda]" not in [p.name for p in on_backends("read", "cpu")]


@pytest.mark.slow
def test_compare_on_a_device(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(timers, "of", lambda device: FakeDevice())
    monkeypatch.setattr(timers, "finds_gpu", lambda: True)
    monkeypatch.setattr(compare, "compiled_backends", lambda timer: ["auto", "reference"])
    arguments = ["--op", "read", "--shapes", "2x4x3x5", "--device", "cuda", "--seconds", "0.05"]
    arguments += ["--patience", "0", "--threads", "1", "--json", str(tmp_path / "compare-x.json")]
    monkeypatch.setattr(ceilings, "product_rate", lambda timer, tf32=False: 1e12)
    assert compare.main(arguments) == 0
    assert "read[reference]" in capsys.readouterr().out
    content = json.loads((tmp_path / "compare-x.json").read_text())
    assert content["machine"]["gpu"] == "Fake GPU"
    rows = content["rows"]
    assert [(r["direction"], r["backend"]) for r in rows] == [
        (direction, backend)
        for direction in ("forward", "forward_backward")
        for backend in ("auto", "reference")
    ]
    assert all(r["ours_ms"] == r["rival_ms"] == 0.25 and r["ratio"] == 1 for r in rows)
    assert all(r["ours_peak_bytes"] == r["rival_peak_bytes"] == 500 for r in rows)
    page = report.page(report.newest(tmp_path))
    assert "## Fake GPU" in page and "`read`, backend reference: " in page
    assert "GB/s in a copy" in page and "in TensorFloat-32" in page


PLUGIN = """
from benchmarks import ceilings, timers
from fake_device import FakeDevice
device = FakeDevice()
timers.of = lambda name: device
ceilings._product_rate = lambda timer, tf32: 1e12
"""


@pytest.mark.slow
def test_pytest_benchmarks_on_a_device(tmp_path):
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "stand_in.py").write_text(PLUGIN)
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "tests")))
    saved = tmp_path / "saved.json"
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_operators.py", "-p", "stand_in"]
    command += ["--device", "cuda", "-k", "[read-64x16x16x64-forward-", f"--benchmark-json={saved}"]
    # A worker of pytest-xdist would be taken for one of its own, which times nothing.
    outside = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=ROOT, env=outside | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "copy of 512 MiB" in done.stdout
    found = json.loads(saved.read_text())["benchmarks"]
    names = {case["extra_info"]["provider"] for case in found}
    assert {KANERVA, "inner", f"{KANERVA}[reference]"} <= names
    assert all(case["stats"]["median"] == pytest.approx(0.25e-3) for case in found)
    assert all(case["extra_info"]["peak_bytes"] == 500 for case in found)


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
    has_steps = any("T" in arg.dims for arg in ops.OPERATORS[operator].args)
    for i, axis in enumerate(("batch", "steps", "slots", "code")):
        larger = costs.flops(operator, SHAPE._replace(**{axis: 4 * SHAPE[i]}), "forward")
        assert larger == small if axis == "steps" and not has_steps else larger > small


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


def _interpreted():
    return os.environ.get("TRITON_INTERPRET") == "1"


def test_every_backend_that_is_here_is_a_provider():
    names = [provider.name for provider in on_backends("read")]
    here = [name for name, status in kanerva_ext.backends().items() if status == "available"]
    here = [n for n in here if n in ("cpu", "reference") or (n == "triton" and _interpreted())]
    assert names == [f"{KANERVA}[{name}]" for name in here] and "reference" in here
    problem = Problem("read", SHAPE, "forward")
    for provider in on_backends("read"):
        assert problem.verify(provider, problem.bind(provider)) < 1e-5


OF_THE_CEILING = '[of_ceiling]\noperators = ["read"]\n"2x4x3x5" = {0}\n'


@pytest.mark.parametrize(
    "text", ['[read."2x4x3x5"]\nforward = {0}\n', "everywhere = {0}\n", OF_THE_CEILING]
)
def test_a_row_below_a_floor_fails(text, capsys, monkeypatch):
    arguments = ["--op", "read", "--shapes", "2x4x3x5", "--direction", "forward"]
    arguments += ["--seconds", "0.05", "--patience", "0", "--threads", "1", "--check"]
    texts = {"goals": _Text(text.format(1e9)), "ci": _Text(text.format(1e-9))}
    monkeypatch.setattr(compare, "FLOORS", texts)
    assert compare.main(arguments) == 1
    assert "1 of 1 floors are not met" in capsys.readouterr().out
    assert compare.main([*arguments, "--floors", "ci"]) == 0


class _Text:
    def __init__(self, text):
        self.text = text

    def read_text(self):
        return self.text


@pytest.mark.parametrize("kind", compare.FLOORS)
def test_floors_name_what_is_compared(kind):
    floors = compare.tomllib.loads(compare.FLOORS[kind].read_text())
    assert ("memory" in floors) == ("everywhere" in floors) == (kind == "goals")
    floors.pop("memory", None)
    floors.pop("everywhere", None)
    of_ceiling = floors.pop("of_ceiling", {"operators": []})
    assert set(of_ceiling.pop("operators")) <= set(OPERATORS)
    shapes = [*of_ceiling, *(shape for of_operator in floors.values() for shape in of_operator)]
    assert shapes and set(floors) <= set(OPERATORS)
    assert all(len(Shape(*map(int, shape.split("x")))) == 4 for shape in shapes)


def test_slopes():
    sizes = [32, 64, 128, 256]
    assert scaling.slope(sizes, [1.0, 1.0, 3.0, 9.0]) == pytest.approx(1.585, abs=1e-3)
    assert scaling.slope(sizes, [s**2.0 for s in sizes]) == pytest.approx(2.0)


def test_a_point_of_a_curve():
    row = scaling.measure("recall", "forward", "K", Shape(1, 4, 8, 5), 0.05)
    assert (row.axis, row.size, row.shape) == ("K", 8, "1x4x8x5")
    assert row.ours_ms > 0 and row.rival_ms > 0 and row.error < 1e-5
    assert row.rival in [p.name for p in providers("recall", Shape(1, 4, 8, 5), "forward")]


def test_the_truth_of_a_long_episode_is_that_of_a_short_one(monkeypatch):
    shape = Shape(2, 40, 6, 5)
    for direction in ("forward", "forward_backward"):
        by_autograd = Problem("bayes_write", shape, direction)
        with monkeypatch.context() as patch:
            patch.setattr(truths, "LONGEST", 39)
            assert truths.has_closed_form("bayes_write", shape)
            closed = Problem("bayes_write", shape, direction)
        assert closed.error([x.double() for x in by_autograd.truth]) < 1e-11
    assert not truths.has_closed_form("recall", Shape(1, 65_536, 32, 100))


def test_axes_of_the_curves():
    sizes = {axis: [s["BTKC".index(axis)] for s in shapes] for axis, shapes in scaling.AXES.items()}
    assert (sizes["T"][0], sizes["T"][-1], sizes["K"][0], sizes["K"][-1]) == (32, 65_536, 8, 1024)
    for axis, shapes in scaling.AXES.items():
        i = "BTKC".index(axis)
        assert len({s[:i] + s[i + 1 :] for s in shapes}) == 1 and sizes[axis] == sorted(sizes[axis])


def test_who_is_left_out_of_a_point():
    history = scaling.History()
    history.add(10, {"fast": (0.1, 10), "large": (0.1, 10**8), "slow": (1.5, 10)})
    assert all(history.why_not(name, 20) is None for name in ("fast", "large", "slow", "new"))
    assert history.why_not("large", 100) == scaling.TOO_LARGE  # by the square
    history.add(20, {"fast": (0.2, 20), "large": (0.2, 2 * 10**8), "slow": (3.0, 20)})
    assert history.why_not("large", 100) is None  # linear, as it turns out
    assert history.why_not("large", 401) == scaling.TOO_LARGE
    assert history.why_not("fast", 1900) is None
    assert history.why_not("fast", 2100) == scaling.TOO_LONG
    assert history.why_not("slow", 40) == scaling.TOO_SLOW  # at two points in a row
    history.add(40, {"fast": (2.4, 20)})  # 12 times as long: a hiccup, not a power above the cube
    assert history.why_not("fast", 80) is None and history.why_not("fast", 84) == scaling.TOO_LONG


def test_a_busy_point_is_measured_again(monkeypatch):
    loads = iter([0.8, 1.5, 0.05, 0.7])

    def measure(operator, direction, axis, shape, seconds, history, timer):
        load = next(loads)
        history.add(4, {"rival": (load, 1)})
        return scaling.Row(
            operator, direction, axis, str(shape), 4, load, None, None, 0.0, {}, load
        )

    monkeypatch.setattr(scaling, "measure", measure)
    point = ("read", "forward", "K", SHAPE)
    row, history = scaling.quietest(point, 0.0, scaling.History(), timers.HOST, float("inf"))
    assert row.ours_ms == 0.05  # the first quiet one; it alone counts for the next points
    assert history.why_not("rival", 4 * 20) is None
    assert history.why_not("rival", 4 * 21) == scaling.TOO_LONG  # 0.05 s times 21 squared
    row, _ = scaling.quietest(point, 0.0, scaling.History(), timers.HOST, 0.0)
    assert row.ours_ms == 0.7  # no time is left


def test_a_point_says_who_was_left_out_and_the_page_too():
    shape = Shape(1, 300, 4, 3)  # longer than what one factor is made for
    row = scaling.measure("bayes_write", "forward", "T", shape, 0.02)
    (reason,) = [r for r in row.left_out if "T^3" in r]
    assert "solve" in row.left_out[reason] and row.rival not in row.left_out[reason]
    alone = scaling.Row("read", "forward", "T", "1x64x2x3", 64, 1.0, None, None, 1e-7)
    alone.left_out = {scaling.TOO_LARGE: ["a", "b"], scaling.TOO_LONG: ["c"]}
    earlier = scaling.Row("read", "forward", "T", "1x32x2x3", 32, 1.0, 3.0, "a", 1e-7)
    earlier.left_out = {scaling.TOO_LONG: ["c"]}
    table, notes = report.curve_table([earlier, alone], "read")
    assert "| (1, 32, 2, 3) | 1.000 ms | 3.000 ms<sup>1</sup> | 3.00 | `a` |" in table
    assert "| (1, 64, 2, 3) | 1.000 ms | -<sup>1</sup> | - | - | - |" in table
    assert "1. T, forward: would need more than 20 s (`c` at 32 to 64); " in notes
    assert "would need more than 4 GB (`a`, `b` at 64)" in notes


def test_the_layers_of_a_call_add_up():
    for operator in overhead.OPERATORS:
        rows = overhead.measure(operator, 0.2)
        layers, apart = rows[:4], rows[4:]
        assert [row.layer for row in apart] == list(overhead.APART)
        assert all(row.total_us > 0 for row in rows)
        assert sum(row.own_us for row in layers) == pytest.approx(layers[-1].total_us)
        assert all(row.own_us == row.total_us for row in apart)


def test_a_report_has_the_newest_of_each_device(tmp_path, monkeypatch):
    def save(stamp, cpu, ms, **about):
        machine = {"cpu": cpu, "date": "2026-01-02T", "commit": "0123456789abc", "torch": "2"}
        machine |= {"threads": 2, "simd": "avx512", "gemm_gflops": 9.0} | about
        row = {"operator": "read", "shape": "1x2x3x4", "direction": "forward", "against": "all"}
        row |= {"ours_ms": ms, "rival_ms": 1.0, "ratio": 1 / ms, "rival": "plain"}
        row |= {"ours_error": 1e-7, "other_load": 0.7, "of_ceiling": 0.4}
        content = {"benchmark": "compare", "machine": machine, "rows": [row]}
        (tmp_path / f"compare-{stamp}-x.json").write_text(json.dumps(content))

    save("20260101T000000", "A", 8.0)
    save("20260102T000000", "A", 2.0)
    save("20260101T000001", "B", 0.25)
    text = report.page(report.newest(tmp_path))
    assert "## A" in text and "## B" in text and "8.000 ms" not in text
    assert "| (1, 2, 3, 4) | 2.000 ms | 0.40 | 1.000 ms | **0.50** | `plain` | 1e-07 |" in text
    assert "| 0.250 ms | 0.40 | 1.000 ms | 4.00 | `plain` |" in text
    assert "0 of 1 rows are at least as fast" in text and "1 of 1 rows" in text
    assert "kept up to 0.7 cores busy" in text


def test_the_page_of_the_reproduction(tmp_path):
    def run(bound, **more):
        terms = {"bound": bound, "reconstruction": bound - 20, "kl_z": 20.0}
        run = {"steps": 1000, "planned_steps": 1000, "seconds": 60.0, "images": 64_000}
        machine = {"cpu": "C", "cores": 2, "torch": "2", "commit": "c" * 40, "date": "2026-01-02"}
        run["machine"] = machine
        return run | {"test": terms | more}

    def experiment(*bounds, **more):
        runs = {f"s{i}": run(bound, **more) for i, bound in enumerate(bounds)}
        return {"command": "kanerva train x", "runs": runs}

    colour = experiment(-9000.0, -9100.0, -9999.0, bits_per_dim=5.25)
    for seed in ("s0", "s1"):  # the third is elsewhere: a row of its own
        colour["runs"][seed] |= {"steps": 500, "planned_steps": 1000, "images": 128_000}
    colour["runs"]["s1"]["test"] |= {"bits_per_dim": 5.35}
    noise = {"corrupted": 0.08, "after_read": [0.04, 0.03, 0.025]}
    kanerva = experiment(60.0, 66.0)
    kanerva["runs"]["s0"]["aware"] = noise
    kanerva["runs"]["s1"]["machine"] = kanerva["runs"]["s1"]["machine"] | {"cpu": "D"}
    results = {
        "experiments": {
            "kanerva": kanerva,
            "vae": experiment(90.0),
            "cifar200-vae": colour,
            "dnc-lr1e-3": experiment(120.0, 130.0),
            "short-kanerva-lr1e-3": experiment(95.0),
        },
        "ppca": [
            {"components": 200, "nats": -4000.0, "bits_per_dim": 6.125, "autoencoder": 5.88},
            {"components": 800, "nats": -6600.0, "bits_per_dim": 4.9, "autoencoder": 3.82},
        ],
        "capacity": "label,length,bound,clean_error,noisy_error\na,8,60,.01,.02\na,8,70,.03,.04\n",
    }
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {n} -->\nold\n<!-- /{n} -->\n" for n in TABLES))
    for _ in range(2):  # also over its own tables
        write_page(results, page)
    text = page.read_text()
    assert "old" not in text
    when = "2 cores, torch 2, commit cccccccccc, 2026-01-02"
    assert max(map(len, text[: text.index("<!-- /origin")].split("\n"))) <= 100
    assert f"- C, {when}: `kanerva`, `vae`, `cifar200-vae`, `dnc-lr1e-3`" in " ".join(text.split())
    assert f"- D, {when}: `kanerva`\n" in text
    assert (
        "| Kanerva Machine | 1,000 | 0.06 million | 1 | 60.0, 66.0 | 43.0 | - | 20.0 | - | - "
        "| 0.70 |" in text
    )
    assert "| VAE, same coders | 1,000 | 0.06 million | 1 | 90.0 | 70.0 | - | 20.0 |" in text
    row = (
        "| VAE, same coders, at 50% of its training | 200 | 0.13 million | 1 "
        "| **5.250**, **5.350** | -9050 |"
    )
    assert row + " -9070.0 | - | 20.0 | - | - |" in text
    assert "| VAE, same coders | 200 | 0.06 million | 1 | **5.250** | -9999 |" in text
    pca = text.index(
        "| probabilistic PCA, exact likelihood | 200 | 20,000, exactly | - | 6.125 | -4000 |"
    )
    assert pca < text.index(row)
    assert "exact likelihood | 800 |" not in text and "| 800 | 4.90 | 3.82 |" in text
    assert "| 200 | 6.12 | 5.88 |" in text
    assert "and the noise that it knows of | 8.0% | 4.0% | 3.0% | 2.5% |" in text
    assert "| Differentiable Neural Computer | 125.0 (120.0, 130.0) |" in text
    assert "| a | 65 |" in text and "| a | 2.0% |" in text and "| a | 3.0% |" in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="no markers of origin"):
        write_page(results, page)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shapes", "1x2x3"], "of sizes from 1 on, got '1x2x3'"),
        (["--shapes", "0x1x1x1"], "of sizes from 1 on, got '0x1x1x1'"),
        (["--shapes", "1x1x1x99999999999"], "of sizes from 1 on, got"),
        (["--shapes", "large"], "of sizes from 1 on, got 'large'"),
        (["--threads", "0"], "--threads must be from 1 to 1024, got 0"),
        (["--threads", "99999"], "--threads must be from 1 to 1024, got 99999"),
        (["--repeats", "0"], "--repeats must be from 1 to 1000000, got 0"),
        (["--seconds", "nan"], "--seconds must be at least 0 and finite, got nan"),
        (["--backend", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_compare_refuses(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        compare.parse(["--device", "cpu", *words])
    assert stopped.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_compare_refuses_what_is_not_here(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compare, "backends", lambda: {"cuda": "not built", "cpu": "available"})
    for words, message in (
        (["--device", "cuda"], "--device cuda: this PyTorch finds no GPU"),
        (["--device", "cpu", "--backend", "cuda"], "--backend cuda is not available: not built"),
    ):
        with pytest.raises(SystemExit):
            compare.parse(words)
        assert message in capsys.readouterr().err


def test_benchmarks_name_missing_packages():
    """-S: without those of the environment."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "benchmarks.compare"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "benchmarks: numpy, torch missing: pip install '.[benchmark]'\n"
