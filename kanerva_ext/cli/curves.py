"""``kanerva curves``: bound, reconstruction and KL terms over the training, from the runs' logs."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import pretrained
from ._config import ConfigError
from ._folders import make_folder
from ._logs import read_csv

FILE = "curves.png"
TITLES = {
    "bound": "bound",
    "reconstruction": "reconstruction",
    "kl_": "KL terms",  # all others that start so
    "kl_memory": "KL of the memory, not in the bound",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    add("--out", type=Path, help=f"folder for {FILE} (default: the first run's)")
    add("--against", choices=("step", "seconds"), default="step", help="the axis (default step)")


def run(args: argparse.Namespace) -> int:
    folders, logs = [], []
    for path in args.runs:
        if str(path).startswith(pretrained.PREFIX):
            raise ConfigError(f"RUN must be a folder with logs, and {path} ships without")
        if not path.exists():
            raise ConfigError(f"RUN must be the folder of a run, got no {path}")
        folder = path if path.is_dir() else path.parent
        paths = [folder / "train.csv", folder / "test.csv"]
        if not paths[0].is_file():
            raise ConfigError(f"{folder} has no train.csv")
        train, test = (read_csv(p) if p.is_file() else [] for p in paths)
        if not train:
            raise ConfigError(f"{paths[0]} has no row yet")
        folders.append(folder)
        logs.append((folder.resolve().name, train, test))
    out = args.out or folders[0]
    make_folder(out)
    _draw(logs, args.against, out / FILE)
    print(out / FILE)
    return 0


def _draw(logs: list[tuple[str, list[dict], list[dict]]], axis: str, path: Path) -> None:
    from .._pictures import new_figure, save

    drawn = {panel: [_terms(train, panel) for _, train, _ in logs] for panel in TITLES}
    drawn = {panel: terms for panel, terms in drawn.items() if any(terms)}
    figure = new_figure(4 * len(drawn), 3.6)
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for ax, (panel, terms) in zip(panels, drawn.items(), strict=True):
        lowest, settled = [], []
        for i, ((name, train, test), names) in enumerate(zip(logs, terms, strict=True)):
            for style, full in zip(("-", "--", ":"), names, strict=False):
                label = name if panel != "kl_" else f"{name}: {full}"
                for rows, width in ((train, 0.8), (test, 1.8)):
                    points = [(row[axis], row[full]) for row in rows if full in row]
                    if points:
                        ax.plot(
                            *zip(*points, strict=True),
                            style,
                            color=f"C{i}",
                            marker="o" if len(points) == 1 else None,  # else invisible
                            markersize=3,
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
        ax.set_title(TITLES[panel], fontsize=10)
        ax.set_xlabel(axis)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    panels[0].set_ylabel("nats per image; thin: training, thick: test")
    figure.tight_layout()
    save(figure, path)


def _terms(rows: list[dict], panel: str) -> list[str]:
    """The columns that a panel shows."""
    if panel != "kl_":
        return [panel] if panel in rows[0] else []
    return [n for n in rows[0] if n.startswith("kl_") and n not in ("kl_weight", "kl_memory")]
