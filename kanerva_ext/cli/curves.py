"""``kanerva curves``: bound, reconstruction and KL terms over the training, from the runs' logs."""

from __future__ import annotations

import argparse
from pathlib import Path

from ._config import ConfigError
from ._logs import read_csv

FILE = "curves.png"
NOT_DRAWN = ("kl_weight", "kl_memory")  # no term; of another scale
PANELS = ("bound", "reconstruction", "kl_")  # the last: all terms that start with it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    add("--out", type=Path, help=f"folder for {FILE} (default: the first run's)")
    add("--against", choices=("step", "seconds"), default="step", help="the axis (default step)")


def run(args: argparse.Namespace) -> int:
    folders = [path if path.is_dir() else path.parent for path in args.runs]
    logs = []
    for folder in folders:
        paths = [folder / "train.csv", folder / "test.csv"]
        if not paths[0].is_file():
            raise ConfigError(f"{folder} has no train.csv")
        logs.append((folder.name, *(read_csv(p) if p.is_file() else [] for p in paths)))
    out = args.out or folders[0]
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out must be a folder, got {out}")
    out.mkdir(parents=True, exist_ok=True)
    _draw(logs, args.against, out / FILE)
    print(out / FILE)
    return 0


def _draw(logs: list[tuple[str, list[dict], list[dict]]], axis: str, path: Path) -> None:
    from .._pictures import new_figure, save

    figure = new_figure(12, 3.6)
    panels = figure.subplots(1, len(PANELS))
    for ax, term in zip(panels, PANELS, strict=True):
        lowest, settled = [], []
        for i, (name, train, test) in enumerate(logs):
            names = [n for n in train[0] if n.startswith(term) and n not in NOT_DRAWN]
            for style, full in zip(("-", "--", ":"), names, strict=False):
                label = name if term != "kl_" else f"{name}: {full}"
                for rows, width in ((train, 0.8), (test, 1.8)):
                    points = [(row[axis], row[full]) for row in rows if full in row]
                    if points:
                        ax.plot(
                            *zip(*points, strict=True),
                            style,
                            color=f"C{i}",
                            linewidth=width,
                            alpha=0.4 if rows is train and test else 1.0,
                            label=label if rows is (test or train) else None,
                        )
                    values = sorted(value for _, value in points)
                    if values:
                        lowest.append(values[0])
                        settled.append(values[int(0.97 * (len(values) - 1))])
        margin = 0.05 * (max(settled) - min(lowest)) or 1.0
        ax.set_ylim(min(lowest) - margin, max(settled) + margin)
        ax.set_title({"kl_": "KL terms"}.get(term, term), fontsize=10)
        ax.set_xlabel(axis)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    panels[0].set_ylabel("nats per image; thin: training, thick: test")
    figure.tight_layout()
    save(figure, path)
