"""A folder of rows into ``benchmarks/results/``, and the pages of docs/ that are made from it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from . import phases, report, rows, status_page
from .visit import PREFIX, RESULTS

OUTPUT = 600  # characters of a failure's output that are kept
SOFTWARE = ("torch", "triton", "driver", "python", "commit", "date", "source")


def visits(found: list[dict]) -> list[list[dict]]:
    """Rows on a GPU by device and source, the last for every key; each list begins with its newest
    row of key "visit"."""
    groups: dict[tuple, list[dict]] = {}
    abouts: dict[str, dict] = {r["visit"]: r for r in found if r.get("key") == "visit"}
    for row in found:
        about = abouts.get(row.get("visit", ""))
        if about is None or not about["device"] or row.get("state") in (None, rows.NO_GPU):
            continue
        groups.setdefault((about["device"], about["source"]), []).append(row)
    made = []
    for own in groups.values():
        newest = max((abouts[row["visit"]] for row in own), key=lambda about: about["visit"])
        made.append([newest, *rows.latest(own).values()])
    return made


def machine_of(about: dict) -> dict:
    """What `benchmarks.report` says of the origin."""
    return {
        "gpu": about["device"],
        "cpu": "",
        "uncommitted_changes": about["changes"],
        **{name: about.get(name, "") for name in SOFTWARE},
    }


def trimmed(found: list[dict]) -> list[dict]:
    """Rows as they are kept: of the tests those that are not well, and counts."""
    kept, counts = [], {}
    for row in found:
        if report.TEST in row["key"]:
            operator = row["key"].split("/")[1]
            counts.setdefault(operator, Counter())[row["state"]] += 1
            if row["state"] in (rows.OK, rows.SKIPPED):
                continue
        row = {k: v for k, v in row.items() if k != "visit"}
        if "output" in row:
            row["output"] = row["output"][-OUTPUT:]
        kept.append(row)
    for operator, counted in counts.items():
        result = {"tests": dict(counted)}
        kept.append({"key": f"tests of {operator}", "state": rows.OK, "result": result})
    return kept


def comparisons(found: list[dict]) -> list[dict]:
    """Rows of `benchmarks.compare`: against torch.compile where that is the fastest."""
    latest = rows.latest(found)
    made = []
    for key, row in latest.items():
        if not key.startswith("compare/") or row["state"] != rows.OK:
            continue
        best = dict(row["result"]["row"])
        other = latest.get(key.replace("compare/", "compiled/", 1), {})
        if other.get("state") == rows.OK:
            compiled = other["result"]["row"]
            if float(compiled["ratio"]) < float(best["ratio"]):
                best.update(compiled, rival_launches=None, rival_peak_bytes=None)
        made.append(best)
    return made


def write(name: str, about: dict, content: dict, target: Path) -> Path:
    commit = str(about["commit"])[:10] or about["source"]
    path = target / f"{name}-{about['visit']}-{commit}.json"
    path.write_text(json.dumps(rows.plain(content), indent=1, allow_nan=False) + "\n")
    return path


def save(folder: Path, target: Path = RESULTS) -> list[Path]:
    """Writes what there is of GPUs in ``folder``."""
    written = []
    for phase in phases.PHASES:
        found = rows.RowFile(phases.files_of(folder, phase)).read()
        for about, *own in visits(found):
            name = f"{PREFIX}{phase}"
            content = {"benchmark": name, "machine": machine_of(about), "rows": trimmed(own)}
            written.append(write(name, about, content, target))
            compared = comparisons(own)
            rates = next((r for r in reversed(own) if r["key"].startswith("rates/")
                          and r["state"] == rows.OK), None)  # fmt: skip
            if compared and rates is not None:
                content = {
                    "benchmark": "compare",
                    "machine": machine_of(about) | rates["result"]["machine"],
                    "rows": compared,
                }
                written.append(write("compare", about, content, target))
    return written


def take(folder: Path) -> int:
    """The command."""
    written = save(folder)
    if not written:
        print(f"gpu_check: {folder} has no rows of a GPU", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    from benchmarks import report as performance

    status_page.main()
    return performance.main()
