"""A finished run becomes a model that ships."""

import json
import shutil

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

from benchmarks import ship
from benchmarks.ship_card import write_card
from kanerva_ext._safetensors import read_tensors, write_tensors
from kanerva_ext.cli import _checkpoint
from kanerva_ext.cli._config import ConfigError
from kanerva_ext.cli._config_files import load_config
from kanerva_ext.models import KanervaMachine


@pytest.fixture
def copied(runs, tmp_path):
    return shutil.copytree(runs["kanerva"], tmp_path / "run")


def test_a_run_is_halved_measured_and_described(copied, tmp_path):
    file = ship.ship(copied, "small", "0" * 40, None, tmp_path)
    saved = _checkpoint.load(copied / _checkpoint.FILE)
    tensors, metadata = read_tensors(file)
    about = metadata["pretrained"]
    assert not any(name.startswith("optimizer.") for name in tensors)
    assert about["dtype"] == "float16" and about["commit"] == "0" * 40
    for name, tensor in tensors.items():
        whole = saved.tensors[name]
        half = whole.ndim > 1 and whole.dtype == torch.float32
        assert torch.equal(tensor, whole.half() if half else whole), name
    ended = json.loads((copied / "metrics.json").read_text())["test"]
    assert about["test_float32"]["bound"] == pytest.approx(ended["bound"], rel=1e-4)
    assert about["test"]["bound"] == pytest.approx(ended["bound"], rel=1e-3)
    assert about["test"] != about["test_float32"] and len(about["reads"]["after_read"]) == 3
    card = file.with_suffix(".md").read_text()
    assert card == write_card(file)
    assert f"test bound {about['test']['bound']:.2f} nats per image" in card.splitlines()[0]
    prose = [line for line in card.splitlines() if not line.startswith(("|", "    "))]
    assert max(map(len, prose)) <= 100 and str(tmp_path) not in card
    model = KanervaMachine.from_pretrained(file)
    assert torch.equal(model.decoder.linear.bias, saved.tensors["model.decoder.linear.bias"])


def test_what_float16_would_hurt_stays_float32(copied, tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "TOLERANCE", 0.0)
    tensors, metadata = read_tensors(ship.ship(copied, "small", "0" * 40, None, tmp_path))
    about = metadata["pretrained"]
    assert about["dtype"] == "float32" and about["test"] == about["test_float32"]
    assert torch.float16 not in {tensor.dtype for tensor in tensors.values()}


def test_colour_images_and_their_folder(runs, tmp_path):
    _, metadata = read_tensors(ship.ship(runs["colour"], "colour", "0" * 40, None, tmp_path))
    assert metadata["config"]["data"]["root"] is None
    card = (tmp_path / "colour.md").read_text()
    assert "bits per dimension" in card.splitlines()[0] and "--root FOLDER" in card
    assert str(runs["jpegs"]) not in card


def test_the_command_gives_the_configuration_again(runs):
    for name in ("kanerva", "dynamic", "vae"):
        config = _checkpoint.load(runs[name] / _checkpoint.FILE).config
        program, command, preset, *words = ship.training_command(config).split()
        assert (program, command) == ("kanerva", "train")
        assert load_config(preset, [word for word in words if word != "--set"]) == config


def test_runs_that_do_not_ship(copied, own_run, tmp_path):
    def refused(run, name="small"):
        with pytest.raises(ConfigError) as error:
            ship.ship(run, name, "0" * 40, None, tmp_path)
        return str(error.value)

    assert "NAME must be of small letters" in refused(copied, "../small")
    assert "'own_model:MeanImage' on 'omniglot'" in refused(own_run)
    metrics = json.loads((copied / "metrics.json").read_text())
    metrics["test"]["bound"] *= 1.001
    (copied / "metrics.json").write_text(json.dumps(metrics))
    assert f"{copied} ended with a bound of" in refused(copied)
    (copied / "metrics.json").unlink()
    assert "RUN must be at its end" in refused(copied)
    assert not list(tmp_path.glob("small*"))


def test_the_commit_must_be_one(capsys):
    with pytest.raises(SystemExit):
        ship.main(["run", "name", "--commit", "no-such-commit"])
    assert "--commit must be a commit of this repository" in capsys.readouterr().err


def test_episodes_of_many_lengths(copied, tmp_path):
    assert ship.lengths(8, 192) == [8, 16, 32, 64, 128, 192]
    assert ship.lengths(4, 4) == [4]
    source = copied / _checkpoint.FILE
    tensors, metadata = read_tensors(source)
    metadata["config"]["data"]["shortest_episode"] = 2
    write_tensors(source, tensors, metadata)
    file = ship.ship(copied, "many", "0" * 40, None, tmp_path)
    about = read_tensors(file)[1]["pretrained"]
    bounds = about["bounds_by_length"]
    longest = metadata["config"]["data"]["episode_length"]
    assert list(bounds) == [str(n) for n in ship.lengths(2, longest)]
    assert bounds[str(longest)] == about["test"]["bound"]
    card = file.with_suffix(".md").read_text()
    least, most = min(bounds.values()), max(bounds.values())
    assert f"test bound {least:.2f} to {most:.2f} nats per image" in card.splitlines()[0]
    assert f"| images in an episode | {' | '.join(bounds)} |" in card
    assert f"Episodes of 2 to {longest} images" in card
