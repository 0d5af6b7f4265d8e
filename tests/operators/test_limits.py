"""Triton's copies of the limits of arithmetic are those of the CPU's and of CUDA's kernels."""

from __future__ import annotations

import re

import pytest
from checkout import ROOT

SHARED = (ROOT / "csrc/common/limits.h").read_text()
TRITON = (ROOT / "kanerva_ext/triton/bayes_write.py").read_text()
NAMES = ("HardForFloat32Factors", "HardForFloat64", "HardForCholesky", "SmallItem")


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
