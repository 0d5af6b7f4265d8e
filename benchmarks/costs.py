"""How many floating-point operations an operator needs at least, by shape.

Those of the cheapest of our algorithms at the shape, two for a multiply and an add. A backward is
taken as twice its forward, one product for each factor of every product, as usual.
"""

from __future__ import annotations

from collections.abc import Callable

from .rivals import Shape

BACKWARD = 3  # forward and backward, in forwards


def write_flops(s: Shape) -> float:
    """The least of one chunk of all steps, chunks of 32, and the information form."""

    def chunk(t: int) -> float:
        k, c = s.slots, s.code
        products = 2 * t * k * k + t * t * k + 2 * t * k * c  # W U, W U W', W R
        return products + t**3 / 3 + t * t * (k + c) + 2 * t * k * c + t * k * k

    k, c, t = s.slots, s.code, s.steps
    information = t * k * k + 2 * t * k * c + 4 * k**3 / 3 + 4 * k * k * c
    whole, rest = divmod(t, 32)
    chunks = whole * chunk(32) + (chunk(rest) if rest else 0)
    return s.batch * min(chunk(t), chunks, information)


def solve_flops(s: Shape) -> float:
    """The smaller of the K x K and the C x C system, factorised once."""
    k, c, t = s.slots, s.code, s.steps
    n = min(k, c)
    return s.batch * (n * n * max(k, c) + n**3 / 3 + 2 * t * k * c + 2 * t * n * n)


def read_flops(s: Shape) -> float:
    k, c, t = s.slots, s.code, s.steps
    return s.batch * (2 * t * k * c + 2 * t * k * k + 2 * t * k)


def kl_flops(s: Shape) -> float:
    k, c = s.slots, s.code
    return s.batch * (2 * k**3 / 3 + 2 * k**3 / 3 + k * k * c)


def statistics_flops(s: Shape) -> float:
    k, c = s.slots, s.code
    return s.batch * (k**3 + 2 * k * k * c)


def adaptive_flops(s: Shape) -> float:
    """Every step: R z, the inverse, U w and R'w, and the rank-1 and rank-2 changes."""
    k, c, t = s.slots, s.code, s.steps
    step = 2 * k * c + 2 * k * k + 2 * k * k + 2 * k * c + 2 * k * c + k * k + 2 * k * c + 4 * k * k
    return s.batch * (t * step + k * k * c + 2 * k**3 / 3)


def scan_flops(s: Shape) -> float:
    """Chunks of 16, with the products of the queries: Q R, half of Q U, Q P' and its product with
    E."""
    k, c, t, chunk = s.slots, s.code, s.steps, min(16, s.steps)
    write = t * (2 * k * k + 4 * k * c + k * k + chunk * (3 * k + c))
    return s.batch * (write + t * (2 * k * c + k * k + chunk * (k + c)))


#: operator -> forward operations
FLOPS: dict[str, Callable[[Shape], float]] = {
    "bayes_write": write_flops,
    "solve_addresses": solve_flops,
    "read": read_flops,
    "recall": lambda s: solve_flops(s) + read_flops(s),
    "memory_kl": kl_flops,
    "statistics": statistics_flops,
    "adaptive_write": adaptive_flops,
    "forget": write_flops,
    "causal_scan": scan_flops,
}


def flops(operator: str, shape: Shape, direction: str) -> float:
    """Operations of a call."""
    return FLOPS[operator](shape) * (1 if direction == "forward" else BACKWARD)
