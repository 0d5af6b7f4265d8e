"""Image sets by name: Omniglot in several forms, MNIST, CIFAR-10."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _torchvision
from ._files import ImageFiles, find, require
from ._omniglot_images import load_drawings
from .omniglot import load_omniglot, omniglot_info

__all__ = [
    "DATASETS",
    "ImageSet",
    "default_pixels",
    "describe_root",
    "has_new_classes",
    "hold_out",
    "load_images",
]

_SPLITS = ("train", "test", "all")
_JPEG_NAME = "cifar10_jpeg_25k"
_JPEG = re.compile(rf"(?:{_JPEG_NAME}/)?(train|test)/([^/]+)/[^/]+\.jpe?g", re.IGNORECASE)


class ImageSet(NamedTuple):
    """What `load_images` returns.

    Attributes:
        images: bool (N, H, W), True is ink; or levels, uint8 (N, H, W) or (N, 3, H, W).
        labels: (N,) int64.
        class_names: of both splits; labels index it.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def _shipped(root: Path | None, split: str) -> ImageSet:
    return ImageSet(*load_omniglot(split), omniglot_info(split).names)


def _omniglot_images(root: Path, split: str) -> ImageSet:
    images, labels, names = load_drawings(root, split, "omniglot-images")
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels), names)


def _omniglot_burda(root: Path, split: str) -> ImageSet:
    path = root if root.is_file() else find(root, ["chardata.mat"], "omniglot-burda")
    loadmat = require("scipy.io", "omniglot-burda").loadmat
    sides = {"train": "", "test": "test"}
    keys = [f"{s}{key}" for s in sides.values() for key in ("data", "target", "targetchar")]
    try:
        arrays = loadmat(path, variable_names=keys)
    except Exception as error:  # of broken files, loadmat raises errors of many types
        raise ValueError(f"{path} cannot be read as a MATLAB file: {error}") from error
    if missing := [key for key in keys if key not in arrays]:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    images, characters = {}, {}
    for name, start in sides.items():
        levels, alphabet = arrays[f"{start}data"], arrays[f"{start}target"]
        character = arrays[f"{start}targetchar"].ravel()
        count = levels.shape[1]
        if levels.shape[0] != 784 or alphabet.shape[1] != count or character.size != count:
            raise ValueError(
                f"{path}: {start}data must be (784, N), {start}target (alphabets, N) and "
                f"{start}targetchar (1, N), got {levels.shape}, {alphabet.shape} and "
                f"{arrays[f'{start}targetchar'].shape}"
            )
        if not (levels.min(initial=0) >= 0 and levels.max(initial=0) <= 1):
            raise ValueError(f"{path}: {start}data must be in [0, 1]")
        characters[name] = np.stack([alphabet.argmax(axis=0) + 1, character.astype(np.int64)], 1)
        # MATLAB stores the columns of an image one after the other.
        columns = np.round(255 * levels.T).astype(np.uint8).reshape(count, 28, 28)
        images[name] = np.ascontiguousarray(columns.transpose(0, 2, 1))
    classes, labels = np.unique(
        np.concatenate(list(characters.values())), axis=0, return_inverse=True
    )
    num_train = len(images["train"])
    labels = labels.reshape(-1).astype(np.int64)
    rows = {"train": slice(num_train), "test": slice(num_train, None), "all": slice(None)}[split]
    chosen = np.concatenate(list(images.values()))[rows]
    names = tuple(f"alphabet{a:02d}/character{c:02d}" for a, c in classes)
    return ImageSet(torch.from_numpy(chosen), torch.from_numpy(labels[rows].copy()), names)


