"""The device that a command computes on."""

from __future__ import annotations

import torch

from ._config import ConfigError


def choose_device(name: str | None, index: int | None = None) -> torch.device:
    """The device of that name; None: a GPU (the one of ``index``) if there is one, else the CPU.

    Raises:
        ConfigError: it is not there.
    """
    if name is None:
        gpu = "cuda" if index is None else f"cuda:{index}"
        name = gpu if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise ConfigError(f"--device {name}: {error}") from error
    return chosen
