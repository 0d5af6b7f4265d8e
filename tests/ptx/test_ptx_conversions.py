"""The PTX interpreter: every conversion between types, against NumPy."""

import numpy as np
import pytest
from ptx_programs import compute
from ptx_values import equal, floats, integers, wide, wrapped

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