def _cifar10_jpeg(root: Path, split: str) -> ImageSet:
    names = [f"{_JPEG_NAME}.zip", _JPEG_NAME, "train"]
    path = root if root.is_file() else find(root, names, "cifar10-jpeg")
    with ImageFiles(root if path == root / "train" else path) as files:
        matches = [match for name in files.names() if (match := _JPEG.fullmatch(name))]
        class_names = tuple(sorted({match[2] for match in matches}))
        chosen = []
        for side in ("train", "test") if split == "all" else (split,):
            found = [match for match in matches if match[1] == side]
            if not found:
                raise ValueError(f"{path} holds no images {side}/<class>/*.jpg")
            chosen += found
        images = np.empty((len(chosen), 3, 32, 32), np.uint8)
        for row, match in zip(images, chosen, strict=True):
            row[:] = files.read(match[0], "RGB", 32).transpose(2, 0, 1)
    labels = torch.tensor([class_names.index(match[2]) for match in chosen])
    return ImageSet(torch.from_numpy(images), labels, class_names)


class _Entry(NamedTuple):
    load: Callable[[Path, str], tuple]
    pixels: str
    root: str | None  # what it must be, for the error without one; None: it has a default
    source: str  # what it takes to have the files, as a sentence without its point


_DOWNLOADED = (
    "is downloaded by torchvision (pip install torchvision) to root, by default "
    f"{_torchvision.DEFAULT_ROOT}"
)
_OMNIGLOT_URL = "https://github.com/brendenlake/omniglot, in python/"
_DRAWINGS = "the folder of images_background.zip and images_evaluation.zip, or of the small sets"
_ENTRIES = {
    "omniglot": _Entry(_shipped, "as_is", None, "ships with the package"),
    "omniglot-images": _Entry(
        _omniglot_images, "as_is", _DRAWINGS, f"needs as root {_DRAWINGS}: {_OMNIGLOT_URL}"
    ),
    "omniglot-torchvision": _Entry(_torchvision.load_omniglot, "as_is", None, _DOWNLOADED),
    "omniglot-burda": _Entry(
        _omniglot_burda,
        "sample",
        "the folder of chardata.mat",
        "needs as root the folder of chardata.mat: https://github.com/yburda/iwae, in "
        "datasets/OMNIGLOT/",
    ),
    "mnist": _Entry(_torchvision.load_mnist, "sample", None, _DOWNLOADED),
    "cifar10": _Entry(_torchvision.load_cifar10, "dequantize", None, _DOWNLOADED),
    "cifar10-jpeg": _Entry(
        _cifar10_jpeg,
        "dequantize",
        f"the folder of {_JPEG_NAME}.zip",
        f"needs as root the folder of {_JPEG_NAME}.zip, or any folder of 32 x 32 images named "
        "train/<class>/*.jpg and test/<class>/*.jpg; the original files of CIFAR-10 are the data "
        "set cifar10, which torchvision downloads",
    ),
}

#: The names that `load_images` knows.
DATASETS = tuple(_ENTRIES)


def _entry(name: str) -> _Entry:
    if name not in _ENTRIES:
        raise ValueError(f"name must be one of {', '.join(map(repr, DATASETS))}, got {name!r}")
    return _ENTRIES[name]


def default_pixels(name: str) -> str:
    """The ``pixels`` of `EpisodeSampler` that suit the set: how papers use it.

    ``"as_is"`` for binarised Omniglot, ``"sample"`` for the grey levels of ``"omniglot-burda"`` and
    ``"mnist"``, ``"dequantize"`` for CIFAR-10.

    Raises:
        ValueError: another name.
    """
    return _entry(name).pixels


def describe_root(name: str) -> str:
    """What it takes to have a set's files, and where they are to be had: what to say of its name.

    Raises:
        ValueError: another name.

    >>> describe_root("omniglot")
    'ships with the package'
    """
    return _entry(name).source


def has_new_classes(name: str) -> bool:
    """Whether the set's test images are of other classes than its training images: Omniglot's
    drawings are, but for the split of Burda et al.

    Raises:
        ValueError: another name.
    """
    _entry(name)
    return name in ("omniglot", "omniglot-images", "omniglot-torchvision")


