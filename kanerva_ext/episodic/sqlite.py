"""Facts in one SQLite file, with the memory's sums: what a crash leaves is the last commit."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._lock import FileLock
from ._rows import TABLES, blobs, crc, tensors, with_crc, without_crc
from .stores import CHUNK, DTYPES, Facts, Store, spread

__all__ = ["FORMAT", "SQLiteStore"]

_open_stores: weakref.WeakSet[SQLiteStore] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_open_stores):
        store._leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

FORMAT = "kanerva_ext.EpisodicMemory"
APPLICATION = 0x4B4E4552  # in the file's header
#: Rows of a matrix that are one blob: SQLite's blobs end at a gigabyte.
ROWS = 256


class SQLiteStore(Store):
    """Facts in a SQLite file, written at once and in full: a fact is there, or it is not.

    A transaction is on the disk when a write returns (write-ahead log, synchronous=FULL); a
    process that is killed at any time leaves what the last one that returned had written. One
    process at a time has the file open: that which holds the lock on the file ``<path>.lock``
    beside it. A process that was forked does not have it.

    The file also has the memory's settings and, as of the last `put_sums`, its sums. Opened
    again, only what changed since is added to them.

    Args:
        path: of the file.
        key_size, value_size, dtype: of a new file; None of one that is there.
        settings: of a new file, as JSON can hold them.
        tensors: of a new file, by name, in float64; `sums` of memory -1 gives them back.
        read_only: a file, or a folder, that cannot be written will do; the store then has no lock
            and takes no changes.

    Raises:
        FileExistsError, FileNotFoundError: a new file's place is taken; no file to open.
        OSError: it cannot be read or written, or another process has it open.
        ValueError: it is no such file, or it is damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        key_size: int | None = None,
        value_size: int | None = None,
        dtype: str = "float32",
        settings: dict[str, Any] | None = None,
        tensors: dict[str, Tensor] | None = None,
        *,
        read_only: bool = False,
    ):
        self.path = Path(path).resolve()  # the same one after a change of the working directory
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._held: FileLock | None = None
        self._forked = False
        self._kept: dict[str, str | None] = {}  # to be written with the next change
        self._process = os.getpid()
        new = key_size is not None
        if new and self.path.exists():
            raise FileExistsError(
                errno.EEXIST,
                "there is a file already; EpisodicMemory.load opens one",
                str(self.path),
            )
        if not new and not self.path.is_file():
            raise FileNotFoundError(errno.ENOENT, "there is no such file", str(self.path))
        # SQLite needs files beside the file even to read it, unless nothing can change it.
        writable = new or all(os.access(p, os.W_OK) for p in (self.path, self.path.parent))
        if not (writable or read_only):
            raise PermissionError(
                errno.EACCES,
                "the file and its folder must be writable; load(path, in_memory=True) reads it",
                str(self.path),
            )
        if not writable and self._log().exists() and self._log().stat().st_size:
            raise PermissionError(
                errno.EACCES,
                f"its folder must be writable, because its last changes are in {self._log().name}",
                str(self.path),
            )
        self._held = FileLock(self.path) if writable else None
        _open_stores.add(self)
        try:
            with self._errors():
                self._open("rwc" if new else "rw" if writable else "ro&immutable=1")
                if new:
                    self._create(key_size, value_size, dtype, settings or {}, tensors or {})
                self._describe()
        except BaseException:
            self.close()
            if new:
                for suffix in ("", "-wal", "-journal", "-shm"):
                    Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            raise

    def _log(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    def _open(self, mode: str) -> None:
        self._connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=1,
        )
        run = self._connection.execute
        # Two processes would each have sums of their own: the second one is told. Before the first
        # look at the file, which then needs no third file beside it, as on a full disk.
        run("PRAGMA locking_mode=EXCLUSIVE")
        # Before anything of a file of others is changed.
        if mode != "rwc" and run("PRAGMA application_id").fetchone()[0] != APPLICATION:
            raise ValueError(f"{self.path} is no file of an EpisodicMemory")
        if mode.startswith("ro"):
            return
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=FULL")
        run("BEGIN IMMEDIATE")
        run("COMMIT")

    def _create(self, key_size, value_size, dtype, settings, tensors) -> None:
        self._connection.executescript(f"PRAGMA application_id={APPLICATION}; BEGIN; {TABLES}")
        described = {
            "format": FORMAT,
            "key_size": key_size,
            "value_size": value_size,
            "dtype": dtype,
            **settings,
        }
        self._connection.execute("INSERT INTO meta VALUES ('version', 0), ('summed', 0)")
        self._put_settings(described)
        for name, tensor in tensors.items():
            self._put(-1, name, tensor)
        self._connection.execute("COMMIT")

    def check(self) -> None:
        """Raise ValueError if SQLite finds its tables and their indexes at odds: all of the file is
        read."""
        found = [str(row[0]) for row in self._select("PRAGMA integrity_check(1)")]
        if found != ["ok"]:
            raise self._damaged(found[0] if found else "SQLite cannot check it")

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"{self.path} is damaged: {what}")

    def _describe(self) -> None:
        try:
            made = self._connection.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")
            for (sql,) in made.fetchall():
                if sql not in TABLES:
                    raise ValueError("its tables are not those of an EpisodicMemory")
            text = self._meta("settings")
            if crc(text.encode()) != self._meta("settings_crc"):
                raise ValueError("its settings are not those that were written")
            self.settings = json.loads(text)
            sizes = [self.settings["key_size"], self.settings["value_size"]]
            self._sizes = [int(size) for size in sizes]
            self.key_size, self.value_size = self._sizes
            self.dtype = self.settings["dtype"]
            self._dtype = DTYPES[self.dtype]
            self._version = int(self._meta("version"))
            self._summed = int(self._meta("summed"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(str(error)) from error

    def put_settings(self, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Settings and tensors of a file that was made without them."""
        settings = {**self.settings, **settings}
        with self._transaction():
            self._put_settings(settings)
            for name, tensor in tensors.items():
                self._put(-1, name, tensor)
        self.settings = settings

    def _put_settings(self, settings: dict[str, Any]) -> None:
        text = json.dumps(settings)
        rows = ("settings", text), ("settings_crc", crc(text.encode()))
        self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def _meta(self, name: str):
        query = "SELECT content FROM meta WHERE name = ?"
        row = self._connection.execute(query, (name,)).fetchone()
        if row is None:
            raise ValueError(f"it has no {name}")
        return row[0]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as those of files."""
        try:
            yield
        except UnicodeDecodeError as error:  # of a damaged text, also of SQLite's own messages
            raise ValueError(f"{self.path} is damaged: {error}") from error
        except sqlite3.Error as error:
            text = str(error)
            if "full" in text:
                raise OSError(
                    errno.ENOSPC, f"{text}; nothing of this change was written", str(self.path)
                ) from error
            if "locked" in text:
                raise OSError(
                    errno.EBUSY, "another process, or memory, has it open", str(self.path)
                ) from error
            of_damage = ("malformed", "not a database", "no such table", "Could not decode")
            if any(part in text for part in of_damage):
                raise ValueError(f"{self.path} is damaged or no memory: {text}") from error
            raise OSError(errno.EIO, text, str(self.path)) from error

    def _check_open(self) -> None:
        if self._forked or os.getpid() != self._process:
            raise OSError(
                errno.EBUSY,
                "the process that this one was forked from has it open; close it before the fork, "
                "or work on a copy: load(path, in_memory=True) before the fork",
                str(self.path),
            )
        if self._connection is None:
            raise ValueError(f"the store of {self.path} is closed")

    def _leave_to_parent(self) -> None:
        """In a process that was forked: the connection is the parent's, not even to be closed."""
        self._lock = threading.RLock()
        if self._connection is not None:
            self._forked = True
            # Closed, also by the interpreter's end, it would write to the parent's file.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            self._connection = None
        if self._held is not None:
            self._held.leave()
            self._held = None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is done within it is on the disk afterwards, or on an error nothing."""
        with self._lock, self._errors():
            self._check_open()
            run = self._connection.execute
            run("BEGIN IMMEDIATE")
            version = self._version
            try:
                yield self._connection
                run("UPDATE meta SET content = ? WHERE name = 'version'", (self._version,))
                run("COMMIT")
            except BaseException:
                self._version = version
                if self._connection.in_transaction:
                    run("ROLLBACK")
                raise

    def _select(self, query: str, values: Sequence = ()) -> list:
        with self._lock, self._errors():
            self._check_open()
            return self._connection.execute(query, values).fetchall()

    def _insert(self, connection, memory: int, facts: Facts) -> None:
        columns = [blobs(facts.keys), blobs(facts.values)]
        rows = (
            (memory, id, self._version, key, value, crc(key, value))
            for id, key, value in zip(facts.ids, *columns, strict=True)
        )
        connection.executemany(
            "INSERT INTO facts (memory, id, version, key, value, crc) VALUES (?, ?, ?, ?, ?, ?)",
            rows,
        )

    def change(self, changes: Sequence[tuple[int, Sequence, Facts]]) -> None:
        with self._lock:
            kept, self._kept = self._kept, {}
        with self._transaction() as connection:
            self._version += 1
            for name, content in kept.items():
                self._put_text(name, content)
            for memory, removed, added in changes:
                self._change(connection, memory, removed, added)

    def _change(self, connection, memory: int, removed: Sequence, added: Facts) -> None:
        self._reserve(memory, max((i + 1 for i in removed if isinstance(i, int)), default=0))
        at = {id: i for i, id in enumerate(added.ids)} if removed else {}
        for id in removed:
            name = (memory, id)
            connection.execute(
                "INSERT INTO removed SELECT memory, key, value, crc FROM facts "
                "WHERE memory = ? AND id = ? AND version <= ?",
                (*name, self._summed),
            )
            if id in at:
                i = at[id]
                pair = (*blobs(added.keys[i : i + 1]), *blobs(added.values[i : i + 1]))
                connection.execute(
                    "UPDATE facts SET version = ?, key = ?, value = ?, crc = ? "
                    "WHERE memory = ? AND id = ?",
                    (self._version, *pair, crc(*pair), *name),
                )
            else:
                connection.execute("DELETE FROM facts WHERE memory = ? AND id = ?", name)
        if not removed:
            self._insert(connection, memory, added)
            return
        gone = set(removed)
        new = [i for i, id in enumerate(added.ids) if id not in gone]
        if new:
            facts = Facts([added.ids[i] for i in new], added.keys[new], added.values[new])
            self._insert(connection, memory, facts)

    def get(self, memory: int, ids: Sequence) -> Facts:
        query = "SELECT key, value, crc FROM facts WHERE memory = ? AND id = ?"
        rows = [row for id in ids for row in self._select(query, (memory, id))]
        if len(rows) != len(ids):
            raise self._damaged("a fact is not there")
        return Facts(list(ids), *self._tensors(rows))

    def contains(self, memory: int, id: Hashable) -> bool:
        query = "SELECT 1 FROM facts WHERE memory = ? AND id = ?"
        return bool(self._select(query, (memory, id)))

    def count(self, memory: int) -> int:
        return self._select("SELECT COUNT(*) FROM facts WHERE memory = ?", (memory,))[0][0]

    def ids(self, memory: int) -> Iterator:
        last = -1
        query = (
            "SELECT position, id FROM facts WHERE memory = ? AND position > ? "
            "ORDER BY position LIMIT ?"
        )
        while rows := self._select(query, (memory, last, CHUNK)):
            yield from (row[1] for row in rows)
            last = self._next(last, rows)

    def chunks(self, memory: int, size: int = CHUNK) -> Iterator[Facts]:
        return self._chunks("facts", "memory = ?", (memory,), size)

    def _chunks(self, table: str, where: str, values: tuple, size: int = CHUNK) -> Iterator[Facts]:
        id, last = ("id", -1) if table == "facts" else ("NULL", -1)
        query = (
            f"SELECT rowid, {id}, key, value, crc FROM {table} WHERE {where} AND rowid > ? "
            "ORDER BY rowid LIMIT ?"
        )
        while rows := self._select(query, (*values, last, size)):
            yield Facts([row[1] for row in rows], *self._tensors([row[2:] for row in rows]))
            last = self._next(last, rows)

    def _next(self, last: int, rows: list) -> int:
        """Where the rows end, which in a damaged file may be before where they begin."""
        if not isinstance(rows[-1][0], int) or rows[-1][0] <= last:
            raise self._damaged("its facts are out of order")
        return rows[-1][0]

    def sample(self, memory: int, count: int) -> Tensor:
        rows = self._select("SELECT position FROM facts WHERE memory = ?", (memory,))
        positions = sorted(row[0] for row in rows)
        query = "SELECT key, value, crc FROM facts WHERE position = ?"
        chosen = [positions[i] for i in spread(len(positions), count).tolist()]
        found = [row for p in chosen for row in self._select(query, (p,))]
        if len(found) != len(chosen):
            raise self._damaged("a fact is not there")
        return self._tensors(found)[0]

    def first_free(self, memory: int) -> int:
        query = "SELECT MAX(id) FROM facts WHERE memory = ? AND typeof(id) = 'integer'"
        found = self._select(query, (memory,))[0][0]
        return max(0 if found is None else found + 1, self._reserved(memory))

    def _reserved(self, memory: int) -> int:
        return int(self._text(f"next:{memory}") or 0)

    def _reserve(self, memory: int, first: int) -> None:
        if first and first > self._reserved(memory):
            self._put_text(f"next:{memory}", str(first))  # it may have 65 bits

    def reserve(self, memory: int, first: int) -> None:
        with self._transaction():
            self._reserve(memory, first)

    def keep(self, memory: int, name: str, text: str | None) -> None:
        with self._lock:
            self._kept[f"{name}:{memory}"] = text

    def kept(self, memory: int, name: str) -> str | None:
        return self._text(f"{name}:{memory}")

    def _put_text(self, name: str, text: str | None) -> None:
        self._connection.execute("DELETE FROM meta WHERE name = ?", (name,))
        if text is not None:
            self._connection.execute("INSERT INTO meta VALUES (?, ?)", (name, with_crc(text)))

    def _text(self, name: str) -> str | None:
        rows = self._select("SELECT content FROM meta WHERE name = ?", (name,))
        try:
            return without_crc(rows[0][0]) if rows else None
        except ValueError as error:
            raise self._damaged(f"{name}, {error}") from error

    @property
    def closed(self) -> bool:
        return self._connection is None

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if self._held is not None:
                self._held.release()
                self._held = None

    def put_sums(
        self, tensors: dict[int, dict[str, Tensor]], settings: dict[str, Any] | None = None
    ) -> None:
        """The sums of each memory, by name, as they are now; with them other settings, if any."""
        with self._transaction() as connection:
            if settings is not None:
                self._put_settings(settings)
            connection.execute("DELETE FROM sums WHERE memory >= 0")
            connection.execute("DELETE FROM removed")
            for memory, named in tensors.items():
                for name, tensor in named.items():
                    self._put(memory, name, tensor)
            connection.execute(
                "UPDATE meta SET content = ? WHERE name = 'summed'", (self._version,)
            )
        self._summed, self.settings = self._version, settings or self.settings

    def _put(self, memory: int, name: str, tensor: Tensor) -> None:
        for start in range(0, len(tensor), ROWS):
            content = tensor[start : start + ROWS].cpu().numpy().tobytes()
            self._connection.execute(
                "INSERT INTO sums VALUES (?, ?, ?, ?, ?)",
                (memory, name, start, content, crc(content)),
            )

    def sums(self, memory: int, name: str, width: int) -> Tensor | None:
        """What `put_sums` was given, (rows, width) in float64; None if there is nothing."""
        rows = self._select(
            "SELECT content, crc FROM sums WHERE memory = ? AND name = ? ORDER BY start",
            (memory, name),
        )
        if not rows:
            return None
        if any(not isinstance(row[0], bytes) or crc(row[0]) != row[1] for row in rows):
            raise self._damaged("its sums are not those that were written")
        content = b"".join(row[0] for row in rows)
        if len(content) % (8 * width):
            raise self._damaged("its sums have another size")
        return torch.frombuffer(bytearray(content), dtype=torch.float64).view(-1, width)

    def since_sums(self, memory: int) -> Iterator[tuple[Facts, int]]:
        """What has changed since `put_sums`: facts to add (1) and to take away (-1)."""
        for facts in self._chunks("removed", "memory = ?", (memory,)):
            yield facts, -1
        for facts in self._chunks("facts", "memory = ? AND version > ?", (memory, self._summed)):
            yield facts, 1

    def changes(self) -> int:
        """How many facts `since_sums` would give."""
        added = self._select("SELECT COUNT(*) FROM facts WHERE version > ?", (self._summed,))
        return added[0][0] + self._select("SELECT COUNT(*) FROM removed")[0][0]

    def _tensors(self, rows: Sequence[tuple[bytes, bytes, int]]) -> tuple[Tensor, Tensor]:
        try:
            return tensors(rows, self._sizes, self._dtype)
        except ValueError as error:
            raise self._damaged(str(error)) from error
