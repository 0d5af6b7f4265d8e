"""How many floating-point operations a call needs at least: the counts of `kanerva_ext.flops`."""

from __future__ import annotations

from kanerva_ext import flops as counts

from .rivals import Shape

BACKWARD = 3  # forward and backward, in forwards


def flops(operator: str, shape: Shape, direction: str) -> float:
    """Operations of a call."""
    sizes = counts.Sizes(shape.batch, shape.steps, shape.slots, shape.code)
    return counts.FORWARD[operator](sizes) * (1 if direction == "forward" else BACKWARD)
