"""The PTX interpreter: clusters of blocks, their barrier, and each other's shared memory."""

import numpy as np
import pytest
from ptx_programs import HEADER, kernel, kinds, ptx

SIZE, THREADS, CLUSTERS = 4, 64, 2
SHARED = ".shared .align 16 .b8 tile[512];\n"
ARRIVE, WAIT = "barrier.cluster.arrive.release.aligned;", "barrier.cluster.wait.acquire.aligned;"
BARRIER = ARRIVE + WAIT

#: Of the own shared memory, and of the next block's: %r3 and %r8; %r6 is the place in the results.
PLACES = """
  mov.u32 %r2, tile; shl.b32 %r3, %r0, 2; add.u32 %r3, %r2, %r3;
  mov.u32 %r4, %cluster_ctarank; mov.u32 %r5, %cluster_nctarank;
  mov.u32 %r6, %ctaid.x; mad.lo.u32 %r7, %r6, 1000, %r0;
  shl.b32 %r6, %r6, 6; add.u32 %r6, %r6, %r0; mul.wide.u32 %d62, %r6, 4; add.u64 %d62, %d0, %d62;
  add.u32 %r9, %r4, 1; rem.u32 %r9, %r9, %r5;
  mapa.shared::cluster.u32 %r8, %r3, %r9;
"""
#: Each block writes its own, then reads the next one's.
PULL = (
    PLACES
    + """
  st.shared.u32 [%r3], %r7;
  {first}
  ld.shared::cluster.u32 %r1, [%r8];
  st.global.u32 [%d62], %r1;
  {last}
"""
)
#: Each block writes the next one's, then reads its own: nobody is asked who may have ended.
PUSH = (
    PLACES
    + """
  {start}
  st.shared::cluster.u32 [%r8], %r7;
  {first}
  ld.shared.u32 %r1, [%r3];
  st.global.u32 [%d62], %r1;
"""
)
#: By global memory: %d1 is the workspace.
GLOBAL = (
    PLACES
    + """
  shl.b32 %r10, %r6, 2; cvt.u64.u32 %d5, %r10; add.u64 %d5, %d1, %d5;
  st.global.u32 [%d5], %r7;
  {first}
  mov.u32 %r11, %ctaid.x; sub.u32 %r11, %r11, %r4; add.u32 %r11, %r11, %r9;
  shl.b32 %r11, %r11, 6; add.u32 %r11, %r11, %r0; mul.wide.u32 %d6, %r11, 4;
  add.u64 %d6, %d1, %d6;
  ld.global.u32 %r1, [%d6];
  st.global.u32 [%d62], %r1;
"""
)


def launch(body: str, *more, **how):
    """What it finds, and the results."""
    out = np.full(CLUSTERS * SIZE * THREADS, 99, np.uint32)
    text = HEADER.format(target="sm_90a") + kernel(body, "u64 " * (1 + len(more)), before=SHARED)
    found = ptx.Module(text).launch(
        "k", out, *more, grid=CLUSTERS * SIZE, block=THREADS, **{"cluster": SIZE, **how}
    )
    return found, out


def expected(step: int) -> np.ndarray:
    block, thread = np.divmod(np.arange(CLUSTERS * SIZE * THREADS), THREADS)
    cluster, rank = np.divmod(block, SIZE)
    return 1000 * (cluster * SIZE + (rank + step) % SIZE) + thread


def workspace() -> np.ndarray:
    return np.zeros(CLUSTERS * SIZE * THREADS, np.uint32)


SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("quantum", [3, 100000])
@pytest.mark.parametrize("barrier", [BARRIER, "barrier.cluster.arrive; barrier.cluster.wait;"])
def test_blocks_reach_each_others_shared_memory(seed, quantum, barrier):
    how = {"seed": seed, "quantum": quantum}
    found, out = launch(PULL.format(first=barrier, last=barrier), **how)
    assert not found, found
    np.testing.assert_array_equal(out, expected(1))
    found, out = launch(PUSH.format(start=barrier, first=barrier), **how)
    assert not found, found
    np.testing.assert_array_equal(out, expected(-1))
    found, out = launch(GLOBAL.format(first=barrier), workspace(), **how)
    assert not found, found
    np.testing.assert_array_equal(out, expected(1))


