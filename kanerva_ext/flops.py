"""How many floating-point operations the operators need, for PyTorch's ``FlopCounterMode``.

PyTorch counts only what it knows. ``import kanerva_ext.flops`` tells it of these operators:

>>> import torch, kanerva_ext.flops
>>> from torch.utils.flop_counter import FlopCounterMode
>>> from kanerva_ext import ops
>>> with FlopCounterMode(display=False) as counter:
...     _ = ops.read(torch.zeros(1, 32, 100), torch.eye(32), torch.ones(1, 8, 32))
>>> counter.get_total_flops()
68096

Two operations for a multiply and an add, as PyTorch counts. A count is that of the cheapest of the
library's algorithms at the shape, whatever the backend, the data and the masks; a gradient counts
as twice its forward: one product for each factor of every product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.flop_counter import register_flop_formula

from .ops import _library

__all__ = ["FORWARD", "Sizes"]

_CHUNK, _SCAN_CHUNK = 32, 16


class Sizes(NamedTuple):
    """Sizes of a call: memories, steps (or queries), slots, numbers in a code."""

    batch: int
    steps: int
    slots: int
    code: int


def _write(s: Sizes) -> float:
    """The least of one chunk of all steps, chunks of 32, and the information form."""

    def chunk(t: int) -> float:
        k, c = s.slots, s.code
        products = 2 * t * k * k + t * t * k + 2 * t * k * c  # W U, W U W', W R
        return products + t**3 / 3 + t * t * (k + c) + 2 * t * k * c + t * k * k

    k, c, t = s.slots, s.code, s.steps
    information = t * k * k + 2 * t * k * c + 4 * k**3 / 3 + 4 * k * k * c
    whole, rest = divmod(t, _CHUNK)
    chunks = whole * chunk(_CHUNK) + (chunk(rest) if rest else 0)
    return s.batch * min(chunk(t), chunks, information)


def _solve(s: Sizes) -> float:
    """The smaller of the K x K and the C x C system, factorised once."""
    k, c, t = s.slots, s.code, s.steps
    n = min(k, c)
    return s.batch * (n * n * max(k, c) + n**3 / 3 + 2 * t * k * c + 2 * t * n * n)


def _read(s: Sizes) -> float:
    k, c, t = s.slots, s.code, s.steps
    return s.batch * (2 * t * k * c + 2 * t * k * k + 2 * t * k)


def _kl(s: Sizes) -> float:
    k, c = s.slots, s.code
    return s.batch * (2 * k**3 / 3 + 2 * k**3 / 3 + k * k * c)


def _statistics(s: Sizes) -> float:
    k, c = s.slots, s.code
    return s.batch * (k**3 + 2 * k * k * c)


def _adaptive(s: Sizes) -> float:
    """Every step: R z, the inverse, U w and R'w, and the rank-1 and rank-2 changes."""
    k, c, t = s.slots, s.code, s.steps
    step = 2 * k * c + 2 * k * k + 2 * k * k + 2 * k * c + 2 * k * c + k * k + 2 * k * c + 4 * k * k
    return s.batch * (t * step + k * k * c + 2 * k**3 / 3)


def _scan(s: Sizes) -> float:
    """Chunks of 16, with the products of the queries: Q R, half of Q U, Q P' and P'E."""
    k, c, t, chunk = s.slots, s.code, s.steps, min(_SCAN_CHUNK, s.steps)
    write = t * (2 * k * k + 4 * k * c + k * k + chunk * (3 * k + c))
    return s.batch * (write + t * (2 * k * c + k * k + chunk * (k + c)))


#: Name of an operator to its forward operations, from the `Sizes` of the call.
FORWARD: dict[str, Callable[[Sizes], float]] = {
    "bayes_write": _write,
    "solve_addresses": _solve,
    "read": _read,
    "recall": lambda s: _solve(s) + _read(s),
    "memory_kl": _kl,
    "statistics": _statistics,
    "adaptive_write": _adaptive,
    "forget": _write,
    "causal_scan": _scan,
    "causal_step": lambda s: _scan(s._replace(steps=1)),
}
_BACKWARD_FACTOR = 2


def _sizes(op: torch._ops.OpOverload, shapes: tuple) -> Sizes:
    """From the shapes of the raw operator's arguments, which are named alike everywhere."""
    names = [argument.name for argument in op._schema.arguments]
    given = dict(zip(names, shapes, strict=True))
    batch, slots, code = given["mean"]
    steps = 1
    for name in ("weights", "values", "queries"):
        if name in given and len(given[name]) == 3:
            batch, steps = given[name][:2]  # where sequences are packed, the rows of steps count
            break
    return Sizes(batch, steps, slots, code)


def _register(namespace: str, name: str, factor: int) -> None:
    full = name if factor == 1 else f"{name}_backward"
    packet = getattr(getattr(torch.ops, namespace), full)

    @register_flop_formula(packet)
    def formula(*shapes, out_shape=None, **_) -> int:
        return round(factor * FORWARD[name](_sizes(packet.default, shapes)))


for _namespace in _library.LIBRARIES:
    for _name in FORWARD:
        _register(_namespace, _name, 1)
        if _library.OPERATORS[_name].differentiable:
            _register(_namespace, _name, _BACKWARD_FACTOR)


@register_flop_formula(torch.ops.kanerva.episode_sums)
def _sums(g, h, weights, values, scale, out_shape=None, **_) -> int:
    """Half of W'W, where it is wanted, and W'Z."""
    batch, slots, code = h
    steps = weights[1]
    return batch * steps * slots * ((slots if g is not None else 0) + 2 * code)


@register_flop_formula(torch.ops.kanerva.posterior_of_sums)
def _posterior_of_sums(mean_out, cov_out, mean, *rest, out_shape=None, **_) -> int:
    """Two factors, an inverse and four products of K x K matrices, half of each; two of K x C."""
    batch, slots, code = mean
    return batch * slots * slots * (5 * slots + 4 * code)
