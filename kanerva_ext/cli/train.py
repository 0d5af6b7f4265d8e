"""``kanerva train``: train a model; may be killed at any time and resumed.

``--set training.steps=N --resume`` goes on with a run that has ended, ``--set training.start=RUN``
starts another one with its parameters.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from . import _checkpoint
from ._config import ConfigError
from ._config_files import describe_presets, load_config, with_overrides
from ._folders import check_is_no_model
from ._loop import Run
from ._processes import processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "config",
        nargs="?",
        help="a preset's name or a .toml or .json file; with --resume, as it was",
    )
    add("--out", type=Path, help="folder of the run (default: runs/NAME)")
    add("--set", action="append", metavar="SECTION.KEY=VALUE", help="in place of the config's")
    add("--resume", action="store_true", help="go on from the folder's checkpoint, if there is one")
    what = "stop after that many, with a checkpoint that --resume goes on from"
    add("--minutes", type=float, metavar="N", help=what)
    add("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")
    add("--tensorboard", action="store_true", help="log to TensorBoard too")
    add("--quiet", action="store_true", help="no progress bar")
    add("--presets", action="store_true", help="what they are and need, and stop")
    add("--show", action="store_true", help="print the configuration as JSON and stop")


def run(args: argparse.Namespace) -> int:
    if args.presets:
        print(describe_presets())
        return 0
    if args.minutes is not None and not args.minutes > 0:
        raise ConfigError(f"--minutes must be positive, got {args.minutes:g}")
    if args.out is not None:
        check_is_no_model(args.out)
    if args.config is None:
        if not (args.resume and args.out):
            raise ConfigError("a config is needed, or --resume and --out of a run")
        saved = _checkpoint.load(args.out / _checkpoint.FILE).config
        config = with_overrides(saved.as_dict(), args.set)
    else:
        config = load_config(args.config, args.set)
    if args.show:
        print(json.dumps(config.as_dict(), indent=2))
        return 0
    out = args.out or Path("runs") / Path(args.config).stem
    with processes(args.device) as process:
        return Run(config, out, process, args.resume, args.tensorboard).train(
            args.quiet, args.minutes
        )
