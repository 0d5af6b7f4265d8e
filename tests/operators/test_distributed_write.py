"""`kanerva_ext.distributed.write`: several processes write what one would."""

import pytest
from helpers import run_processes

COUNTS = [1, 2, pytest.param(4, marks=pytest.mark.slow)]


def together(check: str, folder, count: int = 2) -> list[str]:
    """Run a function of `distributed_checks` in ``count`` processes."""
    code = "from distributed_checks import *; start({store!r}, {count}); {check}; finish('agreed')"
    printed = run_processes(
        lambda store: code.format(store=store, count=count, check=check), folder, count
    )
    assert all("agreed" in text for text in printed)
    return printed


@pytest.mark.parametrize("count", COUNTS)
def test_posterior_and_gradients_are_those_of_one_process(count, tmp_path):
    together("check_write()", tmp_path, count)


def test_sums_of_losses_wide_sums_and_bytes(tmp_path):
    together(
        "check_sum_of_losses(); check_wide(); check_bytes(); check_plain_prior(); check_repeats()",
        tmp_path,
    )


@pytest.mark.parametrize("count", COUNTS)
def test_sequence_over_processes(count, tmp_path):
    together("check_scan(); check_scan_of_sums()", tmp_path, count)
