"""`kanerva train`: configurations, logs, checkpoints, and going on after a kill."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

from training_runs import PRESET, SMALL, arguments, elsewhere, tensors

from kanerva_ext.cli import _checkpoint, main
from kanerva_ext.cli._batches import Batches, derive_seed
from kanerva_ext.cli._config import ConfigError
from kanerva_ext.cli._config_files import load_config, presets
from kanerva_ext.cli._loaded_run import load_run
from kanerva_ext.cli._logs import CsvLog, read_csv
from kanerva_ext.cli._processes import Process
from kanerva_ext.data import hold_out, load_images
from kanerva_ext.models import KanervaMachine, evaluate

RANKS = ((0, 1), (0, 2), (1, 2))  # of how many


def assert_same_run(one, other):
    """Parameters, optimiser, logs and metrics, bit for bit but for the times."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    for name in ("train.csv", "test.csv"):
        rows = [
            [{k: v for k, v in row.items() if k != "seconds"} for row in read_csv(f / name)]
            for f in (one, other)
        ]
        assert rows[0] == rows[1] and rows[0], name
    metrics = [json.loads((f / "metrics.json").read_text())["test"] for f in (one, other)]
    assert metrics[0] == metrics[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(arguments(folder)) == 0
    return folder


def test_a_run_writes_its_files(whole):
    assert {path.name for path in whole.iterdir()} == {
        "checkpoint.safetensors", "config.json", "log.txt", "metrics.json", "test.csv", "train.csv"
    }  # fmt: skip
    rows = read_csv(whole / "train.csv")
    assert [row["step"] for row in rows] == [4, 8, 12, 16, 20, 24, 28, 30]
    for row in rows:
        parts = row["reconstruction"] + row["kl_y"] + row["kl_z"]
        assert abs(parts - row["bound"]) < 1e-5 * row["bound"] + 1e-2
    assert rows[-1]["bound"] < rows[0]["bound"]
    assert [row["step"] for row in read_csv(whole / "test.csv")] == [8, 16, 24, 30]
    config = json.loads((whole / "config.json").read_text())
    assert load_config(whole / "config.json").as_dict() == config
    assert config["training"]["steps"] == 30
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["steps"] == 30 and metrics["test"]["bound"] > 0


def test_a_checkpoint_rebuilds_the_model(whole):
    checkpoint = _checkpoint.load(whole / _checkpoint.FILE)
    model = checkpoint.config.make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint.restore_model(model)
    assert isinstance(model, KanervaMachine) and checkpoint.step == 30
    moved = [name for name, t in model.state_dict().items() if not torch.equal(t, before[name])]
    assert "memory.prior_mean" in moved and "encoder.linear.weight" in moved


def test_optimizer_state_of_an_old_checkpoint(tmp_path, whole):
    """Scalar parameters were 0-d, and so was what Adam keeps of them."""
    old = _checkpoint.load(whole / _checkpoint.FILE)
    name = "memory.log_prior_var"
    for key in (f"model.{name}", f"optimizer.{name}/exp_avg", f"optimizer.{name}/exp_avg_sq"):
        assert old.tensors[key].shape == (1,)
        old.tensors[key] = old.tensors[key].squeeze(0)
    model = old.config.make_model()
    old.restore_model(model)
    optimizer = torch.optim.Adam(model.parameters())
    old.restore_optimizer(model, optimizer)
    state = optimizer.state[model.memory.log_prior_var]
    assert state["exp_avg"].shape == state["exp_avg_sq"].shape == (1,) and state["step"].dim() == 0
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_the_logged_means_are_over_the_steps_between_rows(whole, tmp_path):
    assert main(arguments(tmp_path / "each", training__log_every=1)) == 0
    each = {row["step"]: row["bound"] for row in read_csv(tmp_path / "each" / "train.csv")}
    for row in read_csv(whole / "train.csv"):
        steps = range(row["step"] - (4 if row["step"] < 30 else 2) + 1, row["step"] + 1)
        mean = sum(each[step] for step in steps) / len(steps)
        assert abs(row["bound"] - mean) < 1e-4 * mean


@pytest.mark.slow
def test_killed_and_resumed_until_done_gives_the_same_numbers(whole, tmp_path):
    """kill -9 at random moments, also while a checkpoint or a log is written."""
    folder, chance, kills = tmp_path / "killed", random.Random(0), 0
    command = [sys.executable, "-m", "kanerva_ext.cli", *arguments(folder, "--resume")]
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        process = subprocess.Popen(command, **elsewhere(folder))
        if kills < 6:
            before = progress_of(folder)
            while progress_of(folder) == before and process.poll() is None:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.08))
            process.kill()
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        kills += 1
    assert process.returncode == 0 and kills >= 3
    assert_same_run(whole, folder)


