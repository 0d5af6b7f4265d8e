"""The file of results: what ran where, by task, model and seed."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from ..machine import describe
from .tasks import TASKS
from .text import read_text

RESULTS = Path(__file__).resolve().parents[1] / "results" / "sequence.json"


def key(
    task: str, model: str, seed: int, norm_eps: float | None = None, steps: int | None = None
) -> str:
    """The name of a run; with another norm or other steps than the task's the model's name says
    so."""
    return f"{task}/{model}{variant(task, norm_eps, steps)}/{seed}"


def variant(task: str, norm_eps: float | None = None, steps: int | None = None) -> str:
    """What such runs have behind the model's name."""
    norm = "" if norm_eps is None else f", norm_eps={norm_eps:g}"
    return norm + ("" if steps in (None, TASKS[task].steps) else f", steps={steps}")


def read(path: Path) -> dict:
    """The file, or an empty one."""
    if not path.is_file():
        return {"benchmark": "sequence", "machine": {}, "text_sha256": "", "runs": {}}
    return json.loads(path.read_text("utf-8"))


def store(path: Path, name: str, run: dict) -> None:
    """Put a run in; the file is replaced at once, and two processes do not undo each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = read(path)
        results["machine"] = results["machine"] or describe()
        results["text_sha256"] = read_text()[1]
        results["runs"][name] = run
        results["runs"] = dict(sorted(results["runs"].items()))
        new = path.with_suffix(".new")
        new.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        os.replace(new, path)
