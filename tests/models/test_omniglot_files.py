"""Omniglot: as it ships, from the files of its authors, and from Burda's."""

import numpy as np
import pytest
import torch
from image_files import DATA, drawings, encoded, expected, ink, needs, same, write

from kanerva_ext.data import (
    load_images,
    load_omniglot,
    omniglot_info,
)
from kanerva_ext.data._omniglot_images import area_average, shrink

needs_small = needs(*(f"omniglot_images_background_small{i}.zip" for i in (1, 2)))


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_omniglot_as_it_ships(split):
    images, labels, class_names = load_images("omniglot", split)
    assert torch.equal(images, load_omniglot(split)[0])
    assert torch.equal(labels, load_omniglot(split)[1])
    assert class_names == omniglot_info(split).names


@needs_small
@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_the_small_sets_are_what_ships(split, image):
    assert same(load_images("omniglot-images", split, DATA), load_images("omniglot", split))


@pytest.mark.parametrize("evaluation", ["images_evaluation.zip", "omniglot_images_evaluation"])
@pytest.mark.parametrize("background", ["omniglot_images_background.zip", "images_background"])
def test_background_is_train_and_evaluation_test(background, evaluation, image, tmp_path):
    write(tmp_path / background, drawings(image, "images_background/", ["B", "D"]))
    write(tmp_path / evaluation, drawings(image, "images_evaluation/", ["A", "C"]))
    # Not used: the small sets are part of the background set.
    write(tmp_path / "images_background_small1", drawings(image, "", ["E"]))
    train, test, everything = (
        load_images("omniglot-images", split, tmp_path) for split in ("train", "test", "all")
    )
    assert train.images.dtype == torch.bool and train.labels.dtype == torch.int64
    assert (train.images.numpy() == expected("BD")).all()
    assert (test.images.numpy() == expected("AC")).all()
    assert (everything.images.numpy() == expected("ABCD")).all()
    names = tuple(f"{a}/character{c:02d}" for a in "ABCD" for c in range(1, 5))
    assert train.class_names == test.class_names == everything.class_names == names
    assert train.labels.tolist() == [c for c in (*range(4, 8), *range(12, 16)) for _ in "12"]
    assert test.labels.tolist() == [c for c in (*range(4), *range(8, 12)) for _ in "12"]


def test_small_sets_hold_out_characters_and_drop_repeats(image, tmp_path):
    write(tmp_path / "images_background_small1.zip", drawings(image, "x/", ["A", "B"], 10))
    write(tmp_path / "images_background_small2", drawings(image, "y/", ["B"], 10))
    train, test, everything = (
        load_images("omniglot-images", split, tmp_path) for split in ("train", "test", "all")
    )
    assert len(everything.images) == 40 and len(everything.class_names) == 20
    assert len(test.images) == 8 and len(train.images) == 32  # 15 % of ten characters: two
    assert set(train.labels.tolist()).isdisjoint(test.labels.tolist())
    assert {test.class_names[label][0] for label in test.labels} == {"A", "B"}
    assert (everything.images.numpy() == expected("AB", 10)).all()
    assert torch.equal(test.images, everything.images[torch.isin(everything.labels, test.labels)])


def test_files_that_are_no_drawings_are_passed_over(image, tmp_path):
    files = drawings(image, "images_background/", ["A"])
    files |= {
        "__MACOSX/images_background/A/character01/._0901_01.png": b"resource fork",
        "images_background/readme.txt": b"text",
    }
    write(tmp_path / "images_background.zip", files)
    images = load_images("omniglot-images", "train", tmp_path).images
    assert (images.numpy() == expected("A")).all()


def test_grey_paper_is_no_ink(image, tmp_path):
    """As some programs save it: ink 20, paper 230."""
    pixels = np.where(ink(1)[0], 20, 230).astype(np.uint8)
    files = {"A/character01/0001_01.png": encoded(image, pixels, "PNG")}
    write(tmp_path / "images_background", files)
    images = load_images("omniglot-images", "train", tmp_path).images
    assert (images.numpy() == ink(1)[1]).all()


