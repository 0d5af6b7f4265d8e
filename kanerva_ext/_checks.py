"""Checks of the public functions' arguments, and the way from public to raw arguments.

Every operator declares its tensor arguments as a tuple of `Arg`. `prepare` checks type, dtype,
device and shape in Python, broadcasts the leading dimensions and flattens them to one. Operators
look first whether their arguments are raw already, which is cheaper than preparing them.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import torch
from torch import Tensor

STATE_DTYPES = (torch.float32, torch.float64)
DATA_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
METHODS = ("auto", "chunk", "information", "sqrt")

#: (state dtype, ...) combinations that a raw operator takes as they are.
RAW_PAIRS = frozenset((s, d) for s in STATE_DTYPES for d in (torch.float16, torch.bfloat16, s))
RAW_TRIPLES = frozenset((s, d, e) for s, d in RAW_PAIRS for t, e in RAW_PAIRS if t == s)

_NUMBERS = (numbers.Real, torch.SymInt, torch.SymFloat)  # NumPy's are Real
_SCALARS = ("noise", "ridge", "decay", "covariance")  # a number or 0-d stands for all of them
_ONE_FOR_ALL = ("N", "covariance")  # packed sequences may share it
_SIZES = {"K": "slots", "C": "code size", "T": "steps", "N": "sequences"}


class Arg(NamedTuple):
    """One argument: its name, its trailing dimensions as letters of K, C, T, and its kind.

    Kinds: ``state`` (float32 or float64, all the same), ``data`` (any floating dtype), ``noise``
    and ``ridge`` (positive; a number is accepted), ``decay`` (in (0, 1]; a number is accepted),
    ``covariance`` (dtype of the state; a number multiplies the identity), ``mask`` (bool).
    """

    name: str
    dims: str
    kind: str
    optional: bool = False


def prepare(op: str, specs: tuple[Arg, ...], values: tuple[Any, ...]) -> tuple[list, torch.Size]:
    """Check every argument of ``op`` and bring it to raw form; the first one sets the state dtype.

    Returns the raw arguments and the batch shape that `finish` gives back to the results.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shape or device, or a number out of range.
    """
    pairs = list(zip(specs, values, strict=True))
    for spec, value in pairs:
        _check_type(op, spec, value)
    first = values[0]
    dtype = _state_dtype(op, specs[0], first)
    sizes: dict[str, tuple[int, str]] = {}
    batches: list[tuple[Arg, torch.Size]] = []
    for spec, value in pairs:
        if isinstance(value, Tensor):
            _check_dtype(op, spec, value, dtype)
            if value.device != first.device:
                raise ValueError(
                    f"{op}: {spec.name} must be on {first.device} like {specs[0].name}, "
                    f"got {value.device}"
                )
            _bind_shape(op, spec, value, sizes, batches)
    batch = _broadcast(op, batches)
    args = [_raw(op, spec, value, dtype, sizes, batch, first) for spec, value in pairs]
    return args, batch


def finish(op, specs, args, batch, check, results, failure="a factorisation failed"):
    """Give the results the leading dimensions of the arguments (None: raw already). ``failure`` is
    what it means when a result is NaN and no argument says why."""
    if check:
        _raise_on_nan(op, specs, args, batch, results, failure)
    if batch is None or len(batch) == 1:
        return results
    if isinstance(results, Tensor):
        return results.reshape(batch + results.shape[1:])
    return tuple([r.reshape(batch + r.shape[1:]) for r in results])


def check_choice(op: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{op}: {name} must be a str, one of {choices}, got {_kind(value)}")
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {choices}, got {value!r}")


def check_int(
    op: str, name: str, value: object, least: int = 1, optional: bool = False
) -> int | None:
    """``value`` as an int of at least ``least``; NumPy's integers are taken too."""
    if value is None and optional:
        return None
    if isinstance(value, torch.SymInt):
        return value
    where = f"{op}: {name}" if op else name
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        more = " or None" if optional else ""
        raise TypeError(f"{where} must be an int{more}, got {_kind(value)}")
    if value < least:
        raise ValueError(f"{where} must be at least {least}, got {value}")
    return int(value)


def check_number(op: str, name: str, value: object, decay: bool = False) -> None:
    """Raise unless ``value`` is a tensor, or a number > 0 (in (0, 1] of a ``decay``)."""
    _check_type(op, Arg(name, "T", "decay" if decay else "noise"), value)


