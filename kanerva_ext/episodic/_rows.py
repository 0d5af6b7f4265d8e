"""Facts and texts as a file holds them: bytes, with checksums that SQLite itself does not keep."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: The tables of a file.
TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, content);
CREATE TABLE facts (
    position INTEGER PRIMARY KEY, memory INTEGER NOT NULL, id NOT NULL, version INTEGER NOT NULL,
    key BLOB NOT NULL, value BLOB NOT NULL, crc INTEGER NOT NULL, UNIQUE (memory, id));
CREATE INDEX facts_version ON facts (version);
-- Facts that the stored sums hold and that are no longer there.
CREATE TABLE removed (
    memory INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE sums (
    memory INTEGER, name TEXT, start INTEGER, content BLOB NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (memory, name, start));
"""


def blobs(tensor: Tensor) -> list[bytes]:
    """The bytes of each row."""
    array = np.ascontiguousarray(tensor.numpy())
    width = array.shape[1] * array.itemsize
    content = array.tobytes()
    return [content[i : i + width] for i in range(0, len(content), width)]


def crc(*contents: bytes) -> int:
    """Of the contents, one after the other: SQLite itself does not notice a changed byte."""
    found = 0
    for content in contents:
        found = zlib.crc32(content, found)
    return found


def tensors(
    rows: Sequence[tuple[bytes, bytes, int]], sizes: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Keys and values, (rows, size) each, of rows (key, value, crc).

    Raises:
        ValueError: a row is not what was written.
    """
    out = []
    if any(
        not (isinstance(key, bytes) and isinstance(value, bytes)) or crc(key, value) != wanted
        for key, value, wanted in rows
    ):
        raise ValueError("a fact is not what was written")
    for i, size in enumerate(sizes):
        content = bytearray(b"".join(row[i] for row in rows))
        if len(content) != len(rows) * size * dtype.itemsize:
            raise ValueError("a fact has another size")
        tensor = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        out.append(tensor.view(len(rows), size))
    return out[0], out[1]


def with_crc(text: str) -> str:
    return f"{crc(text.encode())} {text}"


def without_crc(content: object) -> str:
    """The text of `with_crc`.

    Raises:
        ValueError: it is not what was written.
    """
    number, _, text = content.partition(" ") if isinstance(content, str) else ("", "", "")
    if number != str(crc(text.encode())):
        raise ValueError("a text is not what was written")
    return text
