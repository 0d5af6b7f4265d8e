"""A part of a test file in one process: a line for every test as it ends, what comes after a crash
left to another process.

The parent stops a process whose tests say nothing for too long, which also ends what hangs in the
driver. A test after which the CUDA context is lost ends the process itself.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
import torch

from . import rows, visit
from .child import LOST_CONTEXT, classify, require_installed, say

NOTE = 400  # characters of a failure that are kept as its note
OUTPUT = 1500  # of its report
RESTART_STATUS = 77


class Plugin:
    """Chooses the tests of a part and reports them."""

    def __init__(self, part: int, parts: int, skip: set[str]) -> None:
        self.part, self.parts, self.skip = part, parts, skip
        self.counts: dict[str, int] = {}
        self._reports: list = []

    def pytest_collection_modifyitems(self, config, items) -> None:
        def is_here(item) -> bool:
            return zlib.crc32(item.nodeid.encode()) % self.parts == self.part

        kept = [x for x in items if is_here(x) and short(x.nodeid) not in self.skip]
        config.hook.pytest_deselected(items=[x for x in items if x not in set(kept)])
        items[:] = kept

    def pytest_runtest_logstart(self, nodeid, location) -> None:
        self._reports = []
        say({"begin": short(nodeid)})

    def pytest_runtest_logreport(self, report) -> None:
        self._reports.append(report)

    def pytest_runtest_logfinish(self, nodeid, location) -> None:
        row = row_of(nodeid, self._reports)
        self.counts[row["state"]] = self.counts.get(row["state"], 0) + 1
        say(row)
        if row["state"] == rows.CUDA_ERROR and is_lost():
            say({"restart": True})
            os._exit(RESTART_STATUS)

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            text = str(report.longrepr)
            say({"key": f"collection of {report.nodeid}", "state": rows.FAILED,
                 "note": last_words(text), "output": text[-OUTPUT:]})  # fmt: skip


def short(nodeid: str) -> str:
    """Without the file, which is in the key of the part."""
    return nodeid.split("::", 1)[-1]


def row_of(nodeid: str, reports: list) -> dict:
    """The row of a test from its phases' reports."""
    row = {"key": short(nodeid), "state": rows.OK}
    row["seconds"] = round(sum(report.duration for report in reports), 2)
    failed = next((report for report in reports if report.failed), None)
    if failed is not None:
        text = str(failed.longrepr)
        lost = any(phrase in text for phrase in LOST_CONTEXT)
        row["state"] = rows.CUDA_ERROR if lost else rows.FAILED
        row["note"], row["output"] = last_words(text), text[-OUTPUT:]
    elif any(report.skipped for report in reports):
        row["state"] = rows.SKIPPED
    return row


def last_words(text: str) -> str:
    """The line of the exception in pytest's report."""
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return (lines[0] if lines else text.strip().splitlines()[-1] if text.strip() else "")[:NOTE]


def is_lost() -> bool:
    """Whether the CUDA context is: every later test would fail."""
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def tests(
    file: str,
    part: int,
    parts: int,
    chosen: str,
    marks: str = "",
    backend: str = "cuda",
    device: str = "cuda",
) -> dict:
    """Runs one part of a test file on the device."""
    torch.zeros(1, device=device)
    require_installed(backend, device)
    listed = os.environ.get("KANERVA_SKIP")
    skip = set(Path(listed).read_text().splitlines()) if listed else set()
    plugin = Plugin(part, parts, skip)
    settings = ["-c", str(visit.ROOT / "pyproject.toml"), "--rootdir", str(visit.ROOT)]
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--tb=short",
        "-k",
        chosen,
        "-m",
        marks,
    ]
    try:
        status = pytest.main([*settings, *options, str(visit.ROOT / file)], plugins=[plugin])
    except SystemExit as error:
        state, note = classify(error)
        return {"state": state, "note": note, "finished": True}
    good = status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if not good and status != pytest.ExitCode.TESTS_FAILED:
        return {"state": rows.FAILED, "note": f"pytest: {status!r}", "finished": True}
    note = "" if good else f"{plugin.counts.get(rows.FAILED, 0)} tests failed"
    return {"state": rows.OK if good else rows.FAILED, "note": note, "finished": True}
