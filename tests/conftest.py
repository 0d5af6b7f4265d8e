"""Every test starts from the same seed, and memory that nobody wrote reads as NaN."""

import os
import sys
from pathlib import Path

# For the package benchmarks; last, so that an installed kanerva_ext goes before the checkout's.
sys.path.append(str(Path(__file__).parents[1]))
# A graph compiled by torch.compile for an older schema of an operator must not be found again.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
# Deterministic matrix products of cuBLAS, for the references on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

pytest_plugins = ["cli_runs"]


def pytest_configure(config):
    # The tests of the operators make their tensors there.
    if "KANERVA_TEST_DEVICE" in os.environ:
        torch.set_default_device(os.environ["KANERVA_TEST_DEVICE"])
    # Kernels to test instead of the CPU's own: see scripts/kernels_on_host.py.
    if "KANERVA_TEST_LIBRARY" in os.environ:
        import kanerva_ext  # noqa: F401 - defines the operators

        torch.ops.load_library(os.environ["KANERVA_TEST_LIBRARY"])
    if "TRITON_INTERPRET" in os.environ:
        import interpreter

        interpreter.patch_language_once()
    torch.set_num_threads(2)
    # Deterministic mode fills the results of torch.empty, in C++ too.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """For models too small for more: waiting for a busy core would take longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