def check_flags(op: str, **flags: object) -> None:
    """Raise TypeError unless each is a bool."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{op}: {name} must be a bool, got {_kind(value)}")


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _is_number(value: object) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, bool)


def _check_type(op: str, spec: Arg, value: Any) -> None:
    if isinstance(value, Tensor) or (value is None and spec.optional):
        return
    number = spec.kind in _SCALARS
    if number and _is_number(value):
        if spec.kind == "decay":
            if not 0 < value <= 1:
                raise ValueError(f"{op}: {spec.name} must be in (0, 1], got {value}")
        elif spec.kind == "covariance":
            if not 0 <= value < math.inf:
                raise ValueError(f"{op}: {spec.name} must be finite and at least 0, got {value}")
        elif not 0 < value < math.inf:
            raise ValueError(f"{op}: {spec.name} must be positive and finite, got {value}")
        return
    expected = "a float or a torch.Tensor" if number else "a torch.Tensor"
    if spec.optional:
        expected += " or None"
    raise TypeError(f"{op}: {spec.name} must be {expected}, got {_kind(value)}")


#: The least and the largest number above 0 of a dtype.
_LIMITS = {d: (i.smallest_normal * i.eps, i.max) for d in STATE_DTYPES for i in (torch.finfo(d),)}


def holds(dtype: torch.dtype, value: float) -> bool:
    """Whether a state's dtype has a finite number above 0 for ``value``."""
    limits = _LIMITS.get(dtype)
    return limits is not None and limits[0] <= value <= limits[1]


def _check_held(op: str, spec: Arg, value: float, dtype: torch.dtype) -> None:
    if not (holds(dtype, value) or (spec.kind == "covariance" and value == 0)):
        least, most = _LIMITS[dtype]
        raise ValueError(
            f"{op}: {spec.name} must be from {least:.3g} to {most:.3g}, as {dtype} holds it, got "
            f"{value}"
        )


def _state_dtype(op: str, spec: Arg, value: Tensor) -> torch.dtype:
    if value.dtype in (torch.float16, torch.bfloat16) and _autocast(value):
        return torch.float32
    _check_dtype(op, spec, value, value.dtype)
    return value.dtype


def _autocast(value: Tensor) -> bool:
    return value.device.type != "meta" and torch.is_autocast_enabled(value.device.type)


def _check_dtype(op: str, spec: Arg, value: Tensor, state: torch.dtype) -> None:
    got = f"got {value.dtype}"
    if spec.kind == "mask":
        if value.dtype != torch.bool:
            raise TypeError(f"{op}: {spec.name} must be torch.bool, {got}")
    elif spec.kind == "state" or (spec.kind == "covariance" and value.dim() > 0):
        half = value.dtype in (torch.float16, torch.bfloat16)
        if half and _autocast(value):
            return
        if value.dtype not in STATE_DTYPES:
            hint = "; keep the state in float32, only codes may be half precision" if half else ""
            raise TypeError(
                f"{op}: {spec.name} must be torch.float32 or torch.float64, {got}{hint}"
            )
        if value.dtype != state:
            raise TypeError(f"{op}: {spec.name} must be {state} like the rest of the state, {got}")
    elif value.dtype not in DATA_DTYPES:
        raise TypeError(f"{op}: {spec.name} must have a floating-point dtype, {got}")


def _bind_shape(
    op: str,
    spec: Arg,
    value: Tensor,
    sizes: dict[str, tuple[int, str]],
    batches: list[tuple[Arg, torch.Size]],
) -> None:
    """Match the trailing dimensions with those seen before and note the leading ones."""
    shape, dims = value.shape, spec.dims
    if spec.kind in _SCALARS and value.dim() == 0:
        return
    expected = f"(..., {', '.join(dims)})" if dims else "(...)"
    if value.dim() < len(dims):
        raise ValueError(f"{op}: {spec.name} must have shape {expected}, got {tuple(shape)}")
    split = len(shape) - len(dims)
    for letter, size in zip(dims, shape[split:], strict=True):
        if letter in "KC" and size == 0:
            raise ValueError(
                f"{op}: {spec.name} must have shape {expected} with {letter} "
                f"({_SIZES[letter]}) at least 1, got {tuple(shape)}"
            )
        if size == 1 and (spec.kind in ("noise", "decay") or (letter, spec.kind) == _ONE_FOR_ALL):
            continue
        known, owner = sizes.setdefault(letter, (size, spec.name))
        if size != known:
            raise ValueError(
                f"{op}: {spec.name} must have shape {expected} with {letter} ({_SIZES[letter]}) "
                f"= {known} as in {owner}, got {tuple(shape)}"
            )
    batches.append((spec, shape[:split]))


