"""``pretrained:NAME`` where a command takes a run: read in the package, nothing written there."""

import json
import shutil

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

from cli_runs import cli, refused

from kanerva_ext import pretrained
from kanerva_ext.cli import _checkpoint, demo
from kanerva_ext.cli._loaded_run import load_run
from kanerva_ext.models import KanervaMachine, MatchedVAE

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture
def shipped(runs, tmp_path, monkeypatch):
    """The folder of the package, which nobody may write to, with small models; another is the
    current one."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    for name in ("kanerva", "vae"):
        shutil.copy(runs[name] / "checkpoint.safetensors", folder / f"small-{name}.safetensors")
        (folder / f"small-{name}.md").write_text(f"# small-{name}: a small model\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def files():
    """Of the current folder."""
    from pathlib import Path

    return {str(path) for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "options", "written"),
    [
        ("generate", ["--classes", 1], {"generate.png"}),
        ("reconstruct", [], {"reconstruct.png"}),
        ("denoise", [], {"denoise.png", "denoise.json"}),
        ("interpolate", [], {"interpolate.png"}),
        ("evaluate", ["--rounds", 1], set()),
        ("capacity", ["--lengths", 4, "--episodes", 1], {"capacity.csv", "capacity.png"}),
    ],
)
def test_commands_take_a_model_that_ships(command, options, written, shipped, capsys):
    cli(command, "pretrained:small-kanerva", *options)
    assert files() == {f"runs/pretrained-small-kanerva/{name}" for name in written}
    assert "small-kanerva" in capsys.readouterr().out


def test_out_says_where_the_pictures_go(shipped):
    cli("reconstruct", "pretrained:small-vae", "--out", "pictures")
    assert files() == {"pictures/reconstruct.png"}


def test_several_are_compared_in_the_current_folder(shipped):
    cli("generate", "pretrained:small-kanerva", "pretrained:small-vae", "--classes", 2)
    assert files() == {"generate.png"}


def test_nothing_is_written_beside_a_file_of_the_package(shipped):
    cli("reconstruct", shipped / "small-vae.safetensors")
    assert files() == {"runs/pretrained-small-vae/reconstruct.png"}


def test_what_is_loaded_is_the_file(shipped, runs):
    run = load_run("pretrained:small-kanerva")
    assert (run.name, run.step) == ("small-kanerva", 8)
    expected = load_run(runs["kanerva"]).model.state_dict()
    assert all(torch.equal(run.model.state_dict()[n], t) for n, t in expected.items())


def test_names_that_there_are_not(shipped, capsys):
    message = refused(capsys, "generate", "pretrained:large")
    assert "no model 'large' ships with kanerva_ext; there is small-kanerva, small-vae" in message
    message = refused(capsys, "generate", "small-vae")
    assert "got no file small-vae (do you mean pretrained:small-vae?)" in message
    assert "ships without" in refused(capsys, "curves", "pretrained:small-vae")
    assert files() == set()


def train(runs, start, out):
    """The checkpoint after one step that changes nothing, of a run that starts there."""
    config = json.loads((runs["kanerva"] / "config.json").read_text())
    config["training"] |= {"steps": 1, "start": start, "learning_rate": 1e-30}
    with open("config.json", "w") as file:
        json.dump(config, file)
    cli("train", "config.json", "--out", out, "--quiet")
    return _checkpoint.load(_checkpoint.locate(out))


def test_a_training_starts_from_one(shipped, runs, capsys):
    begun = train(runs, "pretrained:small-kanerva", "begun")
    source = _checkpoint.load(shipped / "small-kanerva.safetensors")
    names = [n for n in source.tensors if n.startswith("model.")]
    assert names and all(torch.equal(begun.tensors[n], source.tensors[n]) for n in names)
    words = ("train", "cpu-omniglot-vae", "--out", "other", "--set", "training.steps=1", "--set")
    message = refused(capsys, *words, "training.start=pretrained:large")
    assert "[training] start: no model 'large' ships" in message and "small-vae" in message


def test_info_and_help_name_them(shipped, capsys):
    cli("info")
    assert "  small-kanerva a small model\n" in capsys.readouterr().out
    cli("info", "--json")
    expected = {"small-kanerva": "a small model", "small-vae": "a small model"}
    assert json.loads(capsys.readouterr().out)["pretrained"] == expected
    for words in (["--help"], ["generate", "--help"], ["evaluate", "--help"]):
        with pytest.raises(SystemExit):
            cli(*words)
        assert "pretrained:" in capsys.readouterr().out


# The demo


@pytest.fixture
def small_demo(shipped, monkeypatch):
    monkeypatch.setattr(demo, "START", ("small-kanerva", "small-vae"))
    return ["demo", "--threads", 1, "--out", "out"]


def test_the_demo_shows_the_models_that_ship_without_training(small_demo, shipped, capsys):
    cli(*small_demo, "--minutes", 0)
    kanerva, vae, metadata = demo.load_checkpoint(_checkpoint.locate("out"))
    assert metadata["steps"] == 8
    for model, kind, name in ((kanerva, KanervaMachine, "kanerva"), (vae, MatchedVAE, "vae")):
        expected = kind.from_pretrained(f"small-{name}").state_dict()
        assert all(torch.equal(model.state_dict()[n], t) for n, t in expected.items())
    assert "train on" not in capsys.readouterr().out
    assert "out/demo.png" in files() and "out/training.png" not in files()


def test_the_demo_shows_them_first_and_trains_on(small_demo, shipped, monkeypatch, capsys):
    seen = []

    def fit(models, held_out, budget, args):
        seen.append((files(), budget, args.learning_rate, args.new))
        assert type(models[0]) is KanervaMachine and models[0].config["memory_size"] == 8
        return real(models, held_out, budget, args)

    real = demo.fit
    monkeypatch.setattr(demo, "fit", fit)
    cli(*small_demo, "--steps", 2)
    ((there, budget, rate, new),) = seen
    pictures = {f"out/{name}.png" for name in ("demo", "generations", "denoising")}
    assert pictures | {"out/metrics.json", "out/checkpoint.safetensors"} <= there
    assert budget == {"steps": 2} and rate == 3e-4 and not new
    shown = capsys.readouterr().out
    assert "The models that ship (small-kanerva and small-vae), as they are" in shown
    assert "10 steps of each model" in shown
    kanerva, _, metadata = demo.load_checkpoint(_checkpoint.locate("out"))
    before = KanervaMachine.from_pretrained("small-kanerva")
    assert metadata["steps"] == 10
    assert not torch.equal(kanerva.decoder.linear.weight, before.decoder.linear.weight)


def test_the_demo_keeps_models_that_were_trained_before(small_demo, shipped, capsys):
    from pathlib import Path

    cli(*small_demo, "--minutes", 0)
    cli(*small_demo, "--steps", 1)
    assert "out/checkpoint-before.safetensors" not in files()  # those that ship are no loss
    trained = Path("out/checkpoint.safetensors").read_bytes()
    assert "kept" not in capsys.readouterr().out
    for _ in range(2):
        cli(*small_demo, "--minutes", 0)
        assert Path("out/checkpoint-before.safetensors").read_bytes() == trained
    said = "will be replaced; its models are kept in checkpoint-before.safetensors."
    assert capsys.readouterr().out.count(said) == 1
    cli(*small_demo, "--minutes", 0, "--checkpoint", "out/checkpoint-before.safetensors")
    assert "9 steps of each model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--new", "--minutes", 0], "--minutes 0 trains nothing, and new models must be trained"),
        (["--new", "--checkpoint", "x"], "give --new or --checkpoint, not both"),
    ],
)
def test_options_of_the_demo_that_do_not_go_together(options, message, capsys):
    assert message in refused(capsys, "demo", *options)