def progress_of(folder):
    """Changes with every checkpoint and row."""
    return tuple(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.glob("*"))
        if path.suffix in (".csv", ".safetensors")
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_stopped_by_a_signal_it_saves_and_goes_on(number, whole, tmp_path, monkeypatch, capsys):
    from kanerva_ext.models.training import Trainer

    original = Trainer.step

    def step(self, images, queries, step, *rest):
        if step == 13:
            os.kill(os.getpid(), number)
        return original(self, images, queries, step, *rest)

    handler = signal.getsignal(number)
    monkeypatch.setattr(Trainer, "step", step)
    assert main(arguments(tmp_path / "run")) == 128 + number
    assert "stopped after step 14; --resume goes on" in capsys.readouterr().err
    assert signal.getsignal(number) is handler
    monkeypatch.undo()
    assert _checkpoint.load(tmp_path / "run" / _checkpoint.FILE).step == 14
    assert main(["train", "--resume", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert_same_run(whole, tmp_path / "run")


def test_so_many_minutes_and_then_on(whole, tmp_path, capsys):
    """Stops cleanly with a checkpoint when the time is over, goes on, and says so last."""
    folder, ends, starts = tmp_path / "run", [], []
    words = arguments(folder, "--resume", "--minutes", "0.0005")
    for _ in range(40):
        starts.append(progress_of(folder))
        assert main(words) == 0
        ends.append(capsys.readouterr().err.splitlines()[-1])
        if "done" in ends[-1]:
            break
        assert not (folder / "metrics.json").exists()
        step = _checkpoint.load(folder / _checkpoint.FILE).step
        images = step * 2 * SMALL["data.episode_length"]
        assert ends[-1].startswith(f"0.0005 minutes are over; {images:,} images in ")
        assert ends[-1].endswith(f" minutes; stopped after step {step}; --resume goes on")
    assert len(ends) > 2 and len(set(starts)) == len(starts)
    assert ends[-1].startswith("480 images in ") and ends[-1].endswith("done after step 30")
    assert_same_run(whole, folder)


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_minutes_must_be_positive(tmp_path, capsys, minutes):
    assert main(arguments(tmp_path / "run", "--minutes", minutes)) == 2
    assert "--minutes must be positive" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({}, "float32")],
)
def test_precision_is_chosen_by_the_processor(tmp_path, monkeypatch, capsys, capabilities, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    options = {"training__precision": "auto", "training__steps": 4}
    words = [word for word in arguments(tmp_path / "run", **options) if word != "--quiet"]
    assert main(words) == 0
    line = f"precision {chosen} (chosen by the processor), "
    assert line in capsys.readouterr().err
    assert (tmp_path / "run" / "log.txt").read_text().startswith(line)
    assert main(arguments(tmp_path / "same", training__precision=chosen, training__steps=4)) == 0
    rows = [read_csv(tmp_path / name / "train.csv")[0]["bound"] for name in ("run", "same")]
    assert rows[0] == rows[1]


def test_a_run_goes_on_in_the_precision_it_began_in(tmp_path, monkeypatch):
    folder, options = tmp_path / "run", {"training__precision": "auto"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert main(arguments(tmp_path / "whole", **options)) == 0
    assert main(arguments(folder, "--minutes", "0.0001", **options)) == 0
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert main(arguments(folder, "--resume", **options)) == 0
    assert_same_run(tmp_path / "whole", folder)
    assert "precision bfloat16" in (folder / "log.txt").read_text().splitlines()[-1]


def test_held_out_training_images_take_the_place_of_the_test_images(tmp_path):
    """Characters of their own, as Omniglot's test images are; the test images are not opened."""
    options = {"training__steps": 4, "training__evaluate_every": 0}
    assert main(arguments(tmp_path / "run", data__validation=0.1, **options)) == 0
    train = load_images("omniglot", "train")
    rest, held = hold_out(train, 0.1, whole_classes=True)
    expected = evaluate(
        load_run(tmp_path / "run", "cpu").model, held.images, episode_length=8, pixels="as_is"
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"] == expected
    assert len(rest.images) + len(held.images) == len(train.images)


def test_episodes_are_cut_into_parts_of_drawn_lengths(tmp_path):
    """Every length comes up, a step sees as many images as without, and as many in each process."""
    sets = ["data.episode_length=12", "data.shortest_episode=3", "training.corrupted=0.5"]
    config = load_config(PRESET, [*sets, "training.noise=1.0"])
    one, first, second = (Batches(config, Process(*p, torch.device("cpu"))) for p in RANKS)
    lengths = set()
    for step in range(40):
        images, queries = one.at(step)
        length = images.shape[1]
        lengths.add(length)
        assert len(images) * length == 2 * 12
        assert queries.shape[:2] == (len(images), round(length / 2))
        assert not torch.equal(queries, images[:, : queries.shape[1]])
        halves = torch.cat([first.at(step)[0], second.at(step)[0]])
        assert torch.equal(halves, images) and torch.equal(one.at(step)[0], images)
    assert lengths == {12, 6, 4, 3}
    whole = Batches(load_config(PRESET, [sets[0]]), one.process)
    assert [whole.at(step)[0].shape[:2] for step in range(8)] == [(2, 12)] * 8
    # Through the loop as well, tests with whole episodes, and again bit for bit.
    options = {"data__shortest_episode": 2, "training__evaluate_every": 0}
    for name in ("run", "same"):
        assert main(arguments(tmp_path / name, **options)) == 0
    assert_same_run(tmp_path / "run", tmp_path / "same")
    assert (tmp_path / "run" / "config.json").read_text().count("shortest_episode") == 1


def test_a_run_starts_from_anothers_parameters(whole, tmp_path, capsys):
    options = {"training__steps": 1, "training__warm_up_steps": 1000, "model__memory_size": 7}
    start = {"training__start": str(whole)}
    assert main(arguments(tmp_path / "run", **options, **start)) == 0
    first, second = tensors(whole), tensors(tmp_path / "run")
    moved = {
        name: (first[name] - second[name]).abs().max().item()
        for name in first
        if name.startswith("model.") and first[name].shape == second[name].shape
    }
    assert len(moved) > 20 and max(moved.values()) < 1e-4
    assert second["model.memory.prior_mean"].shape == (7, 12)
    assert main(arguments(tmp_path / "none", training__start=str(tmp_path / "gone"))) == 2
    assert "gone: no such file" in capsys.readouterr().err


def test_resuming_what_is_done_changes_nothing(whole, tmp_path):
    import shutil

    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    assert main(arguments(folder, "--resume")) == 0
    assert_same_run(whole, folder)


def test_another_seed_is_another_run(whole, tmp_path):
    assert main(arguments(tmp_path / "run", training__seed=1)) == 0
    assert (
        read_csv(whole / "train.csv")[0]["bound"]
        != read_csv(tmp_path / "run" / "train.csv")[0]["bound"]
    )


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    """torchrun: half of the episodes each; the first process alone writes."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "kanerva_ext.cli", *arguments(folder, training__steps=6)]
    done = subprocess.run(command, timeout=240, **elsewhere(folder))
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_csv(folder / "train.csv")] == [4, 6]
    assert _checkpoint.load(folder / _checkpoint.FILE).step == 6
    alone = tmp_path / "alone"
    assert main(arguments(alone, training__steps=6)) == 0
    first, second = tensors(folder), tensors(alone)
    differences = [(first[n] - second[n]).abs().max() for n in first if n.startswith("model.")]
    # Other noise in the second process, the same episodes: alike, not equal.
    assert 0 < max(differences) < 0.1


LEAVE = """
import torch
from kanerva_ext.cli import _processes
torch.set_num_threads(1)
with _processes.processes("cpu") as process:
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(300, 300))
    model(torch.ones(2, 300)).sum().backward()
    process.agree(1)
"""


@pytest.mark.slow
def test_two_processes_leave_without_aborting(tmp_path):
    """Without waiting for one another some 1 in 5 pairs aborted: gloo's threads outlived Python."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    (tmp_path / "leave.py").write_text(LEAVE)
    for attempt in range(8):
        done = subprocess.run([*command, "leave.py"], timeout=120, **elsewhere(tmp_path / "leave"))
        assert done.returncode == 0, (attempt, done.stderr)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds a process in /proc")
def test_two_processes_stop_after_the_same_step(tmp_path):
    """A signal may reach one of them alone, or between other steps; the first must save then."""
    folder = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = arguments(folder, training__steps=100_000, training__evaluate_every=0)
    command = [*launcher, "--nproc-per-node=2", "-m", "kanerva_ext.cli", *words]
    process = subprocess.Popen(command, **elsewhere(folder))
    try:
        deadline = time.monotonic() + 120
        while not (folder / _checkpoint.FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (second,) = (w for w in workers if b"\0RANK=1\0" in Path(f"/proc/{w}/environ").read_bytes())
        os.kill(int(second), signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "--resume goes on" in errors
    stopped = int(errors.partition("stopped after step ")[2].partition(";")[0])
    assert _checkpoint.load(folder / _checkpoint.FILE).step == stopped


def test_batches_must_fit_the_processes(tmp_path, monkeypatch, capsys):
    from kanerva_ext.cli import _loop

    process = _loop.Process(0, 3, torch.device("cpu"))
    config = load_config(PRESET, ["data.batch_size=4"])
    with pytest.raises(ConfigError, match="multiple of the 3 processes, got 4"):
        _loop.Run(config, tmp_path, process, False, False)


@pytest.mark.parametrize("preset", presets())
def test_presets(preset):
    model = load_config(preset).make_model()
    paper = not preset.startswith("cpu-")
    config = load_config(preset)
    assert config.data.episode_length == 32
    if paper:
        assert (config.data.batch_size, config.training.learning_rate) == (16, 1e-4)
    colour = "cifar10" in preset
    assert model.image_shape == ((3, 32, 32) if colour else (1, 28, 28))
    assert config.data.pixels == {"cifar10": "dequantize", "omniglot": "as_is"}.get(
        preset.removeprefix("cpu-").partition("-")[0] if colour or not paper else "", "sample"
    )


def test_mixed_precision_and_compile_switches(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self)))
    options = {"training__precision": "bfloat16", "training__compile": "true"}
    assert main(arguments(tmp_path / "run", training__steps=4, **options)) == 0
    options = {"training__precision": "float32"}
    assert [kind.__name__ for kind in compiled] == ["ConvEncoder", "ConvDecoder"]
    assert main(arguments(tmp_path / "float32", training__steps=4, **options)) == 0
    half, full = (
        read_csv(tmp_path / name / "train.csv")[0]["bound"] for name in ("run", "float32")
    )
    assert half != full and abs(half - full) < 0.05 * full
    saved = tensors(tmp_path / "run")
    # The memory's numbers are no parameters, and saved as they were given, in double precision.
    kinds = {t.dtype for name, t in saved.items() if not name.endswith("_extra_state")}
    assert kinds == {torch.float32}


def test_tensorboard_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(arguments(tmp_path / "run", "--tensorboard")) == 2
    assert "pip install tensorboard" in capsys.readouterr().err


def test_a_folder_with_a_run_is_not_overwritten(whole, capsys):
    before = (whole / _checkpoint.FILE).read_bytes()
    assert main(arguments(whole)) == 2
    assert "--resume goes on from it" in capsys.readouterr().err
    assert main(arguments(whole, "--resume", model__code_size=13)) == 2
    message = "[model] code_size must be the checkpoint's, 12, to go on from it, got 13"
    assert message in capsys.readouterr().err
    assert (whole / _checkpoint.FILE).read_bytes() == before


def test_a_damaged_checkpoint_is_named(tmp_path, capsys):
    (tmp_path / _checkpoint.FILE).write_bytes(b"junk")
    assert main(arguments(tmp_path, "--resume")) == 2
    assert "checkpoint.safetensors is no checkpoint of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stps=3", "[training] has no key 'stps'; did you mean 'steps'?"),
        ("training.steps=many", "[training] steps must be int, got 'many'"),
        ("training.steps=0", "[training] steps must be at least 1, got 0"),
        ("training.compile=1", "[training] compile must be bool, got 1"),
        ("training.precision=half", "[training] precision must be one of"),
        ("training.learning_rate=0", "[training] learning_rate must be positive, got 0"),
        ("training.fixed_linear_path=2", "[training] fixed_linear_path must be in [0, 1], got 2"),
        ("data.validation=1", "[data] validation must be in [0, 1), got 1"),
        ("data.validation=0.0001", "[data] validation: share must leave images on both sides"),
        ("training.noise=2", "[training] noise must be in [0, 1], got 2"),
        ("data.name=omniglott", "[data] name must be one of"),
        ("data.num_classes=9999", "[data] num_classes must be in [1, 205], got 9999"),
        ("model.type=gan", "[model] type must be one of"),
        ("model.type=os:nothing", "[model] type 'os:nothing' cannot be loaded"),
        ("model.slots=3", "[model] has no key 'slots'; known are memory_size"),
        ("model.code_size=0", "[model] code_size must be a positive int, got 0"),
        ("modle.code_size=1", "there is no section 'modle'; did you mean 'model'?"),
        ("steps=1", "--set takes section.key=value, got 'steps=1'"),
    ],
)
def test_bad_configurations(override, message, tmp_path, capsys):
    assert main(["train", PRESET, "--out", str(tmp_path / "run"), "--set", override]) == 2
    assert message in capsys.readouterr().err


