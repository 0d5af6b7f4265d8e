"""`kanerva train` under torchrun with one memory that all processes write, and after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

from training_runs import arguments, elsewhere, tensors

from kanerva_ext.cli import _checkpoint, _loop, main
from kanerva_ext.cli._config import ConfigError
from kanerva_ext.cli._config_files import load_config
from kanerva_ext.cli._logs import read_csv

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
# Nothing is drawn but the images, which are the same for any number of processes.
PLAIN = {"training__shared_memory": "true", "training__threads": 1, "training__corrupted": 0.25}


def words(folder, *more, **options):
    return arguments(folder, *more, preset="cpu-omniglot-dynamic", **(PLAIN | options))


def differences(folder, other):
    first, second = tensors(folder), tensors(other)
    return [(first[n] - second[n]).abs().max().item() for n in first if n.startswith("model.")]


@pytest.mark.slow
def test_one_memory_of_two_processes_trains_as_of_one(tmp_path):
    folder, alone = tmp_path / "run", tmp_path / "alone"
    options = {"training__steps": 8}
    command = [*TORCHRUN, "-m", "kanerva_ext.cli", *words(folder, **options)]
    done = subprocess.run(command, timeout=240, **elsewhere(folder))
    assert done.returncode == 0, done.stderr
    assert main(words(alone, **options)) == 0
    assert max(differences(folder, alone)) < 2e-4
    rows = zip(read_csv(folder / "test.csv"), read_csv(alone / "test.csv"), strict=True)
    for got, want in rows:
        assert float(got["bound"]) == pytest.approx(float(want["bound"]), rel=1e-5)
    # The memory is one: with a memory for each process it is another training.
    apart = tmp_path / "apart"
    options |= {"data__episode_length": 4, "training__shared_memory": "false"}
    assert main(words(apart, **options)) == 0
    assert max(differences(folder, apart)) > 5e-4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds a process in /proc")
def test_a_killed_worker_is_started_again_and_nothing_changes(tmp_path):
    """torchrun --max-restarts: bit for bit the run that nobody killed."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    steps = {"training__steps": 60, "training__evaluate_every": 0}
    start = [*TORCHRUN, "--max-restarts=1", "-m", "kanerva_ext.cli"]
    done = subprocess.run(
        [*start, *words(whole, "--resume", **steps)], timeout=240, **elsewhere(whole)
    )
    assert done.returncode == 0, done.stderr
    command = [*start, *words(folder, "--resume", **steps)]
    process = subprocess.Popen(command, **elsewhere(folder))
    try:
        deadline = time.monotonic() + 120
        while not (folder / _checkpoint.FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (second,) = (w for w in workers if b"\0RANK=1\0" in Path(f"/proc/{w}/environ").read_bytes())
        os.kill(int(second), signal.SIGKILL)
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "from step 0 of" not in (folder / "log.txt").read_text().splitlines()[-1]
    got, want = tensors(folder), tensors(whole)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in got)


def test_episodes_must_fit_the_processes(tmp_path):
    process = _loop.Process(0, 3, torch.device("cpu"))
    config = load_config("cpu-omniglot-dynamic", ["training.shared_memory=true"])
    with pytest.raises(ConfigError, match="multiple of the 3 processes with shared_memory, got 32"):
        _loop.Run(config, tmp_path, process, False, False)


def test_a_model_without_a_memory_is_refused():
    with pytest.raises(ConfigError, match="shared_memory needs a"):
        _loop._writes_of_all(torch.nn.Linear(2, 2))
