"""Sequences packed one after another in one row of steps, by their bounds ``cu_seqlens``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BOUNDS = torch.library.Library("kanerva_checks", "DEF")
_BOUNDS.define("bounds(Tensor cu_seqlens, SymInt steps, str op) -> Tensor")


def check_cu_seqlens(
    op: str, cu_seqlens: Tensor, steps: int, device: torch.device, like: str, check: bool = False
) -> Tensor:
    """``cu_seqlens`` as int64 bounds that rise from 0 to ``steps``.

    Their values are looked at on the CPU, under torch.compile as well, and with ``check`` on a
    GPU. ``like`` names the argument whose ``device`` they share.

    Raises:
        TypeError, ValueError: naming ``op``, what was expected and what came.
    """
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"{op}: cu_seqlens must be a torch.Tensor, got {type(cu_seqlens).__name__}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"{op}: cu_seqlens must be torch.int32 or torch.int64, got {cu_seqlens.dtype}"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(
            f"{op}: cu_seqlens must have shape (N + 1,) with N (sequences) at least 1, got "
            f"{tuple(cu_seqlens.shape)}"
        )
    if cu_seqlens.device != device:
        raise ValueError(
            f"{op}: cu_seqlens must be on {device} like {like}, got {cu_seqlens.device}"
        )
    if torch.compiler.is_compiling():
        return torch.ops.kanerva_checks.bounds(cu_seqlens, steps, op)
    if check or device.type == "cpu":
        _check_values(cu_seqlens, steps, op)
    return cu_seqlens.to(torch.int64)


def _check_values(cu_seqlens: Tensor, steps: int, op: str) -> None:
    if hasattr(cu_seqlens, "full_tensor"):  # a DTensor has no tolist
        cu_seqlens = cu_seqlens.full_tensor()
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != steps or bounds != sorted(bounds):
        shown = str(bounds) if len(bounds) < 9 else f"{bounds[:6]} ... {bounds[-1]}"
        raise ValueError(f"{op}: cu_seqlens must rise from 0 to T = {steps} (steps), got {shown}")


def _checked_bounds(cu_seqlens: Tensor, steps: int, op: str) -> Tensor:
    """The operator that keeps the check in a compiled graph: its result is used there."""
    if cu_seqlens.device.type == "cpu":
        _check_values(cu_seqlens, steps, op)
    return cu_seqlens.to(torch.int64, copy=True)


def _fake_bounds(cu_seqlens: Tensor, steps: int, op: str) -> Tensor:
    return torch.empty_like(cu_seqlens, dtype=torch.int64)


_BOUNDS.impl("bounds", _checked_bounds, "CompositeExplicitAutograd")
torch.library.register_fake("kanerva_checks::bounds", _fake_bounds, lib=_BOUNDS)


class Places(NamedTuple):
    """Where each of T steps is, and where sequences are; in range whatever the bounds hold.

    Attributes:
        sequence: (T,), the sequence of each step.
        place: (T,), its place there.
        start: (T,), the step that its sequence starts with.
        first: (N,), the first step of each sequence.
        count: (N,), how many it has.
    """

    sequence: Tensor
    place: Tensor
    start: Tensor
    first: Tensor
    count: Tensor


def places(bounds: Tensor, steps: int) -> Places:
    """The places of ``steps`` steps in the sequences between ``bounds`` (N + 1,)."""
    bounds = bounds.clamp(0, steps)  # on a GPU nobody has looked at them
    at = torch.arange(steps, device=bounds.device)
    last = bounds.shape[0] - 2
    sequence = (torch.searchsorted(bounds, at, right=True) - 1).clamp(0, last)
    start = torch.minimum(bounds[sequence], at)
    first, count = bounds[:-1], bounds.diff().clamp(min=0)
    return Places(sequence, at - start, start, first, count)
