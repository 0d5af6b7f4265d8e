"""Omniglot drawings that ship with the package, and the episodes made of them.

Source: Omniglot (Lake, Salakhutdinov, Tenenbaum, Science 2015), the two small background sets:
4,840 drawings, 242 characters of 8 alphabets, each drawn by 20 people; 28 x 28, binarised. Whole
characters are held out (37 of 242). ``scripts/pack_omniglot.py`` made the file and states how; the
licence lies beside it (``OMNIGLOT_LICENSE``).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .augment import random_affine

__all__ = ["EpisodeSampler", "OmniglotInfo", "load_omniglot", "omniglot_info", "split_episodes"]

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


def _check_images(images: Tensor, labels: Tensor | None) -> None:
    if not isinstance(images, Tensor) or images.ndim != 3:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a tensor of shape (N, H, W), got {got}")
    if labels is not None and tuple(labels.shape) != (len(images),):
        raise ValueError(f"labels must have shape ({len(images)},), got {tuple(labels.shape)}")


class EpisodeSampler:
    """Endless batches of random episodes; no drawing is twice in an episode.

    Args:
        images: (N, H, W), any dtype; nonzero is ink when bool or integer.
        labels: (N,) integer characters; needed for ``num_classes`` alone.
        episode_length: T, images in an episode.
        batch_size: B, episodes in a batch.
        num_classes: characters in an episode, drawn anew for each; None: any (the paper's
            training: T random images, labels ignored).
        augment: strength of `random_affine`, applied to every image anew; 0: as they are.
        generator: a CPU generator, for repeatable episodes.

    Iterating gives float32 tensors (B, T, 1, H, W), values in [0, 1], without end.

    Raises:
        ValueError: shapes that do not fit, or fewer images than an episode needs.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        episode_length: int = 32,
        batch_size: int = 16,
        num_classes: int | None = None,
        augment: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        _check_images(images, labels)
        for name, value in (("episode_length", episode_length), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= augment <= 1:
            raise ValueError(f"augment must be in [0, 1], got {augment}")
        if len(images) < episode_length:
            raise ValueError(
                f"episode_length must be at most the number of images, {len(images)}, "
                f"got {episode_length}"
            )
        self.images = images
        self.episode_length = episode_length
        self.batch_size = batch_size
        self.num_classes = num_classes
        self.augment = augment
        self.generator = generator
        self._rows_of_class: list[Tensor] = []
        if num_classes is not None:
            if labels is None:
                raise ValueError("labels must be given with num_classes, got None")
            classes = labels.unique()
            self._rows_of_class = [torch.nonzero(labels == c).flatten() for c in classes]
            if not 1 <= num_classes <= len(classes):
                raise ValueError(f"num_classes must be in [1, {len(classes)}], got {num_classes}")
            fewest = sum(sorted(map(len, self._rows_of_class))[:num_classes])
            if fewest < episode_length:
                raise ValueError(
                    f"episode_length must be at most the images of {num_classes} characters, "
                    f"{fewest}, got {episode_length}"
                )

    def sample_rows(self) -> Tensor:
        """(B, T) int64, the rows of ``images`` that the next batch is made of."""
        if self.num_classes is None:
            noise = torch.rand(self.batch_size, len(self.images), generator=self.generator)
            return noise.topk(self.episode_length, dim=1).indices
        episodes = []
        for _ in range(self.batch_size):
            chosen = torch.randperm(len(self._rows_of_class), generator=self.generator)
            pool = torch.cat([self._rows_of_class[c] for c in chosen[: self.num_classes].tolist()])
            order = torch.randperm(len(pool), generator=self.generator)
            episodes.append(pool[order[: self.episode_length]])
        return torch.stack(episodes)

    def sample(self) -> Tensor:
        """One batch, (B, T, 1, H, W) float32."""
        batch = self.images[self.sample_rows()].to(torch.float32)
        if self.augment:
            batch = random_affine(batch, self.augment, self.generator)
        return batch.unsqueeze(2)

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield self.sample()


def split_episodes(
    images: Tensor,
    *,
    episode_length: int = 32,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A random partition into episodes, for evaluation: every image once, the remainder dropped.

    Args:
        images: (N, H, W).
        episode_length: T.
        generator: a CPU generator, for a repeatable partition.

    Returns:
        (N // T, T, 1, H, W) float32.

    Raises:
        ValueError: images of another rank, or fewer than one episode of them.
    """
    _check_images(images, None)
    num_episodes = len(images) // episode_length if episode_length > 0 else 0
    if num_episodes < 1:
        raise ValueError(
            f"episode_length must be in [1, {len(images)}], the number of images, "
            f"got {episode_length}"
        )
    order = torch.randperm(len(images), generator=generator)[: num_episodes * episode_length]
    episodes = images[order].to(torch.float32)
    return episodes.view(num_episodes, episode_length, 1, *images.shape[1:])
