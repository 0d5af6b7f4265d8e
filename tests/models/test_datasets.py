"""Image sets by name: what is read from which files, and what is said when they are not there."""

import shutil
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from image_files import DATA, drawings, encoded, expected, needs, same, write

from kanerva_ext.data import (
    DATASETS,
    PIXELS,
    EpisodeSampler,
    ImageSet,
    default_pixels,
    has_new_classes,
    hold_out,
    load_images,
)

# In the order of CIFAR-10's own labels.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NEED_A_ROOT = ("omniglot-images", "omniglot-burda", "cifar10-jpeg")
needs_jpeg = needs("cifar10_jpeg_25k.zip")


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
