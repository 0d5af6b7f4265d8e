"""Omniglot as it ships, episodes and corruption."""

import importlib.util
import sys
import zipfile
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from kanerva_ext.data import (
    EpisodeSampler,
    load_omniglot,
    omniglot_info,
    random_affine,
    salt_and_pepper,
    split_episodes,
)

SCRIPT = Path(__file__).parent.parent / "scripts" / "pack_omniglot.py"


def rows(images):
    """The images as a set of bytes."""
    return {image.numpy().tobytes() for image in images}


def numbered(count, size=3):
    """Images (count, size, size), image i holding i everywhere."""
    return torch.arange(count).view(-1, 1, 1).expand(-1, size, size)


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


def test_episodes():
    images, labels = load_omniglot("test")
    sampler = EpisodeSampler(images, labels, episode_length=7, batch_size=3)
    batch = next(iter(sampler))
    assert batch.shape == (3, 7, 1, 28, 28) and batch.dtype == torch.float32
    assert set(batch.unique().tolist()) == {0.0, 1.0}
    assert rows(batch.flatten(0, 2).bool()) <= rows(images)


def test_no_image_is_twice_in_an_episode():
    sampler = EpisodeSampler(numbered(12), episode_length=12, batch_size=50)
    assert (sampler.sample_rows().sort(dim=1).values == torch.arange(12)).all()


def test_every_image_is_as_likely():
    sampler = EpisodeSampler(
        numbered(10), episode_length=5, batch_size=4000, generator=torch.Generator().manual_seed(0)
    )
    share = sampler.sample_rows().flatten().bincount(minlength=10) / 4000
    assert (share - 0.5).abs().max() < 0.05


def test_few_classes():
    labels = torch.arange(60) % 6
    sampler = EpisodeSampler(numbered(60), labels, episode_length=15, batch_size=40, num_classes=2)
    drawn = sampler.sample_rows()
    assert all(len(labels[episode].unique()) == 2 for episode in drawn)
    assert all(len(episode.unique()) == 15 for episode in drawn)
    assert len(labels[drawn].unique()) == 6


def test_a_seed_repeats_episodes():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        images = load_omniglot("test")[0]
        return EpisodeSampler(images, augment=0.5, generator=generator).sample()

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_split_episodes_is_a_partition():
    episodes = split_episodes(numbered(70), episode_length=32)
    assert episodes.shape == (2, 32, 1, 3, 3)
    assert len(episodes[:, :, 0, 0, 0].unique()) == 64


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
    ("arguments", "message"),
    [
        (
            {"images": torch.zeros(4, 3)},
            r"images must be a tensor of shape \(N, H, W\), got \(4, 3\)",
        ),
        ({"labels": torch.zeros(3)}, r"labels must have shape \(40,\), got \(3,\)"),
        ({"episode_length": 41}, "episode_length must be at most the number of images, 40, got 41"),
        ({"episode_length": 0}, "episode_length must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"augment": 1.5}, r"augment must be in \[0, 1\], got 1.5"),
        ({"num_classes": 2, "labels": None}, "labels must be given with num_classes"),
        ({"num_classes": 5}, r"num_classes must be in \[1, 4\], got 5"),
        (
            {"num_classes": 1, "episode_length": 11},
            "at most the images of 1 characters, 10, got 11",
        ),
    ],
)
def test_bad_sampler_arguments(arguments, message):
    good = {"images": numbered(40), "labels": torch.arange(40) % 4, "episode_length": 8}
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(**(good | arguments))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_episodes(numbered(4), episode_length=5), r"in \[1, 4\].*got 5"),
        (lambda: split_episodes(numbered(4), episode_length=0), r"in \[1, 4\].*got 0"),
        (lambda: random_affine(torch.zeros(1, 4, 4), 2.0), r"strength must be in \[0, 1\], got 2"),
        (lambda: salt_and_pepper(torch.zeros(4), 1.1), r"share must be in \[0, 1\], got 1.1"),
        (lambda: salt_and_pepper(torch.zeros(4), float("nan")), "share must be in"),
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


def test_shrinking_keeps_ink_where_it_was(pack):
    ink = np.zeros((1, 105, 105), bool)
    ink[0, 15:30, 45:60] = True  # exactly four by four new pixels
    small = pack.shrink(ink, 0.5)
    expected = np.zeros((1, 28, 28), bool)
    expected[0, 4:8, 12:16] = True
    assert (small == expected).all()
    assert np.allclose(pack.area_average(105, 28).sum(1), 1)
