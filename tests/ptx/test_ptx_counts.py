"""The PTX interpreter's counts, on programs that are counted by hand."""

import json
import re

import numpy as np
import pytest
from ptx_programs import ROOT, kernel, module
from ptx_tool import load_script

SHARED = ".shared .align 16 .b8 tile[8192];\n"


def counts(body: str, *arguments, block: int = 32, grid: int = 1, before: str = SHARED) -> dict:
    program = module(kernel(body, " ".join("u64" for _ in arguments), before=before))
    assert not program.launch(
        "k", *arguments, block=block, grid=grid, counts=True, checks_races=False
    )
    return json.loads(program.counted())


def words(count: int = 4096) -> np.ndarray:
    """Whose address is a multiple of 128."""
    array = np.zeros(count + 32, np.uint32)
    return array[(-array.ctypes.data % 128) // 4 :][:count]


@pytest.mark.parametrize(
    ("stride", "sectors"), [(4, 4), (8, 8), (32, 32), (0, 1), (16, 16), (128, 32)]
)
def test_sectors_of_a_request(stride, sectors):
    body = f"  mad.wide.u32 %d5, %r0, {stride}, %d0;\n  ld.global.u32 %r1, [%d5];\n"
    got = counts(body, words())
    assert (got["global_requests"], got["sectors"], got["global_bytes"]) == (1, sectors, 128)


def test_sectors_of_vectors_and_of_a_part_of_a_warp():
    body = "  mad.wide.u32 %d5, %r0, 16, %d0;\n  ld.v4.f32 {%f1, %f2, %f3, %f4}, [%d5];\n"
    got = counts(body, words())
    assert (got["sectors"], got["global_bytes"], got["generic"]) == (16, 512, 1)
    assert got["kinds"]["global load"] == 1
    guarded = "  setp.lt.u32 %p1, %r0, 3;\n  add.u64 %d5, %d0, %d63;\n"
    guarded += "  @%p1 st.global.u32 [%d5], 1;"
    got = counts(guarded, words())
    assert (got["sectors"], got["global_bytes"]) == (1, 12)


@pytest.mark.parametrize(
    ("stride", "conflicts"),
    [(4, 0), (8, 1), (16, 3), (128, 31), (132, 0), (0, 0), (36, 0), (64, 15)],
)
def test_conflicts_of_banks(stride, conflicts):
    body = f"  mov.u32 %r1, tile; mad.lo.u32 %r1, %r0, {stride}, %r1;\n  st.shared.u32 [%r1], %r0;"
    got = counts(body)
    assert (got["shared_requests"], got["bank_conflicts"]) == (1, conflicts)
    assert got["wavefronts"] == conflicts + 1


def test_conflicts_of_wide_words():
    # Words of eight bytes go by halves of the warp.
    body = "  mov.u32 %r1, tile; mad.lo.u32 %r1, %r0, {}, %r1;\n  st.shared.u64 [%r1], %d63;"
    got = counts(body.format(8))
    assert (got["bank_conflicts"], got["wavefronts"]) == (0, 2)
    assert counts(body.format(16))["bank_conflicts"] == 2


def test_instructions_by_kind_divergence_and_barriers():
    body = """
      and.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r1, 0;
      @%p1 bra EVEN;
      add.f32 %f1, %f1, %f1; bra END;
    EVEN:
      add.f64 %g1, %g1, %g1;
    END:
      bar.sync 0;
      shfl.sync.bfly.b32 %r2, %r0, 1, 31, -1;
    """
    got = counts(body, block=64, grid=3)
    kinds = got["kinds"]
    assert got["divergent_branches"] == 6
    assert kinds["float32"] == kinds["float64"] == kinds["barrier"] == kinds["shuffle"] == 6
    assert got["instructions"] == sum(kinds.values())
    # Where lanes part, each instruction counts for its warp and for its lanes.
    assert got["lane_instructions"] < 32 * got["instructions"]
    assert got["grid"] == [3, 1, 1] and got["block"] == [64, 1, 1]


def test_the_longest_chain():
    independent = "".join(f"  add.u32 %r{k}, %r{k}, 1;\n" for k in range(1, 11))
    before = counts("")["longest_chain"]
    assert counts(independent)["longest_chain"] == before
    chain = "  mov.u32 %r1, 0;\n" + "  add.u32 %r1, %r1, 1;\n" * 10
    assert counts(chain)["longest_chain"] == 11
    loop = "  mov.u32 %r1, 0;\nAGAIN:\n  add.u32 %r1, %r1, 1;\n  setp.lt.u32 %p1, %r1, 20;\n"
    loop += "  @%p1 bra AGAIN;"
    # The last branch is not taken: no lane executes it.
    assert counts(loop)["longest_chain"] == 1 + 20 + 1


@pytest.mark.parametrize("space", ["shared", "global"])
def test_chains_go_through_memory(space):
    place = "  mov.u64 %d5, tile;\n" if space == "shared" else "  mov.u64 %d5, %d0;\n"
    steps = "  add.u32 %r1, %r1, 1;\n" * 5
    body = place + "  mov.u32 %r1, 0;\n" + steps
    body += f"  setp.eq.u32 %p1, %r0, 0;\n  @%p1 st.{space}.u32 [%d5], %r1;\n  bar.sync 0;\n"
    body += f"  ld.{space}.u32 %r1, [%d5];\n" + steps
    got = counts(body, words())
    # A move and five additions, the store, the load, five additions.
    assert got["longest_chain"] == 6 + 1 + 1 + 5
    assert got["longest_chain_of_loads"] == 1


def test_bytes_in_flight():
    body = "  add.u64 %d5, %d0, %d63;\n"
    loads = "".join(f"  ld.global.u32 %r{k}, [%d5+{128 * k}];\n" for k in range(1, 9))
    uses = "".join(f"  add.u32 %r{k}, %r{k}, 1;\n" for k in range(1, 9))
    got = counts(body + loads + uses, words())
    assert got["most_bytes_in_flight"] == 8 * 128
    one_by_one = "".join(
        f"  ld.global.u32 %r1, [%d5+{128 * k}];\n  add.u32 %r1, %r1, 1;\n" for k in range(1, 9)
    )
    got = counts(body + one_by_one, words())
    assert got["most_bytes_in_flight"] == got["mean_bytes_in_flight"] == 128
    assert got["waits"] == 8


#: Kind -> clocks of issue and of latency; name -> clocks.
TABLE = (ROOT / "tools/ptx/costs.h").read_text()
COSTS = {
    kind: (int(issue), int(latency))
    for kind, issue, latency in re.findall(r"^KANERVA_COST\((\w+), (\d+), (\d+),", TABLE, re.M)
}
SECOND_LEVEL = int(re.search(r"^KANERVA_CLOCKS\(second_level, (\d+),", TABLE, re.M)[1])
INTEGER, FLOAT = COSTS["integer32"][0], COSTS["float32"][0]
LATENCY, GLOBAL, SHARED = COSTS["float32"][1], COSTS["load_global"][1], COSTS["load_shared"][1]
# kernel() begins with %d63 = 4 * thread, and each body ends with ret: neither is waited for.
START = COSTS["integer64"][0]


def clocks(body: str, *arguments, **how) -> tuple[int, int]:
    """Of the block: in the order of the PTX, and moved within basic blocks; without what all
    programs of these tests have."""
    got = counts(body, *arguments, **how)
    end = START + COSTS["call"][1]
    return got["block_clocks"] - end, got["moved_block_clocks"] - end


def test_a_clock_waits_for_sources_and_counts_issue():
    adds = "  add.f32 %f{0}, %f{0}, %f{0};\n"
    independent = "".join(adds.format(k) for k in range(1, 11))
    assert clocks(independent) == (10 * FLOAT, 10 * FLOAT)
    # Nothing needs the last one.
    chain = 9 * LATENCY + FLOAT
    written, moved = clocks(adds.format(1) * 10)
    assert written == chain and moved == chain - START  # it does not wait for %d63 either
    assert clocks("  add.u32 %r1, %r0, 1;\n  add.u32 %r2, %r0, 2;\n") == (2 * INTEGER, 2 * INTEGER)
    # Two chains side by side, one behind the other in the text.
    two = adds.format(1) * 10 + adds.format(2) * 10
    written, moved = clocks(two)
    assert written == 19 * LATENCY + FLOAT - (LATENCY - FLOAT)
    assert moved == chain - START


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("add.f64 %g1, %g1, %g1;", "float64"),
        ("rcp.approx.ftz.f32 %f1, %f1;", "special"),
        ("rsqrt.approx.f32 %f1, %f1;", "special"),
        ("sqrt.rn.f32 %f1, %f1;", "division"),
        ("rcp.rn.f32 %f1, %f1;", "division"),
        ("div.rn.f32 %f1, %f1, %f1;", "division"),
        ("add.u64 %d1, %d1, %d1;", "integer64"),
        ("xor.b32 %r1, %r1, %r0;", "logic"),
        ("selp.b32 %r1, %r1, %r0, %p1;", "logic"),
        ("setp.lt.and.u32 %p1, %r0, 3, %p1;", "compare"),
        ("shfl.sync.bfly.b32 %r1, %r1, 1, 31, -1;", "shuffle"),
    ],
)
def test_issue_and_latency_of_kinds(line, kind):
    issue, latency = COSTS[kind]
    once, twice = (clocks(f"  {line}\n" * times)[0] for times in (1, 2))
    assert (once, twice - once) == (issue, latency)
    names = {"integer64": "integer 64"}
    got = counts(f"  {line}\n")["issue"]
    assert got.get(names.get(kind, kind), 0) == issue + START * (kind == "integer64")


