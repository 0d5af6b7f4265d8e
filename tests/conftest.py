"""Every test starts from the same seed, and memory that nobody wrote reads as NaN."""

import os

# A graph compiled by torch.compile for an older schema of an operator must not be found again.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import pytest
import torch


def pytest_configure(config):
    torch.set_num_threads(2)
    # Deterministic mode fills the results of torch.empty, in C++ too.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
