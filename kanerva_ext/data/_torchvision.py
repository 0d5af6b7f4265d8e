"""Sets that torchvision downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._files import require
from ._omniglot_images import load_drawings

DEFAULT_ROOT = Path("~/.cache/kanerva_ext")


def _dataset(kind: str, root: Path, offline: str, **options: bool) -> Any:
    """torchvision's dataset, downloaded if it is not in ``root``.

    Raises:
        ImportError: no torchvision.
        RuntimeError: the download or the reading failed.
    """
    module = require("torchvision.datasets", kind, "pip install torchvision")
    try:
        return getattr(module, kind)(str(root), download=True, **options)
    except Exception as error:  # of urllib, tarfile, zipfile, pickle, and torchvision's own
        options["download"] = True
        arguments = ", ".join(f"{name}={value}" for name, value in options.items())
        raise RuntimeError(
            f"torchvision.datasets.{kind}({str(root)!r}, {arguments}) failed: {error}. Without a "
            f"network, put {offline} into {root} by hand"
        ) from error


def _stacked(kind: str, root: Path, split: str, offline: str) -> tuple[Any, np.ndarray, Tensor]:
    """The dataset, and images and labels of one split or both."""
    splits = ("train", "test") if split == "all" else (split,)
    datasets = [_dataset(kind, root, offline, train=s == "train") for s in splits]
    images = np.concatenate([np.asarray(dataset.data) for dataset in datasets])
    labels = torch.cat([torch.as_tensor(dataset.targets) for dataset in datasets])
    return datasets[0], images, labels.to(torch.int64)


def load_mnist(root: Path, split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Levels (N, 28, 28) uint8."""
    dataset, images, labels = _stacked("MNIST", root, split, "MNIST/raw/*-ubyte")
    return torch.from_numpy(images), labels, tuple(dataset.classes)


def load_cifar10(root: Path, split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Levels (N, 3, 32, 32) uint8."""
    dataset, images, labels = _stacked("CIFAR10", root, split, "cifar-10-python.tar.gz")
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return torch.from_numpy(channels_first), labels, tuple(dataset.classes)


def load_omniglot(root: Path, split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Ink (N, 28, 28) bool. The labels number both splits, so that both are downloaded.

    torchvision numbers and orders characters as the file system lists them, so its files are read
    here instead, in their own order.
    """
    for background in (True, False):
        offline = "omniglot-py/images_background.zip and images_evaluation.zip"
        _dataset("Omniglot", root, offline, background=background)
    images, labels, names = load_drawings(root / "omniglot-py", split, "omniglot-torchvision")
    return torch.from_numpy(images), torch.from_numpy(labels), names