def test_what_ptxas_drops_takes_no_time():
    moves = "  mov.f32 %f1, %f2; mov.b64 {%r1, %r2}, %d1; cvta.to.global.u64 %d2, %d0;\n"
    assert clocks(moves * 3, words()) == clocks("") == (0, 0)
    # A move hands on when its source is ready.
    body = "  ld.global.f32 %f1, [%d0];\n  mov.f32 %f2, %f1;\n  add.f32 %f3, %f2, %f2;\n"
    assert clocks(body, words())[0] == GLOBAL + FLOAT


def test_loads_overlap_and_later_ones_hit_the_second_level():
    loads = "".join(f"  ld.global.f32 %f{k}, [%d0+{32 * k}];\n" for k in range(4))
    uses = "".join(f"  add.f32 %f{k}, %f{k}, %f{k};\n" for k in range(4))
    written, moved = clocks(loads + uses, words())
    assert written == 3 + GLOBAL + FLOAT  # the last load's use
    # Moved, all start at once; then comes the issue of the four additions.
    assert moved == GLOBAL - START + FLOAT
    one = "  ld.global.f32 %f1, [%d0];\n  add.f32 %f1, %f1, %f1;\n"
    assert clocks(one * 2, words())[0] == GLOBAL + FLOAT + SECOND_LEVEL + FLOAT
    # Sixteen bytes a lane are 512, which take four clocks.
    wide = "  mad.wide.u32 %d5, %r0, 16, %d0;\n  ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%d5];\n"
    address = COSTS["integer64"][1]
    assert clocks(wide, words())[0] == address + 4
    assert counts(wide, words())["access_clocks"] == 4


