"""``kanerva generate``: images generated from memories of few classes, or by a VAE.

One-shot generation: an episode of a few classes is written, and images are read at addresses drawn
from their prior, then read again and again. All rows of a block start at the same addresses.
"""

from __future__ import annotations

import argparse

import torch

from . import _figures
from ._config import ConfigError
from ._figures import Block, Panel
from ._loaded_run import (
    MAX_SHOWN,
    LoadedRun,
    add_run_arguments,
    check_at_least,
    fewest_images,
    load_runs,
    output_folder,
)

FILE = "generate.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    out = f"folder for {FILE} (default: the run's; of several, the current one)"
    add_run_arguments(parser, out, several=True)
    numbers = {"type": int, "nargs": "+", "metavar": "N"}
    add("--classes", **numbers, default=[1, 2, 4, 12], help="in an episode (default 1 2 4 12)")
    add("--reads", **numbers, default=[0, 2, 4, 6, 8], help="rounds (default 0 2 4 6 8)")
    add("--count", type=int, default=8, help="images in a row (default 8)")


@torch.no_grad()
def run(args: argparse.Namespace) -> int:
    check_at_least(args, classes=1, reads=0, count=(1, MAX_SHOWN))
    runs = load_runs(args)
    for each in runs:
        if not hasattr(each.model, "generate"):
            raise ConfigError(f"RUN must be a model that can generate, got {each.name}")
    path = output_folder(args.out, runs) / FILE
    panels = {i: _from_memory(r, args) for i, r in enumerate(runs) if r.has_memory}
    # Samples of a VAE fill the height of the blocks beside them, whose titles take a row each.
    heights = [sum(1 + len(block.rows) for block in panel.blocks) for panel in panels.values()]
    rows = max(heights, default=args.count + 1) - 1
    for i, each in enumerate(runs):
        if i not in panels:
            panels[i] = _from_prior(each, args, rows)
    _figures.draw_panels([panels[i] for i in range(len(runs))], path)
    print(path)
    return 0


def _from_memory(run: LoadedRun, args: argparse.Namespace) -> Panel:
    labels = run.images().labels
    available = len(labels.unique())
    if min(args.classes) > available:
        raise ConfigError(
            f"--classes must be at most the test data's {available}, got {args.classes}"
        )
    blocks = []
    for num_classes in args.classes:
        what = "1 class" if num_classes == 1 else f"{num_classes} classes"
        if num_classes > available:
            print(f"{run.name}: {what} left out, the test data has {available}")
            continue
        length, fewest = run.config.data.episode_length, fewest_images(labels, num_classes)
        if fewest < length:
            print(
                f"{run.name}: of {what}, {fewest} images are written, not {length}: "
                "there may be no more"
            )
            length = fewest
        # The same seed every time: the classes of a small episode are among those of a larger one.
        images = run.episodes(1, length, num_classes, torch.Generator().manual_seed(args.seed))
        state = run.write(images, run.generator(args.seed))
        rows = [("written", images[0, : args.count])]
        for reads in args.reads:
            generator = run.generator(args.seed)
            samples = run.model.generate(state, args.count, reads, generator=generator)
            rows.append((f"{reads} reads" if reads != 1 else "1 read", samples[0].cpu()))
        blocks.append(Block(what, rows))
    return Panel(run.title, blocks)


def _from_prior(run: LoadedRun, args: argparse.Namespace, rows: int) -> Panel:
    samples = run.model.generate(rows * args.count, generator=run.generator(args.seed)).cpu()
    return Panel(run.title, [Block("samples", [("", row) for row in samples.split(args.count)])])
