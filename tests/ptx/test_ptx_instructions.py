"""The PTX interpreter: every form of every instruction that it knows, against NumPy."""

import numpy as np
import pytest
from ptx_programs import compute, module, ptx, run

# 44 lanes: a whole warp, and a part of one.
LANES = 44
EDGES = {
    "16": [0, 1, 2, 0x7FFF, 0x8000, 0xFFFF, 0x1234],
    "32": [0, 1, 2, 31, 32, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x12345678, 0xCAFEBABE],
    "64": [0, 1, 2, 63, 64, 2**63 - 1, 2**63, 2**64 - 1, 0x123456789ABCDEF0, 2**32],
}


def integers(kind: str, seed: int = 0) -> np.ndarray:
    """Numbers of a type such as s32: edges first, then any."""
    bits = kind[1:]
    dtype = np.dtype(f"u{int(bits) // 8}")
    rng = np.random.default_rng(seed)
    edges = np.array(EDGES[bits], dtype)
    rest = rng.integers(0, 2 ** int(bits), LANES - len(edges), dtype=np.uint64).astype(dtype)
    values = (
        rng.permutation(np.concatenate([edges, rest])) if seed else np.concatenate([edges, rest])
    )
    return values.view(np.dtype(f"i{int(bits) // 8}")) if kind[0] == "s" else values


def floats(kind: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-40, 3.5]
    rest = rng.standard_normal(LANES - len(edges)) * 10.0 ** rng.integers(-6, 6, LANES - len(edges))
    values = np.concatenate([edges, rest]).astype(f"f{int(kind[1:]) // 8}")
    return rng.permutation(values) if seed else values


def wide(values: np.ndarray) -> np.ndarray:
    return values.astype(object)


def wrapped(values, like: np.ndarray) -> np.ndarray:
    bits = 8 * like.itemsize
    unsigned = np.array([int(v) % 2**bits for v in values], dtype=f"u{like.itemsize}")
    return unsigned.view(like.dtype)


def equal(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(got, expected.astype(got.dtype))


INTEGER_TYPES = ("s16", "u16", "s32", "u32", "s64", "u64")


@pytest.mark.parametrize("kind", INTEGER_TYPES)
@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("add", lambda a, b: a + b),
        ("sub", lambda a, b: a - b),
        ("mul.lo", lambda a, b: a * b),
        ("min", np.minimum),
        ("max", np.maximum),
    ],
)
def test_integer_arithmetic(kind, name, truth):
    a, b = integers(kind), integers(kind, 1)
    got = compute(f"{name}.{kind} {{x}}, {{a}}, {{b}};", f"{kind} {kind} {kind}", a, b)
    equal(got, wrapped(truth(wide(a), wide(b)), a))


@pytest.mark.parametrize("kind", INTEGER_TYPES)
def test_mad_and_high_products(kind):
    a, b, c = (integers(kind, seed) for seed in range(3))
    bits = 8 * a.itemsize
    types = f"{kind} {kind} {kind}"
    low = compute(f"mad.lo.{kind} {{x}}, {{a}}, {{b}}, {{c}};", f"{types} {kind}", a, b, c)
    equal(low, wrapped(wide(a) * wide(b) + wide(c), a))
    high = compute(f"mul.hi.{kind} {{x}}, {{a}}, {{b}};", types, a, b)
    equal(high, wrapped((wide(a) * wide(b)) >> bits, a))
    both = compute(f"mad.hi.{kind} {{x}}, {{a}}, {{b}}, {{c}};", f"{types} {kind}", a, b, c)
    equal(both, wrapped(((wide(a) * wide(b)) >> bits) + wide(c), a))


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32"])
def test_wide_products(kind):
    a, b = integers(kind), integers(kind, 1)
    double = f"{kind[0]}{2 * int(kind[1:])}"
    c = np.arange(LANES, dtype=f"{'i' if kind[0] == 's' else 'u'}{2 * a.itemsize}")
    product = compute(f"mul.wide.{kind} {{x}}, {{a}}, {{b}};", f"{double} {kind} {kind}", a, b)
    equal(product, wrapped(wide(a) * wide(b), c))
    text = f"mad.wide.{kind} {{x}}, {{a}}, {{b}}, {{c}};"
    equal(
        compute(text, f"{double} {kind} {kind} {double}", a, b, c),
        wrapped(wide(a) * wide(b) + wide(c), c),
    )