def test_shared_accesses_take_a_clock_for_each_wavefront():
    place = "  mov.u32 %r1, tile; mad.lo.u32 %r1, %r0, {}, %r1;\n"
    load = place + "  ld.shared.f32 %f1, [%r1];\n  add.f32 %f1, %f1, %f1;\n"
    initialise = "  st.shared.f32 [%r1], %f0;\n"
    for stride, wavefronts in [(4, 1), (8, 2), (128, 32)]:
        store = place.format(stride) + initialise
        assert clocks(store)[0] == COSTS["integer32"][1] + wavefronts
        both = clocks(store + load.format(stride).removeprefix(place.format(stride)))[0]
        # The store's, then the load's, the last of which is ready after its latency.
        assert both == COSTS["integer32"][1] + 2 * wavefronts - 1 + SHARED + FLOAT


def test_accesses_move_only_as_far_as_a_store_of_their_space():
    body = "  mov.u32 %r1, tile;\n  ld.global.f32 %f1, [%d0];\n  st.shared.f32 [%r1], %f1;\n"
    own = "  ld.shared.f32 %f2, [%r1];\n  add.f32 %f2, %f2, %f2;\n"
    written, moved = clocks(body + own, words())
    assert written == GLOBAL + 1 + SHARED + FLOAT and moved == written - START
    # A load of the other space does not wait for the store, and hits the second level.
    other = "  ld.global.f32 %f3, [%d0];\n  add.f32 %f3, %f3, %f3;\n"
    written, moved = clocks(body + other, words())
    assert written == GLOBAL + 1 + SECOND_LEVEL + FLOAT
    assert moved == GLOBAL + 1 - START  # the store ends the block
    # Nor does a store move before a load.
    late = "  st.shared.f32 [%r1+4], %f0;\n"
    assert clocks(body + late, words())[1] == GLOBAL + 2 - START


