"""Configurations: what is no configuration, presets whose data must be fetched, runs that go on."""

import json
import shutil

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")
pytest.importorskip("PIL")
pytest.importorskip("scipy")

from cli_runs import cli, refused

from kanerva_ext import backends
from kanerva_ext.cli import _checkpoint, main
from kanerva_ext.cli._config_files import load_config, presets
from kanerva_ext.cli._logs import read_csv
from kanerva_ext.data import DATASETS, describe_root

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the run of eight steps."""
    return shutil.copytree(runs["kanerva"], tmp_path / "run")


# Files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.toml", b"base = 5\n", "base must be the name of a preset or a file, got 5"),
        ("x.json", b'{"base": ["x"]}', "base must be the name of a preset or a file, got ['x']"),
        ("x.toml", b"# one\n# caf\xe9\n", "must be UTF-8, got the byte 0xe9 in line 2"),
        ("x.json", b"[1]", "must be an object with the sections model, data and training"),
        ("x.json", b"null", "must be an object with the sections model, data and training"),
        ("x.json", b"[" * 100_000, "x.json: maximum recursion depth exceeded"),
        ("x.json", b"{", "x.json: Expecting property name"),
        ("x.toml", b"[", "x.toml: "),
        ("x.json", b'{"model": {"type": "vae"}, "data": 3}', "[data] must be a section, got 3"),
    ],
)
def test_files_that_are_no_configurations(name, content, message, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    said = refused(capsys, "train", tmp_path / name, "--out", tmp_path / "out")
    assert message in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["x.toml", "x.json"])
def test_a_mark_before_the_text_is_taken(name, tmp_path):
    text = 'base = "cpu-omniglot-vae"' if name == "x.toml" else '{"base": "cpu-omniglot-vae"}'
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert load_config(tmp_path / name) == load_config("cpu-omniglot-vae")


def test_a_folder_is_no_configuration(run, tmp_path, monkeypatch, capsys):
    assert f"{run / 'config.json'} is one" in refused(capsys, "train", run)
    # A folder of a preset's name hides no preset.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpu-omniglot-vae").mkdir()
    load_config("cpu-omniglot-vae")


def test_a_setting_of_what_is_no_section(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"model": 3}')
    said = refused(capsys, "train", tmp_path / "x.json", "--set", "model.type=vae")
    assert "[model] must be a section, got 3" in said


# Data


@pytest.mark.parametrize("preset", ["omniglot-kanerva", "cpu-cifar10-kanerva"])
def test_presets_without_their_data(preset, tmp_path, capsys):
    said = refused(capsys, "train", preset, "--out", tmp_path / "new/out")
    assert said.count("\n") == 1 and "--set data.root=FOLDER" in said
    assert describe_root(load_config(preset).data.name) in said
    assert not list(tmp_path.iterdir())
    said = refused(capsys, "train", preset, "--set", f"data.root={tmp_path}")
    assert said.count("\n") == 1 and str(tmp_path) in said and "--set data.root=FOLDER" in said


def test_where_data_is_to_be_had():
    assert "https://github.com/yburda/iwae" in describe_root("omniglot-burda")
    assert "ships with the package" in describe_root("omniglot")
    for name in DATASETS:
        assert describe_root(name)
    with pytest.raises(ValueError, match="name must be one of"):
        describe_root("omniglott")


def test_presets_say_what_they_are_and_need(capsys):
    cli("train", "--presets")
    lines = capsys.readouterr().out.splitlines()
    assert lines[::3] == presets()
    for name, what, data in zip(*(lines[i::3] for i in range(3)), strict=True):
        source = load_config(name).data.name
        assert data == f"  {source} {describe_root(source)}"
        assert what.startswith("  The ") and what.endswith(".")


# Runs


def test_a_training_ends_with_its_bound_and_the_next_command(tmp_path, capsys):
    out = tmp_path / "a run"
    sizes = ("code_size=12", "num_filters=4", "hidden_size=16")
    sets = [word for size in sizes for word in ("--set", f"model.{size}")]
    cli("train", "cpu-omniglot-vae", "--out", out, "--set", "training.steps=1", "--quiet", *sets)
    bound = json.loads((out / "metrics.json").read_text())["test"]["bound"]
    said = capsys.readouterr().out
    assert said == (
        f"test bound {bound:.2f} nats per image, in {out}\nnext: kanerva reconstruct '{out}'\n"
    )


def test_a_finished_run_is_extended(run, capsys):
    before = _checkpoint.load(run / _checkpoint.FILE)
    cli("train", "--resume", "--out", run, "--quiet", "--set", "training.steps=12")
    after = _checkpoint.load(run / _checkpoint.FILE)
    assert (before.step, after.step, after.config.training.steps) == (8, 12, 12)
    assert json.loads((run / "metrics.json").read_text())["steps"] == 12
    assert [row["step"] for row in read_csv(run / "train.csv")] == [8, 12]
    moved = (after.tensors[n] - t for n, t in before.tensors.items() if n.startswith("model.mem"))
    assert any((difference != 0).any() for difference in moved)
    # Also with the configuration beside it.
    config = run / "config.json"
    cli("train", config, "--out", run, "--resume", "--quiet", "--set", "training.steps=13")
    assert _checkpoint.load(run / _checkpoint.FILE).step == 13


def test_an_extension_that_is_stopped_leaves_no_old_measures(run):
    words = ["--set", "training.steps=100000", "--minutes", "0.0001"]
    cli("train", "--resume", "--out", run, "--quiet", *words)
    assert 8 < _checkpoint.load(run / _checkpoint.FILE).step < 100_000
    assert not (run / "metrics.json").exists()


def test_what_a_run_cannot_go_on_with(run, capsys):
    for setting, message in (
        ("training.steps=7", "steps must be at least the 8 that the checkpoint has made, got 7"),
        ("model.code_size=13", "[model] code_size must be the checkpoint's, 12"),
        ("training.seed=5", "[training] seed must be the checkpoint's, 0"),
    ):
        said = refused(capsys, "train", "--resume", "--out", run, "--set", setting)
        assert message in said and said.count("\n") == 1
    assert _checkpoint.load(run / _checkpoint.FILE).step == 8


def test_a_start_that_is_not_there(tmp_path, capsys):
    for start, why in ((tmp_path / "gone", "no such file"), (tmp_path, "no such file")):
        words = ["--out", tmp_path / "out", "--set", f"training.start={start}"]
        said = refused(capsys, "train", "cpu-omniglot-vae", *words)
        assert "[training] start: " in said and str(start) in said and why in said
        assert not (tmp_path / "out").exists()


def test_another_run_is_started_from_with_other_settings(run, tmp_path):
    """Its parameters are taken, not its numbers that are none."""
    words = ["--set", f"training.start={run}", "--set", "training.steps=1", "--quiet"]
    words += ["--set", "model.code_std=0.25", "--set", "model.noise_std=0.5"]
    cli("train", run / "config.json", "--out", tmp_path / "out", *words)
    assert _checkpoint.load(tmp_path / "out" / _checkpoint.FILE).step == 1


def test_curves_show_the_memory(runs, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures, make = [], Figure.__init__
    monkeypatch.setattr(Figure, "__init__", lambda f, *a: (figures.append(f), make(f, *a))[1])
    cli("curves", runs["vae"], runs["kanerva"], "--out", tmp_path)
    cli("curves", runs["vae"], "--out", tmp_path)
    titles = [[ax.get_title() for ax in figure.axes] for figure in figures]
    assert titles[0] == [
        "bound",
        "reconstruction",
        "KL terms",
        "KL of the memory, not in the bound",
    ]
    assert titles[1] == titles[0][:3]
    memory = figures[0].axes[3]
    names = [text.get_text() for text in memory.get_legend().get_texts()]
    assert names == ["kanerva"]
    rows = read_csv(runs["kanerva"] / "test.csv")
    drawn = [list(line.get_ydata()) for line in memory.lines]
    assert all(line.get_marker() == "o" for line in memory.lines)  # one point makes no line
    assert [row["kl_memory"] for row in rows] in drawn


@pytest.mark.parametrize("content", ["step,bound\n1,junk\n", "junk\n1\n", "step,bound\n1,2,3\n"])
def test_curves_of_what_is_no_log(content, tmp_path, capsys):
    (tmp_path / "train.csv").write_text(content)
    said = refused(capsys, "curves", tmp_path)
    assert f"{tmp_path / 'train.csv'} is no log of a run" in said and said.count("\n") == 1


def test_curves_of_nothing(tmp_path, capsys):
    assert f"got no {tmp_path / 'x'}" in refused(capsys, "curves", tmp_path / "x")
    (tmp_path / "train.csv").write_text("step,bound\n")
    assert "train.csv has no row yet" in refused(capsys, "curves", tmp_path)


# Pictures


def test_pictures_name_their_runs(runs, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (figures.append(f), save(f, *a, **k)))
    commands = {"reconstruct": ["--count", 3], "denoise": ["--reads", 1, "--count", 3]}
    commands |= {"interpolate": ["--steps", 2, "--pairs", 2]}
    commands |= {"generate": ["--classes", 1, "--reads", 0, "--count", 2]}
    for command, options in commands.items():
        cli(command, runs["kanerva"], "--out", tmp_path, *options)
        texts = [text.get_text() for text in figures[-1].texts]
        assert texts == ["kanerva, step 8"], command


def test_too_many_classes_is_one_line(runs, tmp_path, capsys):
    capsys.readouterr()
    words = ["generate", str(runs["kanerva"]), "--out", str(tmp_path), "--classes", "500"]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = "kanerva generate: --classes must be at most the test data's 37, got [500]\n"
    assert captured.err == line


@pytest.mark.parametrize(
    ("command", "option"),
    [("generate", "--count"), ("interpolate", "--steps"), ("denoise", "--reads")],
)
def test_pictures_of_no_size(command, option, runs, tmp_path, capsys):
    said = refused(capsys, command, runs["kanerva"], "--out", tmp_path / "x", option, 100_000)
    assert f"{option} must be at most 100, got 100000" in said


def test_json_of_an_evaluation(runs, tmp_path, capsys):
    """Looked at before anything is computed."""
    said = refused(capsys, "evaluate", runs["vae"], "--json", tmp_path)
    assert f"--json must be a file, got the folder {tmp_path}" in said
    (tmp_path / "file").touch()
    said = refused(capsys, "evaluate", runs["vae"], "--json", tmp_path / "file/x.json")
    assert f"--json must be a folder, got {tmp_path / 'file'}" in said


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.noise_std=1e30", "[model] noise_std must be in 1e-18 .. 1e+18"),
        ("model.noise_std=1e-200", "[model] noise_std must be in 1e-18 .. 1e+18"),
        ("model.backend=cuda", '[model] backend: backend="cuda" '),
        ("training.start=", "[training] start must name a run's folder or a checkpoint, got ''"),
        ("training.learning_rate=1e30", "is nan at step 2; try a lower learning rate"),
    ],
)
def test_settings_that_cannot_be_trained_with(setting, message, tmp_path, capsys):
    if setting == "model.backend=cuda" and backends()["cuda"] == "available":
        pytest.skip("it can")
    words = ("--set", "model.num_filters=2", "--set", "data.batch_size=2", "--set", setting)
    said = refused(capsys, "train", "cpu-omniglot-kanerva", "--out", tmp_path / "o", *words)
    assert message in said


def test_the_meta_device_trains_nothing(tmp_path, capsys):
    words = ("--out", tmp_path / "o", "--device", "meta")
    assert "--device meta holds no" in refused(capsys, "train", "cpu-omniglot-kanerva", *words)
