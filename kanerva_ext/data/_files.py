"""Images in folders and zip archives, and the optional packages that read them."""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

#: By their names, which pip finds wherever kanerva_ext itself came from.
TRAIN_PACKAGES = "pip install matplotlib pillow safetensors scipy tqdm"


def require(module: str, needed_for: str, install: str = TRAIN_PACKAGES) -> ModuleType:
    """Import an optional package.

    Raises:
        ImportError: it is not there; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"{needed_for} needs {module}: {install} ({error})"
        raise ImportError(message, name=error.name) from error


def find(root: Path, names: Sequence[str], dataset: str) -> Path:
    """The first of the names that is in the folder.

    Raises:
        FileNotFoundError: none is.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    listed = " or ".join(names)
    where = f"in {root}" if root.is_dir() else f"in {root}, which is no folder"
    raise FileNotFoundError(f"{dataset}: looked for {listed} {where}")


class ImageFiles:
    """The images in a zip archive or below a folder, read alike; a context manager.

    Raises:
        ValueError: the file is no zip archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._image = require("PIL.Image", f"reading the images in {path}")
        self._zip: zipfile.ZipFile | None = None
        if not path.is_dir():
            try:
                self._zip = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError) as error:
                raise ValueError(f"{path} cannot be read as a zip archive: {error}") from error

    def __enter__(self) -> ImageFiles:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._zip is not None:
            self._zip.close()

    def names(self) -> list[str]:
        """All files, sorted, relative and with slashes."""
        if self._zip is not None:
            return sorted(name for name in self._zip.namelist() if not name.endswith("/"))
        files = (path for path in self.path.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.path).as_posix() for path in files)

    def read(self, name: str, mode: str, size: int) -> np.ndarray:
        """One image, size x size: uint8 (size, size) in mode L, (size, size, 3) in mode RGB.

        Raises:
            ValueError: it cannot be decoded, or has another size.
        """
        try:
            data = self._zip.read(name) if self._zip else (self.path / name).read_bytes()
            with self._image.open(io.BytesIO(data)) as image:
                found = image.size
                pixels = np.asarray(image.convert(mode)) if found == (size, size) else None
        except Exception as error:  # decoders of broken data raise errors of many types
            raise ValueError(f"{self.path}: {name} cannot be read: {error}") from error
        if pixels is None:
            width, height = found
            raise ValueError(
                f"{self.path}: {name} is {width} x {height} pixels, expected {size} x {size}"
            )
        return pixels