def test_a_barrier_takes_all_warps_to_the_latest():
    body = """
      setp.lt.u32 %p1, %r0, 32;
      @%p1 bra FIRST;
      bra END;
    FIRST:
      sqrt.rn.f32 %f1, %f1;
      add.f32 %f1, %f1, %f1;
    END:
      bar.sync 0;
      add.f32 %f2, %f2, %f2;
    """
    barrier = COSTS["barrier"][0] + COSTS["barrier"][1]
    before = COSTS["compare"][1] + COSTS["branch"][1]
    first = before + COSTS["division"][1] + FLOAT
    written, moved = clocks(body, block=64)
    assert written == first + barrier + FLOAT
    # The comparison moves before %d63, so the branch need not wait for it.
    assert moved == written - (COSTS["compare"][1] - COSTS["compare"][0])
    got = counts(body, block=64, grid=3)
    assert got["block_clocks"] == got["first_block_clocks"]  # blocks have clocks of their own
    assert got["barrier_clocks"] == [START + first + barrier]
    assert (
        got["issue_clocks"]
        == sum(got["issue"].values())
        == 3 * counts(body, block=64)["issue_clocks"]
    )


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blocks_that_wait_for_each_other_go_on_after_the_latest(late, seed):
    """However often the interpreter lets the other one look."""
    body = f"""
      mov.u32 %r1, %ctaid.x;
      setp.ne.u32 %p1, %r1, {late};
      @%p1 bra ARRIVE;
      {"add.f32 %f1, %f1, %f1;" * 200}
    ARRIVE:
      atom.global.add.u32 %r2, [%d0], 1;
    AGAIN:
      ld.volatile.global.u32 %r3, [%d0];
      setp.ge.u32 %p2, %r3, 2;
      @%p2 bra DONE;
      nanosleep.u32 20;
      bra AGAIN;
    DONE:
      {"add.f32 %f2, %f2, %f2;" * 10}
    """
    program = module(kernel(body))
    assert not program.launch(
        "k", words(), grid=2, block=1, cooperative=True, counts=True, seed=seed, quantum=5
    )
    got = json.loads(program.counted())
    before = 199 * LATENCY + FLOAT
    arrived = before + COSTS["atomic"][1]
    # A comparison and a branch, then what comes after.
    after = COSTS["compare"][1] + COSTS["branch"][1] + 9 * LATENCY + FLOAT
    waits = SECOND_LEVEL + after + COSTS["call"][1]
    for clocks_of_block in got["block_clocks"], got["first_block_clocks"]:
        assert arrived + waits <= clocks_of_block <= arrived + waits + 60


def test_branches_that_are_taken():
    loop = "  mov.u32 %r1, 0;\nAGAIN:\n  add.u32 %r1, %r1, 1;\n  setp.lt.u32 %p1, %r1, {};\n"
    loop += "  @%p1 bra AGAIN;\n"
    ten, twenty = (clocks(loop.format(n)) for n in (10, 20))
    # An addition, a comparison, a branch: 13 clocks on an H100.
    assert twenty[0] - ten[0] == twenty[1] - ten[1] == 10 * 13


COPY = """
  mov.u32 %r1, tile; mad.lo.u32 %r1, %r0, 16, %r1;
  mad.wide.u32 %d5, %r0, 16, %d0;
  cp.async.cg.shared.global [%r1], [%d5], 16{};
  cp.async.commit_group;
"""


def test_requests_of_asynchronous_copies():
    got = counts(COPY.format("") + "  cp.async.wait_group 0;\n", words())
    assert (got["global_requests"], got["sectors"], got["global_bytes"]) == (1, 16, 512)
    assert got["kinds"]["async copy"] == 3
    assert (got["most_bytes_in_flight"], got["waits"]) == (512, 1)
    # Of 4 lanes, 8 bytes each; the rest is zeros.
    sizes = "  setp.lt.u32 %p1, %r0, 4; selp.u32 %r2, 8, 0, %p1;\n"
    got = counts(sizes + COPY.format(", %r2") + "  cp.async.wait_all;\n", words())
    assert (got["global_requests"], got["sectors"], got["global_bytes"]) == (1, 2, 32)
    nothing = "  mov.u32 %r2, 0;\n" + COPY.format(", %r2") + "  cp.async.wait_all;\n"
    got = counts(nothing, words())
    assert (got["global_requests"], got["sectors"], got["most_bytes_in_flight"]) == (0, 0, 0)


