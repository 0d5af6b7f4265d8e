"""The command line of gpu_check.py. Imports no torch."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from . import phases, report, rows, schedule, visit
from .schedule import Schedule, Stage, Stopped

TOTAL = 460.0  # seconds of a phase
INTERRUPTED = 130  # exit status after SIGINT or SIGTERM
#: Rows that a machine without a GPU can answer.
ANSWERED = ("build", "installed")


def parse(arguments: Sequence[str], description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_check.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = (*phases.PHASES, "summary", "take", "rehearse")
    parser.add_argument("command", choices=commands, metavar="|".join(commands))
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the rows")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="of a phase (default 460)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="questions with this in the key"
    )
    parser.add_argument(
        "--again", action="append", default=[], metavar="KEY", help="ask these anew: by beginning"
    )
    parser.add_argument(
        "--at-once",
        type=int,
        metavar="N",
        help="processes beside each other (default: as many as cores, and as the memory has room)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be asked")
    options = parser.parse_args(arguments)
    if options.seconds <= 0:
        parser.error(f"--seconds must be positive, got {options.seconds:g}")
    if options.at_once is not None and options.at_once < 1:
        parser.error(f"--at-once must be at least 1, got {options.at_once}")
    return options


def main(arguments: Sequence[str], description: str = "") -> int:
    options = parse(arguments, description)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"gpu_check: --out {options.out}: {error.strerror}", file=sys.stderr)
        return 2
    if options.command == "summary":
        return summary(options.out)
    if options.command == "take":
        from . import results

        return results.take(options.out)
    if options.command == "rehearse":
        return rehearse(options)
    return run_phase(options.command, options)


def only(stages: list[Stage], wanted: Sequence[str]) -> list[Stage]:
    """The stages with the tasks that are asked for; those that must be there stay."""
    if not wanted:
        return stages

    def chosen(tasks):
        return [task for task in tasks if any(text in task.key for text in wanted)]

    def chosen_of(stage: Stage):
        if callable(stage.tasks):
            function = stage.tasks
            return lambda found: chosen(function(found))
        return chosen(stage.tasks)

    return [s if s.must else replace(s, tasks=chosen_of(s)) for s in stages]


def run_phase(phase: str, options: argparse.Namespace, rehearsal: bool = False) -> int:
    """0: everything was asked, and all is well."""
    about = visit.describe()
    file = rows.RowFile(phases.files_of(options.out, phase))
    with tempfile.TemporaryDirectory(prefix="gpu_check-turn-") as folder:
        plan = phases.Plan(
            about["capability"],
            about["source"],
            Path(folder),
            options.at_once or visit.processes_at_once(),
            rehearsal,
        )
        stages = only(plan.stages(phase), options.only)
        if options.dry_run:
            print("\n".join(phases.keys(stages, file.read)))
            return 0
        file.append(about)
        final = rows.REHEARSED if rehearsal else rows.FINAL
        run = Schedule(file, about, options.seconds, options.again, say=say, final=final)
        say(f"{phase}: {headline(about)}, {plan.at_once} processes at once")
        try:
            with schedule.stop_on_signals(run):
                run.run(stages)
        except Stopped as stopped:
            say(f"the phase ends here: {stopped}")
            show_error(file, about["visit"])
        end = {"key": "end", "visit": about["visit"], "missing": sorted(set(run.missing))}
        file.append(end)
    with contextlib.suppress(OSError):
        report.write_junit(options.out, file.read())
    say("\n" + report.summary(phase, file.read(), run.missing))
    if file.pending:
        say(f"the disk is full: {len(file.pending)} rows are printed above but not saved")
    if run.stopped:
        return INTERRUPTED
    own = [r for r in file.read() if r.get("visit") == about["visit"] and "state" in r]
    good = all(row["state"] in (rows.OK, rows.SKIPPED) for row in own)
    return 0 if good and not run.missing and not file.pending else 1


def say(text: str) -> None:
    """Prints, also when nobody listens any more."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)


def headline(about: dict) -> str:
    changes = " + changes" if about["changes"] else ""
    commit = about["commit"][:10] or "unknown commit"
    software = f"torch {about['torch']}, Triton {about['triton'] or 'none'}"
    return (
        f"{about['device'] or 'no GPU'}, driver {about['driver'] or 'none'}, {software}, "
        f"{commit}{changes}, source {about['source']}"
    )


def show_error(file: rows.RowFile, at: str) -> None:
    """The error of the row that ended the phase: the compiler's first."""
    for row in reversed(file.read()):
        if row.get("visit") == at and row.get("state") not in (None, rows.OK):
            result = row.get("result") or {}
            say(str(result.get("error") or row.get("output") or row.get("note") or ""))
            return


def summary(folder: Path) -> int:
    for phase in phases.PHASES:
        path = phases.files_of(folder, phase)
        if path.exists():
            found = rows.RowFile(path).read()
            report.write_junit(folder, found)
            print(report.summary(phase, found, []), end="\n\n")
    return 0


@contextlib.contextmanager
def stand_in_tools() -> Iterator[None]:
    """compute-sanitizer and ncu that only run what they are given, where they are not here."""
    with tempfile.TemporaryDirectory(prefix="gpu_check-tools-") as folder:
        for name in ("compute-sanitizer", "ncu"):
            if shutil.which(name) is None:
                script = Path(folder, name)
                script.write_text(
                    f"#!/bin/sh\nwhile [ \"$1\" != '{sys.executable}' ]; do shift; done\n"
                    'exec "$@"\n'
                )
                script.chmod(0o755)
        before = os.environ.get("PATH", "")
        os.environ["PATH"] = f"{before}{os.pathsep}{folder}"
        try:
            yield
        finally:
            os.environ["PATH"] = before


def rehearse(options: argparse.Namespace) -> int:
    """All phases where there is no GPU: 0 if every phase asks something, and all ends in
    `rows.NO_GPU`."""
    if visit.query_gpu("name"):
        print(
            "gpu_check: there is a GPU here; a rehearsal is for machines without", file=sys.stderr
        )
        return 2
    wrong = []
    with stand_in_tools():
        for phase in phases.PHASES:
            if run_phase(phase, options, rehearsal=True) == INTERRUPTED:
                return INTERRUPTED
            found = rows.latest(rows.RowFile(phases.files_of(options.out, phase)).read())
            missing = (found.get("end") or {}).get("missing", ["the end"])
            wrong += [f"{phase}: {key}: not asked" for key in missing]
            if all(key in (*ANSWERED, "device") for key, row in found.items() if "state" in row):
                wrong.append(f"{phase}: no question of its own was asked")
            for key, row in found.items():
                expected = rows.OK if key in ANSWERED else rows.NO_GPU
                if "state" in row and row["state"] != expected:
                    wrong.append(f"{phase}: {key}: {row['state']} {row.get('note', '')}")
    print("\n".join(["", *wrong, f"rehearsal: {len(wrong)} rows are not what they should be"]))
    return 1 if wrong else 0
