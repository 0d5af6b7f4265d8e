"""Recall against the number of stored patterns, of runs that were measured at different times."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from kanerva_ext.cli import _figures, capacity


def merge(known: str, new: str) -> str:
    """The rows of both tables; of a label that both have, the new ones alone."""
    tables = [list(csv.DictReader(io.StringIO(text))) for text in (known, new)]
    labels = {row["label"] for row in tables[1]}
    rows = [row for row in tables[0] if row["label"] not in labels] + tables[1]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def draw(table: str, path: Path) -> None:
    """The picture of ``kanerva capacity``, of binary images, from its table."""
    runs: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(table)):
        runs.setdefault((row["label"], row["run"]), []).append(row)
    series = []
    for (label, _), rows in runs.items():
        measures = {name: [float(row[name]) for row in rows] for name in capacity.MEASURES}
        series.append(_figures.Series(label, [int(row["length"]) for row in rows], measures))
    titles = capacity.titles("wrong pixels", 0.15)
    _figures.draw_capacity(series, titles, path, capacity.MEASURES[2:])