def _broadcast(op: str, batches: list[tuple[Arg, torch.Size]]) -> torch.Size:
    batch = torch.Size()
    for spec, shape in batches:
        try:
            batch = torch.broadcast_shapes(batch, shape)
        except RuntimeError:
            raise ValueError(
                f"{op}: the leading dimensions of {spec.name} must broadcast with {tuple(batch)} "
                f"of the arguments before it, got {tuple(shape)}"
            ) from None
    for spec, shape in batches:
        if spec.kind in ("noise", "decay", "mask") and not shape and batch:
            raise ValueError(
                f"{op}: {spec.name} must have shape (..., T) with the leading dimensions of the "
                f"other arguments, {tuple(batch)} here, got one dimension"
            )
    return batch


def _raw(op, spec, value, dtype, sizes, batch, first):
    """Cast, expand over steps and batch, and flatten the batch to one dimension."""
    if value is None:
        return None
    trailing = tuple(sizes[letter][0] for letter in spec.dims)
    if not isinstance(value, Tensor):
        if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
            value = float(value)
        if isinstance(value, (int, float)):
            _check_held(op, spec, value, dtype)
        # A product, because torch.compile keeps a float that varies symbolic only in arithmetic.
        value = first.new_ones((), dtype=dtype) * value
    if spec.kind == "covariance" and value.dim() == 0:
        value = value.to(dtype).expand(trailing[-1]).diag_embed()
    if spec.kind == "data":
        if value.dtype in STATE_DTYPES and value.dtype != dtype:
            value = value.to(dtype)
    elif spec.kind != "mask" and value.dtype != dtype:
        value = value.to(dtype)
    shape = (*batch, *trailing)
    # Lengths first: comparing sizes would tie a dynamic batch to a size of the arguments.
    if value.dim() != len(shape) or value.shape != shape:
        value = value.expand(shape)
    if len(batch) != 1:
        value = value.reshape(math.prod(batch), *trailing)
    return value


def _raise_on_nan(op, specs, args, batch, results, failure) -> None:
    """Raise for the batch items that are NaN, or whose covariance is not positive definite."""
    results = (results,) if isinstance(results, Tensor) else results
    named = {s.name: a for s, a in zip(specs, args, strict=True) if a is not None}
    mask = named.get("mask")
    causes: list[tuple[str, Tensor]] = []
    for spec in specs:
        value = named.get(spec.name)
        if value is None or spec.kind == "mask":
            continue
        if mask is not None and spec.dims.startswith("T"):
            value = torch.where(mask if value.dim() == 2 else mask[..., None], value, 1)
        value = value.detach().flatten(1) if value.dim() > 1 else value.detach()[:, None]
        causes.append((f"{spec.name} holds NaN", value.isnan().any(1)))
        causes.append((f"{spec.name} holds Inf", value.isinf().any(1)))
        if spec.kind in ("noise", "ridge"):
            causes.append((f"{spec.name} is not positive", (value <= 0).any(1)))
        if spec.kind == "decay":
            causes.append((f"{spec.name} is not in (0, 1]", ((value <= 0) | (value > 1)).any(1)))
        if spec.dims.endswith("KK"):
            kind = "definite" if spec.kind == "state" else "semi-definite"
            bad = _indefinite(named[spec.name], spec.kind == "state")
            bad = bad.any(1) if bad.dim() > 1 else bad
            causes.append((f"{spec.name} is not positive {kind}", bad))
    unexplained = torch.stack(
        [
            r.detach().flatten(1).isnan().any(1) if r.dim() > 1 else r.detach().isnan()
            for r in results
        ]
    ).any(0)
    for text, bad in causes:
        _raise_for(op, text, bad, batch)
    _raise_for(op, failure, unexplained, batch)


def _indefinite(cov: Tensor, strict: bool = True) -> Tensor:
    """Which items have no Cholesky factor even with the rounding error of their dtype added; all
    zeros have one unless ``strict``."""
    wide = cov.detach().double()
    slack = cov.shape[-1] * torch.finfo(cov.dtype).eps
    diagonal = wide.diagonal(dim1=-2, dim2=-1)
    largest = diagonal.abs().amax(-1, keepdim=True)
    if not strict:
        largest = torch.where(largest > 0, largest, 1)
    slack = slack * largest.expand_as(diagonal)
    return torch.linalg.cholesky_ex(wide + torch.diag_embed(slack)).info != 0


def _raise_for(op: str, text: str, bad: Tensor, batch) -> None:
    items = bad.nonzero().flatten().tolist()
    if not items:
        return
    if batch is not None and len(batch) != 1:
        items = [tuple(int(i) for i in torch.unravel_index(torch.tensor(i), batch)) for i in items]
    shown = ", ".join(map(str, items[:8])) + (", ..." if len(items) > 8 else "")
    raise ValueError(f"{op}: {text} in batch item(s) {shown}")
