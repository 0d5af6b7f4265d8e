"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["append_text", "naming", "replacing", "write_bytes", "write_text"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to. At the end its file takes the place of ``path``.

    Whenever the process is killed, ``path`` is the old file or the new one, on the disk before this
    returns. If something fails, the old one is left as it was. What is no file or the name of
    another one (``/dev/stdout``) is written as it is.

    Raises:
        OSError: the file cannot be written; it names ``path``.
    """
    with naming(path):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            yield path
            return
        # A name of its own: several threads or processes may write to one path.
        new = path.with_name(f"{path.name}.{os.urandom(8).hex()}.new")
        try:
            yield new
            with new.open("rb") as file:
                os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Every OSError names ``path``: one of a write, as on a full disk, names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # then a filename would hide the message
            error.args = (f"{path}: {error}",)
        else:
            error.filename = str(path)
            del error.filename2  # None would be part of the message
        raise


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as new:
        new.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def append_text(path: Path, text: str) -> None:
    """All of the text, or on a full disk nothing of it."""
    with naming(path), path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        content = text.encode()
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(size)
            raise
