"""The tasks of a phase: several at a time, each a row, and on with what is missing."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import processes, rows
from .processes import Outcome, Task

LEAST = 5.0  # seconds for which it is worth to start a task
MOST_STUCK = 3  # processes that cannot be killed, after which the device is given up
MOST_RESTARTS = 8  # of one part of the tests


@dataclass(frozen=True)
class Suite(Task):
    """Tests in one process, a row for each; after a crash or a hang, another for the rest.

    A line of result is ``{"begin": key}``, a row, ``{"restart": true}`` where the process ends
    itself, or ``{"finished": true, "state", "note"}``. ``KANERVA_SKIP`` names a file with the keys
    of the tests to leave out.
    """

    restarts: int = 0


@dataclass(frozen=True)
class Stage:
    """Tasks that run beside each other, ``workers`` at a time.

    Attributes:
        tasks: or a function of all rows so far that gives them.
        must: whether the phase ends where one of them fails.
        anew: whether they are run at every visit.
    """

    name: str
    tasks: Sequence[Task] | Callable[[list[dict]], Sequence[Task]]
    workers: int = 1
    must: bool = False
    anew: bool = False


class Stopped(Exception):
    """A stage without which the others are in vain has failed; the message says why."""


class Schedule:
    """Runs stages until ``seconds`` are spent.

    Attributes:
        again: beginnings of keys that are run though there is a row of them.
        final: states of rows that are not asked for again.
    """

    def __init__(
        self,
        file: rows.RowFile,
        visit: dict,
        seconds: float,
        again: Sequence[str] = (),
        say: Callable[[str], None] = print,
        final: Sequence[str] = rows.FINAL,
    ) -> None:
        self.file, self.visit, self.say = file, visit, say
        self.deadline = time.monotonic() + seconds
        self.missing: list[str] = []
        self._again = tuple(again)
        self._stuck = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._began = {row["key"] for row in self._kept() if row["state"] in final}

    def _kept(self) -> list[dict]:
        """The last rows of what was asked of this device and source before."""
        same = ("device", "source")
        visits = {
            row["visit"]
            for row in self.file.read()
            if row.get("key") == "visit" and all(row.get(k) == self.visit.get(k) for k in same)
        }
        found = [r for r in self.file.read() if r.get("visit") in visits and "state" in r]
        return list(rows.latest(found).values())

    def is_done(self, key: str) -> bool:
        again = any(key.startswith(beginning) for beginning in self._again)
        return key in self._began and not again

    def stop(self) -> None:
        """Kill what runs and start nothing more."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def run(self, stages: Sequence[Stage]) -> None:
        """Raises `Stopped`; whatever happened before is in the file."""
        for stage in stages:
            tasks = stage.tasks(self.file.read()) if callable(stage.tasks) else stage.tasks
            todo = [task for task in tasks if stage.anew or not self.is_done(task.key)]
            before = f", {len(tasks) - len(todo)} done before" if len(todo) < len(tasks) else ""
            if tasks:
                self.say(f"== {stage.name}: {len(todo)} to do{before}, {self._left():.0f} s left")
            failed = self._run_tasks(todo, max(1, min(stage.workers, len(todo))))
            if stage.must and failed:
                raise Stopped("; ".join(failed))

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _run_tasks(self, todo: list[Task], workers: int) -> list[str]:
        queue, failed = list(todo), []

        def work() -> None:
            while True:
                with self._lock:
                    if not queue:
                        return
                    task = queue.pop(0)
                    in_vain = self._left() < LEAST or self._stuck >= MOST_STUCK
                if in_vain or self._stop.is_set():
                    with self._lock:
                        self.missing.append(task.key)
                    failed.append(f"{task.key}: not started")
                    continue
                state = self._suite(task) if isinstance(task, Suite) else self._single(task)
                if state != rows.OK:
                    failed.append(f"{task.key}: {state}")

        threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # signals reach the main thread between two looks
                thread.join(0.2)
        return failed

    def _single(self, task: Task) -> str:
        outcome = self._child(task)
        result = outcome.result
        content = None
        if result is not None:
            content = {k: v for k, v in result.items() if k not in ("state", "note")} or None
        self.add(self._row(task.key, outcome, content))
        return outcome.state

    def _child(self, task: Task, on_line: Callable[[dict], None] = lambda line: None) -> Outcome:
        outcome = processes.run(task, self.deadline - 1, on_line, self._stop.is_set)
        with self._lock:
            if outcome.state == rows.STUCK:
                self._stuck += 1
            if outcome.state == rows.NO_TIME:
                self.missing.append(task.key)
        return outcome

    def _suite(self, task: Suite) -> str:
        """A row for every test as it ends, and one for the whole."""
        running: list[str] = []
        counts: dict[str, int] = {}
        prefix = f"{task.key}::"
        done = [key for key in self._began if key.startswith(prefix) and self.is_done(key)]

        def on_line(line: dict) -> None:
            if "begin" in line:
                running[:] = [line["begin"]]
            elif "key" in line:
                running.clear()
                key = prefix + line["key"]
                done.append(key)
                self.add({**line, "key": key}, aloud=line["state"] != rows.OK)

        while True:
            outcome = self._suite_process(task, [x.removeprefix(prefix) for x in done], on_line)
            said = {word for line in outcome.lines for word in line}
            lost = outcome.state in (rows.NO_TIME, rows.NO_GPU, rows.DISK_FULL)
            if "finished" in said or lost or not (running or "restart" in said):
                break
            if running:  # the test that was running has ended its process: a row
                done.append(prefix + running[0])
                running.clear()
                self.add(self._row(done[-1], outcome))
            task = replace(task, restarts=task.restarts + 1)
            if task.restarts > MOST_RESTARTS or self._left() < LEAST or self._stop.is_set():
                outcome.note = f"given up after {task.restarts} restarts"
                break
        for key, row in rows.latest(self.file.read()).items():
            if key.startswith(prefix):
                counts[row["state"]] = counts.get(row["state"], 0) + 1
        if outcome.state == rows.OK and set(counts) - {rows.OK, rows.SKIPPED}:
            outcome.state = rows.FAILED
        self.add(self._row(task.key, outcome, {"tests": counts}))
        return outcome.state

    def _suite_process(self, task: Suite, skip: list[str], on_line) -> Outcome:
        try:
            with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
                listed = Path(folder, "skip")
                listed.write_text("\n".join(skip))
                env = {**task.env, "KANERVA_SKIP": str(listed)}
                return self._child(replace(task, env=env), on_line)
        except OSError as error:
            return Outcome(rows.DISK_FULL, str(error))

    def _row(self, key: str, outcome: Outcome, result: dict | None = None) -> dict:
        row = {"key": key, "state": outcome.state, "seconds": outcome.seconds}
        if outcome.note:
            row["note"] = outcome.note
        if result is not None:
            row["result"] = result
        if outcome.state not in (rows.OK, rows.NO_GPU) and outcome.output:
            row["output"] = outcome.output
        return row

    def add(self, row: dict, aloud: bool = True) -> None:
        """Appends a row, and says it; in full where the disk does not take it."""
        row = {**row, "visit": self.visit["visit"]}
        saved = self.file.append(row)
        if aloud:
            note = f"  {row['note']}" if row.get("note") else ""
            self.say(f"  {row['state']:<10} {row.get('seconds', 0):>6.1f} s  {row['key']}{note}")
        if not saved:
            self.say(f"  the disk is full: {rows.dumps({k: row[k] for k in row if k != 'output'})}")


@contextlib.contextmanager
def stop_on_signals(schedule: Schedule) -> Iterator[None]:
    """SIGINT and SIGTERM end the phase in good order."""
    names = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(name, lambda *_: schedule.stop()) for name in names]
    try:
        yield
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)
