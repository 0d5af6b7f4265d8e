"""The PTX interpreter: faults planted in small programs, of which each must be found."""

import numpy as np
import pytest
from ptx_programs import kinds, run, stops

SHARED = ".shared .align 16 .b8 tile[1024];\n"
ADDRESS = "  mov.u32 %r2, tile; shl.b32 %r3, %r0, 2; add.u32 %r3, %r2, %r3;\n"
ONE = "  setp.eq.u32 %p1, %r0, 0;\n"


RACE = {"race in shared memory"}


def out(count: int = 64) -> np.ndarray:
    return np.zeros(count, np.uint32)


def found(body: str, *arguments, **how) -> set[str]:
    how.setdefault("block", 64)
    how.setdefault("before", SHARED)
    return kinds(run(body, *arguments, **how))


# Each thread reads what its neighbour wrote.
NEIGHBOUR = (
    ADDRESS
    + """
  st.shared.u32 [%r3], %r0;
  {between}
  xor.b32 %r4, %r3, {distance}; ld.shared.u32 %r1, [%r4];
"""
)


@pytest.mark.parametrize("distance", [4, 128], ids=["of a warp", "of two warps"])
def test_a_race_in_shared_memory(distance):
    body = NEIGHBOUR.replace("{distance}", str(distance))
    assert found(body.format(between="bar.sync 0;"), out()) == set()
    got = found(body.format(between=""), out())
    # With warps in another order the second warp reads before the first writes.
    assert got in (
        {"race in shared memory"},
        {"race in shared memory", "uninitialised read of shared memory"},
    )


def test_a_barrier_of_the_warp_orders_only_its_lanes():
    body = NEIGHBOUR.format(between="bar.warp.sync -1;", distance="{distance}")
    assert found(body.replace("{distance}", "4"), out()) == set()
    assert "race in shared memory" in found(body.replace("{distance}", "128"), out())


def test_a_barrier_of_some_lanes_orders_only_them():
    body = NEIGHBOUR.format(between="bar.warp.sync {mask};", distance=4)
    pairs = "shl.b32 %r5, 3, %r0; and.b32 %r6, %r0, 30; shl.b32 %r6, 3, %r6; "
    assert (
        found(body.replace("bar.warp.sync {mask}", pairs + "bar.warp.sync %r6"), out(), block=32)
        == set()
    )
    alone = "mov.u32 %r6, %lanemask_eq; "
    got = found(body.replace("bar.warp.sync {mask}", alone + "bar.warp.sync %r6"), out(), block=32)
    assert "race in shared memory" in got


@pytest.mark.parametrize(
    "between",
    ["shfl.sync.bfly.b32 %r9, %r0, 1, 31, -1;", "vote.sync.any.pred %p3, %p3, -1;", "membar.cta;"],
)
def test_shuffles_votes_and_fences_order_nothing(between):
    body = NEIGHBOUR.format(between="setp.eq.u32 %p3, %r0, 0;" + between, distance=4)
    assert "race in shared memory" in found(body, out())


def test_a_barrier_of_two_warps_does_not_order_a_third():
    body = (
        ADDRESS
        + """
      setp.ge.u32 %p1, %r0, 64;
      @%p1 bra THIRD;
      st.shared.u32 [%r3], %r0;
      bar.sync 1, 64;
      xor.b32 %r4, %r3, 128; ld.shared.u32 %r1, [%r4];
    THIRD:
    """
    )
    assert found(body, out(), block=96) == set()
    body = body.replace("THIRD:\n", "bra END;\nTHIRD:\n ld.shared.u32 %r1, [tile];\nEND:\n")
    assert "race in shared memory" in found(body, out(), block=96)


def test_two_threads_write_one_place_and_one_writes_what_another_reads():
    assert found("  st.shared.u32 [tile], %r0;", out()) == RACE
    body = ONE + "  @%p1 st.shared.u32 [tile], 1;\n  bar.sync 0;\n  ld.shared.u32 %r1, [tile];\n"
    assert found(body, out()) == set()
    assert found(body + "  @%p1 st.shared.u32 [tile], 2;\n", out()) == RACE
    assert found(body + "  bar.sync 0;\n  @%p1 st.shared.u32 [tile], 2;\n", out()) == set()


