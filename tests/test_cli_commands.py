"""The commands on trained runs: what they write is what the models give, computed again here."""

import csv
import dataclasses
import json
import math
import sys

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")
pytest.importorskip("PIL")

from PIL import Image

from kanerva_ext import models
from kanerva_ext._pictures import GAP, GREY, tile
from kanerva_ext.cli import _figures, capacity, main
from kanerva_ext.cli._config import ConfigError
from kanerva_ext.cli._run import Mean, load_run
from kanerva_ext.data import load_images, occlude, salt_and_pepper, split_episodes

LENGTH = 10
SIZES = {
    "kanerva": {"memory_size": 8, "hidden_size": 16, "key_size": 6, "latent_size": 4},
    "dynamic": {"memory_size": 8},
    "vae": {"hidden_size": 16},
}
OWN_MODEL = '''
from typing import NamedTuple

import torch
from torch import nn

from kanerva_ext.models.likelihoods import BernoulliPixels


class Terms(NamedTuple):
    bound: torch.Tensor
    reconstruction: torch.Tensor


class Written(NamedTuple):
    state: torch.Tensor


class MeanImage(nn.Module):
    """Its memory is the mean image of the episode, and it reads nothing else."""

    def __init__(self):
        super().__init__()
        self.likelihood = BernoulliPixels()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, images, **options):
        return self.elbo(images, **options)

    def write(self, images, state=None, generator=None):
        return Written(images.mean(1, keepdim=True))

    def elbo(self, images, state=None, queries=None, generator=None):
        state = self.write(images).state if state is None else state
        logits = torch.logit(state.clamp(0.01, 0.99)) + self.bias
        nats = self.likelihood.nll(logits.expand_as(images), images)
        return Terms(nats, nats)

    def reconstruct(self, images, state):
        return state.expand_as(images)

    def denoise(self, images, state, num_steps=3, noise=0.0):
        return state.expand_as(images).expand(num_steps, *images.shape)
'''


