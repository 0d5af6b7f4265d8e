"""`kanerva_ext.distributed.write_stream`: every batch once, whatever is killed when."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import torch
from helpers import run_processes

from kanerva_ext import MemoryState, distributed, ops

K, C, BATCHES = 6, 4, 40


def batch(number: int):
    generator = torch.Generator().manual_seed(number)
    weights = torch.randn(1, 5, K, generator=generator)
    return weights, torch.randn(1, 5, C, generator=generator)


def prior() -> MemoryState:
    return MemoryState(torch.zeros(1, K, C), torch.eye(K)[None])


def whole(count=BATCHES):
    weights, values = (torch.cat(x, 1) for x in zip(*map(batch, range(count)), strict=True))
    return ops.bayes_write(*prior(), weights, values, 0.5)


def stream(loader, path, **options):
    options = {"noise_var": 0.5, "progress": False, "save_every": 3} | options
    return distributed.write_stream(loader, prior(), path, **options)


LOADERS = {
    "sequence": lambda n: [batch(i) for i in range(n)],
    "iterable": lambda n: map(batch, range(n)),
    "function": lambda n: lambda start: map(batch, range(start, n)),
    "own_noise": lambda n: [(*batch(i), torch.full((1, 5), 0.5)) for i in range(n)],
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_stream_is_one_write(kind, tmp_path):
    """In one run, and in one that goes on with what was saved."""
    path, make = tmp_path / "stream.safetensors", LOADERS[kind]
    noise = None if kind == "own_noise" else 0.5
    stream(make(BATCHES // 2), path, noise_var=noise)
    state, evidence = stream(make(BATCHES), path, noise_var=noise)
    for got, want in zip((*state, evidence.float()), whole(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    again, _ = stream(make(BATCHES), path, noise_var=noise)  # nothing is left
    assert torch.equal(again.mean, state.mean)
    alone, _ = stream(make(BATCHES), tmp_path / "other.safetensors", noise_var=noise)
    assert torch.equal(alone.mean, state.mean) and torch.equal(alone.cov, state.cov)


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from test_distributed_stream import *
torch.set_num_threads(1)
def slow(start):
    for i in range(start, BATCHES):
        time.sleep(0.02)
        yield batch(i)
stream(slow, {path!r}, save_every=1)
print("done", flush=True)
"""


def test_each_batch_once_whatever_is_killed_when(tmp_path):
    """kill -9, again and again; the state is bit for bit that of a run that nobody killed."""
    path = tmp_path / "stream.safetensors"
    code = KILLED.format(tests=os.path.dirname(__file__), path=str(path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    chance, kills = random.Random(0), 0
    for _ in range(60):
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, cwd=tempfile.gettempdir(),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline, begun = time.monotonic() + 120, path.stat().st_mtime_ns if path.exists() else 0
        # Past the imports: something of this run was saved, or nothing was left to save.
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.stat().st_mtime_ns != begun:
                break
            time.sleep(0.002)
        time.sleep(chance.uniform(0.1, 0.4))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        out = process.communicate()[0]
        if "done" in out:
            break
    assert "done" in out and kills >= 2, kills
    state, evidence = stream(LOADERS["function"](BATCHES), path)
    alone, alone_evidence = stream(LOADERS["function"](BATCHES), tmp_path / "other", save_every=9)
    assert torch.equal(alone.mean, state.mean) and torch.equal(alone.cov, state.cov)
    assert torch.equal(alone_evidence, evidence)
    left = [p.name for p in tmp_path.iterdir() if p.name not in ("stream.safetensors", "other")]
    assert all(name.startswith("stream.safetensors.") for name in left)  # of a kill in a save


def test_errors_of_streams(tmp_path):
    path = tmp_path / "stream.safetensors"
    stream(LOADERS["sequence"](4), path)
    with pytest.raises(ValueError, match="state must be the one that"):
        other = MemoryState(prior().mean + 1, prior().cov)
        distributed.write_stream([], other, path, noise_var=0.5, progress=False)
    with pytest.raises(TypeError, match="noise_var must be given"):
        stream(LOADERS["sequence"](5), path, noise_var=None)
    with pytest.raises(TypeError, match=r"loader must give .* got Tensor"):
        stream([torch.ones(3)], tmp_path / "a")
    with pytest.raises(TypeError, match="loader must be an iterable"):
        stream(3, tmp_path / "a")
    with pytest.raises(ValueError, match="save_every must be at least 1, got 0"):
        stream([], tmp_path / "a", save_every=0)

    nothing = iter(())
    with pytest.raises(FileNotFoundError, match="checkpoint must lie in a folder that exists"):
        stream(nothing, tmp_path / "no" / "stream.safetensors")
    with pytest.raises(IsADirectoryError, match="checkpoint must be a file, got the folder"):
        stream(nothing, tmp_path)

    def failing(start):
        yield from map(batch, range(start, 7))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        stream(failing, path)
    assert stream(LOADERS["sequence"](7), path)[0].mean.isfinite().all()  # of 6 that were saved
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="is no checkpoint of a stream, or damaged"):
        stream([], path)


PROCESSES = """
import sys
sys.path.insert(0, {tests!r})
from distributed_checks import *
from test_distributed_stream import *
rank = start({store!r}, 2)
own = [batch(i) for i in range(rank * 15, 15 if rank == 0 else BATCHES)]  # 15 and 25
for part in (own[:10], own):
    state, evidence = stream(part, {path!r})
for got, want in zip((*state, evidence.float()), whole(), strict=True):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
assert_same_everywhere(state.mean)
def failing():
    yield batch(0)
    yield 1 / (1 - rank)
try:
    stream(failing(), {path!r} + "2")
except (ZeroDivisionError, RuntimeError, TypeError) as error:
    assert isinstance(error, TypeError if rank == 0 else ZeroDivisionError), error
else:
    raise SystemExit("a rank went on without the other")
try:
    stream(own if rank == 0 else iter([None]), {path!r} + "3")
except (TypeError, RuntimeError) as error:
    assert ("of another rank failed" if rank == 0 else "loader must give") in str(error), error
else:
    raise SystemExit("a rank went on without the other")
from kanerva_ext.distributed import _stream
def full(*_):
    raise OSError("the disk is full")
_stream.write_tensors = full
for part, every in ((own, 3), (own[:1], 100)):  # in the midst of the batches, and at their end
    try:
        stream(part, {path!r} + "4", save_every=every)
    except (OSError, RuntimeError) as error:
        assert ("rank 0 could not save" if rank else "disk is full") in str(error), error
    else:
        raise SystemExit("a rank went on without the other")
try:
    stream(own, {path!r} + "/nowhere/5")
except (OSError, RuntimeError) as error:
    assert ("rank 0 refused" if rank else "in a folder that exists") in str(error), error
else:
    raise SystemExit("a rank went on without the other")
finish("agreed")
"""


def test_two_processes_with_loaders_of_different_lengths(tmp_path):
    path = str(tmp_path / "stream.safetensors")
    tests = os.path.dirname(__file__)
    printed = run_processes(
        lambda store: PROCESSES.format(store=store, path=path, tests=tests), tmp_path
    )
    assert all("agreed" in text for text in printed)
    with pytest.raises(ValueError, match="was begun by 2 processes"):
        stream([], path)
