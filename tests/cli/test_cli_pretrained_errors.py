"""What cannot be read or written of models that ship and of checkpoints: one line on each."""

import copy
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

from cli_runs import cli, refused

from kanerva_ext import pretrained
from kanerva_ext._safetensors import read_tensors, write_tensors

pytestmark = pytest.mark.usefixtures("threads")

NAME = "pretrained:omniglot-vae"


@pytest.fixture(autouse=True)
def current(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("pretrained:")]


@pytest.mark.parametrize(
    "words",
    [
        ("generate", NAME, "--out", NAME),
        ("evaluate", NAME, "--out", "pretrained:new"),
        ("demo", "--minutes", 0, "--out", "pretrained:new"),
        ("train", "cpu-omniglot-vae", "--set", "training.steps=1", "--out", "pretrained:new"),
        ("train", "--resume", "--out", NAME),
    ],
)
def test_a_model_that_ships_is_nowhere_to_write_to(words, capsys):
    message = refused(capsys, *words)
    assert f"--out must be a folder to write to; {words[-1]} means a model that ships" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("demo", "--checkpoint", NAME), "--checkpoint must be of a demo, got pretrained:"),
        (("train", NAME), f"a preset with --set training.start={NAME} starts with its parameters"),
        (
            ("train", "cpu-omniglot-vae", "--set", "training.start=omniglot-vae"),
            "[training] start: omniglot-vae: no such file (do you mean pretrained:omniglot-vae?)",
        ),
        (("generate", "pretrained:../pretrained/omniglot-vae"), "no model '../pretrained/omnigl"),
        (("generate", "pretrained:"), "no model '' ships with kanerva_ext; there is omniglot-"),
    ],
)
def test_where_a_model_that_ships_does_not_go(words, message, capsys):
    assert message in refused(capsys, *words)


def test_no_name_at_all(capsys):
    with pytest.raises(SystemExit) as raised:
        cli("generate", "")
    assert raised.value.code == 2
    assert "RUN: must be a folder, a file or pretrained:NAME" in capsys.readouterr().err


def changed(entries, drop=()):
    """A file of the VAE that ships with other metadata; the keys are paths with dots."""
    tensors, metadata = read_tensors(pretrained.find("omniglot-vae"))
    metadata = copy.deepcopy(metadata)
    for path, value in entries.items():
        *sections, last = path.split(".")
        place = metadata
        for section in sections:
            place = place[section]
        place[last] = value
    for key in drop:
        del metadata[key]
    write_tensors(Path("changed.safetensors"), tensors, metadata)
    return "changed.safetensors"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"config": [1]}, "'config' of its metadata must be of type dict, got [1]"),
        ({"config": None}, "'config' of its metadata must be of type dict, got None"),
        ({"step": "many"}, "'step' of its metadata must be of type int, got 'many'"),
        ({"seconds": "x"}, "'seconds' of its metadata must be of type float, got 'x'"),
        ({"config.model.type": ["vae"]}, "[model] type must be one of"),
        ({"config.model.code_size": -1}, "changed.safetensors: [model] code_size must be"),
        ({"config.training.new": 1, "kanerva_ext": "99.0"}, "(kanerva_ext 99.0 wrote it, not "),
        ({"config.model.new": 1, "kanerva_ext": "99.0"}, "(kanerva_ext 99.0 wrote it, not "),
    ],
)
def test_metadata_that_cannot_be_used(entries, message, capsys):
    assert message in refused(capsys, "reconstruct", changed(entries))


def test_metadata_that_are_missing(capsys):
    message = refused(capsys, "reconstruct", changed({}, drop=["step"]))
    assert "is no checkpoint of a run: its metadata has no 'step'" in message


def test_a_checkpoint_runs_no_command(current, capsys):
    model = {"type": "pathlib:Path.touch", "self": str(current / "touched")}
    commands = ({"type": "subprocess:check_call", "args": ["touch", "touched"]}, model)
    for model in commands:
        message = refused(capsys, "evaluate", changed({"config.model": model}))
        assert "[model] type" in message
        assert not (current / "touched").exists()


def test_numbers_that_are_not_finite(capsys):
    tensors, metadata = read_tensors(pretrained.find("omniglot-vae"))
    tensors["model.code.out.bias"][0] = torch.nan
    write_tensors(Path("nan.safetensors"), tensors, metadata)
    message = refused(capsys, "reconstruct", "nan.safetensors")
    assert "nan.safetensors has numbers in code.out.bias that are not finite" in message


def test_a_training_says_what_it_starts_with(runs, current):
    config = json.loads((runs["kanerva"] / "config.json").read_text())
    config["training"] |= {"steps": 1, "start": str(runs["vae"])}
    (current / "config.json").write_text(json.dumps(config))
    cli("train", "config.json", "--out", "begun", "--quiet")
    state = read_tensors(current / "begun" / "checkpoint.safetensors")[0]
    own = [n for n in state if n.startswith("model.") and not n.endswith("_extra_state")]
    said = (current / "begun" / "log.txt").read_text()
    _, _, counts = said.strip().partition(", with ")
    kept, new = int(counts.split()[0]), int(counts.split()[-2])
    assert counts == f"{kept} of the {len(own)} tensors from {runs['vae']}, {new} new"
    assert kept + new == len(own) and kept > 0 and new > 0
