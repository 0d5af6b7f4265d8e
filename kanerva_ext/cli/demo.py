"""``kanerva demo``: a Kanerva Machine and a VAE on Omniglot, shown in seconds, trained in minutes.

First the two that ship with the package are shown, then they train on, and are shown again. With
``--new``, or sizes of your own, both begin with new parameters instead. They have the same coders,
see the same batches, side by side, and get the same tricks. Written to
the folder: ``reconstructions.png``, ``denoising.png``, ``generations.png``, ``training.png``,
``demo.png`` (a wide picture of all), ``metrics.json`` and ``checkpoint.safetensors``; an earlier
demo's models that were trained become ``checkpoint-before.safetensors``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .. import __version__, _backend, backends, pretrained
from .._files import write_text
from ..data import load_omniglot
from ..models import KanervaMachine, MatchedVAE
from . import _checkpoint
from ._checkpoint import FILE
from ._config import ConfigError
from ._demo_results import PICTURES, draw, measure, table
from ._demo_training import fit, load_checkpoint, save_checkpoint
from ._device import check_backend
from ._folders import make_folder
from ._loaded_run import check_at_least

RESERVED = 15.0  # seconds of the wall time, for evaluation and pictures
MAX_SIZES = {"batch_size": 1024, "memory_size": 4096, "code_size": 8192}
METRICS = "metrics.json"
BEFORE = "checkpoint-before.safetensors"  # an earlier demo's models
START = ("omniglot-kanerva", "omniglot-vae")  # of the models that ship
LEARNING_RATES = {"new": 3e-3, "trained": 3e-4}
SPACE = 2**22  # bytes, more than the files take at the usual sizes
FILES = (*(f"{name}.png" for name in PICTURES), METRICS, FILE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("demo_output"), help="folder (default demo_output)")
    add("--minutes", type=float, help="of wall time, for everything (default 5); 0: no training")
    add("--steps", type=int, help="training steps of each model, in place of --minutes")
    add("--seed", type=int, default=0, help="default 0; --steps then repeats exactly")
    add("--threads", type=int, help="default: the cores, 4 at most")
    add("--batch-size", type=int, default=2, help="episodes in a batch (default 2)")
    add("--memory-size", type=int, help="slots of a new memory (default 32)")
    add("--code-size", type=int, help="size of a new model's code (default 100)")
    rates = "default 3e-3; 3e-4 for those that ship"
    add("--learning-rate", type=float, help=f"Adam's, at its highest ({rates})")
    add("--new", action="store_true", help="train new models; those that ship are left alone")
    add("--checkpoint", type=Path, help="go on from this file, or folder of a demo; its sizes hold")


def _check(args: argparse.Namespace) -> None:
    """Fills in what depends on other options.

    Raises:
        ConfigError: an option is out of bounds, or does not go with another one.
    """
    if args.minutes is not None and args.steps is not None:
        raise ConfigError("give --minutes or --steps, not both")
    if args.minutes is None and args.steps is None:
        args.minutes = 5.0
    if args.minutes is not None and not 0 <= args.minutes < math.inf:
        raise ConfigError(f"--minutes must be at least 0 and finite, got {args.minutes}")
    sizes = args.memory_size is not None or args.code_size is not None
    args.new = args.new or (sizes and args.checkpoint is None)
    if args.new and args.checkpoint is not None:
        raise ConfigError("give --new or --checkpoint, not both")
    if args.minutes == 0 and args.new:
        raise ConfigError("--minutes 0 trains nothing, and new models must be trained")
    args.shipped = not args.new and args.checkpoint is None
    if args.learning_rate is None:
        args.learning_rate = LEARNING_RATES["trained" if args.shipped else "new"]
    if args.threads is None:
        args.threads = min(4, os.cpu_count() or 1)
    bounds: dict[str, Any] = {"seed": 0, "steps": 1, "threads": 1}
    bounds |= {name: (1, high) for name, high in MAX_SIZES.items()}
    given = {name: each for name, each in bounds.items() if getattr(args, name) is not None}
    check_at_least(args, **given)
    if not 0 < args.learning_rate < math.inf:
        raise ConfigError(f"--learning-rate must be positive and finite, got {args.learning_rate}")
    if args.checkpoint is not None:
        if str(args.checkpoint).startswith(pretrained.PREFIX):
            raise ConfigError(
                f"--checkpoint must be of a demo, got {args.checkpoint}; without --checkpoint and "
                f"--new the demo begins with {' and '.join(START)}"
            )
        if args.checkpoint.is_dir():
            args.checkpoint /= FILE
        if not args.checkpoint.is_file():
            raise ConfigError(f"--checkpoint {args.checkpoint}: no such file")
        if sizes:
            raise ConfigError("--memory-size and --code-size are the checkpoint's; leave them out")
    if (args.out / "config.json").is_file():
        raise ConfigError(f"--out {args.out} is a run of kanerva train; name another folder")


def _will_keep(args: argparse.Namespace) -> bool:
    """Whether the folder has models that somebody trained, and no checkpoint was named."""
    path = args.out / FILE
    if args.checkpoint is not None or not path.is_file():
        return False
    try:
        return not load_checkpoint(path)[2].get("as_shipped", False)
    except ConfigError:  # whatever it is, it is somebody's
        return True


@contextmanager
def _together(out: Path, keep: bool) -> Iterator[Path]:
    """A folder for the demo's files. At its end they take the place of an earlier demo's, all of
    them or, if something fails, none; ``keep``: its checkpoint gets another name."""
    new = Path(tempfile.mkdtemp(prefix=".demo-", dir=out))
    try:
        yield new
        if keep:
            (out / FILE).replace(out / BEFORE)
        for name in FILES:
            if (new / name).exists():
                (new / name).replace(out / name)
            else:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        if error.filename is not None:
            error.filename = str(out / Path(error.filename).name)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _models(args: argparse.Namespace) -> tuple[KanervaMachine, MatchedVAE, dict[str, Any]]:
    """The models to begin with; the steps that each has made, and the seconds of both."""
    if args.checkpoint is not None:
        return load_checkpoint(args.checkpoint)
    if args.shipped:
        kanerva, vae = (_checkpoint.load(pretrained.find(name)) for name in START)
        done = {"steps": kanerva.step, "seconds": kanerva.seconds + vae.seconds}
        models = KanervaMachine.from_pretrained(START[0]), MatchedVAE.from_pretrained(START[1])
        return *models, done
    sizes = {"code_size": args.code_size} if args.code_size else {}
    vae = MatchedVAE(**sizes)
    if args.memory_size:
        sizes["memory_size"] = args.memory_size
    return KanervaMachine(**sizes), vae, {"steps": 0, "seconds": 0.0}


def _write(
    args: argparse.Namespace,
    kanerva: KanervaMachine,
    vae: MatchedVAE,
    curves: list,
    metadata: dict[str, Any],
    metrics: dict[str, Any],
) -> None:
    """All files of the demo."""
    names = ("seed", "threads", "batch_size")
    metadata = metadata | {name: getattr(args, name) for name in names}
    with _together(args.out, _will_keep(args)) as folder:
        draw(kanerva, vae, curves, folder, args.seed)
        save_checkpoint(folder / FILE, kanerva, vae, **metadata)
        write_text(folder / METRICS, json.dumps(metrics | metadata, indent=2) + "\n")


def run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    _check(args)
    import matplotlib  # noqa: F401 - missing before minutes of training, not after
    import safetensors  # noqa: F401
    import tqdm  # noqa: F401

    serving = "cpu" if _backend.default == "auto" else _backend.default
    check_backend(torch.device("cpu"))
    make_folder(args.out, size=SPACE)
    print(f"kanerva_ext {__version__}, backend {serving}: {backends()[serving]}", flush=True)
    if any((args.out / name).exists() for name in FILES):
        kept = f"; its models are kept in {BEFORE}" if _will_keep(args) else ""
        print(f"The files of the demo in {args.out} will be replaced{kept}.", flush=True)
    torch.set_num_threads(max(1, args.threads // 2))  # two models side by side
    torch.manual_seed(args.seed)
    held_out = load_omniglot("test")[0]

    kanerva, vae, metadata = _models(args)
    curves = []
    if args.shipped and args.minutes != 0:
        metrics = measure(kanerva, vae, held_out, args.seed)
        _write(args, kanerva, vae, curves, metadata | {"as_shipped": True}, metrics)
        print(
            f"The models that ship ({' and '.join(START)}), as they are: {args.out}/*.png, after "
            f"{time.perf_counter() - start:.0f} s.\nNow they train on, and the pictures are drawn "
            "again at the end. They have little left to learn: --new trains from the start.",
            flush=True,
        )
    if args.minutes != 0:
        budget: dict[str, Any] = {"steps": args.steps}
        if args.minutes is not None:
            total = 60 * args.minutes
            left = total - RESERVED - (time.perf_counter() - start)
            budget = {"seconds": max(left, total / 2)}
        curves, steps = fit([kanerva, vae], held_out, budget, args)
        metadata["steps"] += steps

    metrics = measure(kanerva, vae, held_out, args.seed)
    seconds = time.perf_counter() - start
    metadata = {"steps": metadata["steps"], "seconds": metadata["seconds"] + seconds}
    if args.shipped and args.minutes == 0:
        metadata["as_shipped"] = True
    _write(args, kanerva, vae, curves, metadata, metrics)
    print(table(metrics))
    print(
        f"\nSeed {args.seed}, {args.threads} threads, {metadata['steps']} steps of each model, "
        f"{seconds:.0f} s. Pictures: {args.out}/*.png"
    )
    return 0
