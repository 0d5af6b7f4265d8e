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


RIGHT = ["sum", "transpose", "warps", "team_transpose", "team_rounds"]
CLUSTERS = ["cluster_transpose", "cluster_rounds", "cluster_chain"]
#: What is said of a barrier that a cluster lacks.
LACKING = "race in |of a cluster|of a block that may|of a block that has ended|uninitialised read"


@pytest.mark.parametrize("case", [*RIGHT, *CLUSTERS])
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


@pytest.mark.parametrize(
    ("case", "barriers"),
    [
        ("cluster_transpose", [1, 2, 3]),  # its first one is for those who read shared memory
        ("cluster_rounds", [0, 1, 3, 4, 7, 8, 10, 11, 14, 15]),
        ("cluster_chain", [0, 1, 2, 3]),
    ],
)
def test_without_a_barrier_of_a_cluster_something_is_found(run_fixture, case, barriers):
    """An arrival with its wait, or a wait alone."""
    for barrier in barriers:
        for seed in SEEDS:
            said = run_fixture(case, KANERVA_PTX_SKIP_BARRIER=str(barrier), KANERVA_PTX_SEED=seed)
            assert re.search(LACKING, said), (barrier, seed, said)


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_of_a_cluster_wait_for_each_other_and_end_together(run_fixture, seed):
    assert "race in global" in run_fixture("cluster_race", KANERVA_PTX_SEED=seed)
    said = run_fixture("cluster_half", KANERVA_PTX_SEED=seed)
    assert re.search("of a block that (may have|has) ended", said), said


def test_where_clusters_are_refused_one_block_works(kernels_on_ptx):
    program = kernels_on_ptx.build_fixtures()
    refusing = {"KANERVA_PTX_CLUSTERS": "0"}
    done = kernels_on_ptx.run_program(
        program, kernels_on_ptx.FIXTURES, "cluster_transpose", **refusing
    )
    assert done.stdout.startswith("ok\n"), done.stdout + done.stderr
    assert "device 0 takes no clusters of 4 blocks with " in done.stderr
    assert done.stderr.count("clusters of 4") == 1


@pytest.mark.parametrize("case", ["team_race", "team_unfenced"])
def test_without_a_barrier_a_team_is_wrong(run_fixture, case):
    assert run_fixture(case, KANERVA_PTX_RACES="0") == "wrong\n"


@pytest.mark.parametrize("barrier", ["2", "3"])
def test_a_team_needs_the_barriers_of_its_blocks(run_fixture, barrier):
    """What __syncthreads within a barrier between blocks orders."""
    said = run_fixture("team_transpose", KANERVA_PTX_SKIP_BARRIER=barrier)
    assert "race in " in said


@pytest.mark.parametrize(
    ("case", "size", "least"), [("team_order", 6, 20), ("cluster_order", 4, 8)]
)
def test_the_blocks_of_a_team_come_in_varied_orders(run_fixture, case, size, least):
    orders = set()
    for seed in range(4):
        blocks, end = run_fixture(case, KANERVA_PTX_SEED=str(seed)).rsplit(" ", 1)
        assert end == "ok\n"
        order = [int(block) for block in blocks.split()]
        rounds = [tuple(order[i : i + size]) for i in range(0, len(order), size)]
        assert all(sorted(turn) == list(range(size)) for turn in rounds), rounds
        orders.update(rounds)
    assert len(orders) > least


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
