"""Omniglot as it ships, random changes to images, and the script that packs them."""

import importlib.util
import sys
import zipfile
from importlib.resources import files
from io import BytesIO

import numpy as np
import pytest
import torch
from checkout import ROOT

from kanerva_ext.data import (
    load_omniglot,
    occlude,
    omniglot_info,
    random_affine,
    salt_and_pepper,
    split_episodes,
)

SCRIPT = ROOT / "scripts" / "pack_omniglot.py"


def rows(images):
    """The images as a set of bytes."""
    return {image.numpy().tobytes() for image in images}


def test_sizes():
    (train, train_labels), (test, test_labels) = load_omniglot("train"), load_omniglot("test")
    assert train.dtype == torch.bool and train_labels.dtype == torch.int64
    assert train.shape == (4100, 28, 28) and test.shape == (740, 28, 28)
    assert train_labels.shape == (4100,) and test_labels.shape == (740,)
    assert len(load_omniglot("all")[0]) == 4840


def test_no_character_and_no_drawing_is_in_both_splits():
    (train, train_labels), (test, test_labels) = load_omniglot("train"), load_omniglot("test")
    assert set(train_labels.tolist()).isdisjoint(test_labels.tolist())
    assert rows(train).isdisjoint(rows(test))
    assert len(rows(train)) == len(train) and len(rows(test)) == len(test)


def test_every_character_has_twenty_drawers_and_every_alphabet_is_held_out_in_part():
    names = omniglot_info("all").names
    assert len(set(names)) == len(names) == 242
    alphabets = {name.split("/")[0] for name in names}
    assert len(alphabets) == 8
    for split in ("train", "test"):
        _, labels = load_omniglot(split)
        drawers = omniglot_info(split).drawers
        assert {names[label].split("/")[0] for label in labels.tolist()} == alphabets
        for label in labels.unique():
            assert sorted(drawers[labels == label].tolist()) == list(range(1, 21))


def test_images_are_strokes():
    ink = load_omniglot("all")[0].flatten(1).float().mean(1)
    assert 0.07 < ink.mean() < 0.09
    assert ink.min() > 0 and ink.max() < 0.5


def test_the_licence_ships():
    text = files("kanerva_ext.data").joinpath("OMNIGLOT_LICENSE").read_text()
    assert "MIT License" in text and "Brenden Lake" in text


def test_loading_again_is_not_disturbed_by_changes():
    images, labels = load_omniglot("test")
    images.zero_()
    labels.zero_()
    again, labels_again = load_omniglot("test")
    assert again.any() and labels_again.any()


@pytest.mark.parametrize("call", [load_omniglot, omniglot_info])
def test_unknown_split(call):
    with pytest.raises(ValueError, match="split must be one of 'train', 'test', 'all', got 'dev'"):
        call("dev")


