"""scripts/kernel_times.py: from counts to an estimate; nothing here runs a kernel."""

from __future__ import annotations

import bisect
import itertools
import math
import re

import pytest
from build_helpers import ROOT
from ptx_tool import load_script

kernel_times = load_script("kernel_times")
H100, H200 = kernel_times.H100, kernel_times.H200
FIRST, SECOND = (16, 32, 32, 100), (4096, 32, 32, 100)


def launch(**changes) -> dict:
    return {
        "kernel": "k",
        "grid": [132, 1, 1],
        "block": [128, 1, 1],
        "shared_bytes": 0,
        "registers": 128,
        "scale": 1,
        "instructions": 1000,
        "distinct_sectors": 0,
        "issue_clocks": 0,
        "access_clocks": 0,
        "block_clocks": 3510,
        "moved_block_clocks": 1755,
    } | changes


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "blocks"),
    [
        (128, 46240, 128, 4),  # registers and shared memory both
        (96, 46240, 128, 4),  # so fewer registers would not help
        (128, 60000, 128, 3),
        (32, 0, 128, 16),  # threads
        (16, 0, 32, 32),  # blocks
        (255, 0, 256, 1),
        (129, 0, 128, 3),  # 136 a thread
        (84, 85920, 256, 2),
        (32, 227 * 1024, 128, 1),
        (32, 228 * 1024, 128, 0),
    ],
)
def test_blocks_of_a_multiprocessor(registers, shared, threads, blocks):
    assert H100.resident(registers, shared, threads) == blocks


def test_a_launch_takes_the_longest_of_what_it_waits_for():
    time = kernel_times.launch_time
    assert time(H100, launch()) == pytest.approx(1e-6)
    assert time(H100, launch(), "block_clocks") == pytest.approx(2e-6)
    # Four blocks fit: 528 take as long as 132, and one more another wave.
    assert time(H100, launch(grid=[528, 1, 1])) == pytest.approx(1e-6)
    assert time(H100, launch(grid=[529, 1, 1])) == pytest.approx(2e-6)
    assert time(H100, launch(scale=5)) == pytest.approx(2e-6)
    # The schedulers: 132 blocks of 4 x 3510 clocks, alone or four at a time.
    issue = 132 * 4 * 3510
    assert time(H100, launch(issue_clocks=issue)) == pytest.approx(2e-6)
    assert time(H100, launch(issue_clocks=issue, scale=4)) == pytest.approx(8e-6)
    assert time(H100, launch(access_clocks=132 * 3510)) == pytest.approx(2e-6)
    # Device memory.
    sectors = int(3.35e12 * 5e-6 / 32)
    assert time(H100, launch(distinct_sectors=sectors)) == pytest.approx(5e-6, rel=1e-3)
    assert time(H200, launch(distinct_sectors=sectors)) == pytest.approx(
        5e-6 * 3.35 / 4.8, rel=1e-3
    )
    with pytest.raises(ValueError, match="no multiprocessor has room"):
        time(H100, launch(shared_bytes=300_000))


def test_what_teams_wait_by_is_cleared_before_their_launch():
    alone, team = launch(grid=[16, 1, 1]), launch(grid=[16, 1, 4])
    more = kernel_times.estimate(H100, [team]) - kernel_times.estimate(H100, [alone])
    assert more == pytest.approx(kernel_times.NEXT_LAUNCH)


def test_launches_of_a_stream_follow_one_another():
    assert kernel_times.estimate(H100, [launch()]) == pytest.approx(4e-6)
    assert kernel_times.estimate(H100, [launch(), launch(), launch()]) == pytest.approx(8e-6)


def test_what_a_write_needs():
    # By hand: mean and covariance in and out, addresses, values, noise, evidence.
    moved, work = kernel_times.needs(FIRST, False)
    state, episode = 32 * 100 + 32 * 32, 32 * 32 + 32 * 100 + 32
    assert moved == 16 * 4 * (2 * state + episode + 1) == 813_120
    assert work == 16 * (32 * 32 * (16 + 100) + 32**3 + 32 * 32 * 100)
    assert kernel_times.needs(FIRST, True)[1] == 3 * work
    assert kernel_times.needs(SECOND, False)[0] == 256 * moved
    # One launch and the bytes, or the multiply-adds where they take longer.
    assert kernel_times.bound(H100, FIRST, False) == pytest.approx(3e-6 + moved / 3.35e12)
    long = kernel_times.LONG
    work = kernel_times.needs(long, False)[1]
    in_float32 = kernel_times.bound(H100, long, False, tensor_cores=False)
    assert in_float32 == pytest.approx(3e-6 + work / (132 * 128 * 1.755e9))
    in_tf32 = kernel_times.bound(H100, long, False)
    assert in_float32 / in_tf32 == pytest.approx(1024 / 128 / 3, rel=0.02)


def test_what_an_adaptive_write_needs():
    moved, work = kernel_times.needs(FIRST, False, adaptive=True)
    assert moved == kernel_times.needs(FIRST, False)[0] + 16 * 4 * (32 + 1)  # the KLs, the ridge
    assert work == 16 * 32 * (3 * 32 * 100 + 4 * 32 * 32)
    assert kernel_times.bound(H100, FIRST, False, adaptive=True) == pytest.approx(
        3e-6 + moved / 3.35e12
    )