def hold_out(images: ImageSet, share: float, *, whole_classes: bool) -> tuple[ImageSet, ImageSet]:
    """Split training images in two, to train with the one and choose settings by the other.

    The split depends on nothing but the arguments: every n-th image, or every n-th class with all
    of its images, is held out.

    Args:
        images: of `load_images`.
        share: held out, about, in (0, 1).
        whole_classes: hold out classes, as suits a test set of new classes (`has_new_classes`).

    Returns:
        What is left, and what is held out.

    Raises:
        ValueError: a share outside (0, 1), or one that leaves nothing on one side.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    labels = images.labels
    places = torch.arange(len(labels))
    if whole_classes:
        places = torch.unique(labels, return_inverse=True)[1]
    # Out of every 1 / share in a row the last one, also where that is no whole number.
    held = ((places + 1) * share).floor() > (places * share).floor()
    if held.all() or not held.any():
        raise ValueError(f"share must leave images on both sides, got {share} of {len(labels)}")
    return tuple(
        ImageSet(images.images[part], labels[part], images.class_names) for part in (~held, held)
    )


def load_images(name: str, split: str = "train", root: str | Path | None = None) -> ImageSet:
    """An image set, in memory.

    The names, with the shape of the training images, the size of the test set, and ``root``:

    - ``"omniglot"``: bool (4100, 28, 28), 740. Ships with the package, no root.
    - ``"omniglot-images"``: bool (N, 28, 28), from the authors' archives in the folder ``root``, as
      zip files or unpacked, with or without ``omniglot_`` before the name.
      ``images_background`` is the training set and ``images_evaluation`` the test set. Where
      neither is, characters of ``images_background_small1`` and ``_small2`` are held out; both
      together give the shipped part. The drawings are shrunk as those of the shipped part.
    - ``"omniglot-torchvision"``: the same from the two archives that torchvision downloads to
      ``root``, bool (19280, 28, 28), 13180.
    - ``"omniglot-burda"``: levels uint8 (24345, 28, 28), 8070, from ``chardata.mat`` in the folder
      ``root``, or ``root`` itself: the split of Burda, Grosse, Salakhutdinov (2016), with drawings
      of the same characters on both sides. Classes are pairs (alphabet, character).
    - ``"mnist"``: levels uint8 (60000, 28, 28), 10000, which torchvision downloads to ``root``.
    - ``"cifar10"``: levels uint8 (50000, 3, 32, 32), 10000, downloaded likewise.
    - ``"cifar10-jpeg"``: levels uint8 (20000, 3, 32, 32), 5000, from ``cifar10_jpeg_25k.zip``, or
      the same unpacked, in the folder ``root``; or ``root`` itself, either the zip file or a folder
      with ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``.

    Args:
        name: one of `DATASETS`.
        split: ``"train"``, ``"test"``, or ``"all"`` for both.
        root: see above; where there is a download, ``~/.cache/kanerva_ext`` by default.

    Returns:
        Images, labels, and the names of the classes, which are numbered alike in all splits.

    Raises:
        ValueError: another name or split, no root where one is needed, or a file that cannot be
            read.
        FileNotFoundError: the files are not in ``root``.
        ImportError: a package is missing that the set needs (Pillow, SciPy or torchvision).
        RuntimeError: a download failed.

    >>> images, labels, class_names = load_images("omniglot", "test")
    >>> images.shape, images.dtype, len(labels), class_names[labels[0]]
    (torch.Size([740, 28, 28]), torch.bool, 740, 'Balinese/character02')
    """
    entry = _entry(name)
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(map(repr, _SPLITS))}, got {split!r}")
    if root is None and entry.root is not None:
        raise ValueError(f"root must be {entry.root} for {name}, got None")
    path = Path(_torchvision.DEFAULT_ROOT if root is None else root).expanduser()
    return ImageSet(*entry.load(path, split))
