"""One user at a time for a file, whatever else this process does with that file."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where SQLite's own lock belongs to its handle and holds
    fcntl = None


class FileLock:
    """Holds ``<path>.lock`` until `release`, or the end of the process.

    SQLite's lock on the file itself is lost when the process closes any other descriptor of the
    file, as after copying it: POSIX record locks belong to the process. That of ``flock`` belongs
    to what was opened here. It is on a file of its own because some systems let the two kinds of
    lock exclude each other.

    Raises:
        OSError: another one holds it, or the folder cannot be written.
    """

    def __init__(self, path: Path):
        self._descriptor: int | None = None
        self._process = os.getpid()
        self._path = path.with_name(path.name + ".lock")
        if fcntl is None:
            return
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                error.filename = str(path)
                raise
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last holder may have removed it between the two calls.
                current = os.path.samestat(os.fstat(descriptor), os.stat(self._path))
            except BlockingIOError:
                os.close(descriptor)
                raise OSError(
                    errno.EBUSY, "another process, or memory, has it open", str(path)
                ) from None
            except FileNotFoundError:
                current = False
            except BaseException:
                os.close(descriptor)
                raise
            if current:
                self._descriptor = descriptor
                return
            os.close(descriptor)

    def release(self) -> None:
        """Give it back, and remove its file."""
        if self._descriptor is not None:
            # In a folder that can no longer be written it stays; the lock itself goes.
            with suppress(OSError):
                os.unlink(self._path)
            self.leave()

    def leave(self) -> None:
        """Close the descriptor alone: one that a forked process has from its parent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self):
        if self._descriptor is not None and os is not None and os.getpid() == self._process:
            self.release()
