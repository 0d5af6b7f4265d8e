"""The CUDA kernels on the host: every result finite and the same in any order of the threads, no
race between two barriers, no access outside a buffer.

Their results are compared with the truth by the operators' own tests, run on the library that
``scripts/kernels_on_host.py --library`` makes.
"""

import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc/cuda").is_dir(), reason="needs the source tree, which is not here"
)


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import kernels_on_host
    finally:
        sys.path.pop(0)
    return kernels_on_host


@pytest.fixture(scope="module")
def thread_program(tool, sanitizers):
    return tool.build_program(sanitizers("thread"))


@pytest.fixture(scope="module")
def sanitizers(tool, tmp_path_factory):
    """Skips where the compiler has no such sanitizer, or where it does not run."""

    def check(name):
        folder = tmp_path_factory.mktemp(name)
        (folder / "empty.cpp").write_text("int main() { return 0; }\n")
        program = folder / "empty"
        command = [*tool.compiler(), f"-fsanitize={name}", "-o", str(program)]
        built = subprocess.run([*command, str(folder / "empty.cpp")], capture_output=True)
        if built.returncode != 0:
            pytest.skip(f"the compiler has no -fsanitize={name}")
        if tool.run_program(program).returncode != 0:
            pytest.skip(f"-fsanitize={name} does not run on this machine")
        return name

    return check


@pytest.fixture(scope="module")
def run_fixture(tool, sanitizers):
    """run_fixture(case, sanitizer, ...) runs one of the small kernels of fixtures.cpp."""

    @functools.cache
    def program(sanitizer):
        return tool.build_program(sanitizer and sanitizers(sanitizer), "fixtures")

    def run(case, sanitizer=None, **variables):
        return tool.run_program(program(sanitizer), case, **variables)

    return run


def test_multiply_adds_are_fused(tool, tmp_path):
    if not tool.FUSED:
        pytest.skip("not known of this processor")
    source = tmp_path / "fused.cpp"
    source.write_text(
        "#include <cstdio>\n"
        "__attribute__((noinline)) float f(float a, float b, float c) { return a * b + c; }\n"
        "int main() { std::puts(f(1.0f + 0x1p-12f, 1.0f + 0x1p-12f, -1.0f - 0x1p-11f) == 0x1p-24f"
        ' ? "fused" : "apart"); }\n'
    )
    program = tmp_path / "fused"
    flags = (*tool.FLAGS, *tool.FUSED, tool.OPTIMISED)
    subprocess.run([*tool.compiler(), *flags, str(source), "-o", str(program)], check=True)
    assert tool.run_program(program).stdout == "fused\n"


@pytest.mark.parametrize("sanitizer", [None, "thread", "address"])
@pytest.mark.parametrize(
    "case", ["sum", "transpose", "warps", "unwritten", "team_transpose", "team_rounds"]
)
def test_small_kernels_are_right(run_fixture, case, sanitizer):
    for seed in "1", "7":
        done = run_fixture(case, sanitizer, KANERVA_HOST_SEED=seed)
        assert done.stdout == "ok\n", done.stdout + done.stderr


@pytest.mark.parametrize(("case", "barrier"), [("sum", 0), ("sum", 1), ("transpose", 0)])
def test_without_a_barrier_threads_race(run_fixture, case, barrier):
    done = run_fixture(case, "thread", KANERVA_HOST_SKIP_BARRIER=str(barrier))
    assert done.returncode == 66, done.stdout
    assert "ThreadSanitizer: data race" in done.stderr


def test_without_a_barrier_results_are_wrong(run_fixture):
    done = run_fixture("transpose", KANERVA_HOST_SKIP_BARRIER="0")
    assert done.stdout == "wrong\n"


def test_without_a_needless_barrier_nothing_races(run_fixture):
    done = run_fixture("sum", "thread", KANERVA_HOST_SKIP_BARRIER="2")
    assert done.stdout == "ok\n", done.stdout + done.stderr


