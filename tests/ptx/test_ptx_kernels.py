"""The library's kernels as PTX, in the interpreter: every result finite and the same in any order
of the warps, nothing found wrong; a barrier left out is noticed. Needs nvcc, and some minutes.

Their results are compared with the truth by the operators' own tests, run on the library that
``scripts/kernels_on_ptx.py --library`` makes (``make test-ptx``).
"""

import functools
import os
import re

import ptx_tool
import pytest

ARCH = os.environ.get("KANERVA_PTX_ARCH", "sm_90a")

pytestmark = ptx_tool.MARKS

#: What is said of a barrier that a cluster, or a block, lacks.
LACKING = "race in |of a cluster|of a block that may|of a block that has ended"


@pytest.fixture(scope="module")
def run(kernels_on_ptx):
    """run(operator, ...) runs one, or all, of operators.cpp."""
    ptx = kernels_on_ptx.compile_all(kernels_on_ptx.kernels(), ARCH)
    program = kernels_on_ptx.build_program()
    return functools.partial(kernels_on_ptx.run_program, program, ptx[0].parent)


def test_nothing_is_found_and_results_do_not_depend_on_the_order(run):
    done = run()
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
def test_a_barrier_left_out_is_noticed(run, operator, barrier):
    done = run(operator, KANERVA_PTX_SKIP_BARRIER=str(barrier))
    assert done.returncode != 0, done.stdout[-2000:]
    assert "race in " in done.stderr, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("operator", "barriers"),
    [
        ("bayes_write", range(3, 27, 6)),
        ("bayes_write_backward", range(3, 16, 4)),
        ("causal_scan", range(0, 16, 3)),
        ("recall", range(0, 28, 5)),
        ("read", range(6)),
        ("read_backward", range(0, 8, 2)),
        ("adaptive_write", range(0, 60, 9)),
    ],
)
def test_a_barrier_left_out_of_a_small_memorys_kernel_is_noticed(run, operator, barriers):
    for barrier in barriers:
        skip = {"KANERVA_PTX_SKIP_BARRIER": str(barrier), "KANERVA_PTX_SKIP_IN": "small_"}
        done = run(operator, **skip)
        assert "race in " in done.stderr, (barrier, done.stdout[-2000:])


def test_a_barrier_left_out_of_a_teams_adjoint_is_noticed(run):
    for barrier in (0, 1, *range(4, 23, 3)):  # of a cluster
        skip = {"KANERVA_PTX_SKIP_BARRIER": str(barrier), "KANERVA_PTX_SKIP_IN": "backward_team"}
        done = run("small_bayes_write_backward", **skip)
        assert re.search(LACKING, done.stderr), (barrier, done.stdout[-2000:])


def test_a_barrier_left_out_of_a_large_memorys_adjoint_is_noticed(run):
    for barrier in range(0, 82, 9):  # of a block, a team or a cluster
        skip = {"KANERVA_PTX_SKIP_BARRIER": str(barrier), "KANERVA_PTX_SKIP_IN": "large_backward"}
        done = run("large_bayes_write_backward", **skip)
        assert re.search(LACKING, done.stderr), (barrier, done.stdout[-2000:])


def test_a_barrier_left_out_of_a_cluster_is_noticed(run):
    for barrier in range(0, 44, 6):
        skip = {"KANERVA_PTX_SKIP_BARRIER": str(barrier), "KANERVA_PTX_SKIP_IN": "cluster_write"}
        done = run("cluster_bayes_write", **skip)
        assert re.search(LACKING, done.stderr), (barrier, done.stdout[-2000:])


def test_a_barrier_left_out_of_the_sums_of_a_long_episode_is_noticed(run):
    for barrier in (0, 1, 40):
        skip = {"KANERVA_PTX_SKIP_BARRIER": str(barrier), "KANERVA_PTX_SKIP_IN": "episode_sums"}
        done = run("long_bayes_write", **skip)
        assert "race in " in done.stderr, (barrier, done.stdout[-2000:])


@pytest.mark.parametrize(
    ("kernel", "barriers"),
    [
        ("element_kernel", (23, 46, 69)),
        ("belief_kernel", (22, 45, 114)),
        ("gradient_kernel", (2, 8, 14)),
        ("segment_kernel", (23, 92, 161)),
    ],
)
def test_a_barrier_left_out_of_segments_is_noticed(run, kernel, barriers):
    for barrier in barriers:
        skip = {"KANERVA_PTX_SKIP_BARRIER": str(barrier), "KANERVA_PTX_SKIP_IN": kernel}
        done = run("cut_bayes_write_backward", **skip)
        assert "race in " in done.stderr, (barrier, done.stdout[-2000:])


@pytest.mark.parametrize(
    "operator", ["read", "statistics_backward", "forget", "causal_scan", "cut_causal_scan"]
)
def test_a_write_past_a_buffer_is_noticed(run, operator):
    done = run(operator, KANERVA_SHORT_RESULTS="1")
    assert done.returncode != 0, done.stdout[-2000:]
    assert "access outside " in done.stderr, done.stderr[-2000:]
