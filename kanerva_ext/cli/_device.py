"""The device that a command computes on."""

from __future__ import annotations

import torch

from .. import _backend
from ._config import ConfigError


def choose_device(name: str | None, index: int | None = None) -> torch.device:
    """The device of that name; None: a GPU (the one of ``index``) if there is one, else the CPU.

    Raises:
        ConfigError: it is not there, or ``KANERVA_BACKEND`` names a backend that does not serve it.
    """
    if name is None:
        gpu = "cuda" if index is None else f"cuda:{index}"
        name = gpu if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise ConfigError(f"--device {name}: {error}") from error
    if chosen.type == "meta":
        raise ConfigError("--device meta holds no numbers")
    check_backend(chosen)
    return chosen


def check_default_backend() -> None:
    """Raises ConfigError where ``KANERVA_BACKEND`` names a backend that is missing here."""
    name = _backend.default
    if name != "auto" and (why := _backend.backends()[name]) != _backend.AVAILABLE:
        raise ConfigError(f"KANERVA_BACKEND={name} is not available: {why}")


def check_backend(device: torch.device, name: str = "auto") -> None:
    """Raises ConfigError where a backend, or that of ``KANERVA_BACKEND``, does not serve it."""
    try:
        _backend.choose(name, device)
    except RuntimeError as error:
        asked = f"KANERVA_BACKEND={_backend.default}" if name == "auto" else "[model] backend"
        raise ConfigError(f"{asked}: {error}") from error


def choose_precision(precision: str, device: torch.device) -> str:
    """ "float32" or "bfloat16", for ``"auto"`` what the device multiplies faster."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") else "float32"