def test_neighbouring_bytes_do_not_race():
    body = "  mov.u32 %r2, tile; add.u32 %r2, %r2, %r0; st.shared.u8 [%r2], %r0;\n"
    body += "  add.u64 %d5, %d0, 0; cvt.u64.u32 %d6, %r0; add.u64 %d5, %d5, %d6; "
    body += "st.global.u8 [%d5], %r0;\n"
    assert found(body, out()) == set()
    body = body.replace("st.shared.u8", "and.b32 %r2, %r2, -2;\n  st.shared.u16")
    assert found(body, out()) == RACE


def test_atomics_do_not_race_with_each_other_but_with_plain_accesses():
    start = ONE + "  @%p1 st.shared.u32 [tile], 0;\n  bar.sync 0;\n"
    update = "  atom.shared.add.u32 %r1, [tile], 1;\n"
    assert found(start + update, out()) == set()
    assert found(start + update + "  ld.shared.u32 %r1, [tile];\n", out()) == {
        "race in shared memory"
    }
    assert found(start + update + "  ld.volatile.shared.u32 %r1, [tile];\n", out()) == set()
    assert found("  red.global.add.u32 [%d0], 1;\n", out()) == set()
    body = "  red.global.add.u32 [%d0], 1;\n  st.global.u32 [%d0], 1;\n"
    assert found(body, out()) == {"race in global memory"}


@pytest.mark.parametrize("cooperative", [False, True])
def test_blocks_that_write_one_place(cooperative):
    body = ONE + "  @%p1 st.global.u32 [%d0], 1;\n"
    assert found(body, out(), grid=2, cooperative=cooperative) == {"race in global memory"}
    body = "  red{}.global.add.u32 [%d0], 1;\n"
    assert found(body.format(""), out(), grid=2, cooperative=cooperative) == set()
    # Atomic for its own block only.
    got = found(body.format(".relaxed.cta"), out(), grid=2, cooperative=cooperative)
    assert got == {"race in global memory"}


