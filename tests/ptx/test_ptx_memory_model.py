"""The PTX interpreter's memory model: what fences, releases and acquires order between blocks, and
that without them results are wrong (litmus tests) or races are found."""

import numpy as np
import pytest
from ptx_programs import kernel, kinds, module, ptx, run

SEEDS = range(40)

# Block 0 writes data and raises a flag; block 1 waits for the flag and reads the data.
MESSAGE = """
      mov.u32 %r1, %ctaid.x; setp.ne.u32 %p1, %r0, 0; @%p1 ret;
      setp.eq.u32 %p2, %r1, 0; @!%p2 bra READER;
      st.{data}global.u32 [%d0], 42;
      {release}
      {raise_flag}
      ret;
    READER:
      {read_flag}
      setp.eq.u32 %p3, %r2, 0; @%p3 nanosleep.u32 20; @%p3 bra READER;
      {acquire}
      ld.{data}global.u32 %r3, [%d0];
      st.global.u32 [%d1], %r3;
"""
DEFAULTS = {
    "data": "",
    "release": "membar.gl;",
    "raise_flag": "st.volatile.global.u32 [%d0+128], 1;",
    "read_flag": "ld.volatile.global.u32 %r2, [%d0+128];",
    "acquire": "membar.gl;",
}


def send(**parts):
    """All that is found and all results of the reader, over orders of the threads."""
    text = MESSAGE.format(**{**DEFAULTS, **parts})
    program = module(kernel(text, "u64 u64"))
    found, read = set(), set()
    for seed in SEEDS:
        data, out = np.zeros(64, np.uint32), np.zeros(1, np.uint32)
        found |= kinds(
            program.launch("k", data, out, grid=2, cooperative=True, seed=seed, quantum=3)
        )
        read.add(int(out[0]))
    return found, read


RACE = {"race in global memory"}
RAISE = "st.{}.global.u32 [%d0+128], 1;"
READ = "ld.{}.global.u32 %r2, [%d0+128];"


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"release": "fence.acq_rel.gpu;", "acquire": "fence.sc.gpu;"},
        {"release": "membar.sys;", "raise_flag": "red.global.add.u32 [%d0+128], 1;"},
        {"raise_flag": "atom.global.exch.b32 %r9, [%d0+128], 1;"},
        {"raise_flag": RAISE.format("relaxed.gpu"), "read_flag": READ.format("relaxed.gpu")},
        {"release": "", "raise_flag": RAISE.format("release.gpu")},
        {"acquire": "", "read_flag": READ.format("acquire.gpu")},
        {
            "release": "",
            "raise_flag": RAISE.format("release.sys"),
            "acquire": "",
            "read_flag": READ.format("acquire.sys"),
        },
        {
            "release": "",
            "raise_flag": "atom.release.gpu.global.add.u32 %r9, [%d0+128], 1;",
            "acquire": "",
            "read_flag": "atom.acquire.gpu.global.add.u32 %r2, [%d0+128], 0;",
        },
    ],
)
@pytest.mark.parametrize("data", ["", "volatile."])
def test_a_message_that_is_ordered(parts, data):
    assert send(**parts, data=data) == (set(), {42})


WRONG = [
    {"release": ""},
    {"acquire": ""},
    {"release": "", "acquire": ""},
    {"release": "membar.cta;"},
    {"acquire": "fence.acq_rel.cta;"},
    {"release": "", "raise_flag": RAISE.format("relaxed.gpu")},
    {"release": "", "raise_flag": RAISE.format("release.cta")},
    {"acquire": "", "read_flag": READ.format("relaxed.gpu")},
    {"acquire": "", "read_flag": READ.format("acquire.cta")},
    {"release": "", "raise_flag": "atom.acquire.gpu.global.add.u32 %r9, [%d0+128], 1;"},
    {"acquire": "", "read_flag": "atom.release.gpu.global.add.u32 %r2, [%d0+128], 0;"},
    # A fence after the flag is raised, or before it is read.
    {"release": "", "raise_flag": "st.volatile.global.u32 [%d0+128], 1;\n membar.gl;"},
    {"acquire": "", "read_flag": "membar.gl;\n ld.volatile.global.u32 %r2, [%d0+128];"},
]


@pytest.mark.parametrize("parts", WRONG)
def test_a_message_without_a_fence_races(parts):
    found, _ = send(**parts)
    assert found == RACE


