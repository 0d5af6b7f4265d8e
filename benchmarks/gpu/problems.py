"""Calls of every operator, with the same numbers on every device, and their truth in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import rivals
from kanerva_ext import ops

#: B, T, K, C
Shape = tuple[int, int, int, int]


class Problem(NamedTuple):
    """A public function, its tensors, and the positions of covariances among them."""

    name: str
    function: Callable[..., object]
    inputs: tuple[Tensor, ...]
    symmetric: tuple[int, ...] = (1,)

    def to(self, device: str, dtype: torch.dtype) -> Problem:
        return self._replace(inputs=tuple(x.to(device, dtype) for x in self.inputs))

    def on(self, backend: str) -> Problem:
        return self._replace(function=functools.partial(self.function, backend=backend))

    def forward(self) -> tuple[Tensor, ...]:
        return as_tuple(self.function(*self.inputs))

    def cotangents(self) -> tuple[Tensor, ...]:
        """Incoming gradients of the results, drawn on the CPU."""
        with torch.no_grad():
            results = self.forward()
        generator = torch.Generator().manual_seed(1)
        draws = (torch.randn(x.shape, generator=generator, device="cpu") for x in results)
        return tuple(x.to(r) for x, r in zip(draws, results, strict=True))

    def backward(self, cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Gradients of all inputs; the symmetric part of those of covariances."""
        leaves = [x.detach().clone().requires_grad_() for x in self.inputs]
        results = as_tuple(self.function(*leaves))
        pairs = [(r, g) for r, g in zip(results, cotangents, strict=True) if r.requires_grad]
        outputs, incoming = zip(*pairs, strict=True)
        grads = torch.autograd.grad(outputs, leaves, incoming, materialize_grads=True)
        return tuple(g + g.mT if i in self.symmetric else g for i, g in enumerate(grads))


def as_tuple(results) -> tuple[Tensor, ...]:
    return tuple(results) if isinstance(results, tuple) else (results,)


def step_of_copies(mean: Tensor, cov: Tensor, *step: Tensor, **options):
    """causal_step, which changes its state in place: on copies, which are results too."""
    mean, cov = mean.clone(), cov.clone()
    return (*as_tuple(ops.causal_step(mean, cov, *step, **options)), mean, cov)


def moving_write(*inputs: Tensor, **options):
    """bayes_write into a memory that moves; the last two are its retention and stationary_cov."""
    *write, retention, stationary_cov = inputs
    return ops.bayes_write(*write, retention=retention, stationary_cov=stationary_cov, **options)


def moving_scan(*inputs: Tensor, **options):
    """causal_scan of a memory that moves, likewise."""
    *scan, retention, stationary_cov = inputs
    return ops.causal_scan(*scan, retention=retention, stationary_cov=stationary_cov, **options)


def problem(operator: str, shape: Shape, seed: int = 0) -> Problem:
    """In float64 on the CPU, with numbers that float32 holds exactly; those that the operator is
    given beside its rivals, or, of what has none, those of `_without_rivals`."""
    generator = torch.Generator().manual_seed(seed)
    spec = rivals.OPERATORS.get(operator.removeprefix("to_"))
    if spec is None:
        found = _without_rivals(operator, shape, generator)
    else:
        inputs = spec.inputs(rivals.Shape(*shape), generator)
        found = Problem(operator, getattr(ops, operator), inputs, spec.symmetric)
    return found.to("cpu", torch.float32).to("cpu", torch.float64)


def _without_rivals(operator: str, shape: Shape, generator: torch.Generator) -> Problem:
    b, t, k, c = shape

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device="cpu")

    root = randn(b, k, k) / k**0.5
    cov = root @ root.mT / 2 + 0.5 * torch.eye(k, device="cpu")
    mean, weights, queries = randn(b, k, c), randn(b, t, k) / k**0.5, randn(b, t, k) / k**0.5
    values = randn(b, t, c)
    noise = 0.5 + torch.rand(b, t, generator=generator, device="cpu")
    dynamics = (1 - 0.5 * torch.rand(b, t, generator=generator, device="cpu"), 0.8 * cov)
    first = (weights[:, 0], values[:, 0], queries[:, 0], noise[:, 0])
    scan = (mean, cov, weights, values, queries, noise)
    every: dict[str, tuple] = {
        "moving_write": (moving_write, (mean, cov, weights, values, noise, *dynamics), (1, 6)),
        "moving_scan": (moving_scan, (*scan, *dynamics), (1, 7)),
        "causal_step": (step_of_copies, (mean, cov, *first)),
    }
    return Problem(operator, *every[operator])


def relative_error(results: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Largest over the tensors of |x - y| / |y|; infinite for NaN."""
    worst = 0.0
    for x, y in zip(results, truth, strict=True):
        error = ((x.double().cpu() - y).norm() / y.norm().clamp(min=1e-300)).item()
        worst = max(worst, error if error == error else float("inf"))
    return worst