def test_uninitialised_reads():
    body = ADDRESS + "  setp.lt.u32 %p1, %r0, 5;\n  @%p1 st.shared.u32 [%r3], 1;\n  bar.sync 0;\n"
    body += "  {guard}ld.shared.u32 %r1, [%r3];\n"
    assert found(body.format(guard="@%p1 "), out()) == set()
    (finding,) = run(body.format(guard=""), out(), block=64, before=SHARED)
    assert finding.kind == "uninitialised read of shared memory" and finding.times == 59
    assert "thread 5 of block 0, 0, 0" in finding.what
    assert "ld.shared.u32 %r1, [%r3];" in finding.where

    local = "  .local .align 8 .b8 depot[16];\n  mov.u64 %d5, depot;\n  st.local.u32 [%d5], %r0;\n"
    assert found(local + "  ld.local.u32 %r1, [%d5];\n  add.u32 %r1, %r1, 1;\n", out()) == set()
    got = found(local + "  ld.local.u32 %r1, [%d5+4];\n  add.u32 %r1, %r1, 1;\n", out())
    assert got == {"uninitialised read of local memory"}
    # Structures are copied with their padding.
    copy = local + "  ld.local.u64 %d6, [%d5];\n  st.local.u64 [%d5+8], %d6;\n"
    assert found(copy, out()) == set()
    parts = local + "  ld.local.u32 %r1, [%d5+4];\n  bfe.u32 %r2, %r1, 8, 8;\n"
    assert found(parts + "  st.local.u8 [%d5+8], %r2;\n", out()) == set()
    got = found(parts + "  add.u32 %r2, %r2, 1;\n", out())
    assert got == {"uninitialised read of local memory"}

    fresh = out()
    body = "  add.u64 %d5, %d0, %d63;\n  {}\n  ld.global.u32 %r1, [%d5];\n"
    assert found(body.format("st.global.u32 [%d5], 1;"), fresh, unwritten=[fresh]) == set()
    got = found(body.format(""), fresh, unwritten=[fresh])
    assert got == {"uninitialised read of global memory"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("  add.u64 %d5, %d0, 2; st.global.u32 [%d5], 1;", "misaligned access: a write of 4 bytes"),
        ("  ld.global.v2.f32 {%f1, %f2}, [%d0+4];", "misaligned access: a read of 8 bytes"),
        ("  ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [tile+8];", "misaligned access"),
        ("  red.global.add.u64 [%d0+4], 1;", "misaligned access"),
        ("  st.shared.u32 [tile+1024], 1;", "a write of 4 bytes at offset 1024"),
        ("  mov.u32 %r1, tile; ld.shared.u32 %r1, [%r1+-4];", "outside shared memory"),
        ("  ld.global.u32 %r1, [%d0+256];", "outside every buffer"),
        ("  mov.u64 %d1, 0; st.global.u32 [%d1], 1;", "outside global memory"),
        ("  .local .align 8 .b8 depot[16]; ld.local.u32 %r1, [depot+16];", "outside local memory"),
        ("  mov.b64 %d1, k_p0; ld.param.u32 %r1, [%d1+8];", "outside a kernel's parameters"),
        ("  cvta.to.shared.u64 %d1, %d0;", "address of another space"),
        ("  mov.b64 %d1, k_p0; cvta.param.u64 %d1, %d1; st.u32 [%d1], 1;",
         "write to a kernel"),
        ("  shl.b64 %d1, %d0, 30; or.b64 %d1, %d1, 0x7f00000000000000; ld.u32 %r1, [%d1];",
         "address of no memory"),
    ],
)  # fmt: skip
def test_accesses_that_stop_the_kernel(body, message):
    array = np.zeros(66, np.uint32)
    aligned = array[(array.ctypes.data % 8) // 4 :][:64]
    fault = stops(body, aligned, before=SHARED)
    assert message in str(fault)
    assert "thread 0 of block 0, 0, 0" in str(fault) and "test.ptx line" in str(fault)


def test_a_division_by_zero():
    assert found("  div.s32 %r1, 7, %r0;", out()) == {"division by zero"}


def test_barriers_in_a_diverged_warp():
    body = "  and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 1;\n  @%p1 bra ODD;\n  bar.sync 0;\n"
    body += "  bra END;\nODD:\n  bar.sync 0;\nEND:\n"
    assert found(body, out()) == {"barrier in a diverged warp"}
    # Not aligned: that is allowed.
    assert found(body.replace("bar.sync", "barrier.sync"), out()) == set()


def test_a_barrier_that_some_threads_never_reach():
    body = "  setp.lt.u32 %p1, %r0, 32;\n  @%p1 bar.sync 0;\n  @!%p1 {};\n"
    got = found(body.format("ret"), out())
    assert got == {"barrier after threads have ended"}
    fault = stops(body.format("bar.sync 1"), out(), block=64)
    assert "barrier that is never reached" in str(fault)
    assert "warp 0: 32 wait at barrier 0" in str(fault)
    assert "warp 1: 32 wait at barrier 1" in str(fault)


def test_different_kinds_of_barrier_meet():
    body = "  setp.lt.u32 %p1, %r0, 32;\n  @%p1 bra FIRST;\n  bar.red.or.pred %p2, 0, %p1;\n"
    body += "  bra END;\nFIRST:\n  bar.sync 0;\nEND:\n"
    assert "different kinds of barrier meet" in found(body, out())


def test_bad_numbers_of_barriers():
    assert "number above 15" in str(stops("  bar.sync 16;", out()))
    assert "no whole warps" in str(stops("  bar.sync 1, 40;", out(), block=64))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        # Lanes 0 to 6 shuffle with a mask that names all.
        ("  setp.lt.u32 %p1, %r0, 7;\n  @%p1 shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;\n"
         "  @!%p1 bar.sync 0;", None),
        ("  shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xfffffffe;", "lane outside its mask"),
        ("  setp.lt.u32 %p1, %r0, 7;\n  @%p1 shfl.sync.idx.b32 %r1, %r0, 9, 31, 0x7f;",
         "shuffle from a lane that takes no part"),
        ("  setp.lt.u32 %p1, %r0, 7;\n  @!%p1 ret;\n  shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;",
         "mask names lanes that have ended"),
        ("  setp.lt.u32 %p1, %r0, 7;\n  @!%p1 ret;\n  vote.sync.any.pred %p2, %p1, -1;",
         "mask names lanes that have ended"),
    ],
)  # fmt: skip
def test_wrong_masks(body, kind):
    if kind is None:
        fault = stops(body, out(), block=32)
        assert "7 wait for lanes that their mask names" in str(fault)
    else:
        assert kind in found(body, out(), block=32)


