"""The PTX interpreter: branches, loops, calls, divergence, and what lanes of a warp do together."""

import numpy as np
import pytest
from ptx_programs import HEADER, kernel, kinds, module, ptx, run

THREADS = np.arange(64, dtype=np.uint32)


def store(register: str = "%r1") -> str:
    return f"  add.u64 %d62, %d0, %d63;\n  st.global.u32 [%d62], {register};"


def results(body: str, threads: int = 64, **how) -> np.ndarray:
    out = np.full(threads, 99, np.uint32)
    found = run(body + store(), out, block=threads, **how)
    assert not found, found
    return out


def test_a_branch_that_lanes_take_differently():
    got = results("""
      and.b32 %r2, %r0, 3; setp.eq.u32 %p1, %r2, 1; setp.eq.u32 %p2, %r2, 2;
      @%p1 bra ONE;
      @%p2 bra TWO;
      mov.u32 %r1, 7;
      bra.uni END;
    ONE:
      mov.u32 %r1, 11;
      bra END;
    TWO:
      mov.u32 %r1, 12;
    END:
      add.u32 %r1, %r1, %r0;
    """)
    extra = np.where(THREADS % 4 == 1, 11, np.where(THREADS % 4 == 2, 12, 7))
    np.testing.assert_array_equal(got, THREADS + extra)


LOOP = """
      mov.u32 %r1, 0; mov.u32 %r2, 0;
    AGAIN:
      setp.ge.u32 %p1, %r2, %r0;
      @%p1 bra DONE;
      mov.u32 %r3, 0;
    INNER:
      add.u32 %r1, %r1, 1; add.u32 %r3, %r3, 1;
      setp.lt.u32 %p2, %r3, %r2;
      @%p2 bra INNER;
      add.u32 %r2, %r2, 1;
      bra AGAIN;
    DONE:
"""


def test_loops_of_another_length_in_each_lane():
    got = results(LOOP)
    expected = [sum(max(1, k) for k in range(n)) for n in range(64)]
    np.testing.assert_array_equal(got, expected)


def test_lanes_meet_again_after_a_loop():
    # All lanes take part in the shuffle that follows the loop, whatever their number of turns.
    got = results(LOOP + "  shfl.sync.idx.b32 %r1, %r1, 31, 31, -1;\n")
    expected = [sum(max(1, k) for k in range(n)) for n in (31, 63)]
    np.testing.assert_array_equal(got, np.repeat(expected, 32))


def test_guards_and_their_negation():
    got = results("""
      setp.lt.u32 %p1, %r0, 10; mov.u32 %r1, 1;
      @%p1 mov.u32 %r1, 2;
      @!%p1 add.u32 %r1, %r1, 4;
    """)
    np.testing.assert_array_equal(got, np.where(THREADS < 10, 2, 5))


def test_a_branch_by_a_table():
    got = results("""
      and.b32 %r2, %r0, 3;
    TABLE: .branchtargets A, B, C, B;
      brx.idx %r2, TABLE;
    A: mov.u32 %r1, 100; bra END;
    B: mov.u32 %r1, 200; bra END;
    C: mov.u32 %r1, 300;
    END:
    """)
    np.testing.assert_array_equal(got, np.array([100, 200, 300, 200])[THREADS % 4])


def test_exit_and_return_of_some_lanes():
    out = np.zeros(64, np.uint32)
    body = "  setp.lt.u32 %p1, %r0, 40;\n  mov.u32 %r1, 5;\n  @%p1 {};\n" + store()
    for word in "exit", "ret":
        out[:] = 0
        assert not run(body.format(word), out, block=64)
        np.testing.assert_array_equal(out, np.where(THREADS < 40, 0, 5))