def test_affine_moves_and_stays_binary():
    images = split_episodes(load_omniglot("test")[0])[:2]
    moved = random_affine(images, 1.0, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and moved.dtype == images.dtype
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    assert (moved != images).flatten(2).any(-1).all()
    assert 0.7 < moved.mean() / images.mean() < 1.4
    assert torch.equal(random_affine(images, 0.0), images)


def test_affine_shifts_by_at_most_two_pixels():
    """A block in the middle, strength such that only the shift and tiny scales are left."""
    images = torch.zeros(200, 28, 28)
    images[:, 12:16, 12:16] = 1
    moved = random_affine(images, 1.0, torch.Generator().manual_seed(0))
    centre = torch.arange(28.0)
    rows_centre = (moved.sum(2) * centre).sum(1) / moved.sum((1, 2))
    distance = (rows_centre - 13.5).abs()
    assert 1.0 < distance.max() < 3.0


def test_salt_and_pepper():
    images = torch.zeros(100, 28, 28)
    images[50:] = 1
    corrupted = salt_and_pepper(images, 0.2, torch.Generator().manual_seed(0))
    wrong = corrupted != images
    assert abs(wrong[:50].float().mean() - 0.1) < 0.01
    assert abs(wrong[50:].float().mean() - 0.1) < 0.01
    assert torch.equal(salt_and_pepper(images, 0.0), images)
    assert images[:50].sum() == 0


@pytest.mark.parametrize(
    ("size", "share", "rectangle"),
    [
        ((28, 28), 0.25, (14, 14)),
        ((28, 28), 0.1, (9, 9)),
        ((32, 16), 0.25, (16, 8)),
        ((28, 28), 1.0, (28, 28)),
        ((28, 28), 1e-6, (1, 1)),
        ((4, 4), 0.76, (3, 4)),
        ((2, 8), 0.56, (1, 8)),
    ],
)
def test_occlusion_is_one_rectangle_in_all_channels(size, share, rectangle):
    images = torch.rand(50, 2, 3, *size) + 0.5
    covered = occlude(images, share, torch.Generator().manual_seed(0)) == 0
    height, width = rectangle
    assert (covered == covered[:, :, :1]).all()
    first = covered[:, :, 0]
    assert (first.any(-1).sum(-1) == height).all() and (first.any(-2).sum(-1) == width).all()
    assert (first.sum((-1, -2)) == height * width).all()


def test_occlusion_is_anywhere_and_changes_nothing_else():
    images = torch.rand(3000, 1, 6, 6) + 0.5
    generator = torch.Generator().manual_seed(0)
    occluded = occlude(images, 0.25, generator)
    covered = (occluded == 0).squeeze(1)
    assert torch.equal(occluded[occluded != 0], images[occluded != 0])
    assert (images > 0).all()
    corners = covered.float().argmax(-1).amax(-1) * 6 + covered.any(-1).float().argmax(-1)
    share = corners.bincount() / len(images)
    assert (share[share > 0] - 1 / 16).abs().max() < 0.02 and (share > 0).sum() == 16


def test_occlusion_repeats_and_takes_any_dtype():
    def draw(seed, images):
        return occlude(images, 0.3, torch.Generator().manual_seed(seed))

    levels = torch.full((8, 3, 9, 7), 200, dtype=torch.uint8)
    assert draw(1, levels).dtype == torch.uint8
    assert torch.equal(draw(1, levels), draw(1, levels))
    assert not torch.equal(draw(1, levels), draw(2, levels))
    assert torch.equal(draw(1, levels) == 0, draw(1, levels.bool()).logical_not())
    assert torch.equal(occlude(levels, 0.0), levels)
    assert occlude(levels[0], 0.3).shape == (3, 9, 7)
    assert occlude(levels[:0], 0.3).shape == (0, 3, 9, 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_affine(torch.zeros(1, 4, 4), 2.0), r"strength must be in \[0, 1\], got 2"),
        (lambda: salt_and_pepper(torch.zeros(4), 1.1), r"share must be in \[0, 1\], got 1.1"),
        (lambda: salt_and_pepper(torch.zeros(4), float("nan")), "share must be in"),
        (lambda: occlude(torch.zeros(1, 4, 4), -0.1), r"share must be in \[0, 1\], got -0.1"),
        (lambda: occlude(torch.zeros(1, 4, 4), float("nan")), r"share must be in \[0, 1\]"),
        (lambda: occlude(torch.zeros(4, 4), 0.1), r"shape \(\.\.\., C, H, W\), got \(4, 4\)"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def pack():
    """The packing script as a module; it needs Pillow and SciPy, which the package does not."""
    pytest.importorskip("PIL")
    pytest.importorskip("scipy")
    if not SCRIPT.is_file():
        pytest.skip("the checkout's scripts are not here")
    spec = importlib.util.spec_from_file_location("pack_omniglot", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack_omniglot"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["pack_omniglot"]


def archive(path, root, drawings):
    """A zip of drawings laid out as Omniglot's: {(alphabet, character, drawer): ink}."""
    from PIL import Image

    with zipfile.ZipFile(path, "w") as file:
        for (alphabet, character, drawer), ink in drawings.items():
            data = BytesIO()
            Image.fromarray(~ink).convert("1").save(data, "PNG")
            name = f"{root}/{alphabet}/character{character:02d}/0001_{drawer:02d}.png"
            file.writestr(name, data.getvalue())
    return path


def drawing(seed):
    """Thick random lines, 105 x 105."""
    generator = np.random.default_rng(seed)
    ink = np.zeros((105, 105), bool)
    for top, left in generator.integers(5, 75, (3, 2)):
        ink[top : top + 4, left : left + 25] = True
        ink[top : top + 25, left : left + 4] = True
    return ink


def test_pack_drops_repeats_and_splits_characters(pack, tmp_path, capsys):
    drawings = {
        (alphabet, character, drawer): drawing((ord(alphabet), character, drawer))
        for alphabet in "AB"
        for character in range(1, 11)
        for drawer in range(1, 4)
    }
    shared = {name: ink for name, ink in drawings.items() if name[0] == "A"}
    archives = [archive(tmp_path / "1.zip", "one", drawings)]
    archives.append(archive(tmp_path / "2.zip", "two", shared))
    outs = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for out in outs:
        options = ["--out", str(out), "--held-out", "0.2"]
        assert pack.main([*map(str, archives), *options]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert "60 drawings of 20 characters, 4 held out" in capsys.readouterr().out
    with np.load(outs[0]) as packed:
        assert packed["images"].shape == (60, 98)
        assert np.bincount(packed["character"]).tolist() == [3] * 20
        held_out = packed["names"][packed["held_out"]]
        assert sorted(name[0] for name in held_out) == ["A", "A", "B", "B"]


def test_pack_refuses_one_drawing_under_two_names(pack, tmp_path):
    same = {("A", 1, 1): drawing(0), ("B", 1, 1): drawing(0)}
    path = archive(tmp_path / "1.zip", "one", same)
    with pytest.raises(SystemExit, match="same pixels"):
        pack.main([str(path), "--out", str(tmp_path / "out.npz")])
