"""What all commands owe a terminal: one line on what went wrong, and a status that says so."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import TextIO

INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT


def run_command(name: str, command: Callable[[], int | None]) -> int:
    """The exit status of ``command``; what is no mistake of the program is said in one line.

    - What is printed is read no more, as in ``kanerva info | head -3``: nothing is said. The status
      is the command's own if it came to its end, else 1.
    - Ctrl-C: "interrupted", 130.
    - An OSError, such as a full disk: the path and why, 2.
    - A stdout or stderr that is closed: nothing is printed there, and that is no failure.

    Args:
        name: that the line begins with, such as "kanerva info".
        command: its None is 0.
    """
    status = 1
    open_missing_streams()
    try:
        status = command() or 0
    except BrokenPipeError:
        pass
    except KeyboardInterrupt:
        status = INTERRUPTED
        complain(name, "interrupted")
    except OSError as error:
        status = 2
        # Those of files are named; see `_files.naming`.
        if error.filename is None and error.errno == errno.ENOSPC:
            _drop(sys.stdout)
            error.filename = "standard output"
        complain(name, describe(error))
    finally:  # also where argparse ends the program
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _drop(sys.stdout)
        except OSError as error:
            _drop(sys.stdout)
            complain(name, f"standard output: {error.strerror}")
            status = 2
    return status


def open_missing_streams() -> None:
    """Gives a closed stdout or stderr, as after ``>&-``, the null device: nothing is printed.

    Its number is taken too, or the next file opened would get it, and what libraries print.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:
                try:
                    os.fstat(number)
                except OSError:
                    os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def complain(name: str, message: str) -> None:
    """One line on stderr; a stderr that takes none is no reason for a traceback."""
    with contextlib.suppress(OSError):
        print(f"{name}: {' '.join(message.split())}", file=sys.stderr, flush=True)


def describe(error: OSError) -> str:
    """ "PATH: why", without the error's number."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _drop(stream: TextIO) -> None:
    """Python flushes once more when it ends, into what takes no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
