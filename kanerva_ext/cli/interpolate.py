"""``kanerva interpolate``: images read between the addresses of pairs of images in one memory."""

from __future__ import annotations

import argparse

import torch

from . import _figures
from ._config import ConfigError
from ._loaded_run import (
    MAX_SHOWN,
    add_run_arguments,
    check_at_least,
    choose_count,
    load_runs,
    output_folder,
)

FILE = "interpolate.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_run_arguments(parser, f"folder for {FILE} (default: the run's)")
    add("--steps", type=int, default=8, help="addresses, the ends included (default 8)")
    add("--pairs", type=int, help="pairs of images (default 6)")


@torch.no_grad()
def run(args: argparse.Namespace) -> int:
    check_at_least(args, steps=(2, MAX_SHOWN))
    runs = load_runs(args)
    (run,) = runs
    images = run.episode(args.seed)
    count = choose_count(args, "pairs", 6, images.shape[1] // 2, "half of the episode's images")
    state = run.write(images, run.generator(args.seed))
    pairs = images[:, : 2 * count]
    weights = None if state is None else run.addresses(pairs, state)
    if weights is None:
        raise ConfigError(f"RUN must be a model with addresses in a memory, {run.name} has none")
    first, second = weights[:, 0::2], weights[:, 1::2]
    columns = [("image", pairs[0, 0::2])]
    for i in range(args.steps):
        share = i / (args.steps - 1)
        read = run.model.read_images((1 - share) * first + share * second, state)
        columns.append((f"{share:.2f}", read[0].cpu()))
    columns.append(("image", pairs[0, 1::2]))
    path = output_folder(args.out, runs) / FILE
    _figures.draw_columns(columns, path, run.title)
    print(path)
    return 0
