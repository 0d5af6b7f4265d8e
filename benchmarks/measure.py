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
from kanerva_ext import _backend

from .rivals import OPERATORS, Rival, Shape
from .timers import HOST, Timer, quick_time
from .truths import has_closed_form, reference_gradient

KANERVA = "kanerva"
MAX_ERROR = 1e-3  # relative, against float64: beyond it a provider computes something else
TRUTH_ERROR = 1e-9  # of the differentiable truth against the package's reference, both float64

_checked: set[tuple[str, Shape, int]] = set()  # problems whose truth has met the reference


class WrongResult(AssertionError):
    """A provider does not compute the operator."""


def providers(operator: str, shape: Shape, direction: str) -> list[Rival]:
    """Ours, then every rival that serves the shape and direction."""
    rivals = OPERATORS[operator].rivals
    return [ours(operator), *(r for r in rivals if r.serves(shape, direction))]


def ours(operator: str) -> Rival:
    """What serves a user who names no backend."""
    return Rival(KANERVA, OPERATORS[operator].kanerva, family=KANERVA)


def on_backend(operator: str, backend: str) -> Rival:
    """Ours on one backend, as a provider of its own."""
    spec = OPERATORS[operator]

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        with kanerva_ext.use_backend(backend):
            return spec.kanerva(*inputs)

    return Rival(f"{KANERVA}[{backend}]", function, family=KANERVA)


def on_backends(operator: str, device: str | torch.device = "cpu") -> list[Rival]:
    """Ours on every backend that is here and serves ``device``, as providers of their own."""
    return [on_backend(operator, name) for name in backends_on(device)]


def backends_on(device: str | torch.device) -> list[str]:
    """Names of the backends that are here and serve tensors on ``device``."""
    kind = torch.device(device).type
    here = [name for name, status in kanerva_ext.backends().items() if status == "available"]
    triton = kind == "cuda" or _backend.interpreted
    return [n for n in here if n in (kind, "reference") or (n == "triton" and triton)]


def mode(direction: str) -> AbstractContextManager:
    """Forward alone runs in the cheapest mode PyTorch has, for every provider."""
    return torch.inference_mode(direction == "forward")


@dataclass
class Problem:
    """Inputs of one operator at one shape, the gradients fed back, and the true results.

    The truth is the definition's in float64; with ``by_operator`` that of our own C++ operator in
    float64 on the CPU, which the tests hold against the definition: for shapes at which the
    definition takes minutes.
    """

    operator: str
    shape: Shape
    direction: str
    seed: int = 0
    device: str | torch.device = "cpu"
    by_operator: bool = False
    inputs: tuple[Tensor, ...] = field(init=False)
    grads: tuple[Tensor, ...] = field(init=False)
    truth: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        spec = OPERATORS[self.operator]
        generator = torch.Generator().manual_seed(self.seed)
        # Rounded first: truth and providers see the same numbers.
        rounded = tuple(x.float() for x in spec.inputs(self.shape, generator))
        wide = tuple(x.double() for x in rounded)
        long = has_closed_form(self.operator, self.shape) and not self.by_operator
        truth_of = on_backend(self.operator, "cpu").function if self.by_operator else spec.truth
        with torch.no_grad():
            outputs = (spec.definition if long else truth_of)(*wide)
        skips_check = long or self.by_operator
        if not skips_check and (self.operator, self.shape, self.seed) not in _checked:
            # Batch items are independent; the recursion in float64 takes seconds for each.
            defined = spec.definition(*(x[:1] for x in wide))
            error = relative_error([x[:1] for x in outputs], defined)
            if not error < TRUTH_ERROR:
                raise WrongResult(f"{self.operator}: truth and reference differ by {error:.1e}")
            _checked.add((self.operator, self.shape, self.seed))
        grads = tuple(torch.randn(x.shape, generator=generator) for x in outputs)
        truth = outputs
        if self.direction != "forward":
            fed = tuple(g.double() for g in grads)
            if long:
                truth = reference_gradient(self.operator, fed, wide)
            else:
                leaves = tuple(x.requires_grad_() for x in wide)
                truth = torch.autograd.grad(truth_of(*leaves), leaves, fed)
        # The truth is the CPU's for every device; what is timed happens on the device alone.
        self.inputs, self.grads, self.truth = rounded, grads, truth
        self.move(self.device)

    def move(self, device: str | torch.device) -> None:
        """All tensors to ``device``."""
        self.device = device
        self.inputs, self.grads, self.truth = (
            tuple(x.to(device) for x in tensors)
            for tensors in (self.inputs, self.grads, self.truth)
        )

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


def interleaved(
    calls: dict[str, Callable],
    rounds: int,
    seconds: float,
    block: float = 4e-3,
    timer: Timer = HOST,
    least: int = 7,
) -> dict[str, list[float]]:
    """Medians of short blocks of calls, the providers taking turns: name -> seconds per round.

    Each block starts with an untimed call, which takes the caches back from the provider before.
    There are at most ``rounds`` rounds, fewer (but ``least``) when ``seconds`` are spent.
    """
    repeats = {
        n: max(1, min(40, int(block / quick_time(c, 0.01, timer=timer)))) for n, c in calls.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    enabled = gc.isenabled()
    gc.disable()
    started = time.perf_counter()
    try:
        for index in range(rounds):
            if index >= least and time.perf_counter() - started > seconds:
                break
            for name in order if index % 2 == 0 else reversed(order):
                times[name].append(statistics.median(timer.samples(calls[name], repeats[name])))
    finally:
        if enabled:
            gc.enable()
    return times
