"""What `KanervaLayer` refuses: arguments, masks, checkpoints of layers that forget otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor

from ._memory_checks import LARGEST, SMALLEST

MASK_DTYPES = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
#: The gate of each dynamics.
GATES = {"decay_proj": "decay", "retention_proj": "stationary"}


def wrong(name: str, expected: str, value: object) -> None:
    kind = "None" if value is None else type(value).__name__
    raise TypeError(f"KanervaLayer: {name} must be {expected}, got {kind}")


def _number(name: str, value: object, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        wrong(name, expected, value)


def check_noise(noise_var: object, noise_floor: object) -> None:
    for name, value in (("noise_var", noise_var), ("noise_floor", noise_floor)):
        _number(name, value, "a number")
    if not SMALLEST <= noise_floor < noise_var <= LARGEST:
        raise ValueError(
            "KanervaLayer: noise_var must be above noise_floor, and both in "
            f"{SMALLEST:g} .. {LARGEST:g}, got noise_var={noise_var}, noise_floor={noise_floor}"
        )


def check_norm_eps(norm_eps: object) -> None:
    if norm_eps is None:
        return
    _number("norm_eps", norm_eps, "a number or None")
    if not 0 <= norm_eps < math.inf:
        raise ValueError(f"KanervaLayer: norm_eps must be finite and at least 0, got {norm_eps}")


def check_gates(
    gates: set[str], state_dict: Mapping[str, object], prefix: str, errors: list[str]
) -> None:
    """Add to ``errors`` unless a checkpoint has the ``gates`` of this layer, and no others."""
    theirs = {name for name in GATES if f"{prefix}{name}.weight" in state_dict}
    if theirs == gates or not any(key.startswith(prefix) for key in state_dict):
        return
    names = sorted(f"dynamics={GATES[name]!r}" for name in theirs) or ["use_decay=False"]
    options = ", ".join(names)
    errors.append(
        f"{prefix}KanervaLayer: the checkpoint is of a layer with {options}, and this is another: "
        f"construct it with {options}"
    )


def check_mask(mask: Tensor, shape: tuple[int, int], longer: bool) -> Tensor:
    """(B, T) bool, True where a token counts."""
    if not isinstance(mask, Tensor):
        wrong("attention_mask", "a torch.Tensor or None", mask)
    if mask.dtype not in MASK_DTYPES and not mask.is_floating_point():
        raise TypeError(
            "KanervaLayer: attention_mask must be bool, integer or floating 0 and 1, got "
            f"{mask.dtype}"
        )
    steps = shape[1]
    fits = mask.dim() == 2 and mask.shape[0] == shape[0]
    if not (fits and (mask.shape[1] == steps or (longer and mask.shape[1] > steps))):
        more = ", or (B, S) with S > T for all tokens so far" if longer else ""
        raise ValueError(
            f"KanervaLayer: attention_mask must have shape (B, T) = {shape}, the tokens of this "
            f"call{more or ' alone'}, got {tuple(mask.shape)}"
        )
    mask = mask[:, mask.shape[1] - steps :]
    if mask.is_floating_point() and _may_look_at(mask) and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            "KanervaLayer: a floating attention_mask must hold 0 (padding) and 1 alone, not what "
            "is added to attention scores"
        )
    return mask != 0


def _may_look_at(x: Tensor) -> bool:
    """Whether the values of ``x`` can be had without waiting for a device or breaking a graph."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    return not torch._C._are_functorch_transforms_active()
