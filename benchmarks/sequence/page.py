"""docs/sequence_layer.md: its tables between markers, and its pictures."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from .. import pages
from .mixers import TITLES
from .results import variant
from .tasks import SCORES, TASKS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "sequence_layer.md"
IMAGES = DOCS / "images" / "sequence_layer"
LONGER = 8_000  # steps of the regression that are compared with the task's
COLOURS = {
    "kanerva-stationary": "#3f51b5",
    "kanerva-decay": "#90a4ee",
    "attention": "#ef6c00",
    "delta": "#2e7d32",
    "diagonal": "#c62828",
    "mesa": "#795548",
}


def write_page(results: dict) -> list[Path]:
    """Write the tables into the page, and draw the pictures anew. Returns the files."""
    PAGE.write_text(with_tables(PAGE.read_text("utf-8"), results), "utf-8")
    IMAGES.mkdir(parents=True, exist_ok=True)
    return [PAGE, _held_out(results), _training(results)]


def with_tables(text: str, results: dict) -> str:
    """The page with its tables made anew."""
    return pages.with_tables(text, TABLES, results, PAGE)


def _runs(results: dict, task: str, model: str) -> list[dict]:
    """Those of all seeds."""
    prefix = f"{task}/{model}/"
    return [run for name, run in results["runs"].items() if name.startswith(prefix)]


def _scores(results: dict) -> str:
    head = ["", *(f"{task.title}: {task.unit}" for task in TASKS.values())]
    rows = []
    for model, title in TITLES.items():
        row = [title]
        for name in TASKS:
            found = [run["held_out"][str(SCORES[name])] for run in _runs(results, name, model)]
            row.append(_cell(found))
        rows.append(row)
    return pages.markdown([head, *rows])


def _cell(found: list[float]) -> str:
    """The mean, how far the seeds are apart, and how many there are."""
    if not found:
        return "not run"
    if len(found) == 1:
        return f"{found[0]:.3f} (1 seed)"
    return (
        f"{statistics.mean(found):.3f} ({min(found):.3f} to {max(found):.3f}, {len(found)} seeds)"
    )


def _longer(results: dict) -> str:
    """The error on drifting weights after as many steps and after four times as many, with the
    reads' norm as it is and with one that leaves small reads their size."""
    task = TASKS["regression"]
    head, columns = [f"{task.title}: {task.unit}"], []
    for steps in (task.steps, LONGER):
        for norm_eps in (None, 1.0):
            how = "" if norm_eps is None else f", `norm_eps={norm_eps:g}`"
            head.append(f"{steps:,} steps{how}")
            columns.append(variant("regression", norm_eps, steps))
    rows = []
    for model, title in TITLES.items():
        runs = [_runs(results, "regression", model + column) for column in columns]
        found = [[run["held_out"][SCORES["regression"]] for run in each] for each in runs]
        rows.append([title, *(_cell(each) if each else "-" for each in found)])
    return pages.markdown([head, *rows])


def _costs(results: dict) -> str:
    head = ["processor's ms a step of training", *TASKS]
    rows = []
    for model, title in TITLES.items():
        row = [title]
        for name in TASKS:
            runs = _runs(results, name, model)
            times = [1e3 * run["seconds"] / run["steps"] for run in runs]
            row.append(f"{statistics.median(times):.0f}" if times else "-")
        rows.append(row)
    sizes = ["parameters"]
    for name in TASKS:
        counts = {run["parameters"] for model in TITLES for run in _runs(results, name, model)}
        ends = sorted({min(counts), max(counts)}) if counts else []
        sizes.append(" to ".join(f"{count:,}" for count in ends) or "-")
    steps = ["steps", *(f"{task.steps:,}" for task in TASKS.values())]
    return pages.markdown([head, *rows, sizes, steps])


TABLES = {"scores": _scores, "longer": _longer, "costs": _costs}


# ---------------------------------------------------------------------------------- pictures


def _figure():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {"axes.grid": True, "grid.alpha": 0.3, "font.size": 9, "legend.frameon": False}
    with plt.rc_context(style):
        return plt.subplots(2, 3, figsize=(11, 6), layout="constrained")


def _mean_points(runs: list[dict], prefix: str = "") -> tuple[list[int], list[float]]:
    """Held-out numbers whose names are a prefix and an integer, averaged over seeds."""
    names = [name for name in runs[0]["held_out"] if re.fullmatch(rf"{prefix}\d+", name)]
    values = [statistics.mean(run["held_out"][name] for run in runs) for name in names]
    return [int(name.removeprefix(prefix)) for name in names], values


def _mean_curve(runs: list[dict]) -> tuple[list[int], list[float]]:
    curves = [run["curve"] for run in runs if run["steps"] == runs[0]["steps"]]
    return [step for step, _ in curves[0]], [
        statistics.mean(values) for values in zip(*([y for _, y in c] for c in curves), strict=True)
    ]


def _held_out(results: dict) -> Path:
    figure, axes = _figure()
    for axis, (name, task) in zip(axes.flat, TASKS.items(), strict=False):
        prefix = "error " if name == "regression" else ""
        for model, colour in COLOURS.items():
            if runs := _runs(results, name, model):
                points = _mean_curve(runs) if name == "characters" else _mean_points(runs, prefix)
                axis.plot(*points, color=colour, marker="." if name != "characters" else None)
        if name == "regression" and (any_run := _first(results, name)):
            axis.plot(*_mean_points([any_run], "exact "), "k:", label="exact posterior")
            axis.set_yscale("log")
            axis.legend()
        _label(axis, results, name, task.axis)
    _legend(axes.flat[-1])
    return _save(figure, "held_out.png")


def _training(results: dict) -> Path:
    figure, axes = _figure()
    for axis, name in zip(axes.flat, TASKS, strict=False):
        for model, colour in COLOURS.items():
            if runs := _runs(results, name, model):
                axis.plot(*_mean_curve(runs), color=colour)
        if name == "regression" and (any_run := _first(results, name)):
            axis.axhline(any_run["held_out"]["exact"], color="k", linestyle=":")
            axis.set_yscale("log")
        _label(axis, results, name, "step of training")
    _legend(axes.flat[-1])
    return _save(figure, "training.png")


def _label(axis, results: dict, name: str, below: str) -> None:
    unit = "squared error" if name == "regression" else TASKS[name].unit
    axis.set(title=TASKS[name].title, xlabel=below, ylabel=unit)
    if _first(results, name) is None:
        axis.text(0.5, 0.5, "not run", ha="center")
        axis.set(xticks=[], yticks=[])


def _first(results: dict, task: str) -> dict | None:
    return next((run for model in TITLES for run in _runs(results, task, model)), None)


def _legend(axis) -> None:
    for model, colour in COLOURS.items():
        axis.plot([], [], color=colour, label=TITLES[model])
    axis.legend(loc="center")
    axis.axis("off")


def _save(figure, name: str) -> Path:
    figure.savefig(IMAGES / name, dpi=110)
    return IMAGES / name
