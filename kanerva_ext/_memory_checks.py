"""Checks of the memory module's arguments."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from ._state import MemoryState

#: Of standard deviations and variances: float32 holds their squares.
SMALLEST, LARGEST = 1e-18, 1e18
MASK_DTYPES = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def as_mask(mask: Tensor | None) -> Tensor | None:
    """A mask of bool or integers as bool."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor or None, got {type(mask).__name__}")
    if mask.dtype not in MASK_DTYPES:
        raise TypeError(f"mask must be torch.bool or an integer dtype, got {mask.dtype}")
    return mask if mask.dtype == torch.bool else mask != 0


def without_masked(tensor: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Zero at masked steps, so that what stands there (even NaN) has no effect or gradient."""
    if tensor is None or mask is None:
        return tensor
    if mask.shape[-1:] != tensor.shape[-2:-1]:
        raise ValueError(
            f"mask must have shape (..., T) with T = {tensor.shape[-2]}, got {tuple(mask.shape)}"
        )
    try:
        torch.broadcast_shapes(mask.shape[:-1], tensor.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"mask must have shape (B, T), which broadcasts with {tuple(tensor.shape[:-1])}, got "
            f"{tuple(mask.shape)}"
        ) from None
    return torch.where(mask[..., None], tensor, 0)


def check_state(
    state: MemoryState, memory_size: int, code_size: int, name: str = "state"
) -> MemoryState:
    """``state`` as a MemoryState of this module's sizes."""
    if not isinstance(state, tuple) or len(state) != 2:
        raise TypeError(
            f"{name} must be a MemoryState (mean, cov), got {type(state).__name__}"
            + (f" of {len(state)}" if isinstance(state, tuple) else "")
        )
    for part, found, letters, shape in (
        ("mean", state[0], "(..., memory_size, code_size)", (memory_size, code_size)),
        ("cov", state[1], "(..., memory_size, memory_size)", (memory_size, memory_size)),
    ):
        if not isinstance(found, Tensor):
            raise TypeError(f"{name} must hold a {part} of tensors, got {type(found).__name__}")
        if found.shape[-2:] != shape:
            raise ValueError(
                f"{name} must hold a {part} of shape {letters} = (..., {shape[0]}, {shape[1]}), "
                f"got {tuple(found.shape)}"
            )
    return state if isinstance(state, MemoryState) else MemoryState(*state)


def check_codes(name: str, tensor: Tensor, size: int, attribute: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")
    if tensor.dim() < 2 or tensor.shape[-1] != size:
        raise ValueError(
            f"{name} must have shape (..., T, {attribute}) with {attribute} = {size}, "
            f"got {tuple(tensor.shape)}"
        )


def fraction(name: str, value: float | None) -> float | None:
    """``value`` as a float in (0, 1], or None; NumPy's numbers are taken too."""
    if value is None:
        return None
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number or None, got {type(value).__name__}")
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {value}")
    return float(value)


def positive(name: str, value: float, zero: bool = False) -> float:
    """``value`` as a float > 0, or >= 0 with ``zero``; NumPy's numbers are taken too."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (0 < value < math.inf or (zero and value == 0)):
        expected = "finite and at least 0" if zero else "positive and finite"
        raise ValueError(f"{name} must be {expected}, got {value}")
    if value and not SMALLEST <= value <= LARGEST:
        raise ValueError(
            f"{name} must be in {SMALLEST:g} .. {LARGEST:g}, whose squares float32 holds, got "
            f"{value}"
        )
    return float(value)
