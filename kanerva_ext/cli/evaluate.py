"""``kanerva evaluate``: the bound and its terms of trained models, as a table.

Nats per image. What a memory holds of its episode, kl_memory, is not in the bound.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .._files import write_text
from ..models import evaluate
from ._config import ConfigError
from ._folders import make_folder
from ._loaded_run import (
    LoadedRun,
    add_run_arguments,
    check_at_least,
    load_runs,
    output_folder,
    table,
)

FILE = "evaluate.json"
_FIRST = ("bound", "standard_error", "bits_per_dim")  # columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_run_arguments(parser, f"folder for {FILE} (default: none is written)", several=True)
    add("--split", choices=("test", "train"), default="test", help="images (default test)")
    add("--rounds", type=int, default=4, help="random partitions into episodes (default 4)")
    add("--episode-length", type=int, metavar="T", help="images of one (default: as in training)")
    add("--other-memory", action="store_true", help="read each episode from another one's memory")
    add("--json", type=Path, metavar="FILE", help="write the numbers there too")


def run(args: argparse.Namespace) -> int:
    check_at_least(args, rounds=1)
    if args.episode_length is not None:
        check_at_least(args, episode_length=1)
    runs = load_runs(args)
    if args.other_memory:
        for each in runs:
            if not each.has_memory:
                raise ConfigError(f"--other-memory needs a memory, {each.name} has none")
    files = []
    if args.json is not None:
        if args.json.is_dir():
            raise ConfigError(f"--json must be a file, got the folder {args.json}")
        make_folder(args.json.parent, "--json")
        files.append(args.json)
    if args.out is not None:
        files.append(output_folder(args.out, runs) / FILE)
    terms = [_evaluate(each, args) for each in runs]
    print(_table(runs, terms))
    settings = {name: getattr(args, name) for name in ("split", "rounds", "other_memory", "seed")}
    results = [
        {"run": each.name, "step": each.step, "episode_length": _length(each, args)} | values
        for each, values in zip(runs, terms, strict=True)
    ]
    for file in files:
        write_text(file, json.dumps(settings | {"runs": results}, indent=2) + "\n")
    return 0


def _length(run: LoadedRun, args: argparse.Namespace) -> int:
    return args.episode_length or run.config.data.episode_length


def _evaluate(run: LoadedRun, args: argparse.Namespace) -> dict[str, float]:
    images, length = run.images(args.split).images, _length(run, args)
    if args.other_memory and len(images) < 2 * length:
        raise ConfigError(
            f"--other-memory needs images for two episodes of {length}, got {len(images)}"
        )
    if len(images) < length:
        raise ConfigError(
            f"--episode-length must be at most {len(images)}, the images of {run.name}, "
            f"got {length}"
        )
    return evaluate(
        run.model,
        images,
        episode_length=length,
        rounds=args.rounds,
        other_memory=args.other_memory,
        pixels=run.config.data.pixels,
        seed=args.seed,
    )


def _table(runs: list[LoadedRun], terms: list[dict[str, float]]) -> str:
    columns = [name for name in _FIRST if any(name in values for values in terms)]
    columns += dict.fromkeys(name for values in terms for name in values if name not in _FIRST)
    rows = []
    for run, values in zip(runs, terms, strict=True):
        cells = [_cell(name, values.get(name)) for name in columns]
        rows.append([run.name, str(run.step), *cells])
    return table(["run", "step", *columns], rows)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if name == "bits_per_dim" else f"{value:.2f}"