@pytest.mark.parametrize("kind", INTEGER_TYPES)
def test_division_truncates(kind):
    a, b = integers(kind), integers(kind, 1)
    b = np.where(b == 0, b.dtype.type(3), b)
    sign = np.where((wide(a) < 0) != (wide(b) < 0), -1, 1)
    quotient = abs(wide(a)) // abs(wide(b)) * sign
    types = f"{kind} {kind} {kind}"
    equal(compute(f"div.{kind} {{x}}, {{a}}, {{b}};", types, a, b), wrapped(quotient, a))
    rest = wide(a) - quotient * wide(b)
    equal(compute(f"rem.{kind} {{x}}, {{a}}, {{b}};", types, a, b), wrapped(rest, a))


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_abs_and_neg(kind):
    a = integers(kind)
    equal(compute(f"abs.{kind} {{x}}, {{a}};", f"{kind} {kind}", a), wrapped(abs(wide(a)), a))
    equal(compute(f"neg.{kind} {{x}}, {{a}};", f"{kind} {kind}", a), wrapped(-wide(a), a))


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("add", np.add),
        ("add.rn", np.add),
        ("sub", np.subtract),
        ("mul", np.multiply),
        ("mul.rn", np.multiply),
        ("div.rn", np.divide),
        ("min", np.fmin),
        ("max", np.fmax),
        ("copysign", lambda a, b: np.copysign(b, a)),
    ],
)
def test_float_arithmetic(kind, name, truth):
    a, b = floats(kind), floats(kind, 1)
    got = compute(f"{name}.{kind} {{x}}, {{a}}, {{b}};", f"{kind} {kind} {kind}", a, b)
    with np.errstate(all="ignore"):
        equal(got, truth(a, b))


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize(
    ("name", "truth"),
    [("abs", np.abs), ("neg", np.negative), ("sqrt.rn", np.sqrt), ("rcp.rn", lambda a: 1 / a)],
)
def test_float_functions(kind, name, truth):
    a = floats(kind)
    with np.errstate(all="ignore"):
        equal(compute(f"{name}.{kind} {{x}}, {{a}};", f"{kind} {kind}", a), truth(a))


def test_signs_of_zero():
    a, b = np.array([0.0, -0.0], np.float32), np.array([-0.0, 0.0], np.float32)
    assert np.signbit(compute("min.f32 {x}, {a}, {b};", "f32 f32 f32", a, b)).all()
    assert not np.signbit(compute("max.f32 {x}, {a}, {b};", "f32 f32 f32", a, b)).any()


@pytest.mark.parametrize("name", ["fma.rn", "mad.rn"])
def test_fma_rounds_once(name):
    a = np.float32(1 + 2**-12) * np.ones(LANES, np.float32)
    got = compute(f"{name}.f32 {{x}}, {{a}}, {{b}}, {{c}};", "f32 f32 f32 f32", a, a, -1 - 2**-11)
    assert (got == np.float32(2**-24)).all()
    d = np.full(LANES, 1 + 2**-30)
    got = compute(f"{name}.f64 {{x}}, {{a}}, {{b}}, {{c}};", "f64 f64 f64 f64", d, d, -1 - 2**-29)
    assert (got == 2.0**-60).all()


