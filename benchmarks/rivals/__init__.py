"""Per operator: its problem, its truth and every PyTorch composition it is measured against."""

from __future__ import annotations

import importlib

from kanerva_ext import ops

from .spec import BOTH, DIRECTIONS, SHAPES, Operator, Rival, Shape

#: One step in place: nothing is composed, and `benchmarks.overhead` has the price of a call.
UNRIVALLED = ("causal_step",)
#: By name: the ``OPERATOR`` of the file of that name here.
OPERATORS: dict[str, Operator] = {
    name: importlib.import_module(f".{name}", __name__).OPERATOR
    for name in ops.OPERATORS
    if name not in UNRIVALLED
}

__all__ = ["BOTH", "DIRECTIONS", "OPERATORS", "SHAPES", "Operator", "Rival", "Shape"]
