"""The PTX interpreter: loads and stores, atomics, asynchronous copies, fragments of matrices."""

import numpy as np
import pytest
from ptx_programs import run, stops

SHARED = ".shared .align 16 .b8 tile[4096];\n"
THREADS = np.arange(32, dtype=np.uint32)


CACHES = ["", ".nc", ".ca", ".cg", ".L1::no_allocate.L2::128B"]
ORDERS = [".volatile", ".relaxed.gpu", ".acquire.sys"]


@pytest.mark.parametrize("cache", CACHES + ORDERS)
def test_loads_from_global_memory(cache):
    a, out = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    space = ".global" + cache
    if cache in ORDERS:
        space = cache + ".global"
    body = f"  add.u64 %d5, %d0, %d63; add.u64 %d6, %d1, %d63;\n  ld{space}.f32 %f1, [%d5];\n"
    assert not run(body + "  st.global.f32 [%d6], %f1;", a, out)
    np.testing.assert_array_equal(out, a)


@pytest.mark.parametrize("order", ["", ".wb", ".cs", ".volatile", ".relaxed.cta", ".release.gpu"])
def test_stores_to_global_memory(order):
    out = np.zeros(32, np.uint32)
    text = f".global{order}" if order in (".wb", ".cs") else f"{order}.global"
    assert not run(f"  add.u64 %d6, %d0, %d63;\n  st{text}.u32 [%d6], %r0;", out)
    np.testing.assert_array_equal(out, THREADS)


@pytest.mark.parametrize("kind", ["u8", "s8", "u16", "s16", "u32", "s32"])
@pytest.mark.parametrize("space", ["global", "shared", "local"])
def test_narrow_numbers_are_extended(kind, space):
    bytes_ = int(kind[1:]) // 8
    values = np.array([0, 1, -1, 127, -128, 100, -3, 42] * 4).astype(f"i{bytes_}")
    out = np.zeros(32, np.int64)
    body = f"""
      mad.wide.u32 %d3, %r0, {bytes_}, %d0; mad.wide.u32 %d4, %r0, 8, %d1;
      ld.global.b{8 * bytes_} %{"h" if bytes_ < 4 else "r"}1, [%d3];
    """
    register = "%h1" if bytes_ < 4 else "%r1"
    if space == "shared":
        body += f"  mov.u64 %d3, tile; mad.wide.u32 %d3, %r0, {bytes_}, %d3;\n"
    elif space == "local":
        body += "  mov.u64 %d3, depot; add.u64 %d3, %d3, 4;\n"
    if space != "global":
        body += f"  st.{space}.b{8 * bytes_} [%d3], {register};\n"
    body += f"  ld.{space}.{kind} %d5, [%d3];\n  st.global.u64 [%d4], %d5;\n"
    local = "  .local .align 8 .b8 depot[16];\n"
    assert not run(local + body, values, out, before=SHARED)
    expected = values.view(f"u{bytes_}") if kind[0] == "u" else values
    np.testing.assert_array_equal(out, expected.astype(np.int64))


def test_narrow_stores_leave_their_neighbours():
    out = np.full(64, 0xAA, np.uint8)
    body = "  mad.wide.u32 %d3, %r0, 2, %d0; add.u32 %r1, %r0, 0x100;\n  st.global.u8 [%d3], %r1;"
    assert not run(body, out)
    np.testing.assert_array_equal(out[::2], THREADS)
    assert (out[1::2] == 0xAA).all()


@pytest.mark.parametrize("vector", [2, 4])
@pytest.mark.parametrize("space", ["global", "shared"])
def test_vectors(vector, space):
    a = np.arange(32 * vector, dtype=np.float32)
    out = np.zeros_like(a)
    names = "{" + ", ".join(f"%f{k}" for k in range(1, vector + 1)) + "}"
    body = (
        f"  mad.wide.u32 %d3, %r0, {4 * vector}, %d0; mad.wide.u32 %d4, %r0, {4 * vector}, %d1;\n"
    )
    body += f"  ld.global.v{vector}.f32 {names}, [%d3];\n"
    if space == "shared":
        body += f"  mov.u32 %r2, tile; mad.lo.u32 %r2, %r0, {4 * vector}, %r2;\n"
        body += f"  st.shared.v{vector}.f32 [%r2], {names};\n  add.f32 %f1, %f1, %f1;\n"
        body += f"  ld.shared.v{vector}.f32 {names}, [%r2];\n"
    assert not run(body + f"  st.global.v{vector}.f32 [%d4], {names};", a, out, before=SHARED)
    np.testing.assert_array_equal(out, a)