def complaints(body: str, *more, **how) -> set[str]:
    try:
        return kinds(launch(body, *more, **how)[0])
    except ptx.Fault as fault:
        return kinds(fault.findings) | {str(fault).split(":")[0]}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("program", "barriers"),
    [
        (PULL, {"first": BARRIER, "last": BARRIER}),
        (PUSH, {"start": BARRIER, "first": BARRIER}),
        (GLOBAL, {"first": BARRIER}),
    ],
    ids=["pull", "push", "global"],
)
def test_an_arrival_a_wait_or_a_barrier_left_out_is_noticed(program, barriers, seed):
    more = (workspace(),) if program is GLOBAL else ()
    for name in barriers:
        for left in (ARRIVE, WAIT, ""):
            said = complaints(program.format(**{**barriers, name: left}), *more, seed=seed)
            assert said, (name, left)
    index = 0
    while True:  # the same by the option, with which --mutate tries the library's kernels
        if index == 2 * len(barriers):
            break
        assert complaints(program.format(**barriers), *more, seed=seed, skip_barrier=index), index
        index += 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", [PULL, GLOBAL], ids=["shared", "global"])
def test_a_relaxed_arrival_orders_nothing(program, seed):
    relaxed = "barrier.cluster.arrive.relaxed.aligned;" + WAIT
    more = (workspace(),) if program is GLOBAL else ()
    said = complaints(program.format(first=relaxed, last=BARRIER), *more, seed=seed)
    assert any("race" in kind for kind in said), said


@pytest.mark.parametrize("seed", SEEDS)
def test_what_follows_an_arrival_is_not_released_by_it(seed):
    late = ARRIVE + "  st.shared.u32 [%r3], %r7; " + WAIT
    assert "race in shared memory" in complaints(PULL.format(first=late, last=BARRIER), seed=seed)
    early = "  st.shared.u32 [%r3+256], %r7; " + ARRIVE + "  add.u32 %r12, %r7, 1; " + WAIT
    assert not complaints(PULL.format(first=early, last=BARRIER), seed=seed)
    own = ARRIVE + "  st.shared.u32 [%r3+256], %r7; " + WAIT  # which nobody else reads
    assert not complaints(PULL.format(first=own, last=BARRIER), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_barrier_of_the_block_orders_no_other_block(seed):
    for program in (PULL.format(first=BARRIER + BARRIER, last=""),):
        assert "shared memory of a block that may have ended" in complaints(program, seed=seed) or (
            "shared memory of a block that has ended" in complaints(program, seed=seed)
        )
    pushes = PUSH.format(start=BARRIER, first="bar.sync 0;")
    said = complaints(pushes, seed=seed)
    assert said & {
        "race in shared memory",
        "uninitialised read of shared memory",
        "shared memory of a block that may have ended",
        "shared memory of a block that has ended",
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_a_write_of_what_any_block_has_read(seed):
    """Three blocks read it; whoever is not waited for is noticed."""
    everyone = """
      mapa.shared::cluster.u32 %r12, %r3, 0;
      ld.shared::cluster.u32 %r1, [%r12];
      {barrier}
      setp.eq.u32 %p1, %r4, 0;
      @%p1 st.shared.u32 [%r3], %r7;
      st.global.u32 [%d62], %r1;
    """
    start = PLACES + "  st.shared.u32 [%r3], %r7;\n" + BARRIER
    assert not complaints(start + everyone.format(barrier=BARRIER), seed=seed)
    said = complaints(start + everyone.format(barrier="") + BARRIER, seed=seed)
    assert "race in shared memory" in said


def test_generic_addresses_reach_the_cluster():
    body = PULL.format(first=BARRIER, last=BARRIER).replace(
        "ld.shared::cluster.u32 %r1, [%r8];",
        "cvt.u64.u32 %d7, %r3; cvta.shared.u64 %d7, %d7; mapa.u64 %d7, %d7, %r9;ld.u32 %r1, [%d7];",
    )
    found, out = launch(body)
    assert not found, found
    np.testing.assert_array_equal(out, expected(1))


EARLY = "shared memory of a block that may not have started"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("mapa.shared::cluster.u32 %r8, %r3, 4;", "address of no block of the cluster"),
        ("mapa.shared::cluster.u32 %r8, 512, 1;", "mapa of what is not in shared memory"),
        (BARRIER + "st.shared.u32 [%r8], %r7;" + BARRIER, "access outside shared memory"),
        ("st.shared::cluster.u32 [%r8], %r7;", EARLY),
        (WAIT, "barrier of a cluster without an arrival"),
        (ARRIVE, "barrier of a cluster without a wait"),
        (ARRIVE + ARRIVE, "barrier of a cluster without a wait"),
        ("setp.eq.u32 %p1, %r4, 1;  @%p1 exit; " + BARRIER + BARRIER
         + "ld.shared::cluster.u32 %r1, [%r8];" + BARRIER,
         "shared memory of a block that has ended"),
        ("setp.lt.u32 %p1, %r0, 7;  @%p1 bra NOT; " + BARRIER + "NOT:",
         "barrier in a diverged warp"),
    ],
)  # fmt: skip
def test_faults(body, kind):
    assert kind in complaints(PLACES + body), complaints(PLACES + body)


