"""What ``backend="auto"`` runs on a GPU that both the CUDA library and Triton serve.

`RULES` holds what was measured by ``benchmarks/gpu_check.py``, and nothing else; the first rule
that fits decides, and CUDA C++ serves what no rule names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

UNLIMITED = 2**63


class Rule(NamedTuple):
    """Limits are inclusive."""

    operator: str
    backend: str  # "cuda" or "triton"
    source: str  # the file in benchmarks/results/ that shows it
    memories: tuple[int, int] = (0, UNLIMITED)
    slots: tuple[int, int] = (0, UNLIMITED)
    code: tuple[int, int] = (0, UNLIMITED)


#: No GPU has measured the two against each other yet.
RULES: tuple[Rule, ...] = ()


def prefers_triton(operator: str, shape: Sequence[int]) -> bool:
    """Whether Triton serves ``operator`` for a mean of this shape (B, K, C)."""
    for rule in RULES:
        if rule.operator == operator and all(
            low <= size <= high
            for size, (low, high) in zip(shape, (rule.memories, rule.slots, rule.code), strict=True)
        ):
            return rule.backend == "triton"
    return False