@pytest.mark.parametrize(
    "case", ["warps_race", "blocks_race", "barriers_race", "team_barriers_race", "team_ahead"]
)
@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_only_barriers_order_warps_and_only_a_team_its_blocks(run_fixture, case, seed):
    assert run_fixture(case).stdout == "ok\n"
    done = run_fixture(case, "thread", KANERVA_HOST_SEED=seed)
    assert done.returncode == 66, done.stdout
    assert "data race" in done.stderr and case.replace("team_b", "b") in done.stderr


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_without_a_barrier_the_blocks_of_a_team_race(run_fixture, seed):
    for done in (
        run_fixture("team_race", "thread", KANERVA_HOST_SEED=seed),
        run_fixture(
            "team_transpose", "thread", KANERVA_HOST_SEED=seed, KANERVA_HOST_SKIP_TEAM_BARRIER="0"
        ),
    ):
        assert done.returncode == 66, done.stdout
        assert "data race" in done.stderr and "team_transpose" in done.stderr


def test_without_a_barrier_a_team_is_wrong(run_fixture):
    assert run_fixture("team_race").stdout == "wrong\n"


@pytest.mark.parametrize("barrier", ["0", "2", "3"])
def test_a_team_needs_the_barriers_of_its_blocks(run_fixture, barrier):
    done = run_fixture("team_transpose", "thread", KANERVA_HOST_SKIP_BARRIER=barrier)
    assert done.returncode == 66, done.stdout
    assert "data race" in done.stderr


def test_the_blocks_of_a_team_come_in_varied_orders(run_fixture):
    orders = set()
    for seed in range(1, 5):
        output = run_fixture("team_order", KANERVA_HOST_SEED=str(seed)).stdout
        blocks, end = output.rsplit(" ", 1)
        assert end == "ok\n"
        order = [int(block) for block in blocks.split()]
        rounds = [tuple(order[i : i + 6]) for i in range(0, len(order), 6)]
        assert all(sorted(turn) == list(range(6)) for turn in rounds), rounds
        orders.update(rounds)
    assert len(orders) > 20


@pytest.mark.parametrize("sanitizer", [None, "thread", "address"])
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("team_diverge0", "in block (0, 0, 1) of 64 threads: 64 returned; 2 of 3 blocks wait"),
        ("team_diverge1", "waits for another count than other blocks of its team do"),
        ("team_diverge2", "waits for the team, as another thread of its block does"),
        ("team_diverge3", "wait at a warp operation"),
        ("team_used", "finds its team's barrier passed before all blocks are there"),
    ],
)
def test_divergence_of_a_team_is_an_error(run_fixture, case, message, sanitizer):
    for seed in "1", "2":
        done = run_fixture(case, sanitizer, KANERVA_HOST_SEED=seed)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "of 64 threads" in done.stdout and message in done.stdout


def test_reading_past_shared_memory_is_reported(run_fixture):
    done = run_fixture("past_shared", "address")
    assert done.returncode == 66, done.stdout
    assert "heap-buffer-overflow" in done.stderr and "past_shared" in done.stderr


@pytest.mark.parametrize("sanitizer", [None, "thread", "address"])
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("diverge0", "32 returned, 32 wait at __syncthreads (barrier 0)"),
        ("diverge1", "waits at another kind of barrier than others do"),
        ("diverge2", "32 wait at a warp operation"),
        ("diverge3", "without being in its mask"),
        ("diverge4", "reads the value of a lane that takes no part in the shuffle"),
        ("diverge5", "is at another warp operation than a lane that its mask names"),
    ],
)
def test_divergence_is_an_error(run_fixture, case, message, sanitizer):
    done = run_fixture(case, sanitizer)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "block (0, 0) of 64 threads" in done.stdout and message in done.stdout


@pytest.mark.slow
def test_no_races_and_results_do_not_depend_on_the_order(tool, thread_program):
    done = tool.run_program(thread_program)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count(" ok\n") > 60


@pytest.mark.slow
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
def test_a_barrier_left_out_is_noticed(tool, thread_program, operator, barrier):
    done = tool.run_program(thread_program, operator, KANERVA_HOST_SKIP_BARRIER=str(barrier))
    assert done.returncode == 66, done.stdout[-2000:] + done.stderr[-2000:]
    assert "data race" in done.stderr


@pytest.mark.slow
def test_no_access_outside_a_buffer(tool, sanitizers):
    done = tool.run_program(tool.build_program(sanitizers("address")))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("sanitizer", [None, "thread"])
@pytest.mark.parametrize("case", ["once", "retried", "forced", "counted", "environment"])
def test_what_launchers_decide(tool, sanitizers, case, sanitizer):
    """Shared memory is raised once per kernel and device; forced teams fit the processors."""
    program = tool.build_program(sanitizer and sanitizers(sanitizer), "launching")
    done = tool.run_program(program, case)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stdout + done.stderr
