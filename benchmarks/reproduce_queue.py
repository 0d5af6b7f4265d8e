"""Trainings one after the other, on one core at the lowest priority, for so many hours.

A training is made in this process, so that whatever ends the queue ends it too, kill -9 included;
its checkpoint has it go on when the queue is started again.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

from kanerva_ext import cli

LOCK = "queue.lock"
LOWEST_PRIORITY = 19
INTERRUPTED = 128  # and more: the exit status of a training that a signal stopped


@contextmanager
def alone(folder: Path):
    """Holds the folder's lock; the system frees it however this process ends.

    Raises:
        RuntimeError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RuntimeError(f"another queue is at work in {folder}") from error
        yield


def work(
    queue: Iterable[tuple[Path, list[str]]],
    folder: Path,
    hours: float,
    say: Callable[[str], None] = print,
) -> int:
    """Trains what is not done yet, in order, until the hours are over.

    Args:
        queue: the folder of each run, and the words of `kanerva train` that make it, with
            ``--resume`` among them.
        folder: of all runs, where the lock is.
        hours: of wall time, all runs together.
        say: takes what happens, a line each.

    Returns:
        The exit status: 0 if all is done or the hours are over, 1 if a training failed, 128 and
        the signal's number if one was stopped by a signal.
    """
    end, failed = time.monotonic() + 3600 * hours, False
    with alone(folder):
        os.nice(LOWEST_PRIORITY - os.nice(0))
        for run, words in queue:
            if (run / "metrics.json").is_file():
                say(f"done before: {run.name}")
                continue
            left = (end - time.monotonic()) / 60
            if left <= 0:
                say(f"{hours:g} hours are over; to go on, start the queue again")
                return 0
            say(f"kanerva {shlex.join(words)}")
            status = cli.main([*words, "--minutes", f"{left:.3f}"])
            if status > INTERRUPTED:
                return status
            failed = failed or status != 0
    return int(failed)
