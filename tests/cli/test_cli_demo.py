"""The demo, end to end but short: pictures, figures, checkpoints, messages."""

import json
import os
import resource
import shutil

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

import kanerva_ext
from kanerva_ext.cli import _demo_figures as figures
from kanerva_ext.cli import _demo_results, demo, main
from kanerva_ext.data import load_omniglot
from kanerva_ext.models import KanervaMachine, MatchedVAE, evaluate

PICTURES = ("reconstructions", "denoising", "generations", "demo")
SIZES = ["--memory-size", "8", "--code-size", "12", "--threads", "1"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a demo of three steps."""
    before = torch.get_num_threads()
    out = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--steps", "3", "--out", str(out), *SIZES]) == 0
    torch.set_num_threads(before)
    return out


def models():
    torch.manual_seed(0)
    return KanervaMachine(8, 12, num_filters=4).eval(), MatchedVAE(12, num_filters=4).eval()


def test_pictures_are_written(trained):
    from matplotlib.image import imread

    for name in (*PICTURES, "training"):
        picture = imread(trained / f"{name}.png")
        assert min(picture.shape[:2]) > 100
        assert picture[..., :3].std() > 0.05
    assert (trained / "demo.png").stat().st_size < 300_000


def test_metrics_are_written(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["steps"] == 3
    assert {"bound", "reconstruction", "kl_y", "kl_z", "kl_memory"} <= set(metrics["kanerva"])
    for key in ("denoising_kanerva", "denoising_vae"):
        assert len(metrics[key]) == 1 + _demo_results.NUM_READS
        assert 0.06 < metrics[key][0] < 0.09  # half of the replaced pixels are wrong
    assert metrics["seconds"] > 0 and metrics["seed"] == 0


def test_the_checkpoint_loads_and_gives_the_same_figures(trained):
    kanerva, vae, metadata = demo.load_checkpoint(trained / "checkpoint.safetensors")
    metrics = json.loads((trained / "metrics.json").read_text())
    assert kanerva.config["memory_size"] == 8 and vae.config["code_size"] == 12
    assert metadata["steps"] == 3
    held_out = load_omniglot("test")[0]
    for key, model in (("kanerva", kanerva), ("vae", vae)):
        again = evaluate(model, held_out, seed=0)["bound"]
        assert again == pytest.approx(metrics[key]["bound"], rel=1e-4)


def test_checkpoint_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    before = models()
    demo.save_checkpoint(path, *before, steps=2, seconds=0.5)
    *after, metadata = demo.load_checkpoint(path)
    assert metadata["seconds"] == 0.5
    for old, new in zip(before, after, strict=True):
        assert not new.training
        assert old.config == new.config
        assert all(torch.equal(new.state_dict()[n], t) for n, t in old.state_dict().items())


def test_showing_a_checkpoint_trains_nothing(trained, tmp_path, capsys):
    checkpoint = str(trained / "checkpoint.safetensors")
    options = ["--minutes", "0", "--checkpoint", checkpoint, "--threads", "1"]
    assert main(["demo", *options, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "3 steps of each" in shown
    assert all((tmp_path / f"{name}.png").is_file() for name in PICTURES)
    assert not (tmp_path / "training.png").exists()
    kanerva, _, _ = demo.load_checkpoint(tmp_path / "checkpoint.safetensors")
    first, _, _ = demo.load_checkpoint(trained / "checkpoint.safetensors")
    assert torch.equal(kanerva.decoder.linear.weight, first.decoder.linear.weight)


@pytest.mark.slow
def test_going_on_with_a_checkpoint(trained, tmp_path, capsys):
    checkpoint = str(trained / "checkpoint.safetensors")
    options = ["--steps", "2", "--checkpoint", checkpoint, "--threads", "1"]
    assert main(["demo", *options, "--out", str(tmp_path)]) == 0
    assert "5 steps of each" in capsys.readouterr().out
    kanerva, _, _ = demo.load_checkpoint(tmp_path / "checkpoint.safetensors")
    first, _, _ = demo.load_checkpoint(trained / "checkpoint.safetensors")
    assert not torch.equal(kanerva.decoder.linear.weight, first.decoder.linear.weight)


@pytest.mark.slow
def test_minutes_hold(tmp_path, capsys):
    options = ["--minutes", "0.05", "--out", str(tmp_path), *SIZES]
    assert main(["demo", *options]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] >= 1
    shown = capsys.readouterr().out
    assert "nats" in shown
    assert shown.startswith(f"kanerva_ext {kanerva_ext.__version__}, backend cpu: available\n")


def test_the_table():
    terms = {"bound": 100.04, "reconstruction": 80.0, "kl_z": 20.04, "standard_error": 1.3}
    kanerva = terms | {"bound": 90.0, "kl_y": 12.0, "kl_z": 3.0, "kl_memory": 200.0}
    text = _demo_results.table(
        {
            "kanerva": kanerva,
            "kanerva_other_memory": kanerva | {"bound": 150.0},
            "vae": terms,
            "denoising_kanerva": [0.075, 0.05, 0.04, 0.03],
            "denoising_vae": [0.075, 0.06, 0.06, 0.06],
        }
    )
    rows = {line[:15].strip(): line[38:].split() for line in text.splitlines() if line[38:]}
    assert rows["Kanerva Machine"] in (
        ["90.0", "80.0", "12.0", "3.0"],
        ["7.50%", "5.00%", "4.00%", "3.00%"],
    )
    assert "10.0 nats below" in text and "200.0 nats per image, is not charged" in text
    assert "100.0            80.0               -            20.0" in text


def test_denoising_error_of_a_perfect_reader():
    class Perfect(MatchedVAE):
        def denoise(self, images, num_steps=3, noise=0.0):
            return self.clean.expand(num_steps, *self.clean.shape)

    images = load_omniglot("test")[0][:32]
    model = Perfect(12, num_filters=4)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(32, generator=generator)
    model.clean = images[order].float().view(1, 32, 1, 28, 28)
    errors = _demo_results.denoising_errors(model, images, seed=0)
    assert 0.06 < errors[0] < 0.09
    assert errors[1:] == [0.0, 0.0, 0.0]


def test_tile():
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    picture = figures.tile(images, 2)
    assert picture.shape == (2 * 2 + figures.GAP, 2 * 2 + figures.GAP)
    assert (picture[:2, :2] == 0).all() and (picture[:2, -2:] == 1).all()
    assert (picture[-2:, :2] == 2).all() and (picture[-2:, -2:] == figures.GREY).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "1", "--steps", "1"], "give --minutes or --steps, not both"),
        (["--minutes", "-1"], "--minutes must be at least 0 and finite, got -1.0"),
        (["--minutes", "nan"], "--minutes must be at least 0 and finite, got nan"),
        (["--minutes", "0", "--code-size", "9"], "--minutes 0 trains nothing, and new models"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--batch-size", "-2"], "--batch-size must be at least 1, got -2"),
        (["--learning-rate", "0"], "--learning-rate must be positive and finite, got 0.0"),
        (["--checkpoint", "nowhere"], "--checkpoint nowhere: no such file"),
        (["--checkpoint", __file__, "--code-size", "9"], "are the checkpoint's; leave them out"),
        (["--out", __file__], "--out must be a folder, got "),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert main(["demo", *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("kanerva demo: ") and message in shown and shown.count("\n") == 1


def test_numbers_that_are_none(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--steps", "many"])
    assert stopped.value.code == 2
    assert "invalid int value: 'many'" in capsys.readouterr().err


def test_files_that_are_no_checkpoints(tmp_path, capsys):
    from safetensors.torch import save_file

    broken, other = tmp_path / "broken", tmp_path / "other"
    broken.write_bytes(b"no safetensors at all")
    save_file({"x": torch.zeros(1)}, other)
    for path in (broken, other):
        options = ["--minutes", "0", "--checkpoint", str(path), "--out", str(tmp_path / "out")]
        assert main(["demo", *options]) == 2
        assert f"{path} is no checkpoint of this demo" in capsys.readouterr().err


# The folder


def test_files_follow_the_umask(trained):
    mask = os.umask(0o022)
    os.umask(mask)
    for path in trained.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask, path


def test_a_checkpoint_is_named_by_its_folder(trained, tmp_path, capsys):
    options = ["--minutes", "0", "--threads", "1", "--out", str(tmp_path / "out")]
    assert main(["demo", "--checkpoint", str(trained), *options]) == 0
    assert main(["demo", "--checkpoint", str(tmp_path), *options]) == 2
    assert f"{tmp_path / 'checkpoint.safetensors'}: no such file" in capsys.readouterr().err


def test_a_demo_replaces_the_one_before_and_says_so(trained, tmp_path, capsys):
    out = shutil.copytree(trained, tmp_path / "out")
    (out / "mine.txt").write_text("kept")
    old = {path.name: path.read_bytes() for path in out.iterdir()}
    options = ["--minutes", "0", "--checkpoint", str(trained), "--threads", "1", "--seed", "1"]
    assert main(["demo", *options, "--out", str(out)]) == 0
    assert f"The files of the demo in {out} will be replaced." in capsys.readouterr().out
    new = {path.name: path.read_bytes() for path in out.iterdir()}
    # This one has no curves of a training, and must not show those of the other.
    assert set(old) - set(new) == {"training.png"} and set(new) <= set(old)
    same = {name for name in new if new[name] == old[name]}
    assert same == {"mine.txt"}


def test_a_demo_that_fails_leaves_the_one_before(trained, tmp_path, monkeypatch, capsys):
    out = shutil.copytree(trained, tmp_path / "out")
    old = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(demo, "SPACE", 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    options = ["--minutes", "0", "--checkpoint", str(trained), "--threads", "1", "--seed", "1"]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, before[1]))
        assert main(["demo", *options, "--out", str(out)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert said.startswith(f"kanerva demo: {out}/") and said.endswith(": File too large\n")
    assert ".demo-" not in said and said.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == old


def test_a_run_of_train_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert f"--out {tmp_path} is a run of kanerva train" in capsys.readouterr().err


def test_a_checkpoint_of_train_is_named(runs, tmp_path, capsys):
    options = ["--minutes", "0", "--checkpoint", str(runs["vae"]), "--out", str(tmp_path / "out")]
    assert main(["demo", *options]) == 2
    assert "is of kanerva train, which goes on with --resume" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
