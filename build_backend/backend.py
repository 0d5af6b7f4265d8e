"""PEP 517 hooks: those of setuptools, with PyTorch as a build requirement only where it is missing.

A plain build requirement on torch would make pip download a second one into its isolated build
environment. Only the headers are needed, and the environment being installed into nearly always
has them: pip's isolated build still runs that environment's interpreter.
"""

from __future__ import annotations

import os

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from .plan import MIN_TORCH_TEXT
from .probe import find_torch

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def torch_requirement() -> list[str]:
    """Empty where a recent enough PyTorch is installed.

    ``KANERVA_BUILD_TORCH`` (such as "torch==2.13.0") says which one to fetch otherwise.
    """
    torch = find_torch()
    if torch is not None and torch.recent_enough:
        return []
    return [os.environ.get("KANERVA_BUILD_TORCH") or f"torch>={MIN_TORCH_TEXT}"]


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *torch_requirement()]


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *torch_requirement()]
