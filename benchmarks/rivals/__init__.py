"""Per operator: its problem, its truth and every PyTorch composition it is measured against."""

from __future__ import annotations

from . import bayes_write, memory_kl, read, recall, solve_addresses, statistics
from .spec import BOTH, DIRECTIONS, SHAPES, Operator, Rival, Shape

OPERATORS: dict[str, Operator] = {
    module.OPERATOR.name: module.OPERATOR
    for module in (bayes_write, solve_addresses, read, recall, memory_kl, statistics)
}

__all__ = ["BOTH", "DIRECTIONS", "OPERATORS", "SHAPES", "Operator", "Rival", "Shape"]