def test_bad_arguments(tmp_path, capsys):
    for argv, message in [
        (["train"], "a config is needed"),
        (["train", "nothing"], "no preset; those are cifar10-dynamic"),
        (["train", str(tmp_path / "no.toml")], "no.toml: No such file"),
        (["train", PRESET, "--device", "qpu"], "--device qpu"),
    ]:
        assert main(argv) == 2
        assert message in capsys.readouterr().err


def test_a_config_file_stands_on_its_base(tmp_path):
    (tmp_path / "mine.toml").write_text(
        f'base = "{PRESET}"\n[model]\nmemory_size = 5\n[training]\nseed = 9\n'
    )
    config = load_config(tmp_path / "mine.toml", ["training.steps=7", "data.augment=0"])
    base = load_config(PRESET)
    assert config.model == base.model | {"memory_size": 5}
    assert (config.training.seed, config.training.steps, config.data.augment) == (9, 7, 0)
    (tmp_path / "loop.toml").write_text('base = "loop.toml"\n')
    with pytest.raises(ConfigError, match="its own base"):
        load_config(tmp_path / "loop.toml")


def test_a_log_drops_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "log.csv"
    log = CsvLog(path, 0)
    for step in (1, 2, 3):
        log.append({"step": step, "value": step / 3})
    with path.open("a") as file:
        file.write("4,")  # killed while it wrote
    again = CsvLog(path, 2)
    again.append({"step": 3, "value": -1.0})
    with path.open(newline="") as file:
        assert list(csv.reader(file))[1:] == [["1", "0.333333"], ["2", "0.666667"], ["3", "-1"]]


def test_seeds_differ_by_everything_they_are_made_of():
    seeds = {derive_seed(*numbers) for numbers in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    seeds.add(derive_seed(0, 0, 0, 1))
    assert len(seeds) == 5 and all(0 <= seed < 2**63 for seed in seeds)
