"""``kanerva denoise``: pixel errors of reads from corrupted queries, and a picture of them.

The memory is written from the clean episode, and each read is the next query. A VAE reads without a
memory.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor

from .._files import write_text
from ..data import occlude, salt_and_pepper, split_episodes
from . import _figures
from ._config import ConfigError
from ._loaded_run import (
    MAX_SHOWN,
    LoadedRun,
    Mean,
    add_run_arguments,
    check_at_least,
    check_share,
    choose_count,
    load_runs,
    output_folder,
    table,
)

PICTURE, NUMBERS = "denoise.png", "denoise.json"
CORRUPTIONS = {"salt-and-pepper": salt_and_pepper, "occlusion": occlude}
BATCH_EPISODES = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_run_arguments(parser, f"folder for {PICTURE} and {NUMBERS} (default: the run's)")
    first, *_ = kinds = tuple(CORRUPTIONS)
    add("--corruption", choices=kinds, default=first, help=f"of the queries (default {first})")
    add("--share", type=float, default=0.15, help="of the pixels or the area (default 0.15)")
    add("--reads", type=int, default=3, help="reads in a row (default 3)")
    add("--aware", action="store_true", help="tell the model the share of salt and pepper noise")
    add("--count", type=int, help="images shown (default 8)")


def run(args: argparse.Namespace) -> int:
    check_share(args)
    check_at_least(args, reads=(1, MAX_SHOWN))
    runs = load_runs(args)
    (run,) = runs
    if args.aware and (args.corruption != "salt-and-pepper" or not run.is_bernoulli):
        what = args.corruption if run.is_bernoulli else "pixels that are not Bernoulli's"
        raise ConfigError(f"--aware is for salt and pepper on Bernoulli pixels, got {what}")
    if args.aware and args.share == 1:
        raise ConfigError("--share must be below 1 with --aware, got 1.0")
    length = run.config.data.episode_length
    count = choose_count(args, "count", 8, length, "the episode's images")
    out = output_folder(args.out, runs)
    errors, images = _read_all(run, args)
    means = [Mean.of(values) for values in errors]
    titles = ["corrupted", *(f"read {i + 1}" for i in range(args.reads))]
    shown = [column[:count] for column in images]
    columns = list(zip(["clean", *titles], shown, strict=True))
    _figures.draw_columns(columns, out / PICTURE, run.title)
    names = ("corruption", "share", "reads", "aware", "seed")
    numbers = {"run": run.name, "step": run.step} | {name: getattr(args, name) for name in names}
    numbers |= {"measure": run.error_name, "episodes": errors.shape[1]}
    numbers |= {"corrupted": means[0].mean, "after_read": [each.mean for each in means[1:]]}
    numbers["standard_errors"] = [each.standard_error for each in means]
    write_text(out / NUMBERS, json.dumps(numbers, indent=2) + "\n")
    cells = [run.format_error(each.mean) for each in means]
    print(table([run.error_name, *titles], [[run.name, *cells]]))
    print(out / PICTURE)
    return 0


def _read_all(run: LoadedRun, args: argparse.Namespace) -> tuple[Tensor, list[Tensor]]:
    """Errors (1 + reads, E) of all test episodes, and of the first one the images to show."""
    data = run.config.data
    generator = torch.Generator().manual_seed(args.seed)
    samples = run.generator(args.seed)
    episodes = split_episodes(
        run.images().images,
        episode_length=data.episode_length,
        pixels=data.pixels,
        generator=generator,
    )
    errors, columns = [], []
    for images in episodes.split(BATCH_EPISODES):
        corrupted = CORRUPTIONS[args.corruption](images, args.share, generator)
        noise = args.share if args.aware else 0.0
        reads = run.denoise(corrupted, run.write(images, samples), args.reads, noise)
        seen = torch.cat([corrupted.unsqueeze(0), reads])
        errors.append(run.pixel_error(seen, images))
        columns = columns or [images[0], *seen[:, 0]]
    return torch.cat(errors, dim=1), columns