def test_generic_addresses_of_every_space():
    # Each lane addresses another space with the same instruction.
    a, out = THREADS + 1000, np.zeros(32, np.uint32)
    body = """
      .local .align 8 .b8 depot[16];
      and.b32 %r1, %r0, 3;
      setp.eq.u32 %p1, %r1, 1; setp.eq.u32 %p2, %r1, 2; setp.eq.u32 %p3, %r1, 3;
      add.u64 %d5, %d0, %d63;
      cvta.to.global.u64 %d6, %d5; cvta.global.u64 %d5, %d6;
      mov.u64 %d7, tile; add.u64 %d7, %d7, %d63; add.u32 %r2, %r0, 2000;
      st.shared.u32 [%d7], %r2; cvta.shared.u64 %d7, %d7;
      mov.u64 %d8, depot; add.u32 %r2, %r0, 3000; st.local.u32 [%d8+4], %r2;
      cvta.local.u64 %d8, %d8;
      mov.b64 %d9, k_p2; cvta.param.u64 %d9, %d9;
      selp.b64 %d10, %d7, %d5, %p1; @%p2 add.u64 %d10, %d8, 4; selp.b64 %d10, %d9, %d10, %p3;
      ld.u32 %r4, [%d10];
      add.u64 %d11, %d1, %d63; st.u32 [%d11], %r4;
      isspacep.shared %p4, %d10; isspacep.local %p5, %d10; isspacep.global %p6, %d10;
      @%p1 cvta.to.shared.u64 %d7, %d7; @%p2 cvta.to.local.u64 %d8, %d8;
      xor.pred %p4, %p4, %p1; xor.pred %p5, %p5, %p2; or.pred %p4, %p4, %p5;
      @%p4 trap;
      @%p3 bra END;
      st.u32 [%d10], %r0;
    END:
    """
    assert not run(body, a, out, np.uint32(4000), parameters="u64 u64 u32", before=SHARED)
    expected = np.select(
        [k == THREADS % 4 for k in range(4)],
        [THREADS + 1000, THREADS + 2000, THREADS + 3000, np.uint32(4000)],
    )
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(a[::4], THREADS[::4])


def test_variables_of_a_module():
    before = (
        ".global .align 4 .u32 counter = 7;\n.const .align 4 .b8 table[8] = {1, 0, 0, 0, 2, 1};\n"
    )
    out = np.zeros(32, np.uint32)
    body = """
      mov.u64 %d3, table; ld.const.u32 %r1, [%d3+4]; ld.global.u32 %r2, [counter];
      add.u32 %r1, %r1, %r2; add.u64 %d4, %d0, %d63; st.global.u32 [%d4], %r1;
    """
    assert not run(body, out, before=before)
    assert (out == 258 + 7).all()


def test_static_and_dynamic_shared_memory_lie_apart():
    before = ".shared .align 4 .b8 first[4];\n.extern .shared .align 16 .b8 rest[];\n"
    out = np.zeros(3, np.uint32)
    body = """
      .shared .align 4 .b8 own[8];
      setp.ne.u32 %p1, %r0, 0; @%p1 ret;
      mov.u32 %r1, first; mov.u32 %r2, own; mov.u32 %r3, rest;
      st.shared.u32 [first], 5; st.shared.u32 [own+4], 6; st.shared.u32 [rest+60], 7;
      st.global.v2.u32 [%d0], {%r1, %r2}; st.global.u32 [%d0+8], %r3;
    """
    assert not run(body, out, before=before, shared=64)
    assert out[0] == 0 and out[1] == 4 and out[2] == 16
    assert "outside shared memory" in str(stops(body, out, before=before, shared=60))


