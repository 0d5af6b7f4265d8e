"""What all commands owe a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def until_the_reader_leaves(command: Callable[[], int | None]) -> int:
    """The exit status of ``command``; 1, without a traceback, where what it prints is read no more.

    ``kanerva info | head -3`` closes the pipe after three lines.
    """
    try:
        status = command() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends, into a pipe that is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status