def test_threads_that_have_ended_are_not_waited_for():
    body = PLACES + "setp.eq.u32 %p1, %r4, 1;  @%p1 exit; " + BARRIER + "st.global.u32 [%d62], %r7;"
    found, out = launch(body)
    assert not found, found
    block = np.arange(CLUSTERS * SIZE * THREADS) // THREADS
    np.testing.assert_array_equal(out == 99, block % SIZE == 1)


def test_grids_and_names_of_places():
    with pytest.raises(ptx.Fault, match="no multiple of its clusters"):
        launch(PLACES, cluster=3)
    body = """
      mov.u32 %r1, %cluster_ctaid.x; mov.u32 %r2, %cluster_ctaid.z; mov.u32 %r3, %cluster_ctarank;
      mov.u32 %r4, %cluster_nctaid.x; mov.u32 %r5, %ctaid.x; mov.u32 %r6, %ctaid.z;
      mul.lo.u32 %r7, %r6, 4; add.u32 %r7, %r7, %r5; mul.wide.u32 %d62, %r7, 4;
      add.u64 %d62, %d0, %d62;
      mad.lo.u32 %r1, %r1, 10, %r2; mad.lo.u32 %r1, %r1, 10, %r3; mad.lo.u32 %r1, %r1, 10, %r4;
      st.global.u32 [%d62], %r1;
    """
    out = np.zeros(16, np.uint32)
    text = HEADER.format(target="sm_90a") + kernel(body)
    found = ptx.Module(text).launch("k", out, grid=(4, 1, 4), block=1, cluster=(2, 1, 2))
    assert not found, found
    x, z = np.arange(16) % 4 % 2, np.arange(16) // 4 % 2
    np.testing.assert_array_equal(out, x * 1000 + z * 100 + (2 * z + x) * 10 + 2)


def test_clocks_of_the_barrier():
    """All warps go on after the last arrival and the barrier's own time."""
    import json

    text = HEADER.format(target="sm_90a") + kernel(PLACES + BARRIER, before=SHARED)
    opened = ptx.Module(text)
    out = np.zeros(SIZE * THREADS, np.uint32)
    clocks = []
    for body in (PLACES, PLACES + BARRIER):
        opened = ptx.Module(HEADER.format(target="sm_90a") + kernel(body, before=SHARED))
        opened.launch("k", out, grid=SIZE, block=THREADS, cluster=SIZE, counts=True)
        clocks.append(json.loads(opened.counted())["block_clocks"])
    assert 440 <= clocks[1] - clocks[0] <= 460
