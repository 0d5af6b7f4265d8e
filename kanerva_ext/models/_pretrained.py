"""Trained models from the files that ship with the package, and from runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import torch

from .. import pretrained
from .._safetensors import (
    CHECKPOINT,
    MODEL,
    field,
    of_another_version,
    read_tensors,
    with_prefix,
)

__all__ = ["Pretrained"]

Model = TypeVar("Model", bound="Pretrained")


class Pretrained:
    """A base of models that can be loaded by name."""

    #: What ``[model] type`` in a run's configuration calls the class.
    TYPE: str

    @classmethod
    def from_pretrained(cls: type[Model], name_or_path: str | os.PathLike) -> Model:
        """A trained model, float32 on the CPU, in evaluation mode.

        That it is whatever the default dtype and device; ``.to(device)`` moves it.

        Args:
            name_or_path: the name of a model that ships (`kanerva_ext.pretrained.available`), with
                or without ``"pretrained:"`` before it; else the folder of a run of
                ``kanerva train``, or a checkpoint.

        Raises:
            TypeError: ``name_or_path`` is neither a str nor a path.
            ValueError: no such model or file, one of another class, or a damaged file.
            OSError: the file cannot be read.
            ModuleNotFoundError: safetensors is not installed (``pip install safetensors``).

        For example, 8 pictures in the manner of an episode of images (1, T, 1, 28, 28)::

            model = KanervaMachine.from_pretrained("omniglot-kanerva")
            model.generate(model.write(images).state, num_samples=8, num_steps=4)
        """
        path = _file(name_or_path)
        try:
            tensors, metadata = read_tensors(path)
            options = dict(field(field(metadata, "config", dict), "model", dict))
            kind = field(options, "type", str)
            del options["type"]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "from_pretrained needs safetensors, which is not installed: "
                "pip install safetensors",
                name=error.name,
            ) from error
        except ValueError as error:
            raise ValueError(f"{path} is no checkpoint of a run: {error}") from error
        if kind not in (getattr(cls, "TYPE", None), f"{cls.__module__}:{cls.__qualname__}"):
            raise ValueError(_of_another_class(name_or_path, kind, cls.__name__))
        try:
            # The parameters drawn here are not kept.
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                model = cls(**options).float()
            model.load_state_dict(with_prefix(tensors, MODEL))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{path} does not fit {cls.__name__}: {error}{of_another_version(metadata)}"
            ) from error
        return model.eval()


def _file(name_or_path: str | os.PathLike) -> Path:
    name = os.fspath(name_or_path) if hasattr(name_or_path, "__fspath__") else name_or_path
    if not isinstance(name, str):
        raise TypeError(f"name_or_path must be a str or a path, got {type(name_or_path).__name__}")
    if name.startswith(pretrained.PREFIX) or name in pretrained.available():
        return pretrained.find(name)
    path = Path(name)
    try:
        path = path / CHECKPOINT if name and path.is_dir() else path
        found = path.is_file()
    except OSError:  # no name that a file could have
        found = False
    if not found:
        raise ValueError(
            f"name_or_path must be the name of a model that ships "
            f"({', '.join(pretrained.available())}), the folder of a run or a checkpoint, "
            f"got {name!r}"
        )
    return path


def _of_another_class(name: str | os.PathLike, kind: str, wanted: str) -> str:
    from . import MODELS

    if kind not in MODELS:
        return f"{name} is of type {kind!r}, and cannot be loaded as {wanted}"
    right = MODELS[kind].__name__
    return f"{name} is a {right}, not a {wanted}: {right}.from_pretrained loads it"
