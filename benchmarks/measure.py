"""Verifying a provider against float64, and timing several of them side by side."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

import kanerva_ext

from .rivals import OPERATORS, Rival, Shape

KANERVA = "kanerva"
MAX_ERROR = 1e-3  # relative, against float64: beyond it a provider computes something else
TRUTH_ERROR = 1e-9  # of the differentiable truth against the package's reference, both float64

_checked: set[tuple[str, Shape, int]] = set()  # problems whose truth has met the reference


class WrongResult(AssertionError):
    """A provider does not compute the operator."""


def providers(operator: str, shape: Shape, direction: str) -> list[Rival]:
    """Ours, then every rival that serves the shape and direction."""
    spec = OPERATORS[operator]
    ours = Rival(KANERVA, spec.kanerva, family=KANERVA)
    return [ours, *(r for r in spec.rivals if r.serves(shape, direction))]


def on_backends(operator: str) -> list[Rival]:
    """Ours on every backend that is here, as providers of their own."""
    spec = OPERATORS[operator]

    def on(backend: str) -> Rival:
        def function(*inputs: Tensor) -> tuple[Tensor, ...]:
            with kanerva_ext.use_backend(backend):
                return spec.kanerva(*inputs)

        return Rival(f"{KANERVA}[{backend}]", function, family=KANERVA)

    here = [name for name, status in kanerva_ext.backends().items() if status == "available"]
    return [on(backend) for backend in here]


def mode(direction: str) -> AbstractContextManager:
    """Forward alone runs in the cheapest mode PyTorch has, for every provider."""
    return torch.inference_mode(direction == "forward")


@dataclass
class Problem:
    """Inputs of one operator at one shape, the gradients fed back, and the true results."""

    operator: str
    shape: Shape
    direction: str
    seed: int = 0
    inputs: tuple[Tensor, ...] = field(init=False)
    grads: tuple[Tensor, ...] = field(init=False)
    truth: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        spec = OPERATORS[self.operator]
        generator = torch.Generator().manual_seed(self.seed)
        # Rounded first: truth and providers see the same numbers.
        rounded = tuple(x.float() for x in spec.inputs(self.shape, generator))
        self.inputs = rounded
        wide = tuple(x.double() for x in rounded)
        outputs = spec.truth(*wide)
        if (self.operator, self.shape, self.seed) not in _checked:
            # Batch items are independent; the recursion in float64 takes seconds for each.
            defined = spec.definition(*(x[:1] for x in wide))
            error = relative_error([x[:1] for x in outputs], defined)
            if not error < TRUTH_ERROR:
                raise WrongResult(f"{self.operator}: truth and reference differ by {error:.1e}")
            _checked.add((self.operator, self.shape, self.seed))
        self.grads = tuple(torch.randn(x.shape, generator=generator) for x in outputs)
        self.truth = outputs
        if self.direction != "forward":
            leaves = tuple(x.requires_grad_() for x in wide)
            grads = tuple(g.double() for g in self.grads)
            self.truth = torch.autograd.grad(spec.truth(*leaves), leaves, grads)

    @property
    def nbytes(self) -> int:
        """Of all that goes in and comes out, in float32, once: the least traffic of a call."""
        fed = () if self.direction == "forward" else self.grads
        return 4 * sum(x.numel() for x in (*self.inputs, *fed, *self.truth))

    def bind(self, provider: Rival) -> Callable[[], tuple[Tensor, ...]]:
        """What is timed: outputs from plain inputs, or gradients of leaves."""
        function, inputs, grads = provider.function, self.inputs, self.grads
        if self.direction == "forward":
            return lambda: function(*inputs)
        leaves = tuple(x.clone().requires_grad_() for x in inputs)
        return lambda: torch.autograd.grad(function(*leaves), leaves, grads)

    def error(self, results: Sequence[Tensor]) -> float:
        """Largest relative error of a result, in the Frobenius norm over the whole tensor."""
        truth = self.truth
        if self.direction != "forward":
            symmetric = OPERATORS[self.operator].symmetric
            results, truth = (
                [x + x.mT if i in symmetric else x for i, x in enumerate(r)]
                for r in (results, truth)
            )
        return relative_error(results, truth)

    def verify(self, provider: Rival, call: Callable) -> float:
        """The error of a provider; raises `WrongResult` when it is not the operator's."""
        with mode(self.direction):
            error = self.error(call())
        if not error <= MAX_ERROR:
            raise WrongResult(
                f"{self.operator} {self.shape} {self.direction}: {provider.name} has a relative "
                f"error of {error:.1e} against float64 (at most {MAX_ERROR:.0e})"
            )
        return error


def relative_error(results: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Largest over the tensors of |x - y| / |y|; infinite for NaN."""
    worst = 0.0
    for x, y in zip(results, truth, strict=True):
        error = ((x.double() - y).norm() / y.norm()).item()
        worst = max(worst, error if error == error else float("inf"))
    return worst


def quick_time(call: Callable, budget: float = 0.05, calls: int = 10) -> float:
    """Least of a few calls, in seconds: for choosing, not for reporting.

    At least two calls; then until both ``budget`` seconds and ``calls`` or 10 budgets are spent.
    """
    least, spent, count = float("inf"), 0.0, 0
    while count < 2 or spent < budget or (count < calls and spent < 10 * budget):
        start = time.perf_counter()
        call()
        elapsed = time.perf_counter() - start
        least, spent, count = min(least, elapsed), spent + elapsed, count + 1
    return least


def interleaved(
    calls: dict[str, Callable], rounds: int, seconds: float, block: float = 4e-3
) -> dict[str, list[float]]:
    """Medians of short blocks of calls, the providers taking turns: name -> seconds per round.

    Each block starts with an untimed call, which takes the caches back from the provider before.
    There are at most ``rounds`` rounds, fewer (but 7) when ``seconds`` are spent.
    """
    repeats = {n: max(1, min(40, int(block / quick_time(c, 0.01)))) for n, c in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    enabled = gc.isenabled()
    gc.disable()
    started = time.perf_counter()
    try:
        for index in range(rounds):
            if index >= 7 and time.perf_counter() - started > seconds:
                break
            for name in order if index % 2 == 0 else reversed(order):
                call = calls[name]
                call()
                samples = []
                for _ in range(repeats[name]):
                    start = time.perf_counter_ns()
                    call()
                    samples.append(time.perf_counter_ns() - start)
                times[name].append(statistics.median(samples) * 1e-9)
    finally:
        if enabled:
            gc.enable()
    return times