@pytest.fixture(autouse=True, scope="module")
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs of a few steps, by name; and of the colour images, "jpegs"."""
    folder = tmp_path_factory.mktemp("runs")
    jpegs = folder / "jpegs"
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("test", 6)):
        for name in ("bird", "frog", "ship"):
            (jpegs / split / name).mkdir(parents=True)
            for i in range(count):
                small = torch.randint(256, (4, 4, 3), dtype=torch.uint8, generator=generator)
                picture = Image.fromarray(small.numpy()).resize((32, 32))
                picture.save(jpegs / split / name / f"{i}.jpg")
    made = {"jpegs": jpegs}
    extra = {"colour": ("cpu-cifar10-kanerva", "kanerva"), "vae-s2": ("cpu-omniglot-vae", "vae")}
    names = {kind: (f"cpu-omniglot-{kind}", kind) for kind in SIZES} | extra
    for seed, (name, (preset, kind)) in enumerate(names.items()):
        values = {f"model.{key}": value for key, value in SIZES[kind].items()}
        values |= {"model.code_size": 12, "model.num_filters": 4, "training.seed": seed}
        values |= {"data.episode_length": LENGTH, "training.steps": 8, "training.evaluate_every": 0}
        if name == "colour":
            values |= {"data.root": f'"{jpegs}"', "data.batch_size": 1}
        sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        made[name] = folder / name
        assert main(["train", preset, "--out", str(made[name]), "--quiet", *sets]) == 0
    return made


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A run of a class that is not the package's."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_model.py").write_text(OWN_MODEL)
    config = {"model": {"type": "own_model:MeanImage"}, "training": {"steps": 1}}
    config["data"] = {"episode_length": LENGTH, "batch_size": 1}
    (folder / "own.json").write_text(json.dumps(config))
    sys.path.insert(0, str(folder))
    assert main(["train", str(folder / "own.json"), "--out", str(folder / "x"), "--quiet"]) == 0
    yield folder / "x"
    sys.path.remove(str(folder))


def cli(*words) -> None:
    assert main([str(word) for word in words]) == 0


def refused(capsys, *words) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def calls(monkeypatch, name):
    """Arguments of the calls of a function of `_figures`, which draws as well."""
    seen, draw = [], getattr(_figures, name)
    monkeypatch.setattr(_figures, name, lambda *args: (seen.append(args), draw(*args))[1])
    return seen


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def wrong_pixels(pictures, images):
    """Share of wrong pixels of each episode."""
    return torch.stack(
        [((p >= 0.5).float() - x).abs().mean() for p, x in zip(pictures, images, strict=True)]
    )


def rms(pictures, images):
    squares = [((p - x) ** 2).mean() for p, x in zip(pictures, images, strict=True)]
    return torch.stack(squares).sqrt()


# Runs


def test_a_run_is_loaded_from_its_folder_or_its_checkpoint(runs, tmp_path):
    run = load_run(runs["kanerva"])
    assert run.name == "kanerva" and run.step == 8 and run.folder == runs["kanerva"]
    assert type(run.model) is models.KanervaMachine and not run.model.training
    assert run.config.data.episode_length == LENGTH
    renamed = tmp_path / "step8.safetensors"
    renamed.write_bytes((runs["kanerva"] / "checkpoint.safetensors").read_bytes())
    again = load_run(renamed)
    assert again.name == "step8" and again.folder == tmp_path
    assert all(
        torch.equal(t, again.model.state_dict()[n]) for n, t in run.model.state_dict().items()
    )
    assert load_run(runs["kanerva"] / "checkpoint.safetensors").name == "kanerva"


def test_which_models_have_a_memory(runs, own_run):
    names = ("kanerva", "dynamic", "vae", "colour")
    assert [load_run(runs[name]).has_memory for name in names] == [True, True, False, True]
    assert load_run(own_run).has_memory


def test_root_is_where_the_data_is_now(runs, tmp_path, capsys):
    run = load_run(runs["colour"], root=str(runs["jpegs"]))
    assert run.images("train").images.shape == (24, 3, 32, 32)
    message = refused(capsys, "reconstruct", runs["colour"], "--root", tmp_path)
    assert str(tmp_path) in message


def test_data_of_another_shape_is_refused(runs):
    run = load_run(runs["colour"])
    data = dataclasses.replace(run.config.data, name="omniglot")
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))
    with pytest.raises(ConfigError, match=r"takes images \(3, 32, 32\), the data's are \(28, 28\)"):
        run.images()


@pytest.mark.parametrize("command", ["evaluate", "reconstruct", "denoise", "generate"])
def test_no_run(command, runs, tmp_path, capsys):
    assert "got no file /nowhere" in refused(capsys, command, "/nowhere")
    assert "no such file" in refused(capsys, command, tmp_path)
    broken = tmp_path / "broken"
    broken.write_bytes(b"no safetensors at all")
    assert "no checkpoint of a run" in refused(capsys, command, broken)
    assert "--device nonsense" in refused(capsys, command, runs["vae"], "--device", "nonsense")
    assert "--seed must be at least 0" in refused(capsys, command, runs["vae"], "--seed", "-1")


def test_runs_of_one_name_are_told_apart(runs, capsys):
    other = runs["kanerva"] / "checkpoint.safetensors"
    cli("evaluate", runs["kanerva"], other, "--rounds", 1)
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == [str(runs["kanerva"]), str(other)]


class WithoutMatplotlib:
    def find_spec(self, name, *_):
        if name == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_matplotlib_missing(runs, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutMatplotlib(), *sys.meta_path])
    cli("evaluate", runs["vae"], "--rounds", 1)
    message = refused(capsys, "reconstruct", runs["vae"], "--out", tmp_path)
    assert "pip install 'kanerva_ext[train]'" in message


# Evaluate


def test_evaluate(runs, tmp_path, capsys):
    names = ("kanerva", "dynamic", "vae", "colour")
    file = tmp_path / "new" / "numbers.json"
    options = ["--rounds", 2, "--seed", 3, "--json", file, "--out", tmp_path]
    cli("evaluate", *(runs[name] for name in names), *options)
    numbers = json.loads(file.read_text())
    assert numbers == json.loads((tmp_path / "evaluate.json").read_text())
    assert (numbers["split"], numbers["rounds"], numbers["seed"]) == ("test", 2, 3)
    head, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert [line[0] for line in lines] == list(names)
    for name, result, line in zip(names, numbers["runs"], lines, strict=True):
        run = load_run(runs[name])
        options = {"episode_length": LENGTH, "rounds": 2, "seed": 3}
        pixels = run.config.data.pixels
        expected = models.evaluate(run.model, run.images().images, pixels=pixels, **options)
        assert (result.pop("run"), result.pop("step")) == (name, 8)
        assert result == pytest.approx(expected, rel=1e-5)
        shown = dict(zip(head, line, strict=True))
        assert float(shown["bound"]) == pytest.approx(expected["bound"], abs=0.006)
        assert (shown["kl_y"] == "-") == ("kl_y" not in expected)
        assert (shown["bits_per_dim"] == "-") == (name != "colour")


def test_evaluate_on_training_images_and_with_another_memory(runs, tmp_path):
    images = load_images("omniglot", "train").images
    model = load_run(runs["kanerva"]).model
    expected = {
        other: models.evaluate(
            model, images, episode_length=LENGTH, rounds=1, other_memory=other, pixels="as_is"
        )["bound"]
        for other in (False, True)
    }
    assert expected[True] != pytest.approx(expected[False], rel=1e-4)
    for other, bound in expected.items():
        options = ["--other-memory"] if other else []
        options += ["--split", "train", "--rounds", 1, "--out", tmp_path]
        cli("evaluate", runs["kanerva"], *options)
        (result,) = json.loads((tmp_path / "evaluate.json").read_text())["runs"]
        assert result["bound"] == pytest.approx(bound, rel=1e-5)


def test_evaluate_refuses(runs, tmp_path, capsys):
    message = refused(capsys, "evaluate", runs["kanerva"], runs["vae"], "--other-memory")
    assert "--other-memory needs a memory, vae has none" in message
    message = refused(capsys, "evaluate", runs["vae"], "--rounds", 0)
    assert "--rounds must be at least 1, got 0" in message
    message = refused(capsys, "evaluate", runs["colour"], "--other-memory")
    assert "two episodes of 10, got 18" in message


# Reconstruct


@pytest.mark.parametrize("name", ["kanerva", "dynamic", "vae", "colour"])
def test_reconstruct(name, runs, tmp_path, monkeypatch, capsys):
    seen = calls(monkeypatch, "draw_reconstructions")
    cli("reconstruct", runs[name], "--out", tmp_path, "--count", 5, "--seed", 2)
    ((images, pictures, addresses, path),) = seen
    assert path == tmp_path / "reconstruct.png" and path.is_file()
    run = load_run(runs[name])
    episode = run.episode(2)
    assert episode.shape[:2] == (1, LENGTH) and torch.equal(images, episode[0, :5])
    if name == "vae":
        expected = run.model.reconstruct(episode)
        assert addresses is None
    else:
        with torch.no_grad():
            state = run.model.write(episode, generator=generator(2)).state
            weights = run.model.addresses(episode, state)
        expected = run.model.reconstruct(episode, state)
        assert addresses.shape[0] == 5
        assert torch.allclose(addresses, weights[0, :5], atol=1e-5)
    assert torch.allclose(pictures, expected[0, :5], atol=1e-5)
    out = capsys.readouterr().out
    if name == "colour":
        error = rms(expected, episode).item()
        assert out.endswith(f"mean square error over the episode's 10 images: {error:.4f}\n")
    else:
        error = wrong_pixels(expected, episode).item()
        assert out.endswith(f"wrong pixels over the episode's 10 images: {error:.2%}\n")
    assert out.startswith(f"{path}\n")


def test_the_default_folder_is_the_run_s(runs):
    cli("reconstruct", runs["dynamic"])
    assert (runs["dynamic"] / "reconstruct.png").is_file()


def test_a_model_without_addresses_has_no_bars(own_run, tmp_path, monkeypatch):
    seen = calls(monkeypatch, "draw_reconstructions")
    cli("reconstruct", own_run, "--out", tmp_path)
    ((images, pictures, addresses, _),) = seen
    assert addresses is None and not torch.equal(images, pictures)
    assert torch.equal(pictures[0], pictures[1])  # both are the mean image


def test_the_seed_is_all_that_is_random(runs, tmp_path):
    commands = {"reconstruct": [], "denoise": [], "interpolate": []}
    commands |= {"generate": ["--classes", 2, "--reads", 0, 1]}
    for command, options in commands.items():
        files = []
        for i, seed in enumerate((0, 0, 1)):
            out = tmp_path / f"{command}{i}"
            cli(command, runs["kanerva"], "--out", out, "--seed", seed, *options)
            files.append((out / f"{command}.png").read_bytes())
        assert files[0] == files[1] and files[0] != files[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("reconstruct", "--count", 11), "must be from 1 to 10, the episode's images, got 11"),
        (
            ("reconstruct", "--count", 0),
            "--count must be from 1 to 10, the episode's images, got 0",
        ),
        (("reconstruct", "--out", __file__), f"--out must be a folder, got {__file__}"),
        (("denoise", "--count", 11), "--count must be from 1 to 10, the episode's images, got 11"),
        (("denoise", "--share", 1.5), "--share must be in [0, 1], got 1.5"),
        (("denoise", "--share", "nan"), "--share must be in [0, 1], got nan"),
        (("denoise", "--share", 1, "--aware"), "--share must be below 1 with --aware, got 1.0"),
        (("denoise", "--reads", 0), "--reads must be at least 1, got 0"),
        (
            ("denoise", "--aware", "--corruption", "occlusion"),
            "--aware is for salt and pepper on Bernoulli pixels, got occlusion",
        ),
        (("generate", "--classes", 2, 0), "--classes must be at least 1, got 0"),
        (("generate", "--reads", -1), "--reads must be at least 0, got -1"),
        (("generate", "--count", 0), "--count must be at least 1, got 0"),
        (("generate", "--classes", 99), "--classes must be at most the test data's 37, got [99]"),
        (("interpolate", "--steps", 1), "--steps must be at least 2, got 1"),
        (
            ("interpolate", "--pairs", 6),
            "--pairs must be from 1 to 5, half of the episode's images, got 6",
        ),
        (("capacity", "--classes", 38), "--classes must be at most the 37 of omniglot, got 38"),
        (("capacity", "--lengths", 741), "--lengths must be at most the 740 of omniglot, got 741"),
        (("capacity", "--lengths", 8, 0), "--lengths must be at least 1, got 0"),
        (("capacity", "--episodes", 0), "--episodes must be at least 1, got 0"),
        (("capacity", "--share", 2), "--share must be in [0, 1], got 2.0"),
        (("capacity", "--label", "a", "b"), "--label must be one for each of the 1 runs"),
    ],
)
def test_bad_arguments(words, message, runs, tmp_path, capsys):
    command, *options = words
    out = [] if "--out" in words else ["--out", tmp_path]
    said = refused(capsys, command, runs["kanerva"], *out, *options)
    assert said.startswith(f"kanerva {command}: ") and message in said
    assert not list(tmp_path.iterdir())


# Denoise


@pytest.mark.parametrize(
    ("name", "corruption", "aware"),
    [
        ("kanerva", "salt-and-pepper", False),
        ("kanerva", "salt-and-pepper", True),
        ("dynamic", "salt-and-pepper", True),
        ("vae", "occlusion", False),
        ("vae", "salt-and-pepper", True),
        ("colour", "occlusion", False),
    ],
)
def test_denoise(name, corruption, aware, runs, tmp_path, monkeypatch, capsys):
    seen = calls(monkeypatch, "draw_columns")
    monkeypatch.setattr("kanerva_ext.cli.denoise.BATCH_EPISODES", 100)
    options = ["--corruption", corruption, "--share", 0.3, "--reads", 2, "--seed", 4]
    options += ["--aware"] if aware else []
    cli("denoise", runs[name], "--out", tmp_path, "--count", 3, *options)
    run = load_run(runs[name])
    draws = generator(4)
    images, pixels = run.images().images, run.config.data.pixels
    episodes = split_episodes(images, episode_length=LENGTH, pixels=pixels, generator=draws)
    corrupt = occlude if corruption == "occlusion" else salt_and_pepper
    queries = corrupt(episodes, 0.3, draws)
    noise = 0.3 if aware else 0.0
    if name == "vae":
        reads = run.model.denoise(queries, 2, noise)
    else:
        with torch.no_grad():
            state = run.model.write(episodes, generator=generator(4)).state
        reads = run.model.denoise(queries, state, 2, noise)
    error = rms if name == "colour" else wrong_pixels
    corrupted, *after = (error(x, episodes).mean().item() for x in (queries, *reads))
    numbers = json.loads((tmp_path / "denoise.json").read_text())
    assert numbers["corrupted"] == pytest.approx(corrupted, rel=1e-4)
    assert numbers["after_read"] == pytest.approx(after, rel=1e-3)
    assert corrupted > 0 and len(numbers["standard_errors"]) == 3
    assert numbers["episodes"] == len(images) // LENGTH
    if len(episodes) == 1:
        assert numbers["standard_errors"] == [None] * 3
    else:
        spread = error(reads[1], episodes).std().item() / math.sqrt(len(episodes))
        assert numbers["standard_errors"][2] == pytest.approx(spread, rel=1e-3)
    ((columns, path),) = seen
    assert path.is_file()
    assert [title for title, _ in columns] == ["clean", "corrupted", "read 1", "read 2"]
    for (_, shown), whole in zip(columns, (episodes, queries, *reads), strict=True):
        assert torch.allclose(shown, whole[0, :3], atol=1e-4)
    last = f"{after[1]:.4f}" if name == "colour" else f"{after[1]:.2%}"
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == last


def test_denoise_without_corruption(runs, tmp_path):
    for corruption in ("occlusion", "salt-and-pepper"):
        options = ["--corruption", corruption, "--share", 0, "--out", tmp_path]
        cli("denoise", runs["vae"], *options)
        assert json.loads((tmp_path / "denoise.json").read_text())["corrupted"] == 0


def test_denoise_knows_the_noise_of_bernoulli_pixels_alone(runs, capsys):
    message = refused(capsys, "denoise", runs["colour"], "--aware")
    assert "--aware is for salt and pepper on Bernoulli pixels, got" in message


# Generate


@pytest.mark.parametrize("name", ["kanerva", "dynamic"])
def test_generate(name, runs, tmp_path, monkeypatch, capsys):
    seen = calls(monkeypatch, "draw_panels")
    options = ["--classes", 1, 3, 38, "--reads", 0, 2, "--count", 4, "--seed", 5]
    cli("generate", runs[name], "--out", tmp_path, *options)
    out = capsys.readouterr().out
    assert f"{name}: 38 classes left out, the test data has 37" in out
    (((panel,), path),) = seen
    assert path == tmp_path / "generate.png" and path.is_file()
    assert panel.title == name and [block.title for block in panel.blocks] == [
        "1 class",
        "3 classes",
    ]
    run = load_run(runs[name])
    images, labels, _ = load_images("omniglot", "test")
    for block, num_classes in zip(panel.blocks, (1, 3), strict=True):
        assert [label for label, _ in block.rows] == ["written", "0 reads", "2 reads"]
        written, first, second = (row for _, row in block.rows)
        assert len(written) == len(first) == len(second) == 4
        episode = run.episodes(1, LENGTH, num_classes, generator(5))
        assert torch.equal(written, episode[0, :4])
        equal = (episode[0, :, None, 0] == images.float()).flatten(2).all(-1)
        classes = {int(labels[row.nonzero()[0]]) for row in equal}
        assert len(classes) == num_classes
        with torch.no_grad():
            state = run.model.write(episode, generator=generator(5)).state
        expected = run.model.generate(state, 4, generator=generator(5))
        assert torch.allclose(first, expected[0], atol=1e-4)
        # The rows start at the same addresses.
        expected = run.model.denoise(expected, state, 2)[-1]
        assert torch.allclose(second, expected[0], atol=1e-4)
    first_rows = [block.rows[1][1] for block in panel.blocks]
    assert not torch.allclose(*first_rows, atol=1e-3)


def test_generate_with_fewer_images_than_an_episode(runs, tmp_path, monkeypatch, capsys):
    seen = calls(monkeypatch, "draw_panels")
    options = ["--classes", 1, 2, "--reads", 1, "--count", 8, "--out", tmp_path]
    cli("generate", runs["colour"], *options)
    assert "colour: 1 class with 6 images, not 10" in capsys.readouterr().out
    (((panel,), _),) = seen
    few, enough = panel.blocks
    assert few.rows[0][1].shape == (6, 3, 32, 32) and len(enough.rows[0][1]) == 8
    assert few.rows[1][0] == "1 read"


def test_generate_side_by_side(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = calls(monkeypatch, "draw_panels")
    options = ["--classes", 1, 2, "--reads", 0, "--count", 3]
    cli("generate", runs["vae"], runs["kanerva"], *options)
    ((panels, path),) = seen
    assert [panel.title for panel in panels] == ["vae", "kanerva"]
    assert (tmp_path / path).is_file()
    ((_, rows),) = panels[0].blocks
    samples = torch.cat([row for _, row in rows])
    # As high as two blocks of two rows with a title between them.
    expected = load_run(runs["vae"]).model.generate(15, generator=generator())
    assert torch.allclose(samples, expected, atol=1e-5)


def test_a_model_that_cannot_generate(own_run, capsys):
    assert "RUN must be a model that can generate, got x" in refused(capsys, "generate", own_run)


# Interpolate


@pytest.mark.parametrize("name", ["kanerva", "dynamic", "colour"])
def test_interpolate(name, runs, tmp_path, monkeypatch):
    seen = calls(monkeypatch, "draw_columns")
    cli("interpolate", runs[name], "--out", tmp_path, "--steps", 3, "--pairs", 4)
    ((columns, path),) = seen
    assert path == tmp_path / "interpolate.png" and path.is_file()
    assert [title for title, _ in columns] == ["image", "0.00", "0.50", "1.00", "image"]
    run = load_run(runs[name])
    episode = run.episode(0)
    left, start, middle, end, right = (images for _, images in columns)
    for i in range(4):
        assert torch.equal(left[i], episode[0, 2 * i])
        assert torch.equal(right[i], episode[0, 2 * i + 1])
    with torch.no_grad():
        state = run.model.write(episode, generator=generator()).state
        weights = run.model.addresses(episode, state)
        between = (weights[:, [0, 2, 4, 6]] + weights[:, [1, 3, 5, 7]]) / 2
        expected = run.model.read_images(between, state)[0]
        ends = run.model.read_images(weights, state)[0]
    assert torch.allclose(middle, expected, atol=1e-4)
    assert torch.allclose(start, ends[[0, 2, 4, 6]], atol=1e-4)
    assert torch.allclose(end, ends[[1, 3, 5, 7]], atol=1e-4)


def test_interpolation_needs_addresses(runs, own_run, monkeypatch, capsys):
    def without(self, images, state):
        raise NotImplementedError

    for name, path in (("vae", runs["vae"]), ("x", own_run), ("kanerva", runs["kanerva"])):
        if name == "kanerva":
            monkeypatch.setattr(models.KanervaMachine, "addresses", without)
        message = refused(capsys, "interpolate", path)
        assert f"RUN must be a model with addresses in a memory, {name} has none" in message


# Capacity


def read_rows(folder):
    with (folder / "capacity.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_capacity(runs, tmp_path, capsys):
    names = ("kanerva", "dynamic", "vae", "vae-s2")
    options = ["--lengths", 30, 8, "--classes", 1, "--episodes", 3, "--share", 0.2, "--seed", 6]
    cli("capacity", *(runs[name] for name in names), "--out", tmp_path, *options)
    out = capsys.readouterr().out
    assert out.startswith("omniglot: 2 classes, not 1: 30 images need them\n")
    assert (tmp_path / "capacity.png").is_file()
    rows = read_rows(tmp_path)
    assert [row["run"] for row in rows] == [name for name in names for _ in range(2)]
    assert [row["length"] for row in rows] == ["8", "30"] * 4
    assert [row["label"] for row in rows[-4:]] == ["vae"] * 4
    assert {row["classes"] for row in rows} == {"2"}
    draws = generator(6)
    whole = load_run(runs["vae"]).episodes(3, 30, 2, draws)
    noisy = salt_and_pepper(whole, 0.2, draws)
    for row in rows:
        length = int(row["length"])
        images, queries = (
            torch.stack([e[i : i + length] for e in x for i in range(0, 30 - length + 1, length)])
            for x in (whole, noisy)
        )
        model = load_run(runs[row["run"]]).model
        samples, given = generator(6), ()
        with torch.no_grad():
            if row["run"] in ("kanerva", "dynamic"):
                given = (model.write(images, generator=samples).state,)
            terms = model.elbo(images, *given, generator=samples)
        values = {
            "bound": terms.bound.mean(1),
            "reconstruction": terms.reconstruction.mean(1),
            "clean_error": wrong_pixels(model.reconstruct(images, *given), images),
            "noisy_error": wrong_pixels(model.denoise(queries, *given, num_steps=1)[0], images),
        }
        for name, value in values.items():
            each = value.view(3, -1).mean(1)
            assert float(row[name]) == pytest.approx(each.mean().item(), rel=1e-4)
            error = each.std().item() / math.sqrt(3)
            assert float(row[f"{name}_standard_error"]) == pytest.approx(error, rel=1e-2, abs=1e-6)
        shown = next(
            x for x in map(str.split, out.splitlines()) if x[::2][:2] == [row["run"], row["length"]]
        )
        assert float(shown[3]) == pytest.approx(float(row["bound"]), abs=0.006)


def test_capacity_in_batches(runs, tmp_path, monkeypatch):
    """A batch is no part of the result where a model samples nothing in it."""
    options = ["--lengths", 4, 12, "--episodes", 2, "--out", tmp_path]
    cli("capacity", runs["vae"], *options)
    whole = read_rows(tmp_path)
    monkeypatch.setattr(capacity, "BATCH_IMAGES", 5)
    cli("capacity", runs["vae"], *options)
    for row, expected in zip(read_rows(tmp_path), whole, strict=True):
        for name in ("clean_error", "noisy_error"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-4)


def test_capacity_of_colours_and_the_seed(runs, tmp_path, capsys):
    files = []
    for i, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(i)
        options = ["--lengths", 4, "--classes", 2, "--episodes", 1, "--seed", seed]
        cli("capacity", runs["colour"], "--out", out, *options)
        files.append((out / "capacity.csv").read_bytes())
    assert files[0] == files[1] and files[0] != files[2]
    (row,) = read_rows(tmp_path / "0")
    run, draws = load_run(runs["colour"]), generator()
    images = run.episodes(1, 4, 2, draws)
    state = run.write(images, generator())
    error = rms(run.model.reconstruct(images, state), images).item()
    assert float(row["clean_error"]) == pytest.approx(error, rel=1e-4)
    assert row["bound_standard_error"] == ""  # of one episode
    message = refused(capsys, "capacity", runs["colour"], runs["vae"], "--out", tmp_path)
    assert "RUN must all have one likelihood" in message


def test_capacity_of_a_class_of_one_s_own(own_run, runs, tmp_path, monkeypatch):
    seen = calls(monkeypatch, "draw_capacity")
    options = [
        "--lengths",
        1,
        12,
        "--episodes",
        2,
        "--classes",
        2,
        "--label",
        "mean",
        "--label",
        "other",
    ]
    cli("capacity", own_run, runs["vae"], "--out", tmp_path, *options)
    series, *_ = seen[0]
    assert [each.label for each in series] == ["mean", "other"]
    alone, many = read_rows(tmp_path)[:2]
    # The mean of a single image is that image.
    assert float(alone["clean_error"]) == float(alone["noisy_error"]) == 0
    assert float(many["clean_error"]) > 0.03
    assert float(many["bound"]) > float(alone["bound"]) + 10


def test_seeds_are_drawn_as_a_mean_and_a_band(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(_figures, "save", lambda figure, path: kept.append(figure))
    values = {"a": [[1.0, 4.0], [3.0, 6.0]], "b": [[5.0, 5.0]]}
    series = [
        _figures.Series(label, [8, 16], {"bound": each, "other": [0.0, 0.0]})
        for label, seeds in values.items()
        for each in seeds
    ]
    _figures.draw_capacity(series, {"bound": "nats", "other": "x"}, tmp_path / "x.png", ("other",))
    axes = kept[0].axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[2.0, 5.0], [5.0, 5.0]]
    (band,) = axes.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert {(8, 1), (8, 3), (16, 4), (16, 6)} <= corners
    assert [text.get_text() for text in kept[0].legends[0].get_texts()] == ["a", "b"]


# Pieces


def test_tiles_of_colours():
    images = torch.rand(3, 3, 4, 5)
    picture = tile(images, 2)
    assert picture.shape == (2 * 4 + GAP, 2 * 5 + GAP, 3)
    assert torch.equal(picture[:4, -5:], images[1].permute(1, 2, 0))
    assert torch.equal(picture[-4:, :5], images[2].permute(1, 2, 0))
    assert (picture[-4:, -5:] == 1 - GREY).all()


def test_mean_and_standard_error():
    assert Mean.of(torch.tensor([2.0])) == (2.0, None)
    mean, error = Mean.of(torch.tensor([1.0, 2.0, 3.0]))
    assert mean == 2.0 and error == pytest.approx(1 / math.sqrt(3))
