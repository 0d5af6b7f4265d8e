"""Folders that commands write to, looked at before anything is computed."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from .. import pretrained
from .._terminal import describe
from ._config import ConfigError

_made: list[Path] = []


def check_is_no_model(path: str | Path, option: str = "--out") -> None:
    """Raises ConfigError where ``pretrained:NAME``, which is only read, is to be written to."""
    if str(path).startswith(pretrained.PREFIX):
        raise ConfigError(
            f"{option} must be a folder to write to; {path} means a model that ships, "
            "which is only read"
        )


def make_folder(folder: Path, option: str = "--out", size: int = 0) -> None:
    """Make it if need be, and see that files can be written there.

    Args:
        folder: of the option.
        option: that errors name.
        size: of what will be written, in bytes.

    Raises:
        ConfigError: it is no folder, cannot be made or written to, or has not so much space.
    """
    check_is_no_model(folder, option)
    try:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{option} must be a folder, got {folder}")
        _made.extend(each for each in (folder, *folder.parents) if not each.exists())
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size))
    except OSError as error:
        error.filename = None
        raise ConfigError(f"{option} {folder}: {describe(error)}") from error


def remove_empty_folders() -> None:
    """Those that `make_folder` made and nobody wrote to."""
    for folder in _made:
        with contextlib.suppress(OSError):
            folder.rmdir()
    _made.clear()
