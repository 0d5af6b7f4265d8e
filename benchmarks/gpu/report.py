"""Rows for people: a summary that names every failure, and JUnit XML. Imports no torch."""

from __future__ import annotations

import xml.etree.ElementTree as xml
from collections import Counter
from pathlib import Path

from . import rows

TEST = "::"  # in the key of a test: part::test
MOST_FAILURES = 200


def states(found: list[dict]) -> dict[str, dict]:
    """The last row with a state of every key."""
    return rows.latest(row for row in found if "state" in row)


def summary(phase: str, found: list[dict], missing: list[str]) -> str:
    """Counts by question, then every row that is not well."""
    latest = states(found)
    counts: dict[str, Counter] = {}
    for key, row in latest.items():
        question = "tests" if TEST in key else key.split("/")[0]
        counts.setdefault(question, Counter())[row["state"]] += 1
    lines = [f"{phase}:"]
    for question, counted in counts.items():
        text = ", ".join(f"{n} {state}" for state, n in counted.most_common())
        lines.append(f"  {question:<22} {text}")
    bad = [(k, r) for k, r in latest.items() if r["state"] not in (rows.OK, rows.SKIPPED)]
    if bad:
        lines.append(f"{len(bad)} rows are not well:")
    for key, row in bad[:MOST_FAILURES]:
        note = f"  {row['note'][:160]}" if row.get("note") else ""
        lines.append(f"  {row['state']:<13} {key}{note}")
    if len(bad) > MOST_FAILURES:
        lines.append(f"  and {len(bad) - MOST_FAILURES} more in the rows")
    if missing:
        lines.append(f"not asked, for want of time: {len(set(missing))}; run the phase again")
    return "\n".join(lines)


def write_junit(folder: Path, found: list[dict]) -> None:
    """FOLDER/tests.xml (tests_by_triton.xml) where there are rows of tests."""
    by_name: dict[str, dict[str, dict]] = {}
    for key, row in states(found).items():
        if TEST in key:
            name = "tests_by_triton" if "triton" in key.split("/")[0] else "tests"
            by_name.setdefault(name, {})[key] = row
    for name, tests in by_name.items():
        xml.ElementTree(junit(name, tests)).write(
            folder / f"{name}.xml", encoding="utf-8", xml_declaration=True
        )


def junit(name: str, tests: dict[str, dict]) -> xml.Element:
    counted = Counter(row["state"] for row in tests.values())
    failures = len(tests) - counted[rows.OK] - counted[rows.SKIPPED]
    suite = xml.Element(
        "testsuite",
        name=name,
        tests=str(len(tests)),
        failures=str(failures),
        skipped=str(counted[rows.SKIPPED]),
    )
    for key, row in tests.items():
        part, test = key.split(TEST, 1)
        case = xml.SubElement(
            suite, "testcase", classname=part.split("/")[1], name=test,
            time=str(row.get("seconds", 0)),
        )  # fmt: skip
        if row["state"] == rows.SKIPPED:
            xml.SubElement(case, "skipped")
        elif row["state"] != rows.OK:
            message = f"{row['state']}: {row.get('note', '')}"
            failure = xml.SubElement(case, "failure", message=_printable(message))
            failure.text = _printable(str(row.get("output", "")))
    return suite


def _printable(text: str) -> str:
    """Without the characters that XML has no way to write."""
    return "".join(c if c in "\n\t" or c.isprintable() else "?" for c in text)
