"""One child process: its limits, how it ended, what it said.

A child writes its result, JSON lines, to the file that ``KANERVA_RESULT`` names. A line
``{"waiting": true}`` stops the clock of its limit and ``{"waiting": false}`` starts it anew: a
child that waits for its turn on the GPU is not late. Every other line starts it anew too where
the task's limit is one of silence.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import rows

TAIL = 3000  # characters of the output that are kept
MOST_OUTPUT = 64 * 2**20  # bytes, after which a child is stopped
GRACE = 20.0  # seconds that a killed process may take to go
POLL = 0.05
LITTLE = 8192  # bytes of disk with which nothing can be said

RESULT_VARIABLE = "KANERVA_RESULT"


@dataclass(frozen=True)
class Task:
    """What one process is asked.

    Attributes:
        limit: seconds; with ``silence``, without a line of result.
        answers: whether it has failed where there is no result.
    """

    key: str
    command: tuple[str, ...]
    limit: float
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    silence: bool = False
    answers: bool = False


@dataclass
class Outcome:
    """How a child ended: `rows.OK` and so on."""

    state: str
    note: str = ""
    seconds: float = 0.0
    output: str = ""
    lines: list[dict] = field(default_factory=list)  # of result

    @property
    def result(self) -> dict | None:
        """The last line that is one, and not a row of its own."""
        found = [line for line in self.lines if "state" in line and "key" not in line]
        return found[-1] if found else None


class _Lines:
    """The result file, followed while it grows."""

    def __init__(self, path: Path, on_line: Callable[[dict], None]) -> None:
        self._path, self._on_line, self._read = path, on_line, 0
        self.found: list[dict] = []
        self.waiting = False

    def poll(self, ended: bool = False) -> bool:
        """Whether there was a new line; of a child that has ended, the last need not be whole."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._read)
                data = file.read()
        except OSError:
            return False
        end = len(data) if ended else data.rfind(b"\n") + 1
        self._read += end
        fresh = rows.parse(data[:end].decode(errors="replace"))
        for line in fresh:
            self.found.append(line)
            self.waiting = bool(line.get("waiting", False))
            self._on_line(line)
        return bool(fresh)


def run(
    task: Task,
    deadline: float,
    on_line: Callable[[dict], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Runs a task until its limit, ``deadline`` (of `time.monotonic`) or ``stop()``. Never raises
    for what the child does, nor for a full disk."""
    started = time.monotonic()
    try:
        folder = Path(tempfile.mkdtemp(prefix="gpu_check-"))
    except OSError as error:
        return Outcome(rows.DISK_FULL, f"no folder for temporary files: {error}")
    outcome = Outcome(rows.FAILED)
    try:
        outcome = _run_in(task, folder, deadline, on_line, stop)
    except OSError as error:
        full = "No space left" in str(error)
        outcome = Outcome(rows.DISK_FULL if full else rows.FAILED, str(error))
    finally:
        # What a child left there does not fill the disk for the next one.
        if outcome.state != rows.STUCK:
            shutil.rmtree(folder, ignore_errors=True)
    outcome.seconds = round(time.monotonic() - started, 2)
    return outcome


def _run_in(task, folder, deadline, on_line, stop) -> Outcome:
    result, printed = folder / "result.jsonl", folder / "output"
    scratch = folder / "tmp"
    scratch.mkdir()
    env = {**os.environ, "TMPDIR": str(scratch), RESULT_VARIABLE: str(result), **task.env}
    lines = _Lines(result, on_line)
    with open(printed, "wb") as output:
        process = subprocess.Popen(
            task.command,
            cwd=task.cwd or scratch,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ended = _wait(task, process, lines, printed, deadline, stop)
    gone = _kill(process)
    lines.poll(ended=True)
    outcome = Outcome(rows.FAILED, output=_tail(printed), lines=lines.found)
    if not gone:
        outcome.state, outcome.note = rows.STUCK, f"{ended}; it did not go when it was killed"
    elif ended == "limit":
        what = "without a line" if task.silence else "at most"
        outcome.state, outcome.note = rows.HUNG, f"stopped after {task.limit:.0f} s {what}"
    elif ended == "deadline":
        outcome.state, outcome.note = rows.NO_TIME, "cut off by the end of the phase"
    elif ended == "output":
        outcome.note = f"stopped: it printed more than {MOST_OUTPUT >> 20} MiB"
    else:
        _judge(task, process.returncode, outcome)
        if outcome.state == rows.FAILED and outcome.result is None and is_full(folder):
            # What it had to say did not go to the disk either.
            outcome.state, outcome.note = rows.DISK_FULL, "No space left on device"
    return outcome


def _wait(task, process, lines, printed, deadline, stop) -> str:
    """What came first: "exit", "limit", "deadline" or "output"."""
    since = time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL)
            return "exit"
        now, before = time.monotonic(), lines.waiting
        fresh = lines.poll()
        if lines.waiting or before or (fresh and task.silence):
            since = now
        if now > deadline or stop():
            return "deadline"
        if now - since > task.limit:
            return "limit"
        if printed.stat().st_size > MOST_OUTPUT:
            return "output"


def kill_session(leader: int) -> None:
    """Kills the processes that ``leader`` has started in its session, and last itself: those whose
    parents are gone too, and those of other groups, as a build's compilers are (Linux)."""
    for _ in range(10):  # some may have started others meanwhile
        others = [pid for pid in _of_session(leader) if pid != leader]
        for pid in others:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not others:
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _of_session(leader: int) -> list[int]:
    """Processes that run in a session."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, _group, session = place.read_text().rsplit(")", 1)[1].split()[:4]
            if int(session) == leader and state not in "ZX":
                found.append(int(place.parent.name))
    return found


def _kill(process: subprocess.Popen) -> bool:
    """Kills all that it has started, and it; whether it is gone."""
    kill_session(process.pid)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return False
    return True


def _judge(task: Task, status: int, outcome: Outcome) -> None:
    """State and note of a child that ended by itself."""
    result = outcome.result
    if status < 0:
        outcome.state = rows.KILLED
        outcome.note = f"by {signal.Signals(-status).name}"
        if result is not None:
            outcome.note += f" after its result, which was {result['state']}"
    elif result is not None:
        outcome.state, outcome.note = str(result["state"]), str(result.get("note", ""))
    elif "No space left on device" in outcome.output:
        outcome.state, outcome.note = rows.DISK_FULL, "No space left on device"
    elif status == 0 and not task.answers:
        outcome.state = rows.OK
    else:
        outcome.note = f"exit status {status}: {last_line(outcome.output)}"


def is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < LITTLE


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _tail(path: Path) -> str:
    """Beginning and end of a long output."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= TAIL:
            return file.read().decode(errors="replace")
        head = file.read(TAIL // 4)
        file.seek(size - 3 * TAIL // 4)
        tail = file.read()
    return f"{head.decode(errors='replace')}\n...\n{tail.decode(errors='replace')}"
