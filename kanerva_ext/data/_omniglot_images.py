"""Omniglot from its authors' archives of 105 x 105 drawings; the method of the shipped file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ._files import ImageFiles, find

SOURCE_SIZE = 105
TARGET_SIZE = 28
# Of the shipped file and of `load_drawings`.
INK_THRESHOLD = 0.5
HELD_OUT_SHARE = 0.15
HELD_OUT_SEED = 0

_BACKGROUND, _EVALUATION = "images_background", "images_evaluation"
_SMALL = ("images_background_small1", "images_background_small2")
_DRAWING = re.compile(r"(?:^|/)([^/]+)/character(\d+)/\d+_(\d+)\.png$")


class Drawing(NamedTuple):
    """Which drawing it is; sorted, they are in the order of the shipped file."""

    alphabet: str
    character: int
    drawer: int


def list_drawings(files: ImageFiles) -> dict[str, Drawing]:
    """The drawings by the name of their file.

    Raises:
        ValueError: there are none.
    """
    matches = ((name, _DRAWING.search(name)) for name in files.names())
    drawings = {n: Drawing(m[1], int(m[2]), int(m[3])) for n, m in matches if m is not None}
    if not drawings:
        raise ValueError(f"{files.path} holds no drawings, <alphabet>/character01/0001_01.png")
    return drawings


def iterate_drawings(
    files: ImageFiles, characters: Collection[tuple[str, int]] | None = None
) -> Iterator[tuple[str, Drawing, np.ndarray]]:
    """File name, drawing, and bool (105, 105), True is ink; of these characters, or of all.

    Raises:
        ValueError: a file that cannot be read or has another size, or no drawings.
    """
    for name, drawing in list_drawings(files).items():
        if characters is None or drawing[:2] in characters:
            yield name, drawing, files.read(name, "L", SOURCE_SIZE) < 128


def area_average(size_in: int, size_out: int) -> np.ndarray:
    """(size_out, size_in) matrix; row i: the share of new pixel i that each old pixel fills."""
    edges = np.arange(size_out + 1) * (size_in / size_out)
    old = np.arange(size_in)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return np.clip(overlap, 0, None) * (size_out / size_in)


def shrink(pixels: np.ndarray, threshold: float = INK_THRESHOLD) -> np.ndarray:
    """Bool (..., 105, 105) to bool (..., 28, 28): ink where more than that share is ink."""
    average = area_average(SOURCE_SIZE, TARGET_SIZE)
    return average @ pixels.astype(np.float64) @ average.T > threshold


def held_out_characters(
    characters: Collection[tuple[str, int]],
    share: float = HELD_OUT_SHARE,
    seed: int = HELD_OUT_SEED,
) -> set[tuple[str, int]]:
    """The held-out (alphabet, character) pairs: ``share`` of each alphabet, at least one."""

    def order(character: tuple[str, int]) -> str:
        return hashlib.sha256(f"{seed}/{character[0]}/{character[1]}".encode()).hexdigest()

    held_out = set()
    for alphabet in sorted({a for a, _ in characters}):
        own = sorted((c for c in characters if c[0] == alphabet), key=order)
        held_out.update(own[: max(1, round(share * len(own)))])
    return held_out


def _characters(paths: Iterable[Path]) -> set[tuple[str, int]]:
    found = set()
    for path in paths:
        with ImageFiles(path) as files:
            found |= {drawing[:2] for drawing in list_drawings(files).values()}
    return found


def _file_names(part: str) -> list[str]:
    return [f"{start}{part}{end}" for end in (".zip", "") for start in ("", "omniglot_")]


def _sources(root: Path, split: str, dataset: str) -> tuple[dict[str, Path], list[str]]:
    """The sets that number the characters, and those of them that the split is read from."""
    sets = {}
    for part in (_BACKGROUND, _EVALUATION, *_SMALL):
        there = [root / name for name in _file_names(part) if (root / name).exists()]
        if there:
            sets[part] = there[0]
    small = {part: sets.pop(part) for part in _SMALL if part in sets}
    if small and not sets:
        return small, list(small)
    wanted = {"train": [_BACKGROUND], "test": [_EVALUATION], "all": [_BACKGROUND, _EVALUATION]}
    for part in wanted[split]:
        if part not in sets:
            # Where there is nothing at all, the small sets would do too.
            expected = [part] if sets else [part, *_SMALL]
            find(root, [name for p in expected for name in _file_names(p)], dataset)
    return sets, wanted[split]


def load_drawings(
    root: Path, split: str, dataset: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images bool (N, 28, 28), labels int64 (N,), and the names of all characters there are.

    With the background or the evaluation set in ``root``, they are training and test set. With
    nothing but small background sets, characters are held out as in the shipped file. The labels
    are numbers of the characters of all those sets.

    Raises:
        FileNotFoundError: the sets that ``split`` is made of are not there.
        ValueError: a set cannot be read, or two hold different drawings under one name.
    """
    sets, wanted = _sources(root, split, dataset)
    characters = sorted(_characters(sets.values()))
    chosen = set(characters)
    if split != "all" and set(wanted) <= set(_SMALL):
        held_out = held_out_characters(characters)
        chosen = held_out if split == "test" else chosen - held_out
    images: dict[Drawing, np.ndarray] = {}
    for part in wanted:
        with ImageFiles(sets[part]) as files:
            for name, drawing, pixels in iterate_drawings(files, chosen):
                image = shrink(pixels)
                if (images.setdefault(drawing, image) != image).any():
                    raise ValueError(f"{files.path}: {name} differs from the drawing of that name")
    index = {character: number for number, character in enumerate(characters)}
    order = sorted(images)
    return (
        np.stack([images[drawing] for drawing in order]),
        np.array([index[drawing[:2]] for drawing in order], dtype=np.int64),
        tuple(f"{alphabet}/character{number:02d}" for alphabet, number in characters),
    )
