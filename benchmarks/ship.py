"""A finished run becomes a model that ships: kanerva_ext/pretrained/NAME.safetensors and its card.

    python -m benchmarks.ship RUN NAME --commit COMMIT [--root FOLDER]

for example

    python -m benchmarks.ship runs/reproduction/omniglot-kanerva-s0 omniglot-kanerva --commit HEAD

The optimiser's state is left out, and matrices are stored as float16 if that moves the bound on the
test images by less than 0.1 %, else as float32. The numbers in the file and on the card are those
of ``kanerva evaluate`` and ``kanerva denoise`` on the file itself. What the run had at its end must
come out again first, so that data or code that changed meanwhile is noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kanerva_ext import __version__, cli, pretrained
from kanerva_ext._files import write_text
from kanerva_ext._safetensors import MODEL, write_tensors
from kanerva_ext.cli import _checkpoint
from kanerva_ext.cli._config import Config, ConfigError
from kanerva_ext.cli._config_files import load_config, presets
from kanerva_ext.data import load_images
from kanerva_ext.models import MODELS

from .reproduce_experiments import ROOT
from .ship_card import LICENCES, write_card

TOLERANCE = 1e-3  # of the bound, for float16
SAME = 1e-4  # of the bound, between this machine and where the run ended


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in float16; what is small, and what is no float32, stays."""
    return {
        name: tensor.half() if tensor.dtype == torch.float32 and tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    }


def training_command(config: Config) -> str:
    """The ``kanerva train`` that makes such a run: the closest preset, and what differs from it."""
    commands = []
    for name in presets():
        sets = _differences(load_config(name), config)
        words = [name, *(word for each in sets for word in ("--set", each))]
        if _without_root(load_config(name, sets)) == _without_root(config):
            commands.append(words)
    if not commands:
        raise ConfigError("RUN must be of a configuration that a preset and --set can give")
    words = min(commands, key=len)
    if config.data.root is not None:
        words += ["--set", "data.root=FOLDER"]
    return shlex.join(["kanerva", "train", *words])


def _differences(preset: Config, config: Config) -> list[str]:
    """``section.key=value`` for every value of the configuration that the preset's is not."""
    old, new = _without_root(preset), _without_root(config)
    return [
        f"{section}.{key}={value if isinstance(value, str) else json.dumps(value)}"
        for section, values in new.items()
        for key, value in values.items()
        if value is not None and old[section].get(key) != value
    ]


def _without_root(config: Config) -> dict[str, Any]:
    values = config.as_dict()
    return values | {"data": values["data"] | {"root": None}}


