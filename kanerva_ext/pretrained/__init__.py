"""Trained models that ship with the package: of each a safetensors file and a card.

    KanervaMachine.from_pretrained("omniglot-kanerva")     # in Python
    kanerva generate pretrained:omniglot-kanerva           # and as RUN at the command line

A card says what a model is, how it was trained, its bound on the test images, and what it is good
and bad for. ``python -m benchmarks.ship`` makes both files of a finished run.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["PREFIX", "available", "card", "describe", "find"]

PREFIX = "pretrained:"  # before a name, where a run's folder could stand
FOLDER = Path(__file__).resolve().parent


def available() -> list[str]:
    """The names of the models, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def find(name: str) -> Path:
    """The file of a model.

    Args:
        name: one of `available`, with or without ``"pretrained:"`` before it.

    Raises:
        ValueError: there is no such model; the message lists those there are.
    """
    bare = str(name).removeprefix(PREFIX)
    known = available()
    if bare not in known:
        names = ", ".join(known) or "none"
        raise ValueError(f"no model {bare!r} ships with kanerva_ext; there is {names}")
    return FOLDER / f"{bare}.safetensors"


def card(name: str) -> str:
    """The model's card, Markdown.

    Raises:
        ValueError: there is no such model.
    """
    return find(name).with_suffix(".md").read_text(encoding="utf-8")


def describe() -> dict[str, str]:
    """Of each model by name, what it is, in a line: the title of its card, "" without one.

    >>> from kanerva_ext import pretrained
    >>> pretrained.describe()["omniglot-kanerva"].startswith("Kanerva Machine")
    True
    """
    titles = {}
    for name in available():
        with contextlib.suppress(FileNotFoundError):
            titles[name] = card(name).partition("\n")[0]
    return {name: titles.get(name, "").partition(": ")[2] for name in available()}
