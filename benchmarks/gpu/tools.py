"""compute-sanitizer and Nsight Compute around a child of ours, and what they print as rows.

Run in a child: the tool's whole output is read here, and only what counts becomes the row.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import rows
from .processes import RESULT_VARIABLE, last_line

MOST_TEXT = 8 * 2**20  # bytes of output that are read
ERROR_EXIT = 9
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
#: What the tools say where they cannot work.
REFUSALS = (
    "Device not supported",
    "Failed to initialize the profiler",
    "ERR_NVGPUCTRPERM",
    "Unable to find injection library",
    "unrecognised option",
    "unrecognized option",
    "unknown option",
)
SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "WarpStateStats", "MemoryWorkloadAnalysis")
#: Names of ours -> Nsight Compute's.
COUNTERS = {
    "time_ns": "gpu__time_duration.sum",
    "registers": "launch__registers_per_thread",
    "shared_bytes": "launch__shared_mem_per_block",
    "waves": "launch__waves_per_multiprocessor",
    "occupancy_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "theoretical_occupancy_percent": "sm__maximum_warps_per_active_cycle_pct",
    "arithmetic_percent": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "memory_percent": "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed",
    "dram_percent": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "l2_hit_percent": "lts__t_sector_hit_rate.pct",
}
STALL = re.compile(r"issue_stalled_(\w+?)_per_(?:issue|warp)_active\.ratio")
#: To nanoseconds and bytes.
UNITS = {
    "nsecond": 1.0,
    "ns": 1.0,
    "usecond": 1e3,
    "us": 1e3,
    "msecond": 1e6,
    "ms": 1e6,
    "second": 1e9,
    "s": 1e9,
    "byte/block": 1.0,
    "Kbyte/block": 1e3,
    "Mbyte/block": 1e6,
}


def run_tool(command: Sequence[str]) -> tuple[int, str, dict | None]:
    """Exit status and output of a tool, and the result of the child inside."""
    folder = Path(os.environ[RESULT_VARIABLE]).parent
    inner, printed = folder / "inner.jsonl", folder / "tool-output"
    with open(printed, "wb") as output:
        done = subprocess.run(
            command,
            env={**os.environ, RESULT_VARIABLE: str(inner)},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    with open(printed, "rb") as file:
        text = file.read(MOST_TEXT).decode(errors="replace")
    found = rows.parse(inner.read_text()) if inner.exists() else []
    results = [line for line in found if "state" in line]
    return done.returncode, text, results[-1] if results else None


def refused(text: str) -> str:
    """The line by which a tool says that it cannot work here, or an empty text."""
    lines = (line.strip("= \t") for line in text.splitlines())
    return next((x for x in lines if any(word.lower() in x.lower() for word in REFUSALS)), "")


def sanitizer_command(program: str, tool: str, child: Sequence[str]) -> list[str]:
    command = [program, "--tool", tool, "--error-exitcode", str(ERROR_EXIT), "--print-limit", "50"]
    if tool != "initcheck":  # which has to see what other kernels wrote
        command += ["--kernel-name", "kernel_substring=kanerva"]
    return [*command, *child]


def sanitized(tool: str, child: Sequence[str]) -> dict:
    """The row of ``child`` under one of `SANITIZERS`."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"state": rows.NO_TOOL, "note": "compute-sanitizer is not here"}
    status, text, inner = run_tool(sanitizer_command(program, tool, child))
    return judge_sanitizer(status, text, inner)


def judge_sanitizer(status: int, text: str, inner: dict | None) -> dict:
    if refusal := refused(text):
        return {"state": rows.NO_TOOL, "note": refusal}
    if status == ERROR_EXIT:
        return {"state": rows.FAILED, "note": finding(text)}
    if inner is not None:
        return {**inner, "note": inner.get("note") or _summary(text)}
    note = f"exit status {status}: {finding(text) or last_line(text)}"
    return {"state": rows.FAILED, "note": note}


def _sanitizer_lines(text: str) -> list[str]:
    return [x.lstrip("= ").strip() for x in text.splitlines() if x.startswith("=========")]


def _summary(text: str) -> str:
    lines = _sanitizer_lines(text)
    return next((x for x in reversed(lines) if "SUMMARY" in x or "hazards displayed" in x), "")


def finding(text: str) -> str:
    """The first finding of compute-sanitizer, where it is in our kernels, and the summary."""
    lines = _sanitizer_lines(text)
    words = ("invalid", "uninitialized", "error", "hazard", "barrier", "divergent")
    first = next((x for x in lines if any(w in x.lower() for w in words)), "")
    where = next((x for x in lines if "kanerva" in x), "")
    return "; ".join(dict.fromkeys(x[:300] for x in (first, where, _summary(text)) if x))


def profiler_command(program: str, child: Sequence[str]) -> list[str]:
    sections = [x for name in SECTIONS for x in ("--section", name)]
    kernels = ["--kernel-name-base", "demangled", "--kernel-name", "regex:kanerva"]
    output = ["--csv", "--page", "raw", "--print-units", "base"]
    return [program, *output, *sections, *kernels, "--clock-control", "none", *child]


def profiled(child: Sequence[str]) -> dict:
    """The row of ``child`` under Nsight Compute: the counters of every kernel of ours."""
    program = shutil.which("ncu")
    if program is None:
        return {"state": rows.NO_TOOL, "note": "ncu is not here"}
    status, text, inner = run_tool(profiler_command(program, child))
    return judge_profiler(status, text, inner)


def judge_profiler(status: int, text: str, inner: dict | None) -> dict:
    kernels = counters(text)
    if kernels and status == 0:
        return {"state": rows.OK, "kernels": kernels}
    if refusal := refused(text):
        return {"state": rows.NO_TOOL, "note": refusal}
    if inner is not None and inner["state"] != rows.OK:
        return inner
    note = f"exit status {status}, {len(kernels)} kernels: {last_line(text)}"
    return {"state": rows.FAILED, "note": note, "kernels": kernels, "printed": text[-2000:]}


def counters(text: str) -> list[dict]:
    """One dict for every kernel in the CSV of ``ncu --csv --page raw``: `COUNTERS`, and the three
    reasons for which its warps stalled longest, in cycles for each instruction."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    table = csv.DictReader(io.StringIO("\n".join(lines[start:])))
    units: dict[str, str] = {}
    found = []
    for record in table:
        if not record.get("ID"):  # the line below the names
            units = {k: v or "" for k, v in record.items() if k}
            continue
        if record.get("Kernel Name"):
            found.append(_kernel(record, units))
    return found


def _kernel(record: dict[str, str], units: dict[str, str]) -> dict:
    row: dict = {
        "kernel": short_name(record["Kernel Name"]),
        "grid": record.get("Grid Size", ""),
        "block": record.get("Block Size", ""),
    }
    for name, counter in COUNTERS.items():
        value = _number(record.get(counter))
        if value is not None:
            row[name] = value * UNITS.get(units.get(counter, ""), 1.0)
    stalls = {}
    for counter, text in record.items():
        match = STALL.search(counter or "")
        value = _number(text)
        if match and value is not None:
            stalls[match[1]] = value
    longest = sorted(stalls, key=stalls.__getitem__, reverse=True)[:3]
    return {**row, "stalls": {name: stalls[name] for name in longest}}


def short_name(kernel: str) -> str:
    """Without namespaces and parameters: "write_kernel<float>"."""
    name = kernel.split("(", 1)[0].removeprefix("void ")
    return re.sub(r"\b(?:\w+::)+", "", name).strip() or kernel[:80]


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None