def test_lanes_that_never_come_to_a_shuffle():
    # The other lanes go on to the end, past the shuffle.
    body = "  setp.lt.u32 %p1, %r0, 7;\n  @!%p1 bra END;\n"
    body += "  shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;\nEND:\n"
    fault = stops(body + "  ret;", out(), block=32)
    assert "mask names lanes that never come" in str(fault)
    assert "7 wait for lanes that their mask names" in str(fault) and "25 have ended" in str(fault)


def test_products_of_matrices_by_a_part_of_a_warp():
    text = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1, %f2, %f3, %f4}, "
    text += "{%r1, %r1, %r1, %r1}, {%r1, %r1}, {%f1, %f2, %f3, %f4};"
    body = "  mov.u32 %r1, 0; mov.f32 %f1, 0f00000000; mov.f32 %f2, %f1; mov.f32 %f3, %f1; "
    body += "mov.f32 %f4, %f1;\n"
    assert found(body + text, out(), block=32) == set()
    assert found(body + "mov.u32 %r1, 0x3f800001;" + text, out(), block=32) == {
        "operand of mma that is not rounded to tf32"
    }
    # What a number leaves that was split in two may have two bits more, which are dropped.
    assert found(body + "mov.u32 %r1, 0x3f801800;" + text, out(), block=32) == set()
    assert "part of a warp" in str(stops(body + ONE + "  @%p1 " + text, out()))


@pytest.mark.parametrize("sleeps", ["nanosleep.u32 20;", ""])
def test_threads_that_wait_for_ever(sleeps):
    body = f"AGAIN:\n  ld.volatile.global.u32 %r1, [%d0];\n  {sleeps}\n  setp.eq.u32 %p1, %r1, 0;\n"
    fault = stops(body + "  @%p1 bra AGAIN;", out())
    assert "threads that wait for ever" in str(fault)


def test_a_copy_that_nobody_waits_for():
    body = (
        "  add.u64 %d5, %d0, %d63;\n" + ADDRESS + "  cp.async.ca.shared.global [%r3], [%d5], 4;\n"
    )
    assert found(body, out()) == {"asynchronous copy without a wait"}
    assert found(body + "  cp.async.wait_all;\n", out()) == set()
    # Read before it has landed.
    got = found(body + "  ld.shared.u32 %r1, [%r3];\n  cp.async.wait_all;\n", out())
    assert got == {"uninitialised read of shared memory"}
    # Waited for, but only by the thread that copied.
    neighbour = "  cp.async.wait_all;\n  {}\n  xor.b32 %r4, %r3, 4;\n  ld.shared.u32 %r1, [%r4];\n"
    assert found(body + neighbour.format(""), out()) == RACE
    assert found(body + neighbour.format("bar.sync 0;"), out()) == set()


def test_a_copy_while_others_still_read():
    """It may land at once, and late: what one order hides the other one shows."""
    reads = ADDRESS + "  mov.u32 %r1, 7;\n  st.shared.u32 [%r3], %r1;\n  bar.sync 0;\n"
    reads += "  xor.b32 %r4, %r3, 4;\n  ld.shared.u32 %r1, [%r4];\n"
    copy = "  add.u64 %d5, %d0, %d63;\n  cp.async.ca.shared.global [%r3], [%d5], 4;\n"
    copy += "  bar.sync 0;\n  cp.async.wait_all;\n"
    assert found(reads + copy, out()) == set()  # it lands behind the barrier
    assert found(reads + copy, out(), early_copies=True) == RACE
    body = reads + "  bar.sync 0;\n" + copy
    assert found(body, out(), early_copies=True) == found(body, out()) == set()


def test_a_barrier_left_out():
    body = NEIGHBOUR.format(between="bar.sync 0;", distance=128)
    assert "race in shared memory" in found(body, out(), skip_barrier=0)
    assert found(body, out(), skip_barrier=1) == set()


def test_checks_of_races_can_be_left_out():
    body = NEIGHBOUR.format(between="", distance=4)
    assert found(body, out(), checks_races=False) == set()
