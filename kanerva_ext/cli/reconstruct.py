"""``kanerva reconstruct``: a picture of test images, what is read of them, and their addresses.

The images are written to the memory as one episode; a VAE reads each on its own.
"""

from __future__ import annotations

import argparse

from . import _figures
from ._loaded_run import add_run_arguments, choose_count, load_runs, output_folder

FILE = "reconstruct.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser, f"folder for {FILE} (default: the run's)")
    parser.add_argument("--count", type=int, help="images shown (default 8)")


def run(args: argparse.Namespace) -> int:
    runs = load_runs(args)
    (run,) = runs
    images = run.episode(args.seed)
    length = images.shape[1]
    count = choose_count(args, "count", 8, length, "the episode's images")
    state = run.write(images, run.generator(args.seed))
    pictures = run.reconstruct(images, state)
    addresses = None if state is None else run.addresses(images[:, :count], state)
    if addresses is not None:
        addresses = addresses[0].cpu()
    path = output_folder(args.out, runs) / FILE
    shown = (images[0, :count], pictures[0, :count], addresses)
    _figures.draw_reconstructions(*shown, path, run.title)
    print(path)
    error = run.format_error(run.pixel_error(pictures, images).item())
    print(f"{run.error_name} over the episode's {length} images: {error}")
    return 0
