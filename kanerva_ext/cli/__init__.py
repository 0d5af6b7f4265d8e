"""The command line, ``kanerva COMMAND``."""

from __future__ import annotations

import argparse
import importlib
import sys

from .. import __version__
from .._terminal import until_the_reader_leaves
from ..data._files import TRAIN_PACKAGES
from ._config import ConfigError

__all__ = ["main"]

COMMANDS = (
    "demo",
    "train",
    "curves",
    "evaluate",
    "reconstruct",
    "denoise",
    "generate",
    "interpolate",
    "capacity",
    "info",
)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 2 for a mistake of the user's."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="kanerva", description="Generative memory models.")
    parser.add_argument("--version", action="version", version=f"kanerva_ext {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = {}
    for command in COMMANDS:
        module = modules[command] = importlib.import_module(f".{command}", __name__)
        summary = module.__doc__.splitlines()[0].partition(": ")[2]
        subparser = subparsers.add_parser(command, help=summary, description=module.__doc__)
        module.add_arguments(subparser)
    args = parser.parse_args(argv)
    try:
        return until_the_reader_leaves(lambda: modules[args.command].run(args))
    except (ConfigError, ImportError, FileNotFoundError) as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name in (
            "safetensors",
            "tqdm",
            "matplotlib",
        ):
            hint = f"; {TRAIN_PACKAGES}"
        print(f"kanerva {args.command}: {error}{hint}", file=sys.stderr)
        return 2