def test_bad_drawings(image, tmp_path):
    name = "A/character01/0001_01.png"

    def load(data, archive="images_background.zip"):
        write(tmp_path / archive, {name: data} if isinstance(data, bytes) else data)
        load_images("omniglot-images", "all" if "small" in archive else "train", tmp_path)

    good = encoded(image, ink(0)[0], "PNG")
    for broken in (b"", b"no image", good[: len(good) // 2]):
        with pytest.raises(ValueError, match=f"images_background.zip: {name} cannot be read"):
            load(broken)
    with pytest.raises(ValueError, match=f"{name} is 28 x 30 pixels, expected 105 x 105"):
        load(encoded(image, np.zeros((30, 28), bool), "PNG"))
    with pytest.raises(ValueError, match=r"images_background.zip holds no drawings"):
        load({"a.txt": b""})
    (tmp_path / "images_background.zip").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"images_background.zip cannot be read as a zip"):
        load_images("omniglot-images", "train", tmp_path)
    (tmp_path / "images_background.zip").unlink()
    load(encoded(image, ~ink(0)[0], "PNG"), "images_background_small1.zip")
    with pytest.raises(ValueError, match=f"small2.zip: {name} differs from the drawing"):
        load(encoded(image, ~ink(1)[0], "PNG"), "images_background_small2.zip")


def test_a_damaged_archive(image, tmp_path):
    """One byte of one file within it."""
    path = write(tmp_path / "images_background.zip", drawings(image, "", ["A"]))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 10] ^= 255
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"images_background.zip: A/character01/0901_01.png cannot"
    ):
        load_images("omniglot-images", "train", tmp_path)


def test_shrinking_keeps_ink_where_it_was():
    ink = np.zeros((1, 105, 105), bool)
    ink[0, 15:30, 45:60] = True  # exactly four by four new pixels
    expected = np.zeros((1, 28, 28), bool)
    expected[0, 4:8, 12:16] = True
    assert (shrink(ink, 0.5) == expected).all()
    assert (shrink(ink[0]) == expected[0]).all()
    assert np.allclose(area_average(105, 28).sum(1), 1)


def burda(path, **changes):
    """A small chardata.mat; its images hold their row, column and number. Characters as labels."""
    savemat = pytest.importorskip("scipy.io").savemat
    row, column = np.mgrid[:28, :28]
    images = np.stack([(row + 10 * (column > n)) / 38 for n in range(7)])
    stored = images.transpose(0, 2, 1).reshape(7, 784).T
    alphabets = np.array([2, 0, 2, 1, 0, 2, 1])
    characters = np.array([[3, 1, 3, 1, 2, 1, 1]])
    target = np.eye(3)[:, alphabets]
    arrays = {
        "data": stored[:, :5],
        "testdata": stored[:, 5:],
        "target": target[:, :5],
        "testtarget": target[:, 5:],
        "targetchar": characters[:, :5],
        "testtargetchar": characters[:, 5:],
    }
    savemat(path, {k: v for k, v in (arrays | changes).items() if v is not None})
    return np.round(255 * images).astype(np.uint8)


def test_burda(tmp_path):
    levels = burda(tmp_path / "chardata.mat")
    train, test, everything = (
        load_images("omniglot-burda", split, tmp_path) for split in ("train", "test", "all")
    )
    assert train.images.dtype == torch.uint8 and train.images.shape == (5, 28, 28)
    assert (train.images.numpy() == levels[:5]).all()
    assert (test.images.numpy() == levels[5:]).all()
    assert (everything.images.numpy() == levels).all()
    assert train.class_names == tuple(
        f"alphabet{a:02d}/character{c:02d}" for a, c in [(1, 1), (1, 2), (2, 1), (3, 1), (3, 3)]
    )
    assert train.labels.tolist() == [4, 0, 4, 2, 1] and test.labels.tolist() == [3, 2]
    assert everything.labels.tolist() == [4, 0, 4, 2, 1, 3, 2]
    assert train.labels.dtype == torch.int64
    assert same(load_images("omniglot-burda", "train", tmp_path / "chardata.mat"), train)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targetchar": None, "testdata": None}, "lacks targetchar, testdata"),
        ({"data": np.zeros((783, 5))}, r"data must be \(784, N\).*got \(783, 5\)"),
        ({"testtarget": np.zeros((3, 3))}, r"testtarget \(alphabets, N\).*\(784, 2\), \(3, 3\)"),
        ({"targetchar": np.zeros((1, 4))}, r"targetchar \(1, N\).*\(1, 4\)"),
        ({"data": np.full((784, 5), 1.5)}, r"data must be in \[0, 1\]"),
        ({"testdata": np.full((784, 2), np.nan)}, r"testdata must be in \[0, 1\]"),
    ],
)
def test_bad_burda_files(changes, message, tmp_path):
    burda(tmp_path / "chardata.mat", **changes)
    with pytest.raises(ValueError, match=f"{tmp_path}/chardata.mat.*{message}"):
        load_images("omniglot-burda", "test", tmp_path)


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_a_broken_burda_file(size, tmp_path):
    path = tmp_path / "chardata.mat"
    burda(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{path} (cannot be read as a MATLAB file|lacks data)"):
        load_images("omniglot-burda", "train", tmp_path)