def test_mul_then_add_is_not_fused():
    a = np.full(LANES, 1 + 2**-12, np.float32)
    got = compute(
        "mul.f32 %f1, {a}, {a};\n  add.f32 {x}, %f1, {b};",
        "f32 f32 f32",
        a,
        np.float32(-1 - 2**-11),
    )
    assert (got == 0).all()


def test_rcp_approx_reads_and_gives_upper_halves():
    a = np.array([2.0, 3.0, -7.0, 1e-310, np.inf])
    got = compute("rcp.approx.ftz.f64 {x}, {a};", "f64 f64", a)
    assert got[0] == 0.5 and np.isinf(got[3]) and got[4] == 0
    np.testing.assert_allclose(got[:3], 1 / a[:3], rtol=2**-19)
    assert not (got.view(np.uint64) & 0xFFFFFFFF).any()


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits):
    kind = f"b{bits}"
    a, b = integers(f"u{bits}"), integers(f"u{bits}", 1)
    types = f"{kind} {kind} {kind}"
    equal(compute(f"and.{kind} {{x}}, {{a}}, {{b}};", types, a, b), a & b)
    equal(compute(f"or.{kind} {{x}}, {{a}}, {{b}};", types, a, b), a | b)
    equal(compute(f"xor.{kind} {{x}}, {{a}}, {{b}};", types, a, b), a ^ b)
    equal(compute(f"not.{kind} {{x}}, {{a}};", f"{kind} {kind}", a), ~a)
    equal(compute(f"mov.{kind} {{x}}, {{a}};", f"{kind} {kind}", a), a)
    p = np.arange(LANES) % 3 == 0
    got = compute(f"selp.{kind} {{x}}, {{a}}, {{b}}, {{c}};", f"{types} pred", a, b, p)
    equal(got, np.where(p, a, b))


@pytest.mark.parametrize("kind", INTEGER_TYPES)
def test_shifts_clamp(kind):
    a = integers(kind)
    bits = 8 * a.itemsize
    n = np.arange(LANES, dtype=np.uint32) * 2
    n[:3] = 2**31, 0, bits
    left = wrapped([int(x) << int(k) if k < bits else 0 for x, k in zip(a, n, strict=True)], a)
    equal(compute(f"shl.b{bits} {{x}}, {{a}}, {{b}};", f"{kind} {kind} u32", a, n), left)
    right = [int(x) >> min(int(k), bits) for x, k in zip(a, n, strict=True)]
    equal(
        compute(f"shr.{kind} {{x}}, {{a}}, {{b}};", f"{kind} {kind} u32", a, n), wrapped(right, a)
    )


def test_funnel_shifts():
    a, b = integers("u32"), integers("u32", 1)
    n = np.arange(LANES, dtype=np.uint32)
    both = [(int(y) << 32) | int(x) for x, y in zip(a, b, strict=True)]
    for mode, count in ("wrap", n % 32), ("clamp", np.minimum(n, 32)):
        left = [(x << int(k)) >> 32 for x, k in zip(both, count, strict=True)]
        right = [x >> int(k) for x, k in zip(both, count, strict=True)]
        text = "shf.{}.{}.b32 {{x}}, {{a}}, {{b}}, {{c}};"
        types = "u32 u32 u32 u32"
        equal(compute(text.format("l", mode), types, a, b, n), wrapped(left, a))
        equal(compute(text.format("r", mode), types, a, b, n), wrapped(right, a))


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_fields_of_bits(kind):
    a = integers(kind)
    bits = 8 * a.itemsize
    position = np.array([0, 3, 8, 31, 40, 255] * 8, np.uint32)[:LANES]
    length = np.array([0, 1, 5, 8, 32, 64, 255] * 7, np.uint32)[:LANES]

    def field(x, p, n):  # PTX ISA, bfe
        x = int(x)
        if n == 0:
            return 0
        sign = kind[0] == "s" and (x >> min(p + n - 1, bits - 1)) & 1
        return sum(
            ((x >> (p + k)) & 1 if k < n and p + k < bits else int(bool(sign))) << k
            for k in range(bits)
        )

    expected = [field(*z) for z in zip(a, position.tolist(), length.tolist(), strict=True)]
    got = compute(
        f"bfe.{kind} {{x}}, {{a}}, {{b}}, {{c}};", f"{kind} {kind} u32 u32", a, position, length
    )
    equal(got, wrapped(expected, a))
    if kind[0] == "s":
        return
    b = integers(kind, 1)

    def inserted(x, y, p, n):  # PTX ISA, bfi
        mask = (((1 << n) - 1) << p) % 2**bits
        return (int(y) & ~mask) | ((int(x) << p) & mask)

    expected = [inserted(*z) for z in zip(a, b, position.tolist(), length.tolist(), strict=True)]
    text = f"bfi.b{bits} {{x}}, {{a}}, {{b}}, {{c}}, {{d}};"
    equal(
        compute(text, f"{kind} {kind} {kind} u32 u32", a, b, position, length), wrapped(expected, a)
    )


