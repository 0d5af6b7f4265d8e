"""Logs of a training: CSV files, and TensorBoard's if asked for."""

from __future__ import annotations

import csv
from pathlib import Path

from ._checkpoint import replace_file
from ._config import ConfigError


class CsvLog:
    """Rows with a ``step``, appended as they come.

    Args:
        path: rows that it holds of steps after ``step`` are dropped: they were written after the
            checkpoint that the training goes on from.
        step: steps made so far.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.fields: list[str] = []
        if path.is_file():
            kept = [row for row in read_csv(path) if row["step"] <= step]
            new = path.with_suffix(".new")
            new.unlink(missing_ok=True)
            target, self.path = self.path, new
            new.touch()
            for row in kept:
                self.append(row)
            self.path = target
            replace_file(new, path)

    def append(self, row: dict[str, float]) -> None:
        with self.path.open("a", newline="") as file:
            if not self.fields:
                self.fields = list(row)
                csv.writer(file, lineterminator="\n").writerow(self.fields)
            writer = csv.DictWriter(file, self.fields, lineterminator="\n")
            writer.writerow({name: _text(value) for name, value in row.items()})


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of a file of `CsvLog`; a last line that was cut off is left out."""
    whole_lines = path.read_text().rpartition("\n")[0].splitlines()
    return [
        {name: _number(text) for name, text in row.items()} for row in csv.DictReader(whole_lines)
    ]


class TensorBoardLog:
    """Scalars under ``tensorboard/``; does nothing unless it is wanted.

    Raises:
        ConfigError: it is wanted and not installed.
    """

    def __init__(self, folder: Path, step: int, wanted: bool) -> None:
        self.writer = None
        if wanted:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError(f"{error}; pip install tensorboard") from error
            self.writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def append(self, split: str, row: dict[str, float]) -> None:
        if self.writer is not None:
            for name, value in row.items():
                if name != "step":
                    self.writer.add_scalar(f"{split}/{name}", value, int(row["step"]))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdigit() else float(text)