def figures(file: Path, root: str | None, seed: int, *options: str) -> dict[str, float]:
    """What ``kanerva evaluate`` finds, by name."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = Path(folder) / "numbers.json"
        _run(["evaluate", str(file), "--json", str(numbers), *options], root, seed)
        (terms,) = json.loads(numbers.read_text())["runs"]
    return {name: value for name, value in terms.items() if name not in ("run", "step")}


def lengths(shortest: int, longest: int) -> list[int]:
    """The shortest episode, twice that, and so on, and the longest."""
    result = [shortest]
    while 2 * result[-1] < longest:
        result.append(2 * result[-1])
    return [*result, longest] if shortest < longest else result


def reads(file: Path, root: str | None, seed: int) -> dict[str, Any]:
    """What ``kanerva denoise`` finds."""
    with tempfile.TemporaryDirectory() as folder:
        _run(["denoise", str(file), "--out", folder], root, seed)
        numbers = json.loads((Path(folder) / "denoise.json").read_text())
    names = ("corruption", "share", "measure", "corrupted", "after_read")
    return {name: numbers[name] for name in names}


def _run(words: list[str], root: str | None, seed: int) -> None:
    words += ["--seed", str(seed), "--device", "cpu"] + (["--root", root] if root else [])
    with contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(words)
    if status:
        raise ConfigError(f"kanerva {shlex.join(words)} failed")


def ship(run: Path, name: str, commit: str, root: str | None, folder: Path) -> Path:
    """Write the model and its card; the model's file.

    Args:
        run: a folder, at its end.
        name: of the model.
        commit: the revision of this repository that trained it.
        root: of the data, in place of the configuration's.
        folder: for both files.

    Raises:
        ConfigError: the run is not at its end, or does not give the numbers that it ended with;
            or a name that is none of a file.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise ConfigError(f"NAME must be of small letters, digits, - and ., got {name!r}")
    metrics = run / "metrics.json"
    if not metrics.is_file():
        raise ConfigError(f"RUN must be at its end, {run} has no {metrics.name}")
    ended = json.loads(metrics.read_text())["test"]
    checkpoint = _checkpoint.load(run / _checkpoint.FILE)
    config, seed = checkpoint.config, checkpoint.config.training.seed
    if config.model["type"] not in MODELS or config.data.name not in LICENCES:
        raise ConfigError(
            f"RUN must be of a model {tuple(MODELS)} on data {tuple(LICENCES)}, "
            f"got {config.model['type']!r} on {config.data.name!r}"
        )
    root = config.data.root if root is None else root
    about: dict[str, Any] = {"name": name, "commit": commit, "command": training_command(config)}
    about |= {"licence": "MIT", "data_licence": LICENCES[config.data.name]}
    sizes = {split: len(load_images(config.data.name, split, root).images) for split in _SPLITS}
    about["images"] = sizes
    # Folders of the machine that trained are nobody else's.
    data = dataclasses.replace(config.data, root=None)
    metadata: dict[str, Any] = {"config": dataclasses.replace(config, data=data).as_dict()}
    extra = {"precision": checkpoint.extra["precision"], "threads": checkpoint.extra["threads"]}
    metadata |= {"step": checkpoint.step, "seconds": checkpoint.seconds}
    metadata |= {"extra": extra, "kanerva_ext": __version__}
    whole = {n: t for n, t in checkpoint.tensors.items() if n.startswith(MODEL)}
    half = halved(whole)

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{name}.safetensors"
        write_tensors(file, whole, metadata)
        about["test_float32"] = figures(file, root, seed)
        now, then = about["test_float32"]["bound"], ended["bound"]
        if not math.isclose(now, then, rel_tol=SAME):
            raise ConfigError(f"{run} ended with a bound of {then:.3f}, and has {now:.3f} now")
        write_tensors(file, half, metadata)
        about["test"] = figures(file, root, seed)
        moved = abs(about["test"]["bound"] - now) / abs(now)
        about["dtype"], tensors = "float16", half
        print(f"bound {now:.4f} in float32, {about['test']['bound']:.4f} in float16: {moved:.4%}")
        if not moved < TOLERANCE:
            about["dtype"], tensors, about["test"] = "float32", whole, about["test_float32"]
            write_tensors(file, whole, metadata)
        if "kl_memory" in about["test"] and sizes["test"] >= 2 * config.data.episode_length:
            about["test_other_memory"] = figures(file, root, seed, "--other-memory")
        if config.data.shortest_episode is not None:
            about["bounds_by_length"] = {
                length: figures(file, root, seed, "--episode-length", str(length))["bound"]
                for length in lengths(config.data.shortest_episode, config.data.episode_length)
            }
        about["reads"] = reads(file, root, seed)

    file = folder / f"{name}.safetensors"
    write_tensors(file, tensors, metadata | {"pretrained": about})
    write_text(file.with_suffix(".md"), write_card(file))
    return file


_SPLITS = ("train", "test")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a run that is at its end")
    add("name", metavar="NAME", help="of the model")
    add("--commit", required=True, help="the revision of this repository that trained it")
    add("--root", help="where the data is (default: where it was in training)")
    add("--out", type=Path, default=pretrained.FOLDER, help="default: the package's folder")
    args = parser.parse_args(argv)
    words = ["git", "rev-parse", "--verify", "--quiet", f"{args.commit}^{{commit}}"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        parser.error(f"--commit must be a commit of this repository, got {args.commit}")
    try:
        file = ship(args.run, args.name, found.stdout.strip(), args.root, args.out)
    except ConfigError as error:
        parser.error(str(error))
    print(f"{file}: {file.stat().st_size:,} bytes", file.with_suffix(".md"), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
