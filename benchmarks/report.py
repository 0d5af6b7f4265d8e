"""docs/performance.md and its pictures, from the saved results: ``python -m benchmarks.report``.

The newest file of each benchmark in ``benchmarks/results/``, by device. Nothing is typed by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from . import iterative, machine, overhead, scaling, training_step
from .compare import RESULTS
from .gpu import sections
from .pages import markdown, wrapped

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "images" / "performance"
BY_OPERATOR = ("compare", "scaling")
DIRECTIONS = {"forward": "forward", "forward_backward": "with gradient"}
INTRODUCTION = """# Performance

Made by `python -m benchmarks.report` from the files in `benchmarks/results/`: the newest of each
benchmark, by device. Before a time is taken the result is compared with float64 in the same run.
"Best PyTorch" is the fastest of all compositions of PyTorch operators in `benchmarks/rivals/`, at
every shape anew; providers take turns in one process, and times are medians. A ratio is its median
over ours: **below 1 we are slower**. "Of the limit" is the least time that this machine allows over
ours: the operations that are counted (`kanerva_ext.flops`) at the rate of the faster of PyTorch's
product and ours, or the bytes of arguments and results at the rate of a copy.
"""


def newest(folder: Path) -> dict[str, dict[str, list[dict]]]:
    """Device -> benchmark -> the newest content for each operator (or one, where it has none)."""
    found: dict[str, dict[str, dict[str, dict]]] = {}
    for path in sorted(folder.glob("*.json"), key=_stamp):
        content = json.loads(path.read_text())
        if "benchmark" not in content:
            continue
        device = str(content["machine"].get("gpu") or content["machine"]["cpu"])
        kept = found.setdefault(device, {}).setdefault(content["benchmark"], {})
        if content["benchmark"] not in BY_OPERATOR:
            kept[""] = content
            continue
        for operator in dict.fromkeys(row["operator"] for row in content["rows"]):
            rows = [row for row in content["rows"] if row["operator"] == operator]
            kept[operator] = content | {"rows": rows}
    return {
        device: {name: list(kept.values()) for name, kept in contents.items()}
        for device, contents in found.items()
    }


def _stamp(path: Path) -> str:
    match = re.search(r"\d{8}T\d{6}", path.name)
    return match[0] if match else ""


def origin(content: dict) -> str:
    about = content["machine"]
    loads = [row.get("other_load") for row in content["rows"]] + [about.get("other_load")]
    busy = max((load for load in loads if load is not None), default=0)
    text = f"{about['date'][:10]}, commit {str(about['commit'])[:10]}, {machine.setting(about)}"
    if busy > 0.1:
        text += f"; other programs kept up to {busy:.1f} cores busy, take the times as rough"
    return f"{text}."


def compare_section(contents: list[dict], device: str) -> str:
    parts = ["### Operators against the best PyTorch composition"]
    total = slower = 0
    for content in contents:
        everything = [row for row in content["rows"] if row["against"] == "all"]
        for backend in dict.fromkeys(row.get("backend", "auto") for row in everything):
            own = [row for row in everything if row.get("backend", "auto") == backend]
            parts += _compared(own, backend, content)
        total += len(everything)
        slower += sum(row["ratio"] < 1 for row in everything)
    parts.append(f"{total - slower} of {total} rows are at least as fast as PyTorch.")
    return "\n\n".join(parts)


def _compared(own: list[dict], backend: str, content: dict) -> list[str]:
    operator = own[0]["operator"]
    head = [f"`{operator}` at (B, T, K, C)"]
    for title in DIRECTIONS.values():
        head += [f"{title}: ours", "of the limit", "best PyTorch", "ratio", "which", "error"]
    lines = [head]
    for shape in dict.fromkeys(row["shape"] for row in own):
        line = [f"({shape.replace('x', ', ')})"]
        for direction in DIRECTIONS:
            found = [r for r in own if (r["shape"], r["direction"]) == (shape, direction)]
            line += _cells(found[0]) if found else ["-"] * 6
        lines.append(line)
    title = f"`{operator}`" + ("" if backend == "auto" else f", backend {backend}")
    return [f"{title}: {origin(content)}", markdown(lines)]


def _cells(row: dict) -> list[str]:
    ratio = f"{row['ratio']:.2f}"
    return [
        f"{row['ours_ms']:.3f} ms",
        f"{row['of_ceiling']:.2f}" if "of_ceiling" in row else "-",
        f"{row['rival_ms']:.3f} ms",
        f"**{ratio}**" if row["ratio"] < 1 else ratio,
        f"`{row['rival']}`",
        f"{row['ours_error']:.0e}",
    ]


def scaling_section(contents: list[dict], device: str) -> str:
    parts = ["### How times grow"]
    lines = [["slope at the end, ours (best PyTorch's)", *scaling.AXES]]
    for content in contents:
        rows = [scaling.Row(**row) for row in content["rows"]]
        operator = rows[0].operator
        for direction, title in DIRECTIONS.items():
            cells = []
            for axis in scaling.AXES:
                curve = _curve(rows, operator, direction, axis)
                timed = [r for r in curve if r.rival_ms is not None]
                own = _slope([(r.size, r.ours_ms) for r in curve])
                best = _slope([(r.size, r.rival_ms) for r in timed])
                cells.append(f"{own} ({best})" if curve else "-")
            lines.append([f"`{operator}`, {title}", *cells])
        name = f"{_slug(device)}-{operator}.png"
        _draw(rows, operator, PICTURES / name)
        parts += [
            f"![{operator}](images/performance/{name})",
            f"`{operator}`: {origin(content)}",
            *curve_table(rows, operator),
        ]
    parts.insert(1, markdown(lines))
    return "\n\n".join(parts)


def _slope(points: list[tuple[int, float]]) -> str:
    return f"{scaling.slope(*zip(*points, strict=True)):.2f}" if len(points) > 1 else "-"


def curve_table(rows: list[scaling.Row], operator: str) -> list[str]:
    """Every point, and beneath the table which compositions were not timed there, and why."""
    head, lines, notes = [f"`{operator}` at (B, T, K, C)"], [], []
    for title in DIRECTIONS.values():
        head += [f"{title}: ours", "best PyTorch", "ratio", "which"]
    for axis in scaling.AXES:
        curves = [_curve(rows, operator, direction, axis) for direction in DIRECTIONS]
        marks = []
        for curve, title in zip(curves, DIRECTIONS.values(), strict=True):
            note = left_out(curve)
            if note:
                notes.append(f"{axis}, {title}: {note}")
            marks.append(f"<sup>{len(notes)}</sup>")
        for shape in dict.fromkeys(row.shape for curve in curves for row in curve):
            line = [f"({shape.replace('x', ', ')})"]
            for curve, mark in zip(curves, marks, strict=True):
                found = [row for row in curve if row.shape == shape]
                line += _point(found[0], mark) if found else ["-"] * 4
            lines.append(line)
    table = markdown([head, *lines])
    text = "\n".join(f"{i}. {note}" for i, note in enumerate(notes, 1))
    return [table, f"Left out of a point:\n\n{text}"] if notes else [table]


def _point(row: scaling.Row, mark: str) -> list[str]:
    mark = mark if row.left_out else ""
    if row.rival_ms is None:
        return [f"{row.ours_ms:.3f} ms", f"-{mark}", "-", "-"]
    ratio = row.rival_ms / row.ours_ms
    return [
        f"{row.ours_ms:.3f} ms",
        f"{row.rival_ms:.3f} ms{mark}",
        f"**{ratio:.2f}**" if ratio < 1 else f"{ratio:.2f}",
        f"`{row.rival}`",
    ]


def left_out(curve: list[scaling.Row]) -> str:
    """Reasons, each with the compositions that it kept out and the sizes."""
    sizes: dict[str, dict[str, list[int]]] = {}
    for row in curve:
        for reason, names in row.left_out.items():
            for name in names:
                sizes.setdefault(reason, {}).setdefault(name, []).append(row.size)
    texts = []
    for reason, found in sizes.items():
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, at in found.items():
            groups.setdefault(tuple(at), []).append(f"`{name}`")
        kept_out = (f"{', '.join(names)} at {_span(at)}" for at, names in groups.items())
        texts.append(f"{reason} ({'; '.join(kept_out)})")
    return "; ".join(texts)


def _span(sizes: tuple[int, ...]) -> str:
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"


def _curve(rows: list[scaling.Row], operator: str, direction: str, axis: str):
    wanted = (operator, direction, axis)
    return [row for row in rows if (row.operator, row.direction, row.axis) == wanted]


def _draw(rows: list[scaling.Row], operator: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((13, 3.4))
    panels = figure.subplots(1, len(scaling.AXES))
    for ax, axis in zip(panels, scaling.AXES, strict=True):
        for color, (direction, title) in zip(("C0", "C1"), DIRECTIONS.items(), strict=True):
            curve = _curve(rows, operator, direction, axis)
            ax.loglog([r.size for r in curve], [r.ours_ms for r in curve], f"{color}o-", ms=3)
            timed = [r for r in curve if r.rival_ms is not None]
            ax.loglog([r.size for r in timed], [r.rival_ms for r in timed], f"{color}x--", ms=4)
            ax.plot([], [], f"{color}-", label=title)
        fixed = dict(zip("BTKC", scaling.AXES[axis][0], strict=True))
        del fixed[axis]
        ax.set_title(", ".join(f"{n} = {v}" for n, v in fixed.items()), fontsize=9)
        ax.set_xlabel(axis)
        ax.grid(alpha=0.3)
    panels[0].set_ylabel("ms; dashed: best PyTorch")
    panels[0].legend(fontsize=8)
    figure.suptitle(operator)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def overhead_section(contents: list[dict], device: str) -> str:
    (content,) = contents
    rows = [overhead.Row(**row) for row in content["rows"]]
    lines = [["a call at (1, 1, 1, 1)", "in all", "beyond the layer inside it"]]
    for row in rows:
        own = "-" if row.layer in overhead.APART else f"{row.own_us:.1f} us"
        lines.append([f"`{row.operator}`, {row.layer}", f"{row.total_us:.1f} us", own])
    return "\n\n".join(
        ["### What a call costs besides its kernel", origin(content), markdown(lines)]
    )


def training_section(contents: list[dict], device: str) -> str:
    (content,) = contents
    rows = [training_step.Row(**row) for row in content["rows"]]
    parts = ["### A training step at the papers' Omniglot settings", origin(content)]
    parts.append(markdown(training_step.table(rows)))
    return "\n\n".join(parts)


def memory_section(contents: list[dict], device: str) -> str:
    (content,) = contents
    lines = [
        ["`bayes_write` forward and backward", "MiB beyond the inputs", "to inputs and outputs"]
    ]
    for row in content["rows"]:
        grown = f"{row['growth_bytes'] / 2**20:.0f}"
        lines.append([f"`{row['provider']}` ({row['shape']})", grown, f"{row['strict_ratio']:.2f}"])
    return "\n\n".join(["### Peak memory", origin(content), markdown(lines)])


def iterative_section(contents: list[dict], device: str) -> str:
    (content,) = contents
    rows = [iterative.Row(**row) for row in content["rows"]]
    head = ["(B, T, K, C)", "`causal_scan`", f"{iterative.ITERATIONS} iterations", "ratio"]
    lines = [[*head, "error, independent keys", "error, correlated keys"]]
    for r in rows:
        errors = (
            f"{r.exact_error_independent:.0e}, {r.conjugate_gradients_error_independent:.0e}",
            f"{r.exact_error_correlated:.0e}, {r.conjugate_gradients_error_correlated:.0e}",
        )
        shape = f"({r.shape.replace('x', ', ')})"
        times = f"{r.exact_ms:.1f} ms", f"{r.conjugate_gradients_ms:.1f} ms", f"{r.ratio:.1f}"
        lines.append([shape, *times, *errors])
    text = (
        "The reads of `causal_scan` against conjugate gradients on the precision of every step, "
        "chunk by chunk in PyTorch (the arithmetic of MesaNet); errors against float64, ours first."
    )
    parts = ["### The exact read against iterations", text, origin(content), markdown(lines)]
    return "\n\n".join(parts)


SECTIONS: dict[str, Callable[[list[dict], str], str]] = {
    "compare": compare_section,
    "iterative": iterative_section,
    "scaling": scaling_section,
    "training_step": training_section,
    "overhead": overhead_section,
    "memory": memory_section,
    "gpu_benchmarks": sections.benchmarks_section,
    "gpu_triton": sections.triton_section,
}


def _slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def page(found: dict[str, dict[str, list[dict]]]) -> str:
    parts = [INTRODUCTION]
    for device, contents in found.items():
        parts.append(f"## {device}\n")
        parts += [f"{make(contents[n], device)}\n" for n, make in SECTIONS.items() if n in contents]
    every = [content for contents in found.values() for few in contents.values() for content in few]
    if not any(content["machine"].get("gpu") for content in every):
        parts.append(sections.NO_GPU)
    return "\n".join(parts)


def main() -> int:
    PAGE.write_text(wrapped(page(newest(RESULTS))))
    print(f"written to {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
