"""Logs of a training: CSV files, and TensorBoard's if asked for."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from .._files import append_text, write_text
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
            write_text(path, "".join(self._lines(row) for row in kept))

    def append(self, row: dict[str, float]) -> None:
        append_text(self.path, self._lines(row))

    def _lines(self, row: dict[str, float]) -> str:
        """The row as it is written; before the first one the names."""
        text = io.StringIO()
        if not self.fields:
            self.fields = list(row)
            csv.writer(text, lineterminator="\n").writerow(self.fields)
        writer = csv.DictWriter(text, self.fields, lineterminator="\n")
        writer.writerow({name: _text(value) for name, value in row.items()})
        return text.getvalue()


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of a file of `CsvLog`; a last line that was cut off is left out.

    Raises:
        ConfigError: it is no such file.
    """
    try:
        lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        rows = list(csv.DictReader(lines, strict=True))
        if rows and "step" not in rows[0]:
            raise ValueError("it has no column step")
        return [{name: _number(text) for name, text in row.items()} for row in rows]
    # Short and long rows hold None and lists.
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise ConfigError(f"{path} is no log of a run: {error}") from error


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