@pytest.mark.parametrize("bits", [32, 64])
def test_counts_of_bits(bits):
    a = integers(f"u{bits}")
    kind = f"b{bits}"
    equal(
        compute(f"popc.{kind} {{x}}, {{a}};", f"u32 {kind}", a),
        np.array([int(x).bit_count() for x in a]),
    )
    equal(
        compute(f"clz.{kind} {{x}}, {{a}};", f"u32 {kind}", a),
        np.array([bits - int(x).bit_length() for x in a]),
    )
    reverse = [int(f"{int(x):0{bits}b}"[::-1], 2) for x in a]
    equal(compute(f"brev.{kind} {{x}}, {{a}};", f"{kind} {kind}", a), wrapped(reverse, a))
    top = wrapped([int(x).bit_length() - 1 for x in a], np.zeros(1, np.uint32))
    equal(compute(f"bfind.u{bits} {{x}}, {{a}};", f"u32 u{bits}", a), top)
    s = integers(f"s{bits}")
    top = wrapped([int(x if x >= 0 else ~x).bit_length() - 1 for x in s], np.zeros(1, np.uint32))
    equal(compute(f"bfind.s{bits} {{x}}, {{a}};", f"u32 s{bits}", s), top)


def test_lop3_and_prmt():
    a, b, c = (integers("u32", seed) for seed in range(3))
    for table, expected in (0xE8, (a & b) | (a & c) | (b & c)), (0x96, a ^ b ^ c), (0x1B, None):
        got = compute(f"lop3.b32 {{x}}, {{a}}, {{b}}, {{c}}, {table};", "u32 u32 u32 u32", a, b, c)
        if expected is None:
            expected = np.zeros_like(a)
            for k in range(8):
                if table >> k & 1:
                    expected |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
        equal(got, expected)
    got = compute("prmt.b32 {x}, {a}, {b}, {c};", "u32 u32 u32 u32", 0x80FF1122, 0x33445566, 0xB075)
    # Byte 5, byte 7, byte 0, the sign of byte 3.
    assert got[0] == 0xFF223355


@pytest.mark.parametrize("kind", [*INTEGER_TYPES, "f32", "f64"])
def test_comparisons(kind):
    make = floats if kind[0] == "f" else integers
    a, b = make(kind), make(kind, 1)
    b[::3] = a[::3]
    ordered = ~(np.isnan(a) | np.isnan(b)) if kind[0] == "f" else np.ones(LANES, bool)
    truth = {
        "eq": a == b,
        "ne": (a != b) & ordered,
        "lt": a < b,
        "le": a <= b,
        "gt": a > b,
        "ge": a >= b,
    }
    if kind[0] == "f":
        truth |= {f"{name}u": result | ~ordered for name, result in truth.items()}
        truth |= {"num": ordered, "nan": ~ordered}
    elif kind[0] == "u":
        truth |= {"lo": a < b, "ls": a <= b, "hi": a > b, "hs": a >= b}
    for name, expected in truth.items():
        got = compute(f"setp.{name}.{kind} {{x}}, {{a}}, {{b}};", f"pred {kind} {kind}", a, b)
        equal(got, expected)


