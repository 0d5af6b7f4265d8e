"""What a benchmarked operator and a rival of it are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

DIRECTIONS = ("forward", "forward_backward")
BOTH = DIRECTIONS
FORWARD, FORWARD_BACKWARD = DIRECTIONS[:1], DIRECTIONS[1:]


class Shape(NamedTuple):
    """(B, T, K, C): batch, steps or queries, slots, code size."""

    batch: int
    steps: int
    slots: int
    code: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


SHAPES = tuple(
    Shape(*s)
    for s in (
        (16, 32, 32, 100),
        (64, 16, 16, 64),
        (32, 64, 64, 200),
        (8, 128, 128, 256),
        (4, 256, 256, 512),
        (1, 1024, 512, 768),
    )
)


@dataclass(frozen=True)
class Rival:
    """A composition of PyTorch operators that gives the same result.

    Attributes:
        function: of the operator's inputs; returns the operator's outputs as a tuple.
        directions: those it can serve: a function that works in place only ``"forward"``.
        family: ``"steps"`` for recursions, ``"compile"`` for torch.compile, else ``"closed"`` (the
            closed-form adjoint in PyTorch) or ``"plain"``.
        fits: whether it is worth running at a shape and direction (memory, time).
    """

    name: str
    function: Callable[..., tuple[Tensor, ...]]
    directions: Sequence[str] = BOTH
    family: str = "plain"
    fits: Callable[[Shape, str], bool] = lambda shape, direction: True

    def serves(self, shape: Shape, direction: str) -> bool:
        return direction in self.directions and self.fits(shape, direction)


@dataclass(frozen=True)
class Operator:
    """One public operator with all that is needed to time and to verify it.

    Attributes:
        inputs: random float64 inputs for a shape, all of which get gradients.
        kanerva: the public function, returning the outputs that rivals return too.
        truth: the same in plain differentiable PyTorch, for float64.
        definition: the package's reference, which ``truth`` must equal in float64.
        symmetric: positions among the inputs of covariances: only the symmetric part of their
            gradient is defined.
        shapes: where it is compared unless others are asked for.
    """

    name: str
    inputs: Callable[[Shape, torch.Generator], tuple[Tensor, ...]]
    kanerva: Callable[..., tuple[Tensor, ...]]
    truth: Callable[..., tuple[Tensor, ...]]
    definition: Callable[..., tuple[Tensor, ...]]
    rivals: tuple[Rival, ...]
    symmetric: tuple[int, ...] = (1,)
    shapes: tuple[Shape, ...] = SHAPES


def compiled(rival: Rival, max_steps: int = 64) -> Rival:
    """torch.compile of a rival, for shapes of up to ``max_steps`` steps (it takes seconds each)."""

    @functools.cache
    def compile_once():
        return torch.compile(rival.function, fullgraph=True, dynamic=False)

    return Rival(
        f"compile({rival.name})",
        lambda *inputs: compile_once()(*inputs),
        rival.directions,
        "compile",
        lambda shape, direction: shape.steps <= max_steps and rival.fits(shape, direction),
    )


def random_state(shape: Shape, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A mean (B, K, C) and a covariance (B, K, K) with eigenvalues of order one."""
    batch, _, slots, code = shape
    mean = torch.randn(batch, slots, code, generator=generator, dtype=torch.float64)
    root = torch.randn(batch, slots, 2 * slots, generator=generator, dtype=torch.float64)
    cov = root @ root.mT / (2 * slots)
    cov.diagonal(dim1=-2, dim2=-1).add_(0.1)
    return mean, cov


def random_steps(shape: Shape, size: int, generator: torch.Generator) -> Tensor:
    """(B, T, size) standard normal."""
    return torch.randn(shape.batch, shape.steps, size, generator=generator, dtype=torch.float64)


def cholesky(matrix: Tensor) -> Tensor:
    """Lower factor without the check of `torch.linalg.cholesky`, which costs a pass."""
    return torch.linalg.cholesky_ex(matrix)[0]


def add_diagonal_(matrix: Tensor, diagonal: Tensor) -> Tensor:
    """Add (B, N) or (B, 1) to the diagonals of (B, N, N) in place."""
    matrix.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    return matrix


def inverse_from_factor(factor: Tensor) -> Tensor:
    """(F F')^-1 by a triangular solve and a product, which run faster than LAPACK's potri."""
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    root = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    return torch.bmm(root.mT, root)


def right_solve(right: Tensor, factor: Tensor) -> Tensor:
    """``right (F F')^-1``. From the right nothing is copied, unlike torch.cholesky_solve."""
    half = torch.linalg.solve_triangular(factor.mT, right, upper=True, left=False)
    return torch.linalg.solve_triangular(factor, half, upper=False, left=False)