CALLED = """
.func (.param .b32 x_result) sum_of(.param .b32 x_n, .param .align 8 .b8 x_pair[16])
{
  .reg .b32 %r<9>; .reg .pred %p<2>; .reg .b64 %d<3>;
  ld.param.u32 %r1, [x_n]; ld.param.u32 %r2, [x_pair]; ld.param.u64 %d1, [x_pair+8];
  cvt.u32.u64 %r3, %d1;
  setp.eq.u32 %p1, %r1, 0;
  @%p1 bra LEAF;
  sub.u32 %r4, %r1, 1;
  {
    .param .b32 a0; .param .align 8 .b8 a1[16]; .param .b32 back;
    st.param.b32 [a0], %r4; st.param.b32 [a1], %r2; st.param.b64 [a1+8], %d1;
    call.uni (back), sum_of, (a0, a1);
    ld.param.b32 %r5, [back];
  }
  add.u32 %r5, %r5, %r2;
  st.param.b32 [x_result], %r5;
  ret;
LEAF:
  st.param.b32 [x_result], %r3;
  ret;
}
"""


def test_calls_with_structures_and_recursion():
    out = np.full(64, 99, np.uint32)
    body = """
      and.b32 %r2, %r0, 7; mov.u64 %d5, 1000; add.u32 %r3, %r0, 1;
      {
        .param .b32 a0; .param .align 8 .b8 a1[16]; .param .b32 back;
        st.param.b32 [a0], %r2; st.param.b32 [a1], %r3; st.param.b64 [a1+8], %d5;
        call (back), sum_of, (a0, a1);
        ld.param.b32 %r1, [back];
      }
    """
    assert not run(body + store(), out, block=64, before=CALLED)
    np.testing.assert_array_equal(out, 1000 + (THREADS % 8) * (THREADS + 1))


def test_a_call_by_some_lanes():
    out = np.full(64, 99, np.uint32)
    body = """
      setp.lt.u32 %p1, %r0, 5; mov.u32 %r1, 3; mov.u64 %d5, 20; mov.u32 %r2, 1;
      @!%p1 bra SKIP;
      {
        .param .b32 a0; .param .align 8 .b8 a1[16]; .param .b32 back;
        st.param.b32 [a0], %r2; st.param.b32 [a1], %r0; st.param.b64 [a1+8], %d5;
        call (back), sum_of, (a0, a1);
        ld.param.b32 %r1, [back];
      }
    SKIP:
    """
    assert not run(body + store(), out, block=64, before=CALLED)
    np.testing.assert_array_equal(out, np.where(THREADS < 5, 20 + THREADS, 3))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("bfly.b32 %r1, %r0, 5, 31", lambda n: n ^ 5),
        ("up.b32 %r1, %r0, 3, 0", lambda n: np.where(n % 32 >= 3, n - 3, n)),
        ("down.b32 %r1, %r0, 3, 31", lambda n: np.where(n % 32 < 29, n + 3, n)),
        ("idx.b32 %r1, %r0, 7, 31", lambda n: n // 32 * 32 + 7),
        # In segments of eight lanes.
        ("bfly.b32 %r1, %r0, 1, 6175", lambda n: n ^ 1),
        ("down.b32 %r1, %r0, 3, 6175", lambda n: np.where(n % 8 < 5, n + 3, n)),
        ("up.b32 %r1, %r0, 3, 6144", lambda n: np.where(n % 8 >= 3, n - 3, n)),
        ("idx.b32 %r1, %r0, 2, 6175", lambda n: n // 8 * 8 + 2),
    ],
)
def test_shuffles(name, source):
    np.testing.assert_array_equal(results(f"  shfl.sync.{name}, -1;\n"), source(THREADS))


def test_a_shuffle_tells_which_lanes_were_in_range():
    got = results("  shfl.sync.down.b32 %r1|%p1, %r0, 30, 31, -1;\n  selp.u32 %r1, 1, 0, %p1;\n")
    np.testing.assert_array_equal(got, THREADS % 32 < 2)