def test_comparisons_with_a_second_result_and_a_third_operand():
    a, b = integers("s32"), integers("s32", 1)
    p = np.arange(LANES) % 2 == 0
    types = "pred s32 s32 pred"
    for name, combine in ("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor):
        text = f"setp.lt.{name}.s32 {{x}}|%p9, {{a}}, {{b}}, {{c}};"
        equal(compute(text, types, a, b, p), combine(a < b, p))
        text = f"setp.lt.{name}.s32 %p9|{{x}}, {{a}}, {{b}}, !{{c}};"
        equal(compute(text, types, a, b, p), combine(a >= b, ~p))


def test_predicates():
    p, q = np.arange(LANES) % 2 == 0, np.arange(LANES) % 3 == 0
    types = "pred pred pred"
    equal(compute("and.pred {x}, {a}, {b};", types, p, q), p & q)
    equal(compute("or.pred {x}, {a}, {b};", types, p, q), p | q)
    equal(compute("xor.pred {x}, {a}, {b};", types, p, q), p ^ q)
    equal(compute("not.pred {x}, {a};", "pred pred", p), ~p)
    equal(compute("mov.pred {x}, {a};", "pred pred", p), p)
    equal(compute("and.pred {x}, {a}, !{b};", types, p, q), p & ~q)


INTEGER_SOURCES = ("u16", "s16", "u32", "s32", "u64", "s64")


@pytest.mark.parametrize("source", INTEGER_SOURCES)
@pytest.mark.parametrize("target", INTEGER_SOURCES)
def test_conversions_of_integers(source, target):
    a = integers(source)
    like = np.zeros(1, f"{'i' if target[0] == 's' else 'u'}{int(target[1:]) // 8}")
    got = compute(f"cvt.{target}.{source} {{x}}, {{a}};", f"{target} {source}", a)
    equal(got, wrapped(wide(a), like))
    info = np.iinfo(like.dtype)
    got = compute(f"cvt.sat.{target}.{source} {{x}}, {{a}};", f"{target} {source}", a)
    equal(got, np.array([min(max(int(x), info.min), info.max) for x in a], like.dtype))


def test_conversions_of_bytes_in_wider_registers():
    a = integers("u16")
    equal(compute("cvt.s32.s8 {x}, {a};", "s32 u16", a), (a & 255).astype(np.uint8).view(np.int8))
    equal(compute("cvt.u32.u8 {x}, {a};", "u32 u16", a), a & 255)
    equal(
        compute("cvt.s64.s8 {x}, {a};", "s64 u32", integers("u32")), integers("u32").astype(np.int8)
    )


@pytest.mark.parametrize("target", INTEGER_SOURCES)
@pytest.mark.parametrize("source", ["f32", "f64"])
def test_conversions_to_integers_clamp(source, target):
    a = np.concatenate([floats(source), [1e30, -1e30, 0.5, 1.5, 2.5, -0.5, -1.5, 255.9]])
    a = a.astype(floats(source).dtype)
    info = np.iinfo(f"{'i' if target[0] == 's' else 'u'}{int(target[1:]) // 8}")
    for name, rounded in ("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil):
        expected = []
        for x in rounded(a):
            if np.isnan(x):
                wide_nan = source == "f64" or target[1:] == "64"
                top = 1 << (int(target[1:]) - 1)
                expected.append((-top if target[0] == "s" else top) if wide_nan else 0)
            else:
                limit = info.max if x > 0 else info.min
                expected.append(limit if np.isinf(x) else min(max(int(x), info.min), info.max))
        got = compute(f"cvt.{name}.{target}.{source} {{x}}, {{a}};", f"{target} {source}", a)
        equal(got, np.array(expected, info.dtype))


@pytest.mark.parametrize("source", INTEGER_SOURCES)
@pytest.mark.parametrize("target", ["f32", "f64"])
def test_conversions_from_integers(source, target):
    a = integers(source)
    got = compute(f"cvt.rn.{target}.{source} {{x}}, {{a}};", f"{target} {source}", a)
    equal(got, a.astype(got.dtype))


def test_conversions_of_floats():
    a, d = floats("f32"), floats("f64")
    with np.errstate(all="ignore"):
        equal(compute("cvt.f64.f32 {x}, {a};", "f64 f32", a), a.astype(np.float64))
        equal(compute("cvt.rn.f32.f64 {x}, {a};", "f32 f64", d), d.astype(np.float32))
        half = a.astype(np.float16)
        bits = compute("cvt.rn.f16.f32 {x}, {a};", "f16 f32", a)
        equal(bits.view(np.float16), half)
        equal(
            compute("cvt.f32.f16 {x}, {a};", "f32 f16", half.view(np.uint16)),
            half.astype(np.float32),
        )
        for name, rounded in (
            ("rni", np.rint),
            ("rzi", np.trunc),
            ("rmi", np.floor),
            ("rpi", np.ceil),
        ):
            equal(compute(f"cvt.{name}.f32.f32 {{x}}, {{a}};", "f32 f32", a), rounded(a))
            equal(compute(f"cvt.{name}.f64.f64 {{x}}, {{a}};", "f64 f64", d), rounded(d))
    b = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 3e38, -2.5], np.float32)
    expected = np.array([0x3F80, 0x3F80, 0x3F82, 0x7F62, 0xC020])
    got = compute("cvt.rn.bf16.f32 {x}, {a};", "bf16 f32", b)
    equal(got, expected)
    equal(
        compute("cvt.f32.bf16 {x}, {a};", "f32 bf16", got),
        (expected << 16).astype(np.uint32).view(np.float32),
    )
    c = np.array([-1.0, 0.25, 2.0, np.nan], np.float32)
    equal(compute("cvt.sat.f32.f32 {x}, {a};", "f32 f32", c), np.array([0, 0.25, 1, 0], np.float32))


