"""The commands on trained runs: what they write is what the models give, computed again here."""

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

from cli_runs import LENGTH, calls, cli, generator, refused, rms, wrong_pixels

from kanerva_ext import models
from kanerva_ext.cli._config import ConfigError
from kanerva_ext.cli._loaded_run import load_run
from kanerva_ext.data import load_images, occlude, salt_and_pepper, split_episodes

pytestmark = pytest.mark.usefixtures("threads")


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
    assert "pip install matplotlib" in message


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
        assert result.pop("episode_length") == LENGTH
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


def test_evaluate_at_another_length(runs, tmp_path):
    run = load_run(runs["kanerva"])
    options = {"episode_length": 3, "rounds": 1}
    expected = models.evaluate(run.model, run.images().images, pixels="as_is", **options)
    file = tmp_path / "numbers.json"
    cli("evaluate", runs["kanerva"], "--episode-length", 3, "--rounds", 1, "--json", file)
    (result,) = json.loads(file.read_text())["runs"]
    assert result["bound"] == pytest.approx(expected["bound"], rel=1e-5)
    assert result["episode_length"] == 3 != LENGTH


def test_evaluate_refuses(runs, tmp_path, capsys):
    message = refused(capsys, "evaluate", runs["colour"], "--episode-length", 19)
    assert "--episode-length must be at most 18, the images of colour, got 19" in message
    message = refused(capsys, "evaluate", runs["vae"], "--episode-length", 0)
    assert "--episode-length must be at least 1, got 0" in message
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
    ((images, pictures, addresses, path, title),) = seen
    assert title == f"{name}, step 8"
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
    ((images, pictures, addresses, _, _),) = seen
    assert addresses is None and not torch.equal(images, pictures)
    assert torch.equal(pictures[0], pictures[1])  # both are the mean image


@pytest.mark.slow
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
    ((columns, path, title),) = seen
    assert title == f"{name}, step 8"
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
    assert panel.title == f"{name}, step 8" and [block.title for block in panel.blocks] == [
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
    assert (
        "colour: of 1 class, 6 images are written, not 10: there may be no more"
        in capsys.readouterr().out
    )
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
    assert [panel.title for panel in panels] == ["vae, step 8", "kanerva, step 8"]
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
    ((columns, path, title),) = seen
    assert title == f"{name}, step 8"
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