@pytest.mark.parametrize(
    ("name", "kind", "function"),
    [
        ("add", "u32", lambda x, n: x + n),
        ("add", "u64", lambda x, n: x + n),
        ("add", "f32", lambda x, n: x + n),
        ("add", "f64", lambda x, n: x + n),
        ("min", "s32", min),
        ("max", "s32", max),
        ("min", "u64", min),
        ("and", "b32", lambda x, n: x & n),
        ("or", "b32", lambda x, n: x | n),
        ("xor", "b64", lambda x, n: x ^ n),
        ("exch", "b32", lambda _, n: n),
        ("inc", "u32", lambda x, n: 0 if x >= n else x + 1),
        ("dec", "u32", lambda x, n: n if x == 0 or x > n else x - 1),
    ],
)
@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics(name, kind, function, space):
    dtype = {"u": "u", "s": "i", "f": "f", "b": "u"}[kind[0]] + str(int(kind[1:]) // 8)
    given = np.array([5, 3, 9, 14] * 8, dtype)
    target, old = np.array([7], dtype), np.zeros(32, dtype)
    register = {"f32": "%f", "f64": "%g"}.get(kind, "%r" if kind[1:] == "32" else "%d")
    width = given.itemsize
    bits = f"b{8 * width}"
    value, before_it = f"{register}20", f"{register}21"
    address = "%d0"
    body = f"  mad.wide.u32 %d3, %r0, {width}, %d1; mad.wide.u32 %d4, %r0, {width}, %d2;\n"
    body += f"  ld.global.{bits} {value}, [%d3];\n"
    if space == "shared":
        address = "%d5"
        body += (
            f"  setp.eq.u32 %p1, %r0, 0; mov.u64 %d5, tile; ld.global.{bits} {register}22, [%d0];\n"
        )
        body += f"  @%p1 st.shared.{bits} [%d5], {register}22;\n  bar.sync 0;\n"
    body += f"  atom.{space}.{name}.{kind} {before_it}, [{address}], {value};\n"
    body += f"  st.global.{bits} [%d4], {before_it};\n"
    if space == "shared":
        body += f"  bar.sync 0;\n  ld.shared.{bits} {value}, [%d5];\n"
        body += f"  setp.eq.u32 %p1, %r0, 0;\n  @%p1 st.global.{bits} [%d0], {value};\n"
    assert not run(body, target, given, old, before=SHARED)
    x, seen = 7, []
    for n in given.tolist():
        seen.append(x)
        x = function(x, n)
    assert target[0] == x
    np.testing.assert_array_equal(old, np.array(seen, dtype))


def test_compare_and_swap_and_reductions():
    a = np.array([3, 0], np.uint32)
    out = np.zeros(32, np.uint32)
    body = """
      add.u32 %r1, %r0, 3; add.u32 %r2, %r0, 4;
      atom.global.cas.b32 %r3, [%d0], %r1, %r2;
      red.global.add.u32 [%d0+4], 2;
      red.relaxed.gpu.global.max.u32 [%d0+4], 1;
      add.u64 %d5, %d1, %d63; st.global.u32 [%d5], %r3;
    """
    assert not run(body, a, out)
    assert a[0] == 35 and a[1] == 64
    np.testing.assert_array_equal(out, THREADS + 3)


def test_a_lock_taken_by_compare_and_swap_orders_blocks():
    # Blocks one after another add to a number that a lock guards.
    a = np.zeros(2, np.uint32)
    body = """
      setp.ne.u32 %p1, %r0, 0; @%p1 ret;
    WAIT:
      atom.acquire.gpu.global.cas.b32 %r1, [%d0], 0, 1;
      setp.ne.u32 %p2, %r1, 0; @%p2 nanosleep.u32 20; @%p2 bra WAIT;
      ld.global.u32 %r2, [%d0+4]; add.u32 %r2, %r2, 1; st.global.u32 [%d0+4], %r2;
      atom.release.gpu.global.exch.b32 %r3, [%d0], 0;
    """
    for cooperative in False, True:
        for seed in range(5):
            a[:] = 0
            assert not run(body, a, grid=7, cooperative=cooperative, seed=seed, quantum=4)
            assert a[0] == 0 and a[1] == 7


COPY = """
      mov.u32 %r2, tile; mad.lo.u32 %r2, %r0, {size}, %r2;
      mad.wide.u32 %d3, %r0, {size}, %d0; mad.wide.u32 %d4, %r0, {size}, %d1;
      cp.async.{cache}.shared.global [%r2], [%d3], {size}{given};
      {wait}
      ld.shared.u32 %r3, [%r2+{last}]; st.global.u32 [%d4+{last}], %r3;
"""


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize(
    "wait", ["cp.async.wait_all;", "cp.async.commit_group; cp.async.wait_group 0;"]
)
def test_asynchronous_copies(size, wait):
    a = np.arange(1, 8 * size + 1, dtype=np.uint32)
    out = np.zeros_like(a)
    cache = "cg.L2::128B" if size == 16 else "ca"
    cache, _, hint = cache.partition(".")
    body = COPY.format(size=size, wait=wait, last=size - 4, cache=cache, given="")
    body = body.replace("shared.global", f"shared.global.{hint}") if hint else body
    assert not run(body, a, out, before=SHARED)
    per_lane = size // 4
    np.testing.assert_array_equal(out[per_lane - 1 :: per_lane], a[per_lane - 1 :: per_lane])


def test_copies_of_fewer_bytes_are_filled_with_zeros():
    a, out = np.full(128, 5, np.uint32), np.full(128, 9, np.uint32)
    body = COPY.format(size=16, wait="cp.async.wait_all;", last=8, cache="cg", given=", 8")
    body += "  ld.shared.u32 %r3, [%r2+4]; st.global.u32 [%d4+4], %r3;\n"
    assert not run(body, a, out, before=SHARED)
    assert (out[2::4] == 0).all() and (out[1::4] == 5).all()


def test_a_group_of_copies_lands_only_when_it_is_waited_for():
    a, out = np.arange(64, dtype=np.uint32), np.zeros(64, np.uint32)
    body = """
      mov.u32 %r2, tile; mad.lo.u32 %r2, %r0, 4, %r2; st.shared.u32 [%r2], 77;
      st.shared.u32 [%r2+128], 77;
      add.u64 %d3, %d0, %d63; add.u64 %d4, %d1, %d63;
      cp.async.ca.shared.global [%r2], [%d3], 4; cp.async.commit_group;
      cp.async.ca.shared.global [%r2+128], [%d3+128], 4; cp.async.commit_group;
      cp.async.wait_group 1;
      ld.shared.u32 %r3, [%r2]; ld.shared.u32 %r4, [%r2+128];
      st.global.u32 [%d4], %r3; st.global.u32 [%d4+128], %r4;
      cp.async.wait_group 0;
    """
    assert not run(body, a, out, before=SHARED)
    np.testing.assert_array_equal(out[:32], a[:32])
    assert (out[32:] == 77).all()


def round_tf32(x):
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x1000) & ~np.uint32(0x1FFF)).view(np.float32)