@pytest.mark.parametrize(
    "parts",
    [
        {"release": ""},
        {"acquire": ""},
        {"release": "membar.cta;"},
        {"acquire": "fence.acq_rel.cta;"},
        {"acquire": "", "read_flag": "membar.gl;\n ld.volatile.global.u32 %r2, [%d0+128];"},
    ],
)
def test_a_message_of_strong_accesses_without_a_fence_arrives_too_late(parts):
    # Nothing races, but the reader may see the flag and not yet the data.
    assert send(**parts, data="volatile.") == (set(), {0, 42})


def test_a_flag_that_is_not_strong_races():
    found, _ = send(raise_flag="st.global.u32 [%d0+128], 1;")
    assert found == RACE


def test_stores_that_are_buffered():
    # Each block writes one place and reads the other's: without fences both may read 0.
    body = """
      mov.u32 %r1, %ctaid.x; setp.ne.u32 %p1, %r0, 0; @%p1 ret;
      mul.wide.u32 %d3, %r1, 64; add.u64 %d4, %d0, %d3; mov.u64 %d5, 64; sub.u64 %d5, %d5, %d3;
      add.u64 %d5, %d0, %d5;
      st.volatile.global.u32 [%d4], 1;
      {fence}
      ld.volatile.global.u32 %r2, [%d5];
      mul.wide.u32 %d3, %r1, 4; add.u64 %d6, %d1, %d3; st.global.u32 [%d6], %r2;
    """

    def outcomes(fence):
        program = module(kernel(body.format(fence=fence), "u64 u64"))
        seen = set()
        for seed in SEEDS:
            data, out = np.zeros(64, np.uint32), np.zeros(2, np.uint32)
            found = program.launch("k", data, out, grid=2, cooperative=True, seed=seed, quantum=2)
            assert not found
            seen.add(tuple(out.tolist()))
        return seen

    assert (0, 0) in outcomes("")
    assert (0, 0) not in outcomes("fence.sc.gpu;")


def test_a_thread_sees_its_own_stores_and_never_goes_back():
    body = """
      mov.u32 %r1, %ctaid.x; setp.ne.u32 %p1, %r0, 0; @%p1 ret;
      mov.u32 %r3, 0; mov.u32 %r4, 0;
      setp.eq.u32 %p2, %r1, 1; @%p2 bra READER;
    WRITE:
      add.u32 %r3, %r3, 1; st.volatile.global.u32 [%d0], %r3; ld.volatile.global.u32 %r5, [%d0];
      setp.ne.u32 %p3, %r5, %r3; @%p3 trap;
      setp.lt.u32 %p3, %r3, 20; @%p3 bra WRITE;
      ret;
    READER:
      ld.volatile.global.u32 %r5, [%d0]; setp.lt.u32 %p3, %r5, %r4; @%p3 trap;
      mov.u32 %r4, %r5; add.u32 %r3, %r3, 1; setp.lt.u32 %p3, %r3, 30; @%p3 bra READER;
    """
    program = module(kernel(body, "u64"))
    for seed in SEEDS:
        data = np.zeros(1, np.uint32)
        assert not program.launch("k", data, grid=2, cooperative=True, seed=seed, quantum=3)
        assert data[0] == 20


# A barrier of a grid of blocks, as the library's teams have it, then a read of the other's data.
GRID = """
      mov.u32 %r1, %ctaid.x; mov.u32 %r9, %nctaid.x;
      mad.lo.u32 %r2, %r1, 64, %r0; mul.wide.u32 %d3, %r2, 4; add.u64 %d4, %d0, %d3;
      add.u32 %r3, %r2, 1000; st.global.u32 [%d4], %r3;
      {before}
      setp.ne.u32 %p1, %r0, 0; @%p1 bra WAITED;
      {release}
      atom.global.add.u32 %r4, [%d1], 1;
    AGAIN:
      ld.volatile.global.u32 %r4, [%d1]; setp.lt.u32 %p2, %r4, %r9;
      @%p2 nanosleep.u32 20; @%p2 bra AGAIN;
      {acquire}
    WAITED:
      {after}
      add.u32 %r5, %r1, 1; rem.u32 %r5, %r5, %r9; mad.lo.u32 %r5, %r5, 64, %r0;
      xor.b32 %r5, %r5, 32;
      mul.wide.u32 %d5, %r5, 4; add.u64 %d5, %d0, %d5; ld.global.u32 %r6, [%d5];
      add.u64 %d6, %d2, %d3; st.global.u32 [%d6], %r6;
"""
PARTS = {
    "before": "bar.sync 0;",
    "release": "membar.gl;",
    "acquire": "membar.gl;",
    "after": "bar.sync 0;",
}


