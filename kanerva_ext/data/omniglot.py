"""Omniglot drawings that ship with the package.

Source: Omniglot (Lake, Salakhutdinov, Tenenbaum, Science 2015), the two small background sets:
4,840 drawings, 242 characters of 8 alphabets, each drawn by 20 people; 28 x 28, binarised. Whole
characters are held out (37 of 242). ``scripts/pack_omniglot.py`` made the file and states how; the
licence lies beside it (``OMNIGLOT_LICENSE``).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["OmniglotInfo", "load_omniglot", "omniglot_info"]

_FILE = Path(__file__).with_name("omniglot.npz")
_SPLITS = ("train", "test", "all")


class OmniglotInfo(NamedTuple):
    """What is known of the drawings of one split, in the order of ``load_omniglot``.

    Attributes:
        drawers: (N,) int64, who drew it, 1 to 20; numbers of different alphabets are unrelated.
        names: the 242 characters of both splits, ``"Alphabet/character01"``; labels index it.
    """

    drawers: Tensor
    names: tuple[str, ...]


@lru_cache(maxsize=1)
def _arrays() -> dict[str, np.ndarray]:
    with np.load(_FILE, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _rows(split: str) -> np.ndarray:
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(map(repr, _SPLITS))}, got {split!r}")
    arrays = _arrays()
    held_out = arrays["held_out"][arrays["character"]]
    return np.flatnonzero(held_out if split == "test" else ~held_out | (split == "all"))


def load_omniglot(split: str = "train") -> tuple[Tensor, Tensor]:
    """Binarised drawings and their characters.

    Args:
        split: ``"train"`` (205 characters), ``"test"`` (37 others) or ``"all"``.

    Returns:
        images: (N, 28, 28) bool, True is ink.
        labels: (N,) int64, the character, 0 to 241, the same numbers in both splits.

    Raises:
        ValueError: another split.
    """
    rows = _rows(split)
    arrays = _arrays()
    images = np.unpackbits(arrays["images"][rows], axis=1).reshape(-1, 28, 28).astype(bool)
    return torch.from_numpy(images), torch.from_numpy(arrays["character"][rows].astype(np.int64))


def omniglot_info(split: str = "train") -> OmniglotInfo:
    """Drawers and names of the characters; arguments and errors as ``load_omniglot``."""
    rows = _rows(split)
    arrays = _arrays()
    drawers = torch.from_numpy(arrays["drawer"][rows].astype(np.int64))
    return OmniglotInfo(drawers, tuple(arrays["names"].tolist()))
