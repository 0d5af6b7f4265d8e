"""Rows: one JSON object a line, appended as they come.

A row has ``key`` (what was asked; unique in a phase), ``state`` (`OK` and so on), ``seconds``,
``note`` (one line), ``result`` (a dict or None), ``output`` (the end of what was printed, unless
all went well) and ``visit`` (which machine, source and time: the last row of key "visit" before).
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterable
from pathlib import Path

OK = "ok"
FAILED = "failed"  # a wrong result, an exception, an exit status
HUNG = "hung"  # past its limit, and killed
STUCK = "stuck"  # past its limit, and not to be killed: it is left behind
KILLED = "killed"  # by a signal that was not ours
CUDA_ERROR = "CUDA error"  # an illegal access and the like, after which the context is lost
OUT_OF_MEMORY = "out of memory"
DISK_FULL = "disk full"
NO_GPU = "no GPU"
NO_TOOL = "no tool"  # a sanitizer or profiler that is not there or refuses the device
SKIPPED = "skipped"  # a test, by itself
NO_TIME = "no time"  # cut off by the end of the phase

#: What is not asked again when a phase is run again.
FINAL = (OK, FAILED, HUNG, STUCK, KILLED, CUDA_ERROR, OUT_OF_MEMORY, SKIPPED)
#: The same in a rehearsal, which asks for nothing else.
REHEARSED = (OK, NO_GPU)


def plain(value: object) -> object:
    """``value`` as valid JSON: "inf", "-inf" and "nan" for what is no number there."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def dumps(row: object) -> str:
    return json.dumps(plain(row), allow_nan=False, separators=(",", ":"))


def parse(text: str) -> list[dict]:
    """The rows in ``text``; a line that a killed process left unfinished is passed over."""
    found = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


class RowFile:
    """The rows of a phase. What a full disk does not take is kept, and appended with a later row.

    Attributes:
        pending: rows that are not in the file yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending: list[dict] = []
        self._lock = threading.Lock()

    def read(self) -> list[dict]:
        """All rows, those that wait for the disk included."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            text = ""
        return [*parse(text), *self.pending]

    def append(self, row: dict) -> bool:
        """Whether the row is in the file, and on the disk."""
        with self._lock:
            self.pending.append(row)
            return self._flush()

    def flush(self) -> bool:
        with self._lock:
            return self._flush()

    def _flush(self) -> bool:
        if not self.pending:
            return True
        data = "".join(dumps(row) + "\n" for row in self.pending).encode()
        try:
            with open(self.path, "a+b", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                if size and not _ends_line(file, size):
                    data = b"\n" + data
                try:
                    written = file.write(data)
                    if written != len(data):
                        raise OSError("the disk took a part of it")
                    os.fsync(file.fileno())
                except OSError:
                    os.ftruncate(file.fileno(), size)
                    raise
        except OSError:
            return False
        self.pending.clear()
        return True


def _ends_line(file, size: int) -> bool:
    file.seek(size - 1)
    return file.read(1) == b"\n"


def latest(rows: Iterable[dict]) -> dict[str, dict]:
    """The last row of every key, in the order of first appearance."""
    found: dict[str, dict] = {}
    for row in rows:
        if "key" in row:
            found[row["key"]] = row
    return found
