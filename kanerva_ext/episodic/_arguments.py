"""Checks of an episodic memory's arguments."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

#: How many ids an error names.
SHOWN = 5


def as_rows(name: str, rows: Any, size: int, attribute: str) -> Tensor:
    """``rows`` (T, size) or (M, T, size): a tensor, or what PyTorch makes one of (NumPy's arrays).

    Raises:
        TypeError, ValueError: not numbers, another shape, or not finite.
    """
    if not isinstance(rows, Tensor):
        try:
            rows = torch.as_tensor(rows)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name} must be a torch.Tensor or an array of shape (T, {size}), got "
                f"{type(rows).__name__}: {error}"
            ) from error
    if not rows.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {rows.dtype}")
    if rows.dim() not in (1, 2, 3) or rows.shape[-1] != size:
        raise ValueError(
            f"{name} must have shape (T, {attribute}) with {attribute} = {size}, got "
            f"{tuple(rows.shape)}"
        )
    return rows


def check_finite(name: str, rows: Tensor) -> None:
    bad = ~torch.isfinite(rows).all(-1)
    if bad.any():
        first = bad.nonzero().flatten()[:SHOWN].tolist()
        raise ValueError(f"{name} must be finite, got NaN or Inf in row(s) {_shown(first, bad)}")


def as_device(device: Any) -> torch.device:
    """A device that holds numbers in float64.

    Raises:
        ValueError: there is no such device here, or it holds none.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=found).add_(1)
    except Exception as error:
        raise ValueError(f"device {device!r} cannot be used here: {error}") from error
    if found.type == "meta":
        raise ValueError('device must hold numbers, got "meta"')
    return found


def check_not_zero(name: str, rows: Tensor) -> None:
    bad = ~rows.any(-1)
    if bad.any():
        first = bad.nonzero().flatten()[:SHOWN].tolist()
        raise ValueError(
            f"{name} must not be zero, because they are divided by their norms, got zero in "
            f"row(s) {_shown(first, bad)}"
        )


def _shown(first: list, bad: Tensor) -> str:
    return ", ".join(map(str, first)) + (", ..." if int(bad.sum()) > len(first) else "")


def as_id(id: Any) -> int | str:
    """An id as it is stored."""
    if isinstance(id, str):
        return str(id)
    if isinstance(id, numbers.Integral) and not isinstance(id, bool):
        if not -(2**63) <= id < 2**63:
            raise ValueError(f"an id of type int must have at most 64 bits, got {id}")
        return int(id)
    raise TypeError(f"an id must be an int or a str, got {type(id).__name__}")


def is_id(id: Any) -> bool:
    return isinstance(id, str) or (isinstance(id, numbers.Integral) and not isinstance(id, bool))


def as_ids(ids: Any) -> list[int | str]:
    """One id, or several, as a list."""
    if is_id(ids):
        return [as_id(ids)]
    if isinstance(ids, Tensor):
        if ids.dim() > 1 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError(
                f"ids must be integers of shape (T,), got {ids.dtype} of shape {tuple(ids.shape)}"
            )
        ids = ids.reshape(-1).tolist()
    if not isinstance(ids, Iterable) or isinstance(ids, (bytes, dict)):
        raise TypeError(
            f"ids must be an int, a str or a sequence of them, got {type(ids).__name__}"
        )
    return [as_id(id) for id in ids]


def named(ids: Sequence) -> str:
    """Ids as an error shows them."""
    return ", ".join(repr(id) for id in ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