def test_a_shuffle_of_two_groups_of_lanes():
    got = results(
        """
      setp.lt.u32 %p1, %r0, 16;
      @%p1 bra LOW;
      shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffff0000;
      bra END;
    LOW:
      shfl.sync.bfly.b32 %r1, %r0, 2, 31, 0x0000ffff;
    END:
    """,
        threads=32,
    )
    np.testing.assert_array_equal(got, np.where(THREADS < 16, THREADS ^ 2, THREADS ^ 1)[:32])


def test_votes():
    setup = "  setp.lt.u32 %p1, %r0, 35;\n"
    vote = "  vote.sync.{} %p2, {}%p1, -1;\n  selp.u32 %r1, 1, 0, %p2;\n"
    np.testing.assert_array_equal(results(setup + vote.format("all.pred", "")), THREADS < 32)
    assert results(setup + vote.format("any.pred", "")).all()
    np.testing.assert_array_equal(results(setup + vote.format("any.pred", "!")), THREADS >= 32)
    np.testing.assert_array_equal(results(setup + vote.format("uni.pred", "")), THREADS < 32)
    got = results(setup + "  vote.sync.ballot.b32 %r1, %p1, -1;\n")
    np.testing.assert_array_equal(got, np.where(THREADS < 32, 2**32 - 1, 7))


def test_match_and_activemask():
    got = results("  and.b32 %r2, %r0, 1;\n  match.any.sync.b32 %r1, %r2, -1;\n")
    np.testing.assert_array_equal(got, np.where(THREADS % 2, 0xAAAAAAAA, 0x55555555))
    got = results("  mov.u32 %r2, 4;\n  match.all.sync.b32 %r1|%p1, %r2, -1;\n")
    assert (got == 2**32 - 1).all()
    got = results("  mov.u32 %r1, 0; setp.lt.u32 %p1, %r0, 3;\n  @%p1 activemask.b32 %r1;\n")
    np.testing.assert_array_equal(got, np.where(THREADS < 3, 7, 0))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("add.u32", np.add), ("min.u32", np.minimum), ("max.u32", np.maximum),
        ("and.b32", np.bitwise_and), ("or.b32", np.bitwise_or), ("xor.b32", np.bitwise_xor),
    ],
)  # fmt: skip
def test_redux(name, function):
    got = results(f"  mul.lo.u32 %r2, %r0, 2654435761;\n  redux.sync.{name} %r1, %r2, -1;\n")
    values = (THREADS.astype(np.uint64) * 2654435761 % 2**32).astype(np.uint32).reshape(2, 32)
    expected = function.reduce(values, axis=1, dtype=np.uint32)
    np.testing.assert_array_equal(got, np.repeat(expected, 32))


def test_redux_of_signed_numbers():
    got = results("  sub.s32 %r2, %r0, 20;\n  redux.sync.min.s32 %r1, %r2, -1;\n")
    np.testing.assert_array_equal(got.view(np.int32), np.repeat([-20, 12], 32))


SHARED = ".shared .align 16 .b8 tile[1024];\n"
REVERSE = """
      mov.u32 %r2, tile; shl.b32 %r3, %r0, 2; add.u32 %r3, %r2, %r3;
      st.shared.u32 [%r3], %r0;
      {barrier}
      sub.u32 %r4, 252, %r3; add.u32 %r4, %r4, %r2; add.u32 %r4, %r4, %r2;
      ld.shared.u32 %r1, [%r4];
"""


