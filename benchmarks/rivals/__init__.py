"""Per operator: its problem, its truth and every PyTorch composition it is measured against."""

from __future__ import annotations

from . import (
    adaptive_write,
    bayes_write,
    causal_scan,
    forget,
    memory_kl,
    read,
    recall,
    solve_addresses,
    statistics,
)
from .spec import BOTH, DIRECTIONS, SHAPES, Operator, Rival, Shape

OPERATORS: dict[str, Operator] = {
    module.OPERATOR.name: module.OPERATOR
    for module in (
        bayes_write,
        solve_addresses,
        read,
        recall,
        memory_kl,
        statistics,
        adaptive_write,
        forget,
        causal_scan,
    )
}

__all__ = ["BOTH", "DIRECTIONS", "OPERATORS", "SHAPES", "Operator", "Rival", "Shape"]