def test_copies_are_waited_for_by_groups():
    first, wait = COPY.format(""), "  cp.async.wait_group {};\n"
    second = "  cp.async.cg.shared.global [%r1+512], [%d5+512], 16;\n  cp.async.commit_group;\n"
    issue = COSTS["asynchronous"][0]
    address = COSTS["integer32"][0] + COSTS["integer64"][1]
    # Copies take four clocks to issue, and are complete so many after the first of the latency.
    landed = address + GLOBAL + 3
    assert clocks(first + wait.format(0), words())[0] == landed + issue
    both = first + second
    group = 4 + issue  # a copy and its commit
    assert clocks(both + wait.format(1) + wait.format(0), words())[0] == landed + group + issue
    one_left = both + wait.format(1) + "  add.f32 %f1, %f1, %f1;\n" + wait.format(0)
    assert clocks(one_left, words())[0] == landed + group + issue  # the addition is hidden
    none_left = both + wait.format(0) + "  add.f32 %f1, %f1, %f1;\n"
    assert clocks(none_left, words())[0] == landed + group + issue + FLOAT
    waits = both + wait.format(1) + wait.format(1)
    uncommitted = "  cp.async.cg.shared.global [%r1+1024], [%d5+1024], 16;\n  cp.async.wait_all;\n"
    assert clocks(waits + uncommitted, words())[0] > landed + group + issue
    # Shared memory's banks: rows of 512 bytes, four words of each.
    spread = first.replace("mad.lo.u32 %r1, %r0, 16", "mad.lo.u32 %r1, %r0, 128")
    assert counts(spread + wait.format(0), words())["access_clocks"] == 32


ptx_counts = load_script("ptx_counts")


def counted(T: int, bend: int = 0, grid: int = 3, **changes) -> dict:
    """A launch of T steps, of a made-up kernel."""
    grows = dict.fromkeys((*ptx_counts.TOTALS, *ptx_counts.CHAINS), 100 + 7 * T + bend)
    kinds = {"barrier": 3 * T, "shuffle": 5}
    shape = {"kernel": "k", "grid": [1, grid, 1], "block": [8, 1, 1], "most_bytes_in_flight": 128}
    return shape | {"kinds": kinds, "issue": {"shuffle": 2 * T}} | grows | changes


def test_counts_of_more_steps_lie_on_a_line():
    points = [(T, [counted(T)]) for T in (8, 16, 32)]
    (found,), missed = ptx_counts.extrapolate(points, 1000)
    assert missed == 0 and found["instructions"] == found["longest_chain"] == 7100
    assert found["kinds"] == {"barrier": 3000, "shuffle": 5}
    assert found["issue"] == {"shuffle": 2000} and found["grid"] == [1, 3, 1]
    assert found["most_bytes_in_flight"] == 128
    (_,), missed = ptx_counts.extrapolate([(8, [counted(8, bend=44)]), *points[1:]], 1000)
    assert missed == pytest.approx(44 / 200)
    bent = [(8, [counted(8) | {"waits": 0, "sectors": 1000}]), *points[1:]]
    assert ptx_counts.extrapolate(bent, 1000, ["instructions"])[1] == 0
    assert ptx_counts.extrapolate(bent, 1000, ["sectors"])[1] == pytest.approx(0.844)
    other = [counted(8, kernel="another")]
    with pytest.raises(SystemExit, match="not the same"):
        ptx_counts.extrapolate([(8, other), *points[1:]], 1000)


def test_a_thread_for_each_step_gives_as_many_blocks_alike():
    """The last block of the first point is not full, so no line goes through these."""
    points = [(T, [counted(T, grid=-(-T // 8), longest_chain=9)]) for T in (12, 20, 32)]
    for T, (launch,) in points:
        launch["instructions"] = 6 * T + launch["grid"][1] * 4  # of blocks, idle threads too
    (found,), missed = ptx_counts.extrapolate(points, 1000, ["instructions", "longest_chain"])
    assert found["grid"] == [1, 125, 1] and found["instructions"] == 6 * 1000 + 125 * 4
    assert found["longest_chain"] == 9 and found["kinds"]["barrier"] == 3000
    assert missed == pytest.approx(2 / 80)
    for grid in (1, 5):
        points[0][1][0]["grid"] = [1, grid, 1]
        with pytest.raises(SystemExit, match="another grid at each T"):
            ptx_counts.extrapolate(points, 1000)
