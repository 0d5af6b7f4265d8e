"""``pytest benchmarks`` times every provider of every operator, after verifying it.

By default the three small shapes and no torch.compile, in a few minutes; ``--full`` for everything.
Beside pytest-benchmark's own tables (medians; ``--benchmark-save``, ``--benchmark-compare``) a last
one says what each time means: against the fastest PyTorch composition of the same run, and against
what this machine can do.

``--device cuda`` (the default where there is a GPU) puts all tensors there and times with the GPU's
events, its L2 cache cleared before every call.
"""

from __future__ import annotations

import functools

import pytest
import torch

from . import ceilings, costs, counters, machine, timers
from .measure import KANERVA, Problem, mode, on_backends, providers
from .rivals import DIRECTIONS, OPERATORS, Rival, Shape
from .timers import Timer, quick_time

THREADS = 2
ROUNDS, SECONDS = 200, 0.2  # at most, for each provider
COLUMNS = ("ms", "ratio", "GB/s", "GFLOP/s", "of ceiling", "binds", "peak MB", "calls", "error")

_rows: list[dict] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all shapes, and torch.compile of rivals")
    parser.addoption("--device", choices=("cpu", "cuda"), default=timers.default_device())


def _timer(config: pytest.Config) -> Timer:
    return timers.of(config.getoption("device"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """pytest-benchmark takes its times from the device too."""
    for item in items:
        if "benchmark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=_timer(config).stopwatch()))


def _takes_long(rival: Rival, shape: Shape) -> bool:
    """torch.compile takes seconds to compile, thousands of steps in Python seconds a call."""
    in_python = rival.family == "steps" or rival.name == f"{KANERVA}[reference]"
    return rival.family == "compile" or (in_python and shape.steps > 1024)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``measure`` is run for every operator, shape, direction and provider."""
    if "measure" not in metafunc.fixturenames:
        return
    device = _timer(metafunc.config).device
    full = metafunc.config.getoption("full")
    cases = [
        pytest.param(
            (operator, shape, direction, rival), id=f"{operator}-{shape}-{direction}-{rival.name}"
        )
        for operator in OPERATORS
        for shape in OPERATORS[operator].shapes[: None if full else 3]
        for direction in DIRECTIONS
        for rival in [*providers(operator, shape, direction), *on_backends(operator, device)]
        if full or not _takes_long(rival, shape)
    ]
    metafunc.parametrize("measure", cases, indirect=True)


@functools.lru_cache(maxsize=1)
def _problem(operator, shape, direction, device) -> Problem:
    return Problem(operator, shape, direction, device=device)


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark):
    """A function that verifies and times one provider."""
    operator, shape, direction, rival = request.param
    timer = _timer(request.config)

    def run() -> None:
        torch.set_num_threads(THREADS)
        if rival.family == "compile":
            torch.compiler.reset()  # dynamo keeps at most eight compilations of a function
        problem = _problem(operator, shape, direction, timer.device)
        call = problem.bind(rival)
        group = f"{operator} {direction} {shape}"
        error = problem.verify(rival, call)
        with mode(direction):
            counts = counters.count(call, timer)
            rounds = int(min(ROUNDS, max(3, SECONDS / quick_time(call, 0.02, timer=timer))))
            benchmark.group = group
            benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)
        row = {
            "group": group,
            "provider": rival.name,
            "family": rival.family,
            "relative_error": error,
            "launches": counts.launches,
            "peak_bytes": counts.peak_bytes,
            "bytes": problem.nbytes,
            "flops": costs.flops(operator, shape, direction),
        }
        if benchmark.enabled:
            _rows.append(_judged(row, benchmark.stats.stats.median, timer))
        benchmark.extra_info.update(row)

    return run


def _judged(row: dict, seconds: float, timer: Timer) -> dict:
    share = ceilings.share(seconds, row["bytes"], row["flops"], timer)
    return row | {"seconds": seconds} | share._asdict()


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    torch.set_num_threads(THREADS)
    machine_info["kanerva_ext"] = machine.describe(_timer(config))


def pytest_terminal_summary(terminalreporter, config) -> None:
    if not _rows:
        return
    write = terminalreporter.write_line
    terminalreporter.section("against the best PyTorch composition and this machine's ceilings")
    timer = _timer(config)
    size = 2**26 if timer.cuda is None else 2**29
    product, copy = ceilings.product_rate(timer), ceilings.copy_rate(size, timer)
    write(
        f"matrix product {product / 1e9:.0f} GFLOP/s, copy of {size >> 20} MiB "
        f"{copy / 1e9:.1f} GB/s, measured now; a ratio is the fastest "
        "rival's median over the provider's; calls: of PyTorch operators (GPU: kernels)"
    )
    for group in dict.fromkeys(row["group"] for row in _rows):
        rows = sorted((r for r in _rows if r["group"] == group), key=lambda r: r["seconds"])
        rivals = [r["seconds"] for r in rows if r["family"] != KANERVA]
        width = max(len(r["provider"]) for r in rows)
        write(f"\n{group}")
        write(" " * width + "".join(f"{name:>11}" for name in COLUMNS))
        for r in rows:
            ratio = f"{min(rivals) / r['seconds']:.2f}" if rivals else "-"
            cells = (
                f"{r['seconds'] * 1e3:.3f}",
                ratio,
                f"{r['gb_per_s']:.1f}",
                f"{r['gflop_per_s']:.1f}",
                f"{r['share']:.0%}",
                r["binds"],
                f"{r['peak_bytes'] / 1e6:.2f}",
                str(r["launches"]),
                f"{r['relative_error']:.0e}",
            )
            write(r["provider"].ljust(width) + "".join(f"{cell:>11}" for cell in cells))
