"""The command line, ``kanerva COMMAND``."""

from __future__ import annotations

import argparse
import importlib
import re
import sys

import torch

from .. import __version__
from .._terminal import complain, run_command
from ..data._files import TRAIN_PACKAGES
from ._config import ConfigError
from ._device import check_default_backend
from ._folders import remove_empty_folders

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
EPILOG = """\
The models: The Kanerva Machine: A Generative Distributed Memory (Wu, Wayne, Graves, Lillicrap,
ICLR 2018); Learning Attractor Dynamics for Generative Memory (Wu, Wayne, Gregor, Lillicrap,
NeurIPS 2018), the Dynamic Kanerva Machine; and a VAE with the same coders.

Trained models ship with the package: `kanerva generate pretrained:omniglot-kanerva`. Commands that
take a RUN take pretrained:NAME; `kanerva info` lists the names.
"""
OPTIONAL = ("safetensors", "tqdm", "matplotlib")
# PyTorch's allocator on a CPU raises a plain RuntimeError; sizes beyond 2**63 bytes another one.
NO_MEMORY = ("can't allocate memory", "Storage size calculation overflowed", "std::bad_alloc")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 2 for a mistake of the user's."""
    argv = sys.argv[1:] if argv is None else argv
    name = f"kanerva {argv[0]}" if argv and argv[0] in COMMANDS else "kanerva"
    try:
        return run_command(name, lambda: _run_command(name, argv))
    finally:
        remove_empty_folders()


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line; ``function`` of what it parses is the command's function."""
    parser = argparse.ArgumentParser(
        prog="kanerva",
        description="Generative memory models: train them and look at what they do.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kanerva_ext {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        module = importlib.import_module(f".{command}", __name__)
        summary = module.__doc__.splitlines()[0].partition(": ")[2]
        subparser = subparsers.add_parser(command, help=summary, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(function=module.run)
    return parser


def _run_command(name: str, argv: list[str]) -> int:
    """The status of a command; 2 for what is the user's to mend, said in one line."""
    args = make_parser().parse_args(argv)
    try:
        if args.command != "info":  # which says itself what is missing
            check_default_backend()
        return args.function(args)
    except (ConfigError, ImportError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name in OPTIONAL
        complain(name, f"{error}{f'; {TRAIN_PACKAGES}' if missing else ''}")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        asked = re.search(r"(\d+) bytes", str(error))
        what = f" for the {int(asked[1]):,} bytes asked for" if asked else ""
        complain(name, f"not enough memory{what}; take smaller sizes")
    return 2


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(phrase in str(error) for phrase in NO_MEMORY)
