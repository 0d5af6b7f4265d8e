"""The PTX interpreter: approximations of float32, which it moves off the rounded result."""

import numpy as np
import pytest
from ptx_programs import compute

APPROXIMATIONS = {"rcp": lambda a: 1 / a, "rsqrt": lambda a: 1 / np.sqrt(a)}


@pytest.mark.parametrize("ftz", ["", ".ftz"])
@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_approximations_are_near_and_not_always_rounded(name, ftz):
    rng = np.random.default_rng(0)
    a = (rng.uniform(1, 2, 1024) * 2.0 ** rng.integers(-120, 120, 1024)).astype(np.float32)
    if name == "rcp":
        a *= rng.choice([-1, 1], 1024).astype(np.float32)
    got = compute(f"{name}.approx{ftz}.f32 {{x}}, {{a}};", "f32 f32", a)
    exact = APPROXIMATIONS[name](a.astype(np.float64))
    rounded = exact.astype(np.float32)
    # The ISA allows an error of about one unit of the last place.
    distance = np.abs(got.astype(np.float64) - rounded)
    assert (distance <= np.spacing(np.abs(rounded))).all()
    moved = got != rounded
    assert 0.25 < moved.mean() < 0.75
    assert (np.abs(got) < np.abs(rounded)).any() and (np.abs(got) > np.abs(rounded)).any()
    np.testing.assert_array_equal(
        compute(f"{name}.approx{ftz}.f32 {{x}}, {{a}};", "f32 f32", a), got
    )


@pytest.mark.parametrize(
    ("name", "ftz", "cases"),
    [
        ("rcp", "", [(1e-40, np.inf), (-1e-39, -np.inf)]),
        ("rcp", ".ftz", [(1e-40, np.inf), (-1e-40, -np.inf), (7e-39, np.inf), (3e38, 0.0)]),
        ("rcp", ".ftz", [(-3e38, -0.0)]),
        ("rsqrt", ".ftz", [(1e-40, np.inf), (-1e-40, -np.inf)]),
        ("rsqrt", "", [(-1e-40, np.nan)]),
    ],
)
def test_approximations_of_subnormals(name, ftz, cases):
    a, expected = np.array(cases, np.float32).T
    got = compute(f"{name}.approx{ftz}.f32 {{x}}, {{a}};", "f32 f32", a)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got[got == 0]), np.signbit(expected[expected == 0]))


def test_approximations_without_ftz_keep_subnormals():
    a = np.array([7e-39, 3e38, -3e38], np.float32)
    got = compute("rcp.approx.f32 {x}, {a};", "f32 f32", a)
    np.testing.assert_allclose(got[0], 1 / np.float64(a[0]), rtol=2.0**-22)
    # Results too: these are exact to half a unit of a subnormal.
    np.testing.assert_array_equal(got[1:], (1 / a[1:].astype(np.float64)).astype(np.float32))
    small = np.array([7e-41, -0.0], np.float32)
    roots = compute("rsqrt.approx.f32 {x}, {a};", "f32 f32", small)
    np.testing.assert_allclose(roots[0], 1 / np.sqrt(np.float64(small[0])), rtol=2.0**-22)


@pytest.mark.parametrize("ftz", ["", ".ftz"])
def test_approximations_at_the_ends(ftz):
    a = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -2.0], np.float32)
    got = compute(f"rcp.approx{ftz}.f32 {{x}}, {{a}};", "f32 f32", a)
    np.testing.assert_array_equal(got[:5], np.array([np.inf, -np.inf, 0.0, -0.0, np.nan]))
    assert list(np.signbit(got[2:4])) == [False, True] and abs(got[5] + 0.5) <= 2.0**-24
    got = compute(f"rsqrt.approx{ftz}.f32 {{x}}, {{a}};", "f32 f32", a)
    np.testing.assert_array_equal(got, np.array([np.inf, -np.inf, 0.0, np.nan, np.nan, np.nan]))
