"""``kanerva capacity``: recall against the number of stored patterns, for several models alike.

Episodes of T test images are written once each; short ones are parts of the longest ones. Measured
are the bound and its reconstruction term, nats per image, and the pixel errors of one read from
clean and from corrupted queries.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .._files import write_text
from ..data import salt_and_pepper
from . import _figures
from ._config import ConfigError
from ._loaded_run import (
    LoadedRun,
    Mean,
    add_run_arguments,
    check_at_least,
    check_share,
    fewest_images,
    load_runs,
    output_folder,
    table,
)

NUMBERS, PICTURE = "capacity.csv", "capacity.png"
LENGTHS = [8, 16, 32, 64, 100, 150, 200]
BATCH_IMAGES = 800
MAX_EPISODES = 1000
MEASURES = ("bound", "reconstruction", "clean_error", "noisy_error")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    where = "(default: the run's; of several, the current one)"
    add_run_arguments(parser, f"folder for {NUMBERS} and {PICTURE} {where}", several=True)
    default = " ".join(map(str, LENGTHS))
    numbers = {"type": int, "nargs": "+", "metavar": "N"}
    add("--lengths", **numbers, default=LENGTHS, help=f"T, patterns stored (default {default})")
    add("--classes", type=int, default=8, help="in an episode, or more where need be (default 8)")
    add("--episodes", type=int, default=8, help="of the largest length (default 8)")
    add("--share", type=float, default=0.15, help="of salt and pepper noise (default 0.15)")
    help = "one a run (default: its name without -sN or -seedN); runs of one label are seeds of it"
    add("--label", action="extend", nargs="+", metavar="NAME", help=help)


def run(args: argparse.Namespace) -> int:
    check_at_least(args, lengths=1, classes=1, episodes=(1, MAX_EPISODES))
    check_share(args)
    runs = load_runs(args)
    labels = args.label or [re.sub(r"-s(eed)?\d+$", "", each.folder.name) for each in runs]
    if len(labels) != len(runs):
        raise ConfigError(f"--label must be one for each of the {len(runs)} runs, got {labels}")
    if len({each.error_name for each in runs}) > 1:
        raise ConfigError("RUN must all have one likelihood of pixels, for one measure of error")
    lengths = sorted(set(args.lengths))
    num_classes = [_num_classes(each, lengths[-1], args.classes) for each in runs]
    names = [each.config.data.name for each in runs]
    for name, count in dict.fromkeys(zip(names, num_classes, strict=True)):
        if count > args.classes:
            print(f"{name}: {count} classes, not {args.classes}: {lengths[-1]} images need them")
    out = output_folder(args.out, runs)
    rows, series = [], []
    for each, label, count in zip(runs, labels, num_classes, strict=True):
        results = measure(each, lengths, count, args.episodes, args.share, args.seed)
        for length, means in zip(lengths, results, strict=True):
            row = {"run": each.name, "label": label, "length": length, "classes": count}
            rows.append(row | means)
        measures = {name: [means[name].mean for means in results] for name in MEASURES}
        series.append(_figures.Series(label, lengths, measures))
    _write(out / NUMBERS, rows)
    percent = MEASURES[2:] if runs[0].is_bernoulli else ()
    _figures.draw_capacity(series, titles(runs[0].error_name, args.share), out / PICTURE, percent)
    print(_table(rows, runs[0].format_error))
    print(out / NUMBERS, out / PICTURE, sep="\n")
    return 0


def titles(error: str, share: float) -> dict[str, str]:
    """Of the panels, by measure."""
    return {
        "bound": "bound given the memory, nats per image",
        "reconstruction": "reconstruction term, nats per image",
        "clean_error": f"{error}, clean queries",
        "noisy_error": f"{error}, {share:.0%} salt and pepper",
    }


def measure(
    run: LoadedRun, lengths: list[int], num_classes: int, count: int, share: float, seed: int
) -> list[dict[str, Mean]]:
    """The measures by name, for each length.

    Args:
        run: the model and its data.
        lengths: T, ascending. The longest episodes are cut into shorter ones, what is left over
            being dropped, so that all lengths are measured on nearly the same images; and so are
            all runs with the same data.
        num_classes: in each of the longest episodes.
        count: of the longest episodes. Standard errors are over their means.
        share: of the noise.
        seed: of the episodes, the noise and the model's samples.
    """
    generator = torch.Generator().manual_seed(seed)
    episodes = run.episodes(count, lengths[-1], num_classes, generator)
    queries = salt_and_pepper(episodes, share, generator)
    results = []
    for length in lengths:
        samples, parts = run.generator(seed), []
        size = max(1, BATCH_IMAGES // length)
        both = (_cut(tensor, length).split(size) for tensor in (episodes, queries))
        for images, corrupted in zip(*both, strict=True):
            state = run.write(images, samples)
            terms = run.elbo(images, state, samples)
            clean, noisy = run.reconstruct(images, state), run.denoise(corrupted, state, 1)[0]
            nats = (terms.bound.mean(1).cpu(), terms.reconstruction.mean(1).cpu())
            parts.append((*nats, run.pixel_error(clean, images), run.pixel_error(noisy, images)))
        values = [torch.cat(part).view(count, -1).mean(1) for part in zip(*parts, strict=True)]
        values = [Mean.of(each) for each in values]
        results.append(dict(zip(MEASURES, values, strict=True)))
    return results


def _cut(episodes: Tensor, length: int) -> Tensor:
    """(E, T, C, H, W) to (E * (T // length), length, C, H, W)."""
    count = episodes.shape[1] // length
    return episodes[:, : count * length].unflatten(1, (count, length)).flatten(0, 1)


def _num_classes(run: LoadedRun, length: int, wanted: int) -> int:
    """The least number of classes from ``wanted`` on that any choice of has so many images."""
    labels = run.images().labels
    available = len(labels.unique())
    for name, limit, value in (("classes", available, wanted), ("lengths", len(labels), length)):
        if value > limit:
            data = run.config.data.name
            raise ConfigError(f"--{name} must be at most the {limit} of {data}, got {value}")
    needed = wanted
    while fewest_images(labels, needed) < length:
        needed += 1
    return needed


def _write(path: Path, rows: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    errors = [f"{name}_standard_error" for name in MEASURES]
    both = [name for pair in zip(MEASURES, errors, strict=True) for name in pair]
    writer.writerow(["run", "label", "length", "classes", *both])
    for row in rows:
        values = [value for name in MEASURES for value in row[name]]
        cells = ["" if value is None else f"{value:.6g}" for value in values]
        writer.writerow([row["run"], row["label"], row["length"], row["classes"], *cells])
    write_text(path, text.getvalue())


def _table(rows: list[dict], format_error: Callable[[float], str]) -> str:
    cells = []
    for row in rows:
        nats = [f"{row[name].mean:.2f}" for name in MEASURES[:2]]
        errors = [format_error(row[name].mean) for name in MEASURES[2:]]
        cells.append([row["run"], row["label"], str(row["length"]), *nats, *errors])
    return table(["run", "label", "length", *MEASURES], cells)
