"""Processes that disagree, die, are late or have nothing: errors that say so, and no hang."""

import pytest
import torch
from helpers import run_processes

from kanerva_ext import distributed


def together(check: str, folder, seconds: int = 120) -> list[str]:
    code = (
        "from distributed_checks import *; from distributed_faults import *; "
        "start({store!r}, 2, {seconds}); {check}; finish('agreed')"
    )
    return run_processes(
        lambda store: code.format(store=store, check=check, seconds=seconds), folder
    )


def test_bad_items_disagreement_and_no_data(tmp_path):
    printed = together("check_bad_items(); check_disagreement(); check_no_data()", tmp_path)
    assert all("agreed" in text for text in printed)


def test_other_states_and_tensors(tmp_path):
    checks = "check_other_states(); check_other_tensors(); check_shared_state()"
    assert all("agreed" in text for text in together(checks, tmp_path))


def test_other_versions_are_an_error(tmp_path):
    assert all("agreed" in text for text in together("check_versions()", tmp_path))


def test_a_rank_that_dies(tmp_path):
    assert "told" in together("check_death()", tmp_path)[0]


@pytest.mark.slow
def test_a_rank_that_is_late(tmp_path):
    assert "told" in together("check_time_out()", tmp_path, seconds=5)[0]


def test_without_a_process_group():
    state = torch.zeros(1, 2, 3), torch.eye(2)[None]
    with pytest.raises(RuntimeError, match="must be initialised first"):
        distributed.write(state, torch.ones(1, 1, 2), torch.ones(1, 1, 3), 1.0)
