"""Triton's copies of the limits of arithmetic are those of the CPU's and of CUDA's kernels."""

from __future__ import annotations

import math
import re

import pytest
from checkout import ROOT

SHARED = (ROOT / "csrc/common/policy.h").read_text()
TRITON = "".join(
    (ROOT / "kanerva_ext/triton" / name).read_text() for name in ("bayes_write.py", "_segments.py")
)
NAMES = (
    "HardForFloat32Factors",
    "HardForFloat64",
    "HardForCholesky",
    "HardSegment32",
    "HardSegment64",
    "SmallItem",
)


def number(pattern: str, text: str) -> float:
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return float(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_has_one_name_and_one_value(name):
    words = re.findall("[A-Z][a-z]+[0-9]*", name)
    here = number(rf"^{'_'.join(words).upper()} = ([0-9.e+]+)", TRITON)
    assert here == number(rf"^constexpr \w+ k{name} = ([0-9.e+]+);", SHARED)


def test_no_limit_of_triton_is_left_out():
    found = re.findall(r"^((?:HARD|SMALL)_\w+) = ", TRITON, re.MULTILINE)
    assert sorted(found) == sorted(re.sub(r"(?<!^)(?=[A-Z])", "_", n).upper() for n in NAMES)


@pytest.mark.parametrize(
    ("file", "pattern", "name"),
    [
        ("_chunk.py", r"v <= ([0-9.e]+)\)", "LargestNoise"),
        ("causal_step.py", r"v <= ([0-9.e]+)\)", "LargestNoise"),
        ("adaptive_write.py", r"v <= ([0-9.e]+)\)", "LargestNoise"),
        ("adaptive_write.py", r"ratio >= ([0-9.e-]+) \*", "Cancelled"),
    ],
)
def test_a_limit_inside_a_triton_kernel_is_the_shared_one(file, pattern, name):
    kernel = (ROOT / "kanerva_ext/triton" / file).read_text()
    assert number(pattern, kernel) == number(rf"^constexpr \w+ k{name} = ([0-9.e-]+);", SHARED)


@pytest.mark.parametrize(
    ("file", "before"),
    [
        ("bayes_write.py", r"terms \+ "),
        ("causal_step.py", r"tl.log\(s\) \+ "),
        ("adaptive_write.py", r"tl.log\(s\) \+ "),
    ],
)
def test_the_logarithm_of_two_pi_is_the_shared_one(file, before):
    """Triton's is math.log(2 * math.pi), the double below the one that is nearest."""
    kernel = (ROOT / "kanerva_ext/triton" / file).read_text()
    here = number(rf"{before}([0-9.]+)", kernel)
    assert here == math.log(2 * math.pi)
    shared = number(r"^constexpr double kLog2Pi = ([0-9.]+);", SHARED)
    assert shared == math.nextafter(here, 2) == float("1.83787706640934548356")


def test_no_limit_of_accuracy_is_declared_elsewhere():
    """Those that decide by hardness, condition or size; lengths of tiles and tunings stay local."""
    names = re.findall(r"^constexpr \w+ (k\w+) =", SHARED, re.MULTILINE)
    assert len(names) == len(set(names)) >= 20
    elsewhere = [p for d in ("cpu", "cuda") for p in (ROOT / "csrc" / d).iterdir()]
    for path in elsewhere:
        declared = re.findall(r"constexpr \w+ (k\w+) =", path.read_text())
        assert not [n for n in declared if n in names or re.match("kHard|kEasy|kShrink", n)], path