def constant(name: str) -> int:
    text = (ROOT / "csrc/cuda/episode_sums.cuh").read_text()
    return int(re.search(rf"constexpr int kSum{name} = (\d+);", text)[1])


def sums_of(T: int) -> list[list[int]]:
    """Depths of the parts of each block of the sums over a long episode: as in the kernel."""
    side, depth, part = map(constant, ("Side", "Depth", "Part"))
    _, _, K, C = kernel_times.LONG
    rows, wide, depths = -(-K // side), -(-C // side), -(-T // depth)
    total = (rows * (rows + 1) // 2 + rows * wide) * depths
    blocks = min(H100.processors, total // part)
    ends = [total * i // blocks for i in range(blocks + 1)]
    cuts = sorted({*ends, *range(0, total, depths)})
    found: list[list[int]] = [[] for _ in range(blocks)]
    for begin, end in itertools.pairwise(cuts):
        found[bisect.bisect_right(ends, begin) - 1].append(end - begin)
    assert sum(map(sum, found)) == total
    return found


def test_the_steps_at_which_the_long_write_is_counted():
    """Blocks take their sums to the workspace as often, and the longest one's depths grow as, on
    the line to all steps; and a thread for each step fills its blocks at the last."""
    part = constant("Part")
    totals, longest = {}, {}
    for T in (*kernel_times.LONG_STEPS, kernel_times.LONG[1]):
        blocks = sums_of(T)
        assert len(blocks) == 132 and sum(map(len, blocks)) == 164
        totals[T] = sum(-(-depths // part) for parts in blocks for depths in parts)
        most = max(map(sum, blocks))  # and what those take that have a depth less, or as many
        ends = [sum(-(-d // part) for d in parts) for parts in blocks if sum(parts) >= most - 1]
        longest[T] = (most, max(ends))
    first, early, late, T = totals
    for counts in (totals, *({t: x[i] for t, x in longest.items()} for i in range(2))):
        slope = (counts[late] - counts[early]) / (late - early)
        assert counts[late] + slope * (first - late) == counts[first]
        assert counts[late] + slope * (T - late) == pytest.approx(counts[T], rel=2e-3)
    assert late % 256 == T % 256 == 0


def test_a_chunk_is_cheaper_than_the_information_form_in_short_episodes():
    _, T, K, C = shape = (1, 4, 64, 64)
    chunk = T * K * (1.5 * K + 2 * C) + T * T * (K + C / 2) + T**3 / 6
    assert kernel_times.needs(shape, False)[1] == chunk


def test_units_work_side_by_side():
    found = kernel_times.units(
        {
            "kinds": {"integer 64": 3, "float32": 10, "move": 50, "division": 2, "matrix": 5},
            "issue": {"integer 64": 12, "float32": 10, "division": 32, "matrix": 20},
        }
    )
    assert found["scheduler"] == 6 + 10 + 18 + 5
    assert (found["integers"], found["float32"], found["special"]) == (12, 10, 16)
    assert max(found, key=found.get) == "scheduler"


def test_every_cost_is_in_the_table_with_its_source():
    rows = kernel_times.costs()
    text = (ROOT / "tools/ptx/costs.h").read_text()
    lines = [line for line in text.splitlines() if line.startswith("KANERVA_")]
    assert len(rows) == len(lines) and all(source for *_, source in rows)
    table = "\n".join(kernel_times.cost_table())
    assert "| load shared | 1 | 29 |" in table and "assumed" in table


def test_the_section_says_that_no_gpu_has_run_this():
    made = launch(busiest=["integers", 5280], useful_issue=0.25)
    text = kernel_times.section({"now": {f"{FIRST}": [made]}, "before": {f"{FIRST}": [made] * 2}})
    assert text.startswith("## Times: estimate, no GPU has run this\n")
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {FIRST} | H100"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3:] == ["6.0 to 8.0", "1.9", "4.0 to 5.0", "1.2"]
    assert math.isclose(float(cells[2]), 3.2)
    assert f"| {SECOND} | H200 | " in text and "not counted" in text
    assert "integers 0.0" in text and "| 25 % |" in text
    assert all(len(line) <= 98 for line in text.splitlines() if not line.startswith("|"))
    assert kernel_times.section({}) == kernel_times.section({"now": {}})


def test_the_page_has_the_counts_that_are_kept():
    counted = kernel_times.read_counts()
    assert set(counted) == {"before", "now"}
    for when in counted.values():
        for key in kernel_times.SHAPES:
            for what in kernel_times.WHAT:
                name = kernel_times.key_of(key, what)
                assert (name in when) == kernel_times.is_counted(key, what)
    long = counted["now"][kernel_times.key_of(kernel_times.LONG, "")]
    assert [launch["grid"] for launch in long] == [[1, 256, 1], [1, 132, 1], [1, 1, 96]]
    page = (ROOT / "docs/kernels.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith(f"| {kernel_times.LONG} |")]
    assert set(rows) < set(kernel_times.section(counted).splitlines()) and len(rows) == 5
