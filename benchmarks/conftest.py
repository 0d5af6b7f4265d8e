"""``pytest benchmarks`` times every provider of every operator, after verifying it.

By default the three small shapes and no torch.compile, in a few minutes; ``--full`` for everything.
"""

from __future__ import annotations

import functools

import pytest
import torch

from . import machine
from .measure import Problem, mode, providers, quick_time
from .rivals import DIRECTIONS, SHAPES

THREADS = 2
ROUNDS, SECONDS = 200, 0.2  # at most, for each provider


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all shapes, and torch.compile of rivals")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``measure`` is run for every shape, direction and provider of the module's OPERATOR."""
    if "measure" not in metafunc.fixturenames:
        return
    operator, full = metafunc.module.OPERATOR, metafunc.config.getoption("full")
    cases = [
        pytest.param((operator, shape, direction, rival), id=f"{shape}-{direction}-{rival.name}")
        for shape in (SHAPES if full else SHAPES[:3])
        for direction in DIRECTIONS
        for rival in providers(operator, shape, direction)
        if full or rival.family != "compile"
    ]
    metafunc.parametrize("measure", cases, indirect=True)


@functools.lru_cache(maxsize=1)
def _problem(operator, shape, direction) -> Problem:
    return Problem(operator, shape, direction)


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark):
    """A function that verifies and times one provider."""
    operator, shape, direction, rival = request.param

    def run() -> None:
        torch.set_num_threads(THREADS)
        if rival.family == "compile":
            torch.compiler.reset()  # dynamo keeps at most eight compilations of a function
        problem = _problem(operator, shape, direction)
        call = problem.bind(rival)
        benchmark.group = f"{operator} {direction} {shape}"
        benchmark.extra_info["provider"] = rival.name
        benchmark.extra_info["relative_error"] = problem.verify(rival, call)
        with mode(direction):
            rounds = int(min(ROUNDS, max(3, SECONDS / quick_time(call, 0.02))))
            benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)

    return run


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    torch.set_num_threads(THREADS)
    machine_info["kanerva_ext"] = machine.describe()
