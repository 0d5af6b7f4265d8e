"""`kanerva capacity`: recall against the number of stored patterns, and its picture."""

import csv
import math

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")
pytest.importorskip("PIL")

from cli_runs import calls, cli, generator, refused, rms, wrong_pixels

from kanerva_ext._pictures import GAP, GREY, tile
from kanerva_ext.cli import _figures, capacity
from kanerva_ext.cli._loaded_run import Mean, load_run
from kanerva_ext.data import salt_and_pepper

pytestmark = pytest.mark.usefixtures("threads")


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


@pytest.mark.slow
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


@pytest.mark.slow
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