def grid_barrier(left_out: str | None):
    program = module(
        kernel(GRID.format(**{**PARTS, **({left_out: ""} if left_out else {})}), "u64 u64 u64")
    )
    found, right = set(), True
    expected = np.roll(np.arange(192, dtype=np.uint32).reshape(3, 64) + 1000, -1, axis=0)
    expected = expected.reshape(3, 2, 32)[:, ::-1].reshape(-1)
    for seed in range(10):
        data, count, out = (np.zeros(n, np.uint32) for n in (192, 1, 192))
        found |= kinds(
            program.launch(
                "k", data, count, out, grid=3, block=64, cooperative=True, seed=seed, quantum=9
            )
        )
        right &= bool((out == expected).all())
    return found, right


def test_a_barrier_of_blocks():
    assert grid_barrier(None) == (set(), True)


@pytest.mark.parametrize("part", list(PARTS))
def test_a_barrier_of_blocks_without_a_part(part):
    found, right = grid_barrier(part)
    assert found == RACE
    assert not right or part in ("release", "acquire")


@pytest.mark.parametrize("part", ["release", "acquire"])
def test_without_a_fence_a_barrier_of_blocks_gives_wrong_results(part):
    assert not grid_barrier(part)[1]


def test_blocks_that_wait_for_each_other_need_a_cooperative_launch():
    data, count, out = (np.zeros(n, np.uint32) for n in (192, 1, 192))
    text = GRID.format(**PARTS)
    with pytest.raises(ptx.Fault, match="wait for ever"):
        run(text, data, count, out, grid=3, block=64)


def test_the_last_block_sums_up():
    # Blocks one after another: the last to come, by an atomic count, reads what the others wrote.
    body = """
      mov.u32 %r1, %ctaid.x; mov.u32 %r9, %nctaid.x; setp.ne.u32 %p1, %r0, 0; @%p1 ret;
      mul.wide.u32 %d3, %r1, 4; add.u64 %d4, %d0, %d3; st.global.u32 [%d4], 5;
      {release}
      atom.global.add.u32 %r4, [%d1], 1;
      add.u32 %r4, %r4, 1; setp.ne.u32 %p2, %r4, %r9; @%p2 ret;
      {acquire}
      ld.global.u32 %r5, [%d0]; ld.global.u32 %r6, [%d0+4]; add.u32 %r5, %r5, %r6;
      st.global.u32 [%d2], %r5;
    """
    for release, acquire, expected in (
        ("membar.gl;", "membar.gl;", set()),
        ("", "membar.gl;", RACE),
        ("membar.gl;", "", RACE),
    ):
        arrays = (np.zeros(8, np.uint32), np.zeros(1, np.uint32), np.zeros(1, np.uint32))
        assert (
            kinds(run(body.format(release=release, acquire=acquire), *arrays, grid=2)) == expected
        )
        assert arrays[2][0] == 10


def test_fences_within_a_block():
    # Thread 0 writes, thread 32 waits for its flag in shared memory.
    body = """
      setp.eq.u32 %p1, %r0, 0; setp.eq.u32 %p2, %r0, 32;
      @%p1 st.volatile.shared.u32 [tile], 0;
      bar.sync 0;
      @%p1 st.shared.u32 [tile+4], 9;
      {release}
      @%p1 st.volatile.shared.u32 [tile], 1;
      @!%p2 bra END;
    AGAIN:
      ld.volatile.shared.u32 %r2, [tile]; setp.eq.u32 %p3, %r2, 0; @%p3 bra AGAIN;
      {acquire}
      ld.shared.u32 %r3, [tile+4]; st.global.u32 [%d0], %r3;
    END:
    """
    before = ".shared .align 16 .b8 tile[64];\n"
    for release, acquire, expected in (
        ("membar.cta;", "membar.cta;", set()),
        ("membar.cta;", "", {"race in shared memory"}),
        ("", "membar.cta;", {"race in shared memory"}),
    ):
        text = body.format(release=release, acquire=acquire)
        assert kinds(run(text, np.zeros(1, np.uint32), block=64, before=before)) == expected
