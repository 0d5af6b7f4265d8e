"""The scripts that run PTX, for tests; those of compiled kernels need nvcc."""

import importlib.util
import os
import sys

import pytest
from checkout import ROOT

SCRIPT = ROOT / "scripts/kernels_on_ptx.py"

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(not SCRIPT.is_file(), reason="needs the source tree, which is not here"),
    pytest.mark.skipif(
        os.environ.get("KANERVA_TEST_PTX") != "1", reason="set KANERVA_TEST_PTX=1 to compile to PTX"
    ),
]


def load_script(name: str):
    """scripts/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPT.with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before  # the tests must not find the checkout's package
    return module


@pytest.fixture(scope="session")
def kernels_on_ptx():
    return load_script("kernels_on_ptx")
