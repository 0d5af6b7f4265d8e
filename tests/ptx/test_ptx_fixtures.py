"""Small CUDA kernels as PTX (tests/kernels_on_ptx/fixtures.cu): right ones are right in any order
of the warps; a fault in the use of barriers, teams or shared memory is found in each faulty one."""

import re

import ptx_tool
import pytest

pytestmark = ptx_tool.MARKS

SEEDS = ("0", "1", "2")


@pytest.fixture(scope="module")
def run_fixture(kernels_on_ptx):
    program = kernels_on_ptx.build_fixtures()
    folder = kernels_on_ptx.FIXTURES

    def run(case, **variables):
        done = kernels_on_ptx.run_program(program, folder, case, **variables)
        return done.stdout.split("PTX:")[0]

    return run


@pytest.mark.parametrize("case", ["sum", "transpose", "warps", "team_transpose", "team_rounds"])
@pytest.mark.parametrize("seed", SEEDS)
def test_right_kernels_are_right(run_fixture, case, seed):
    assert run_fixture(case, KANERVA_PTX_SEED=seed) == "ok\n"


@pytest.mark.parametrize(
    ("case", "barrier"), [("sum", 0), ("sum", 1), ("transpose", 0), ("team_transpose", 0)]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_barrier_threads_race(run_fixture, case, barrier, seed):
    said = run_fixture(case, KANERVA_PTX_SKIP_BARRIER=str(barrier), KANERVA_PTX_SEED=seed)
    assert said.startswith("error: kernel launch:") and "race in " in said


def test_without_a_needless_barrier_nothing_races(run_fixture):
    assert run_fixture("sum", KANERVA_PTX_SKIP_BARRIER="2") == "ok\n"


@pytest.mark.parametrize(
    "case",
    [
        "warps_race",
        "blocks_race",
        "barriers_race",
        "team_barriers_race",
        "team_ahead",
        "team_race",
        "team_unfenced",
        "team_early",
    ],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_only_barriers_order_warps_and_only_a_team_its_blocks(run_fixture, case, seed):
    said = run_fixture(case, KANERVA_PTX_SEED=seed)
    assert said.startswith("error: kernel launch:") and "race in " in said
    assert "fixtures.cu:" in said


@pytest.mark.parametrize("case", ["team_race", "team_unfenced"])
def test_without_a_barrier_a_team_is_wrong(run_fixture, case):
    assert run_fixture(case, KANERVA_PTX_RACES="0") == "wrong\n"


@pytest.mark.parametrize("barrier", ["2", "3"])
def test_a_team_needs_the_barriers_of_its_blocks(run_fixture, barrier):
    """What __syncthreads within a barrier between blocks orders."""
    said = run_fixture("team_transpose", KANERVA_PTX_SKIP_BARRIER=barrier)
    assert "race in " in said


def test_the_blocks_of_a_team_come_in_varied_orders(run_fixture):
    orders = set()
    for seed in range(4):
        blocks, end = run_fixture("team_order", KANERVA_PTX_SEED=str(seed)).rsplit(" ", 1)
        assert end == "ok\n"
        order = [int(block) for block in blocks.split()]
        rounds = [tuple(order[i : i + 6]) for i in range(0, len(order), 6)]
        assert all(sorted(turn) == list(range(6)) for turn in rounds), rounds
        orders.update(rounds)
    assert len(orders) > 20


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("diverge0", "barrier after threads have ended: 32 of 64 threads never reach it"),
        ("diverge1", "different kinds of barrier meet"),
        ("diverge2", "mask names lanes that never come"),
        ("diverge3", "16 wait for lanes that their mask names"),
        ("diverge4", "shuffle from a lane that takes no part"),
        ("diverge5", "mask names lanes that never come"),
        ("team_diverge0", "threads that wait for ever"),
        ("team_diverge1", "threads that wait for ever"),
        ("team_diverge2", "threads that wait for ever|mask names lanes that never come"),
        ("unwritten", "uninitialised read of shared memory"),
        ("past_shared", "access outside shared memory"),
    ],
)
def test_faults(run_fixture, case, message):
    for seed in SEEDS:
        said = run_fixture(case, KANERVA_PTX_SEED=seed)
        assert said.startswith("error: kernel launch:") and re.search(message, said), said
