"""docs/reproduction.md: its tables, written from the saved numbers between markers."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from .pages import markdown, with_tables, wrapped

NAMES = {
    "kanerva": "Kanerva Machine",
    "vae": "VAE, same coders",
    "dynamic": "Dynamic Kanerva Machine, reads at the mean address (no bound)",
    "dynamic-sampled": "Dynamic Kanerva Machine, reads at a sampled address",
    "dynamic-full": "Dynamic Kanerva Machine, reads at a sample of the exact posterior",
    "dynamic-started": "Dynamic Kanerva Machine, exact posterior, from the longer one's coders",
    "omniglot-kanerva": "Kanerva Machine, longer",
    "omniglot-vae": "VAE, same coders, longer",
    "mixed-kanerva": "Kanerva Machine, longer, then 192 slots and episodes of 8 to 192 images",
}
COLOUR_NAMES = {
    "kanerva": "Kanerva Machine",
    "dynamic": "Dynamic Kanerva Machine, a bound",
    "vae": "VAE, same coders",
}
COLOUR = re.compile(r"cifar(\d+)-(kanerva|dynamic|vae)(-conv)?(-short)?")
TERMS = ("bound", "reconstruction", "kl_y", "kl_z", "kl_weights", "kl_memory")


def write_page(results: dict, path: Path) -> None:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    path.write_text(with_tables(path.read_text(), TABLES, results, path))


def _terms(results: dict, names: list[str]) -> list[list[str]]:
    rows = []
    for name in names:
        experiment = results["experiments"].get(name)
        if experiment is None:
            continue
        runs = list(experiment["runs"].values())
        each = ", ".join(f"{run['test']['bound']:.1f}" for run in runs)
        means = [
            f"{statistics.mean(run['test'][term] for run in runs):.1f}"
            if term in runs[0]["test"]
            else "-"
            for term in TERMS[1:]
        ]
        seconds = statistics.median(run["seconds"] for run in runs)
        seen = f"{runs[0]['images'] / 1e6:.2f} million" if "images" in runs[0] else "-"
        row = [NAMES[name], f"{runs[0]['steps']:,}", seen, f"{seconds / 60:.0f}", each, *means]
        rows.append(row)
    return rows


def _bounds(results: dict) -> str:
    names = ["kanerva", "dynamic", "dynamic-sampled", "dynamic-full", "vae"]
    names += ["omniglot-kanerva", "mixed-kanerva", "dynamic-started", "omniglot-vae"]
    head = ["held-out Omniglot, nats per image", "steps", "images seen", "minutes"]
    head.append("bound of each seed")
    rows = _terms(results, names)
    experiments = results["experiments"]
    ratios = []
    for name in (name for name in names if name in experiments):
        longer = name.startswith(("omniglot-", "mixed-", "dynamic-started"))
        vae = experiments.get("omniglot-vae" if longer else "vae")
        ratio = _mean_bound(experiments[name]) / _mean_bound(vae) if vae else None
        ratios.append("-" if ratio is None else f"{ratio:.2f}")
    rows = [[*row, ratio] for row, ratio in zip(rows, ratios, strict=True)]
    return markdown([[*head, *TERMS[1:], "to the VAE's bound"], *rows])


def _mean_bound(experiment: dict) -> float:
    return statistics.mean(run["test"]["bound"] for run in experiment["runs"].values())


def _cifar(results: dict) -> str:
    """PPCA's row of a code size, then the models' at that size, the most images first."""
    ppca = {row["components"]: [_ppca_row(row)] for row in results.get("ppca", ())}
    found, rows = [], {}
    for name, experiment in results["experiments"].items():
        if match := COLOUR.fullmatch(name):
            together: dict[int, list[dict]] = {}  # seeds that came equally far
            for run in experiment["runs"].values():
                together.setdefault(run["images"], []).append(run)
            found += [(int(match[1]), -seen, match, runs) for seen, runs in together.items()]
    for size, _, match, runs in sorted(found, key=lambda row: row[:2]):
        rows.setdefault(size, ppca.get(size, [])).append(_colour_row(match, runs))
    head = ["5,000 test images", "C", "images seen", "minutes", "bits per dimension, each seed"]
    head += ["nats of the density per image", *TERMS[1:]]
    return markdown([head, *(row for size in sorted(rows) for row in rows[size])])


def _ppca_row(row: dict) -> list[str]:
    title = "probabilistic PCA, exact likelihood"
    cells = [title, str(row["components"]), "20,000, exactly", "-", f"{row['bits_per_dim']:.3f}"]
    return [*cells, f"{row['nats']:.0f}", *["-"] * len(TERMS[1:])]


def _coders(match: re.Match) -> str:
    return ", convolutions alone" if match[3] else ""


def _colour_row(match: re.Match, runs: list[dict]) -> list[str]:
    """Seeds that saw as many images: the bits of each, and the means of the terms."""
    title = COLOUR_NAMES[match[2]] + _coders(match)
    first = runs[0]
    if first["steps"] < first["planned_steps"]:
        title += f", at {first['steps'] / first['planned_steps']:.0%} of its training"
    minutes = statistics.median(run["seconds"] for run in runs) / 60
    bits = ", ".join(f"**{run['test']['bits_per_dim']:.3f}**" for run in runs)
    cells = [title, match[1], f"{first['images'] / 1e6:.2f} million", f"{minutes:.0f}", bits]
    for term, form in [("bound", ".0f"), *((term, ".1f") for term in TERMS[1:])]:
        values = [run["test"][term] for run in runs if term in run["test"]]
        cells.append(format(statistics.mean(values), form) if values else "-")
    return cells


def _ppca(results: dict) -> str:
    rows = [
        [
            str(row["components"]),
            f"{row['bits_per_dim']:.2f}",
            f"{row['autoencoder']:.2f}",
        ]
        for row in results.get("ppca", ())
    ]
    head = ["components", "bits per dimension", "its squared error alone, the codes for nothing"]
    return markdown([head, *rows])


def _denoising(results: dict) -> str:
    rows = []
    ways = {"denoise": "what was read", "aware": "and the noise that it knows of"}
    for name in ("kanerva", "dynamic", "vae"):
        runs = results["experiments"].get(name, {"runs": {}})["runs"]
        for way, title in ways.items():
            found = [run[way] for run in runs.values() if way in run]
            if not found:
                continue
            columns = [[r["corrupted"], *r["after_read"]] for r in found]
            cells = [", ".join(f"{e:.1%}" for e in each) for each in zip(*columns, strict=True)]
            rows.append([NAMES[name], title, *cells])
    head = ["share of wrong pixels, each seed", "next query", "corrupted", "read 1", "read 2"]
    return markdown([[*head, "read 3"], *rows])


def _reading(results: dict) -> str:
    rows = []
    for name, queries in results.get("reading", {}).items():
        match = COLOUR.fullmatch(name)
        title = f"CIFAR-10, C = {match[1]}{_coders(match)}" if match else "Omniglot"
        for row in queries:
            wrong = "wrong pixels" in row["measure"]
            cells = [f"{e:.1%}" if wrong else f"{e:.3f}" for e in row["errors"]]
            moved = f"{row['moved']:.0f}"
            rows.append([title, row["query"], *cells, moved, f"{row['nearest']:.0%}"])
    reads = max((len(row) - 5 for row in rows), default=1)
    head = ["Kanerva Machine", "query", "its error", *(f"read {i + 1}" for i in range(reads))]
    return markdown(
        [[*head, "y is off by, deviations of q", "y is nearest to the right one"], *rows]
    )


def _rates(results: dict) -> str:
    rows = []
    titles = {
        "dnc": "Differentiable Neural Computer",
        "lru": "least recently used",
        "short-kanerva": "Kanerva Machine",
    }
    pattern = re.compile(rf"({'|'.join(titles)})-lr(.+)")
    cells: dict[str, dict[str, str]] = {}
    for name, experiment in results["experiments"].items():
        if match := pattern.fullmatch(name):
            bounds = sorted(run["test"]["bound"] for run in experiment["runs"].values())
            text = f"{statistics.median(bounds):.1f} ({', '.join(f'{b:.1f}' for b in bounds)})"
            cells.setdefault(match[1], {})[match[2]] = text
    rates = list(dict.fromkeys(rate for row in cells.values() for rate in row))
    for kind, row in cells.items():
        rows.append([titles[kind], *(row.get(rate, "-") for rate in rates)])
    return markdown([["median bound (each seed), at a learning rate of", *rates], *rows])


def _capacity(results: dict) -> str:
    if "capacity" not in results:
        return ""
    rows = list(csv.DictReader(io.StringIO(results["capacity"])))
    lengths = sorted({int(row["length"]) for row in rows})
    labels = list(dict.fromkeys(row["label"] for row in rows))
    tables = []
    for measure, title, form in CAPACITY_MEASURES:
        body = []
        for label in labels:
            cells = []
            for length in lengths:
                values = [
                    float(row[measure])
                    for row in rows
                    if row["label"] == label and int(row["length"]) == length
                ]
                cells.append(form(statistics.mean(values)) if values else "-")
            body.append([label, *cells])
        tables.append(markdown([[f"{title}, patterns stored:", *map(str, lengths)], *body]))
    return "\n\n".join(tables)


CAPACITY_MEASURES: list[tuple[str, str, Callable[[float], str]]] = [
    ("bound", "bound, nats per image", lambda x: f"{x:.0f}"),
    ("clean_error", "wrong pixels of a recall", lambda x: f"{x:.1%}"),
    ("noisy_error", "wrong pixels, 15 % of the query replaced", lambda x: f"{x:.1%}"),
]


def _commands(results: dict) -> str:
    lines = [f"    {e['command']}" for e in results["experiments"].values()]
    lines += [f"    {command}" for command in results.get("figures", {}).values()]
    return "\n".join(lines)


def _origin(results: dict) -> str:
    """A line for every machine and day, with the experiments that were measured there."""
    measured: dict[str, dict[str, None]] = {}
    for name, experiment in results["experiments"].items():
        for run in experiment["runs"].values():
            machine = run["machine"]
            where = f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}"
            when = f"commit {machine['commit'][:10]}, {machine['date'][:10]}"
            measured.setdefault(f"{where}, {when}", {})[f"`{name}`"] = None
    lines = [f"- {place}: {', '.join(names)}" for place, names in measured.items()]
    return wrapped("\n".join(["One thread per run.", "", *lines]))


TABLES: dict[str, Callable[[dict], str]] = {
    "origin": _origin,
    "bounds": _bounds,
    "cifar": _cifar,
    "ppca": _ppca,
    "denoising": _denoising,
    "reading": _reading,
    "rates": _rates,
    "capacity": _capacity,
    "commands": _commands,
}
