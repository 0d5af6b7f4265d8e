"""The PTX interpreter's counts, on programs that are counted by hand."""

import json

import numpy as np
import pytest
from ptx_programs import kernel, module
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


def test_counts_of_more_steps_lie_on_a_line():
    ptx_counts = load_script("ptx_counts")

    def launches(T: int, bend: int = 0) -> list[dict]:
        grows = (*ptx_counts.TOTALS, "longest_chain", "longest_chain_of_loads")
        counted = dict.fromkeys(grows, 100 + 7 * T + bend)
        kinds = {"barrier": 3 * T, "shuffle": 5}
        return [{"kernel": "k", "most_bytes_in_flight": 128, "kinds": kinds} | counted]

    points = [(T, launches(T)) for T in (8, 16, 32)]
    (found,), missed = ptx_counts.extrapolate(points, 1000)
    assert missed == 0 and found["instructions"] == found["longest_chain"] == 7100
    assert found["kinds"] == {"barrier": 3000, "shuffle": 5}
    assert found["most_bytes_in_flight"] == 128
    (_,), missed = ptx_counts.extrapolate([(8, launches(8, bend=44)), *points[1:]], 1000)
    assert missed == pytest.approx(44 / 200)
    other = [dict(launches(8)[0], kernel="another")]
    with pytest.raises(SystemExit, match="not the same"):
        ptx_counts.extrapolate([(8, other), *points[1:]], 1000)
