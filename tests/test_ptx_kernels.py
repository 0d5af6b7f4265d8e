"""The library's kernels as PTX, in the interpreter: every result finite and the same in any order
of the warps, nothing found wrong; a barrier left out is noticed. Needs nvcc, and some minutes.

Their results are compared with the truth by the operators' own tests, run on the library that
``scripts/kernels_on_ptx.py --library`` makes (``make test-ptx``).
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts/kernels_on_ptx.py"
ARCH = os.environ.get("KANERVA_PTX_ARCH", "sm_90a")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SCRIPT.is_file(), reason="needs the source tree, which is not here"),
    pytest.mark.skipif(
        os.environ.get("KANERVA_TEST_PTX") != "1", reason="set KANERVA_TEST_PTX=1 to compile to PTX"
    ),
]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("kernels_on_ptx", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before  # the tests must not find the checkout's package
    return module


@pytest.fixture(scope="module")
def program(tool):
    return tool.build_program(ARCH)


def test_nothing_is_found_and_results_do_not_depend_on_the_order(tool, program):
    done = tool.run_program(program, ARCH)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count(" ok\n") > 60
    assert "PTX: 0 launches" not in done.stdout


@pytest.mark.parametrize(
    ("operator", "barrier"),
    [
        ("bayes_write", 5),
        ("bayes_write_backward", 6),
        ("recall", 3),
        ("causal_scan", 30),
        ("causal_scan_backward", 84),
    ],
)
def test_a_barrier_left_out_is_noticed(tool, program, operator, barrier):
    left_out = {"KANERVA_PTX_SKIP_BARRIER": str(barrier)}
    done = tool.run_program(program, ARCH, operator, **left_out)
    assert done.returncode != 0, done.stdout[-2000:]
    assert "race in " in done.stderr, done.stderr[-2000:]