def test_tf32_rounds_ties_away():
    a = np.array([1, 1 + 2**-11, 1 + 2**-11 - 2**-20, -1 - 2**-11, np.inf], np.float32)
    bits = compute("cvt.rna.tf32.f32 {x}, {a};", "tf32 f32", a)
    equal(bits.view(np.float32), np.array([1, 1 + 2**-10, 1, -1 - 2**-10, np.inf]))


def test_moves_pack_and_unpack():
    a, b = integers("u32"), integers("u32", 1)
    both = b.astype(np.uint64) << 32 | a
    equal(compute("mov.b64 {x}, {{{a}, {b}}};", "u64 u32 u32", a, b), both)
    text = "mov.b64 {{%r1, %r2}}, {a};\n  xor.b32 {x}, %r1, %r2;"
    equal(compute(text, "u32 u64", both), a ^ b)
    c, d = integers("u16"), integers("u16", 1)
    equal(compute("mov.b32 {x}, {{{a}, {b}}};", "u32 u16 u16", c, d), d.astype(np.uint32) << 16 | c)
    text = "mov.b32 {{%h1, %h2}}, {a};\n  sub.u16 {x}, %h1, %h2;"
    equal(compute(text, "u16 u32", d.astype(np.uint32) << 16 | c), c - d)
    text = "mov.b64 {{%h1, %h2, %h3, {x}}}, {a};"
    equal(compute(text, "u16 u64", both), (both >> 48))