@pytest.mark.parametrize(
    "barrier", ["bar.sync 0;", "barrier.sync 0;", "bar.sync 3, 64;", "barrier.cta.sync.aligned 1;"]
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_barriers(barrier, seed):
    got = results(REVERSE.format(barrier=barrier), before=SHARED, seed=seed, quantum=5)
    np.testing.assert_array_equal(got, THREADS[::-1])


def test_barriers_that_combine():
    setup = "  setp.lt.u32 %p1, %r0, 35;\n"
    answer = "  selp.u32 %r1, 1, 0, %p2;\n"
    assert results(setup + "  bar.red.or.pred %p2, 0, %p1;\n" + answer).all()
    assert not results(setup + "  bar.red.and.pred %p2, 0, %p1;\n" + answer).any()
    assert results(setup + "  bar.red.or.pred %p2, 0, !%p1;\n" + answer).all()
    assert (results(setup + "  bar.red.popc.u32 %r1, 0, %p1;\n") == 35).all()


def test_arriving_without_waiting():
    # The first warp writes and goes on; the second waits for it.
    got = results(
        """
      mov.u32 %r2, tile; shl.b32 %r3, %r0, 2; add.u32 %r3, %r2, %r3; mov.u32 %r1, 0;
      setp.ge.u32 %p1, %r0, 32;
      @%p1 bra SECOND;
      st.shared.u32 [%r3], %r0;
      bar.arrive 2, 64;
      bra END;
    SECOND:
      bar.sync 2, 64;
      ld.shared.u32 %r1, [%r3+-128];
    END:
    """,
        before=SHARED,
    )
    np.testing.assert_array_equal(got, np.where(THREADS < 32, 0, THREADS - 32))


def test_threads_of_a_warp_see_what_others_wrote_after_a_barrier_of_the_warp():
    body = REVERSE.replace("252", "124").format(barrier="bar.warp.sync {};")
    got = results(body.format(-1), threads=32, before=SHARED)
    np.testing.assert_array_equal(got, THREADS[:32][::-1])


def test_blocks_of_a_grid_and_sleep():
    out = np.zeros(6 * 32, np.uint32)
    body = """
      mov.u32 %r2, %ctaid.x; nanosleep.u32 20; shl.b32 %r3, %r2, 5; add.u32 %r3, %r3, %r0;
      mul.wide.u32 %d63, %r3, 4; mov.u32 %r1, %r3;
    """
    for cooperative in False, True:
        out[:] = 0
        assert not run(body + store(), out, grid=6, cooperative=cooperative)
        np.testing.assert_array_equal(out, np.arange(192))


def test_results_do_not_depend_on_the_order():
    body = LOOP + REVERSE.format(barrier="bar.sync 0;").replace("%r0;", "%r1;")
    all_results = [results(body, before=SHARED, seed=seed, quantum=3 + seed) for seed in range(4)]
    assert all((r == all_results[0]).all() for r in all_results)


def test_a_trap_stops_the_kernel():
    with pytest.raises(ptx.Fault, match=r"trap.*thread 3 "):
        run("  setp.eq.u32 %p1, %r0, 3;\n  @%p1 trap;\n", np.zeros(32, np.uint32))


def test_a_call_of_something_that_is_not_there():
    text = HEADER.format(target="sm_80") + ".func nothing();\n" + kernel("  call.uni nothing;\n")
    with pytest.raises(ptx.UnsupportedError, match="nothing"):
        ptx.Module(text).launch("k", np.zeros(32, np.uint32))


def test_a_kernel_that_is_not_there():
    with pytest.raises(ptx.UnsupportedError, match="no function other"):
        module(kernel("")).launch("other", np.zeros(1, np.uint32))


def test_too_many_threads_and_wrong_parameters():
    out = np.zeros(32, np.uint32)
    with pytest.raises(ptx.Fault, match="a block of 2048 threads"):
        run("", out, block=2048)
    with pytest.raises(ptx.Fault, match="8 bytes of parameters, not 16"):
        module(kernel("", "u64")).launch("k", out, out)


def test_a_table_is_not_left():
    body = "TABLE: .branchtargets A, A;\n  brx.idx %r0, TABLE;\nA:\n"
    with pytest.raises(ptx.Fault) as fault:
        run(body, np.zeros(32, np.uint32))
    assert kinds(fault.value.findings) == {"branch beyond its table"}
