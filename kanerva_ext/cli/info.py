"""``kanerva info``: what is installed, what runs here, what is missing and why."""

from __future__ import annotations

import argparse

from .. import info

add_arguments = info.add_arguments


def run(args: argparse.Namespace) -> int:
    info.show(args)
    return 0
