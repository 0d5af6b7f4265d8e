"""The queue of trainings, and what the page of the reproduction is made of."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from checkout import ROOT

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

from benchmarks import reproduce, reproduce_capacity, reproduce_ppca, reproduce_queue
from benchmarks.reproduce_experiments import Experiment
from kanerva_ext.cli import _checkpoint
from kanerva_ext.cli._logs import read_csv
from kanerva_ext.data import ImageSet

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = (
    "model.memory_size=8",
    "model.code_size=12",
    "model.num_filters=4",
    "data.episode_length=8",
    "training.log_every=5",
    "training.evaluate_every=0",
    "training.checkpoint_every=5",
)


def words(folder, steps=20, *more):
    sets = [w for s in (*SETTINGS, f"training.steps={steps}", *more) for w in ("--set", s)]
    command = ["train", "cpu-omniglot-kanerva", "--device", "cpu", "--out", str(folder)]
    return folder, [*command, "--resume", "--quiet", *sets]


def tensors(folder):
    return _checkpoint.load(folder / _checkpoint.FILE).tensors


@pytest.fixture
def priority(monkeypatch):
    """A process cannot raise its priority again; the steps down are counted instead."""
    steps = [0]
    monkeypatch.setattr(os, "nice", lambda by: steps.append(steps[-1] + by) or steps[-1])
    return steps


def test_the_queue_works_in_order_until_the_hours_are_over(tmp_path, priority, capsys):
    queue = [words(tmp_path / "one"), words(tmp_path / "two", 100_000), words(tmp_path / "three")]
    said = []
    assert reproduce_queue.work(queue, tmp_path, 12 / 3600, said.append) == 0
    assert priority[-1] == 19
    assert (tmp_path / "one" / "metrics.json").is_file()
    step = _checkpoint.load(tmp_path / "two" / _checkpoint.FILE).step
    assert 0 < step < 100_000 and not (tmp_path / "three").exists()
    assert "hours are over" in said[-1]
    assert f"stopped after step {step}; --resume goes on" in capsys.readouterr().err
    said.clear()
    assert reproduce_queue.work(queue, tmp_path, 4 / 3600, said.append) == 0
    assert said[0] == "done before: one"
    assert _checkpoint.load(tmp_path / "two" / _checkpoint.FILE).step > step


def test_a_run_that_fails_is_passed_over(tmp_path, priority, capsys):
    queue = [words(tmp_path / "bad", 5, "model.slots=3"), words(tmp_path / "good", 5)]
    assert reproduce_queue.work(queue, tmp_path, 1, lambda line: None) == 1
    assert "has no key 'slots'" in capsys.readouterr().err
    assert (tmp_path / "good" / "metrics.json").is_file()


def test_a_signal_ends_the_queue(tmp_path, priority, monkeypatch):
    from kanerva_ext.models.training import Trainer

    original = Trainer.step

    def step(self, images, queries, number, *rest):
        if number == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, images, queries, number, *rest)

    monkeypatch.setattr(Trainer, "step", step)
    queue = [words(tmp_path / "one"), words(tmp_path / "two")]
    status = reproduce_queue.work(queue, tmp_path, 1, lambda line: None)
    assert status == 128 + signal.SIGTERM and not (tmp_path / "two").exists()
    assert _checkpoint.load(tmp_path / "one" / _checkpoint.FILE).step == 8


SCRIPT = """
import json, pathlib, sys
sys.path.append(sys.argv[3])
from benchmarks import reproduce_queue
queue = [(pathlib.Path(folder), words) for folder, words in json.loads(sys.argv[1])]
sys.exit(reproduce_queue.work(queue, pathlib.Path(sys.argv[2]), 1))
"""


def start(queue, folder):
    text = json.dumps([(str(each), command) for each, command in queue])
    # Not in the checkout, whose package may be without its library.
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, text, str(folder), str(ROOT)],
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_numbers(tmp_path):
    """kill -9 of the queue leaves no training behind, and nothing is lost but some steps."""
    folder = tmp_path / "killed"
    queue = [words(folder / "one", 60), words(folder / "two", 20)]
    kills = 0
    while True:
        process, checkpoint = start(queue, folder), folder / "one" / _checkpoint.FILE
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        deadline = time.monotonic() + 120
        while kills < 2 and process.poll() is None and time.monotonic() < deadline:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                process.kill()
                break
            time.sleep(0.005)
        _, errors = process.communicate(timeout=240)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        kills += 1
    assert kills == 2
    whole = tmp_path / "whole"
    process = start([words(whole / "one", 60), words(whole / "two", 20)], whole)
    process.communicate(timeout=240)
    assert process.returncode == 0
    for name in ("one", "two"):
        first, second = tensors(folder / name), tensors(whole / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[n], second[n]) for n in first)
        rows = [
            [{k: v for k, v in row.items() if k != "seconds"} for row in read_csv(f / "train.csv")]
            for f in (folder / name, whole / name)
        ]
        assert rows[0] == rows[1] and rows[0]


def test_two_queues_do_not_share_a_folder(tmp_path, priority):
    refused = pytest.raises(RuntimeError, match="another queue is at work in")
    with reproduce_queue.alone(tmp_path), refused:
        reproduce_queue.work([words(tmp_path / "one")], tmp_path, 1)
    with reproduce_queue.alone(tmp_path):
        pass


def test_probabilistic_pca_by_its_covariance():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 48, generator=generator) * 12

    def images(count):
        levels = torch.randn(count, 6, generator=generator) @ mix + 128
        levels = levels + 4 * torch.randn(count, 48, generator=generator)
        levels = levels.clamp(0, 255).round().to(torch.uint8).view(count, 3, 4, 4)
        return ImageSet(levels, torch.zeros(count, dtype=torch.int64), ("a",))

    train, test = images(500), images(300)
    rows = reproduce_ppca.measure(train, test, (2, 6, 20))
    assert [row["components"] for row in rows] == [2, 6, 20]
    flat = train.images.flatten(1).double() / 256
    mean = flat.mean(0) + 0.5 / 256
    values, vectors = torch.linalg.eigh(torch.cov(flat.mT) + torch.eye(48) / 12 / 256**2)
    for row in rows:
        size = row["components"]
        left = values[: 48 - size].mean()
        spectrum = torch.cat([left.expand(48 - size), values[48 - size :]])
        cov = vectors * spectrum @ vectors.mT
        normal = torch.distributions.MultivariateNormal(mean, cov)
        draws = torch.rand(20, *test.images.shape, generator=generator, dtype=torch.float64)
        exact = -normal.log_prob(((test.images + draws) / 256).flatten(2)).mean().item()
        assert abs(row["nats"] - exact) < 0.3
        assert row["bits_per_dim"] == pytest.approx(row["nats"] / 48 / math.log(2) + 8)
        assert row["autoencoder"] < row["bits_per_dim"]
    assert rows[1]["bits_per_dim"] < rows[0]["bits_per_dim"] - 0.3


def test_what_was_measured_elsewhere_is_kept(tmp_path, monkeypatch):
    """Of an experiment's seeds some were measured on another machine, whose runs are not here."""
    runs, results = tmp_path / "runs", tmp_path / "results.json"
    monkeypatch.setattr("benchmarks.reproduce_experiments.RUNS", runs)
    monkeypatch.setattr(reproduce, "RUNS", runs)
    monkeypatch.setattr(reproduce, "RESULTS", results)
    one, other = Experiment("one", "x"), Experiment("other", "x")
    monkeypatch.setattr(reproduce, "EXPERIMENTS", (one, other))
    monkeypatch.setattr(reproduce, "measure", lambda folder: {"of": folder.name, "new": True})
    kept = {f"one-s{seed}": {"of": f"one-s{seed}", "new": False} for seed in (0, 1)}
    elsewhere = {"one": {"command": "old", "runs": kept}, "other": {"runs": {"other-s2": {}}}}
    table = "run,label,length,bound\n"
    capacity = table + "a-s0,a,8,1\nb-s0,b,8,2\n"
    results.write_text(json.dumps({"experiments": elsewhere, "capacity": capacity}))
    for name in ("one-s1", "one-s2", "capacity"):
        (runs / name).mkdir(parents=True)
        (runs / name / _checkpoint.FILE).touch()
    (runs / "capacity" / "capacity.csv").write_text(table + "b-s1,b,8,3\nc-s0,c,8,4\n")
    found = reproduce.collect({}, [])
    new = {name: run.get("new") for name, run in found["experiments"]["one"]["runs"].items()}
    assert new == {"one-s0": False, "one-s1": True, "one-s2": True}
    assert list(new) == ["one-s0", "one-s1", "one-s2"]
    assert list(found["experiments"]["other"]["runs"]) == ["other-s2"]
    assert found["capacity"] == table + "a-s0,a,8,1\nb-s1,b,8,3\nc-s0,c,8,4\n"
    only = reproduce.collect({}, ["other"])["experiments"]["one"]["runs"]
    assert only == kept


def test_the_picture_of_the_capacity_is_drawn_from_its_table(tmp_path):
    pytest.importorskip("matplotlib")
    text = json.loads(reproduce.RESULTS.read_text())["capacity"]
    assert reproduce_capacity.merge("", text) == text == reproduce_capacity.merge(text, text)
    reproduce_capacity.draw(text, tmp_path / "capacity.png")
    assert (tmp_path / "capacity.png").stat().st_size > 10_000