def test_special_registers():
    names = [
        "tid.x",
        "tid.y",
        "tid.z",
        "ntid.x",
        "ctaid.x",
        "ctaid.y",
        "nctaid.x",
        "laneid",
        "warpid",
    ]
    names += ["nwarpid", "lanemask_eq", "lanemask_lt", "lanemask_le", "lanemask_gt", "lanemask_ge"]
    body = """
      mov.u32 %r1, %ntid.x; mov.u32 %r2, %tid.y; mad.lo.u32 %r1, %r1, %r2, %r0;
      mov.u32 %r2, %ntid.y; mov.u32 %r3, %ntid.x; mul.lo.u32 %r2, %r2, %r3;
      mov.u32 %r3, %tid.z; mad.lo.u32 %r1, %r2, %r3, %r1;
      mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ctaid.y; mov.u32 %r5, %nctaid.x;
      mad.lo.u32 %r3, %r4, %r5, %r3; mov.u32 %r4, %ntid.z; mul.lo.u32 %r2, %r2, %r4;
      mad.lo.u32 %r1, %r2, %r3, %r1;
    """
    body += f"  mad.wide.u32 %d1, %r1, {4 * len(names)}, %d0;\n"
    for k, name in enumerate(names):
        body += f"  mov.u32 %r9, %{name};\n  st.global.u32 [%d1+{4 * k}], %r9;\n"
    block, grid = (5, 4, 2), (3, 2)
    out = np.zeros((6, 40, len(names)), np.uint32)
    assert not run(body, out, block=block, grid=grid)
    thread = np.arange(40)
    lane = thread % 32
    got = dict(zip(names, np.moveaxis(out, 2, 0), strict=True))
    equal(got["tid.x"][3], thread % 5)
    equal(got["tid.y"][3], thread // 5 % 4)
    equal(got["tid.z"][3], thread // 20)
    equal(got["ctaid.x"][:, 0], np.arange(6) % 3)
    equal(got["ctaid.y"][:, 0], np.arange(6) // 3)
    assert (got["ntid.x"] == 5).all() and (got["nctaid.x"] == 3).all()
    assert (got["nwarpid"] == 2).all()
    equal(got["laneid"][0], lane)
    equal(got["warpid"][0], thread // 32)
    equal(got["lanemask_eq"][0], 1 << lane)
    equal(got["lanemask_lt"][0], (1 << lane) - 1)
    equal(got["lanemask_le"][0], (2 << lane) - 1)
    equal(got["lanemask_gt"][0], (2**32 - 1) ^ ((2 << lane) - 1))
    equal(got["lanemask_ge"][0], (2**32 - 1) ^ ((1 << lane) - 1))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("tanh.approx.f32 %f1, %f2;", "unknown instruction tanh.approx.f32"),
        ("add.ftz.f32 %f1, %f2, %f3;", "unknown .ftz in add.ftz.f32"),
        ("div.full.f32 %f1, %f2, %f3;", "div.full.f32"),
        ("ld.global.f32 %f1, [nowhere];", "unknown address nowhere"),
        ("add.f32 %f1, %f2, %d3;", "register %d3 of 64 bits, not 32"),
        ("cvt.f32.f64 %f1, %g1;", "cvt without .rn"),
        ("wgmma.fence.sync.aligned;", "unknown instruction wgmma"),
        ("bra nowhere;", "no label nowhere"),
        ("ld.param.u32 %r1, [k_p0+8];", "an address outside the parameters"),
        ("mov.u32 %r1, %clock;", "%clock"),
        ("fence.acq_rel.cluster;", "fence.acq_rel.cluster"),
    ],
)
def test_what_is_unknown_is_named(line, name):
    out = np.zeros(32, np.uint32)
    with pytest.raises(ptx.UnsupportedError) as caught:
        run(f"  {line}", out)
    assert name in str(caught.value)
    assert "line " in str(caught.value)


def test_text_that_is_no_ptx():
    with pytest.raises(ptx.UnsupportedError, match="line 4"):
        module("int main() {}")
