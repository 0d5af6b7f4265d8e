"""Image sets by name: what is read from which files, and what is said when they are not there."""

import os
import shutil
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from checkout import ROOT

from kanerva_ext.data import (
    DATASETS,
    PIXELS,
    EpisodeSampler,
    ImageSet,
    default_pixels,
    has_new_classes,
    hold_out,
    load_images,
    load_omniglot,
    omniglot_info,
)
from kanerva_ext.data._omniglot_images import area_average, shrink

DATA = Path(os.environ.get("KANERVA_DATA", ROOT.parent / "shared" / "data"))
# In the order of CIFAR-10's own labels.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NEED_A_ROOT = ("omniglot-images", "omniglot-burda", "cifar10-jpeg")


def needs(*names):
    missing = [name for name in names if not (DATA / name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not in {DATA}")


needs_small = needs(*(f"omniglot_images_background_small{i}.zip" for i in (1, 2)))
needs_jpeg = needs("cifar10_jpeg_25k.zip")


@pytest.fixture
def image():
    """Pillow's module, which the package does not need."""
    return pytest.importorskip("PIL.Image")


def encoded(image, pixels, kind):
    data = BytesIO()
    image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def write(path, files):
    """A folder, or a zip archive if the name says so, of {name: bytes}."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def ink(*seed):
    """Random blocks of 15 x 15 pixels, four by four new ones: (105, 105) and (28, 28)."""
    blocks = np.random.default_rng(seed).random((7, 7)) < 0.3
    return np.kron(blocks, np.ones((15, 15))) > 0, np.kron(blocks, np.ones((4, 4))) > 0


def drawings(image, prefix, alphabets, characters=4, drawers=2):
    """Files of Omniglot's layout."""
    files = {}
    for alphabet in alphabets:
        for character in range(1, characters + 1):
            for drawer in range(1, drawers + 1):
                pixels = ~ink(ord(alphabet[0]), character, drawer)[0]
                name = f"{900 + character:04d}_{drawer:02d}.png"
                path = f"{prefix}{alphabet}/character{character:02d}/{name}"
                files[path] = encoded(image, pixels, "PNG")
    return files


def expected(alphabets, characters=4, drawers=2):
    return np.stack(
        [
            ink(ord(alphabet[0]), character, drawer)[1]
            for alphabet in alphabets
            for character in range(1, characters + 1)
            for drawer in range(1, drawers + 1)
        ]
    )


def same(left, right):
    return (
        torch.equal(left.images, right.images)
        and torch.equal(left.labels, right.labels)
        and left.class_names == right.class_names
    )


# The names


def test_default_pixels():
    assert {name: default_pixels(name) for name in DATASETS} == {
        "omniglot": "as_is",
        "omniglot-images": "as_is",
        "omniglot-torchvision": "as_is",
        "omniglot-burda": "sample",
        "mnist": "sample",
        "cifar10": "dequantize",
        "cifar10-jpeg": "dequantize",
    }
    assert set(map(default_pixels, DATASETS)) <= set(PIXELS)


def test_held_out_classes_and_images():
    """Whole classes of Omniglot, every n-th image elsewhere; nothing lost, nothing twice."""
    train = load_images("omniglot", "train")
    rest, held = hold_out(train, 0.2, whole_classes=True)
    classes = set(train.labels.tolist())
    assert set(rest.labels.tolist()) | set(held.labels.tolist()) == classes
    assert not set(rest.labels.tolist()) & set(held.labels.tolist())
    assert abs(len(held.labels.unique()) / len(classes) - 0.2) < 0.01
    assert len(rest.images) + len(held.images) == len(train.images)
    rows = ImageSet(torch.arange(1000).view(-1, 1, 1), torch.arange(1000), train.class_names)
    rest, held = hold_out(rows, 0.1, whole_classes=False)
    assert held.images.flatten().tolist() == list(range(9, 1000, 10))
    assert sorted(rest.labels.tolist() + held.labels.tolist()) == list(range(1000))
    for share, message in ((0, r"in \(0, 1\), got 0"), (1e-6, "images on both sides")):
        with pytest.raises(ValueError, match=message):
            hold_out(rows, share, whole_classes=False)
    assert has_new_classes("omniglot") and not has_new_classes("cifar10-jpeg")
    with pytest.raises(ValueError, match="name must be one of"):
        has_new_classes("nothing")


@pytest.mark.parametrize("call", [load_images, default_pixels])
def test_unknown_name(call):
    with pytest.raises(ValueError, match=r"name must be one of 'omniglot', .*, got 'imagenet'"):
        call("imagenet")


@pytest.mark.parametrize("name", DATASETS)
def test_unknown_split(name):
    with pytest.raises(ValueError, match="split must be one of 'train', 'test', 'all', got 'dev'"):
        load_images(name, "dev", "/nowhere")


@pytest.mark.parametrize("name", NEED_A_ROOT)
def test_no_root(name):
    with pytest.raises(ValueError, match=f"root must be the folder of .* for {name}, got None"):
        load_images(name)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (
            "omniglot-images",
            "images_background.zip or omniglot_images_background.zip or images_background or "
            "omniglot_images_background or images_background_small1.zip or .*"
            "omniglot_images_background_small2",
        ),
        ("omniglot-burda", "chardata.mat"),
        ("cifar10-jpeg", "cifar10_jpeg_25k.zip or cifar10_jpeg_25k or train"),
    ],
)
def test_missing_files(name, files, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{name}: looked for {files} in {tmp_path}$"):
        load_images(name, "train", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"in {tmp_path}/none, which is no folder"):
        load_images(name, "train", str(tmp_path / "none"))


def test_missing_evaluation_set(image, tmp_path):
    write(tmp_path / "images_background", drawings(image, "", ["A"]))
    with pytest.raises(FileNotFoundError, match=r"for images_evaluation.zip or omniglot_images_ev"):
        load_images("omniglot-images", "test", tmp_path)


# Omniglot


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


# CIFAR-10 as JPEG


def photos(image, prefix=""):
    """Files of two images of each class in each split."""
    generator = np.random.default_rng(0)
    return {
        f"{prefix}{split}/{name}/{number:04d}.jpg": encoded(
            image, generator.integers(0, 256, (32, 32, 3), np.uint8), "JPEG"
        )
        for split in ("train", "test")
        for name in ("cat", "airplane", "dog")
        for number in range(2)
    }


def decoded(image, data):
    with image.open(BytesIO(data)) as photo:
        return np.array(photo.convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("prefix", "where", "root"),
    [
        ("", "cifar10_jpeg_25k.zip", ""),
        ("", "cifar10_jpeg_25k.zip", "cifar10_jpeg_25k.zip"),
        ("cifar10_jpeg_25k/", "other.zip", "other.zip"),
        ("", "cifar10_jpeg_25k", ""),
        ("", "folder", "folder"),
    ],
)
def test_jpeg_files(prefix, where, root, image, tmp_path):
    files = photos(image, prefix)
    others = {"__MACOSX/train/cat/._0000.jpg": b"resource fork", f"{prefix}train/list.txt": b""}
    write(tmp_path / where, files | others)
    for split in ("train", "test"):
        images, labels, class_names = load_images("cifar10-jpeg", split, tmp_path / root)
        assert class_names == ("airplane", "cat", "dog")
        assert labels.tolist() == [0, 0, 1, 1, 2, 2] and labels.dtype == torch.int64
        assert images.dtype == torch.uint8 and images.shape == (6, 3, 32, 32)
        names = [f"{prefix}{split}/{c}/{n:04d}.jpg" for c in class_names for n in range(2)]
        wanted = np.stack([decoded(image, files[name]) for name in names])
        assert (images.numpy() == wanted).all()
    everything = load_images("cifar10-jpeg", "all", tmp_path / root)
    assert len(everything.images) == 12 and torch.equal(everything.images[6:], images)


def test_bad_jpeg_files(image, tmp_path):
    files = photos(image)
    path = tmp_path / "cifar10_jpeg_25k.zip"
    name = "train/dog/0001.jpg"
    write(path, files | {name: files[name][:-200]})
    with pytest.raises(ValueError, match=f"{path}: {name} cannot be read"):
        load_images("cifar10-jpeg", "train", tmp_path)
    assert len(load_images("cifar10-jpeg", "test", tmp_path).images) == 6
    write(path, files | {name: encoded(image, np.zeros((32, 31, 3), np.uint8), "JPEG")})
    with pytest.raises(ValueError, match=f"{path}: {name} is 31 x 32 pixels, expected 32 x 32"):
        load_images("cifar10-jpeg", "train", tmp_path)
    write(path, {name: data for name, data in files.items() if name.startswith("train")})
    with pytest.raises(ValueError, match=f"{path} holds no images test/<class>"):
        load_images("cifar10-jpeg", "test", tmp_path)


def check_jpegs(image, split, count):
    images, labels, class_names = load_images("cifar10-jpeg", split, DATA)
    assert images.shape == (10 * count, 3, 32, 32) and images.dtype == torch.uint8
    assert class_names == CLASSES
    assert labels.bincount().tolist() == [count] * 10
    with zipfile.ZipFile(DATA / "cifar10_jpeg_25k.zip") as archive:
        for row, name in ((0, "airplane/0000"), (3 * count + 7, "cat/0007"), (-1, None)):
            name = f"{split}/{name}.jpg" if name else f"{split}/truck/{count - 1:04d}.jpg"
            assert (images[row].numpy() == decoded(image, archive.read(name))).all()
    # The means of the channels are known: 0.4914, 0.4822, 0.4465.
    means = images.float().mean((0, 2, 3)) / 255
    assert (means - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 0.01


@pytest.mark.slow
@needs_jpeg
def test_the_test_split_of_the_jpegs(image):
    check_jpegs(image, "test", 500)


@pytest.mark.slow
@needs_jpeg
@pytest.mark.slow
def test_the_train_split_of_the_jpegs(image):
    check_jpegs(image, "train", 2000)


# torchvision, which a module of the same names stands for


@pytest.fixture
def torchvision(monkeypatch):
    """The stand-in's namespace of data sets, empty, and the calls made of them."""
    datasets = ModuleType("torchvision.datasets")
    package = ModuleType("torchvision")
    package.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    datasets.calls = []

    def record(make):
        def call(root, **options):
            datasets.calls.append((root, options))
            return make(root, **options)

        return call

    datasets.record = record
    return datasets


def test_mnist(torchvision, tmp_path):
    def mnist(root, train, download):
        count = 6 if train else 4
        data = torch.arange(count * 784).remainder(251).to(torch.uint8).view(count, 28, 28)
        targets = torch.arange(count) % 3
        return SimpleNamespace(data=data + train, targets=targets, classes=["0 - zero", "1", "2"])

    torchvision.MNIST = torchvision.record(mnist)
    train, test, everything = (
        load_images("mnist", split, tmp_path) for split in ("train", "test", "all")
    )
    assert torchvision.calls[0] == (str(tmp_path), {"train": True, "download": True})
    assert torchvision.calls[1] == (str(tmp_path), {"train": False, "download": True})
    assert torch.equal(train.images, mnist("", True, True).data)
    assert torch.equal(test.images, mnist("", False, True).data)
    assert train.labels.tolist() == [0, 1, 2] * 2 and train.labels.dtype == torch.int64
    assert train.class_names == ("0 - zero", "1", "2")
    assert torch.equal(everything.images, torch.cat([train.images, test.images]))
    assert torch.equal(everything.labels, torch.cat([train.labels, test.labels]))


def test_cifar10(torchvision, tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    torchvision.CIFAR10 = torchvision.record(
        lambda root, train, download: SimpleNamespace(
            data=data, targets=[4, 0, 1, 0, 2], classes=list("abcde")
        )
    )
    images, labels, class_names = load_images("cifar10", "train", tmp_path)
    assert images.shape == (5, 3, 32, 32) and images.dtype == torch.uint8
    assert (images.permute(0, 2, 3, 1).numpy() == data).all()
    assert labels.tolist() == [4, 0, 1, 0, 2] and class_names == tuple("abcde")
    EpisodeSampler(images, episode_length=5, pixels=default_pixels("cifar10")).sample()


def test_omniglot_of_torchvision(torchvision, image, tmp_path):
    def omniglot(root, background, download):
        name, alphabets = ("background", "BD") if background else ("evaluation", "AC")
        write(Path(root) / "omniglot-py" / f"images_{name}", drawings(image, "", alphabets))

    torchvision.Omniglot = torchvision.record(omniglot)
    for split, alphabets in (("train", "BD"), ("test", "AC"), ("all", "ABCD")):
        found = load_images("omniglot-torchvision", split, tmp_path)
        assert (found.images.numpy() == expected(alphabets)).all()
        assert same(found, load_images("omniglot-images", split, tmp_path / "omniglot-py"))
    assert torchvision.calls[:2] == [
        (str(tmp_path), {"background": background, "download": True})
        for background in (True, False)
    ]
    shutil.rmtree(tmp_path / "omniglot-py")
    torchvision.Omniglot = lambda root, background, download: None
    with pytest.raises(FileNotFoundError, match="omniglot-torchvision: looked for images_backgr"):
        load_images("omniglot-torchvision", "train", tmp_path)


def test_the_default_folder(torchvision, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    torchvision.MNIST = torchvision.record(
        lambda root, train, download: SimpleNamespace(
            data=torch.zeros(2, 28, 28, dtype=torch.uint8), targets=torch.zeros(2), classes=["0"]
        )
    )
    load_images("mnist")
    load_images("mnist", root="~/elsewhere")
    roots = [root for root, _ in torchvision.calls]
    assert roots == [str(tmp_path / ".cache" / "kanerva_ext"), str(tmp_path / "elsewhere")]


@pytest.mark.parametrize(
    ("name", "kind", "option"),
    [
        ("mnist", "MNIST", "train"),
        ("cifar10", "CIFAR10", "train"),
        ("omniglot-torchvision", "Omniglot", "background"),
    ],
)
def test_a_failed_download(name, kind, option, torchvision, tmp_path):
    def fail(root, **options):
        raise OSError("no route to host")

    setattr(torchvision, kind, fail)
    message = (
        rf"torchvision.datasets.{kind}\('{tmp_path}', {option}=True, download=True\) failed: "
        f"no route to host. Without a network, put .* into {tmp_path} by hand"
    )
    with pytest.raises(RuntimeError, match=message) as raised:
        load_images(name, "train", tmp_path)
    assert isinstance(raised.value.__cause__, OSError)


# Packages that are not there


@pytest.mark.parametrize(
    ("name", "missing", "command"),
    [
        ("mnist", "torchvision", "pip install torchvision"),
        ("cifar10", "torchvision", "pip install torchvision"),
        ("omniglot-torchvision", "torchvision", "pip install torchvision"),
        ("omniglot-images", "PIL", "pip install matplotlib pillow"),
        ("cifar10-jpeg", "PIL", "pip install matplotlib pillow"),
        ("omniglot-burda", "scipy", "pip install matplotlib pillow"),
    ],
)
def test_missing_packages(name, missing, command, monkeypatch, tmp_path):
    for module in [m for m in sys.modules if m.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)  # importing it fails
    for file in ("images_background.zip", "cifar10_jpeg_25k.zip", "chardata.mat"):
        (tmp_path / file).touch()
    with pytest.raises(ImportError, match=rf"needs {missing}.*: {command}"):
        load_images(name, "train", tmp_path)