LANE = np.arange(32)
ROW, COLUMN = LANE // 4, LANE % 4


def fragments(a, b, c, packed):
    """The registers of each lane, as the PTX ISA lays them out."""

    def words(x):
        return x.view(np.uint32) if packed == 1 else x.view(np.uint16).astype(np.uint32)

    def pack(values):  # [lane, packed]
        return sum(values[:, p] << np.uint32(16 * p) for p in range(packed))

    width = 4 * packed
    columns = COLUMN[:, None] * packed + np.arange(packed)
    a_registers = [
        pack(words(a)[(ROW + 8 * high)[:, None], columns + width * part])
        for part in range(a.shape[1] // width)
        for high in range(2)
    ]
    b_registers = [
        pack(words(b)[columns + width * part, ROW[:, None]]) for part in range(b.shape[0] // width)
    ]
    c_registers = [c[ROW + 8 * (r // 2), 2 * COLUMN + r % 2].view(np.uint32) for r in range(4)]
    return a_registers, b_registers, c_registers


def multiply(a, b, c, shape, kind, packed, swap=False):
    a_registers, b_registers, c_registers = fragments(a, b, c, packed)
    if swap:
        a_registers[1], a_registers[-1 - swap] = a_registers[-1 - swap], a_registers[1]
    given = np.ascontiguousarray(np.stack([*a_registers, *b_registers, *c_registers], axis=1))
    n = given.shape[1]
    body = f"  mad.wide.u32 %d3, %r0, {4 * n}, %d0; mad.wide.u32 %d4, %r0, 16, %d1;\n"
    for k in range(n):
        register = f"%f{k}" if k >= n - 4 else f"%r{20 + k}"
        body += f"  ld.global.b32 {register}, [%d3+{4 * k}];\n"

    def names(letter, first, count):
        return "{" + ", ".join(f"%{letter}{first + k}" for k in range(count)) + "}"

    sum_ = names("f", n - 4, 4)
    na, nb = len(a_registers), len(b_registers)
    left, right = names("r", 20, na), names("r", 20 + na, nb)
    if nb == 1:
        right = f"{{%r{20 + na}}}"
    body += f"  mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
    body += f"{sum_}, {left}, {right}, {sum_};\n"
    body += f"  st.global.v4.f32 [%d4], {sum_};\n"
    out = np.zeros((32, 4), np.float32)
    assert not run(body, given, out)
    result = np.zeros((16, 8), np.float32)
    for r in range(4):
        result[ROW + 8 * (r // 2), 2 * COLUMN + r % 2] = out[:, r]
    return result


def to_bfloat(x):
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


CASES = [
    ("m16n8k4", "tf32", 4), ("m16n8k8", "tf32", 8), ("m16n8k8", "bf16", 8),
    ("m16n8k16", "bf16", 16), ("m16n8k8", "f16", 8), ("m16n8k16", "f16", 16),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "kind", "depth"), CASES)
def test_products_of_matrices(shape, kind, depth):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((16, depth)), rng.standard_normal((depth, 8))
    c = rng.standard_normal((16, 8)).astype(np.float32)
    packed = 2
    if kind == "tf32":
        a, b, packed = round_tf32(a), round_tf32(b), 1
        exact = a.astype(np.float64) @ b.astype(np.float64) + c
    elif kind == "f16":
        a, b = a.astype(np.float16), b.astype(np.float16)
        exact = a.astype(np.float64) @ b.astype(np.float64) + c
    else:
        a, b = to_bfloat(a), to_bfloat(b)
        wide = [(x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for x in (a, b)]
        exact = wide[0] @ wide[1] + c
    result = multiply(a, b, c, shape, kind, packed)
    np.testing.assert_allclose(result, exact, atol=3e-6)
    if depth > 4:  # registers 1 and 2 exchanged: rows in the place of columns
        wrong = multiply(a, b, c, shape, kind, packed, swap=1)
        assert abs(wrong - exact).max() > 0.1


def test_sums_in_tensor_cores_are_cut_off():
    a, b = np.zeros((16, 8), np.float32), np.zeros((8, 8), np.float32)
    a[:, :2], b[:2] = 1, 1
    a[0, 1] = 0.75 * 2.0**-23
    result = multiply(a, b, np.zeros((16, 8), np.float32), "m16n8k8", "tf32", 1)
    assert (result[1:] == 2).all()
    assert (result[0] == 1).all()  # to nearest it would be 1 + 2^-23


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_loads_of_matrices(count, transposed):
    a = np.arange(8 * count * 8, dtype=np.uint16)
    out = np.zeros((32, count), np.uint32)
    names = "{" + ", ".join(f"%r{20 + k}" for k in range(count)) + "}"
    body = f"""
      mov.u32 %r2, tile; mad.lo.u32 %r2, %r0, 16, %r2; mad.wide.u32 %d3, %r0, 16, %d0;
      setp.lt.u32 %p1, %r0, {8 * count};
      @%p1 ld.global.v4.u32 {{%r3, %r4, %r5, %r6}}, [%d3];
      @%p1 st.shared.v4.u32 [%r2], {{%r3, %r4, %r5, %r6}};
      bar.warp.sync -1;
      ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {names}, [%r2];
      mad.wide.u32 %d4, %r0, {4 * count}, %d1;
    """
    body += "".join(f"  st.global.u32 [%d4+{4 * k}], %r{20 + k};\n" for k in range(count))
    assert not run(body, a, out, before=SHARED)
    for k in range(count):
        m = a[64 * k : 64 * k + 64].reshape(8, 8)
        m = m.T if transposed else m
        low, high = m[ROW, 2 * COLUMN].astype(np.uint32), m[ROW, 2 * COLUMN + 1].astype(np.uint32)
        np.testing.assert_array_equal(out[:, k], low | high << np.uint32(16))
