"""Several processes on the CPU train as one, and load what another number of them saved."""

import pytest
from helpers import run_processes


def together(check: str, folder, count: int) -> None:
    code = (
        "from distributed_checks import *; from distributed_training import *; "
        "start({store!r}, {count}); {check}; finish('agreed')"
    )
    printed = run_processes(
        lambda store: code.format(store=store, count=count, check=check), folder, count
    )
    assert all("agreed" in text for text in printed)


COUNTS = [2, pytest.param(4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_losses_of_20_steps_are_those_of_one_process(how, count, tmp_path):
    together(f"check_training({how!r})", tmp_path, count)


@pytest.mark.parametrize("count", COUNTS)
def test_a_memory_split_over_columns_trains_as_one(count, tmp_path):
    together("check_tensor_parallel()", tmp_path, count)


@pytest.mark.parametrize("count", COUNTS)
def test_one_memory_that_all_processes_write(count, tmp_path):
    together("check_shared_writes()", tmp_path, count)


def test_checkpoints_load_at_another_number_of_processes(tmp_path):
    folder = str(tmp_path / "checkpoint")
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    together(f"save_checkpoint({folder!r})", tmp_path / "a", 2)
    together(f"load_checkpoint({folder!r})", tmp_path / "b", 3)
