"""The exact read against iterations towards it: ``python -m benchmarks.iterative``.

MesaNet (von Oswald et al., 2025) answers each query by 30 conjugate-gradient iterations on the
precision H of its step, chunk by chunk: a product with H of step t is one with that before the
chunk and a masked one inside it. Here is that arithmetic in PyTorch, all chunks at once, beside
`ops.causal_scan` on the same problem, with the error of the reads against float64 for independent
and for correlated keys. The iterations give no variance, no covariance and no evidence. On a GPU
(``--device cuda``) times are those of its events.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from kanerva_ext import ops

from . import machine, timers
from .compare import RESULTS, parse_shapes, write_json
from .measure import interleaved
from .rivals import Shape
from .timers import Timer

ITERATIONS = 30
CHUNK = 64
SHAPES = {"cpu": "8x2048x64x64,8x1024x128x128", "cuda": "128x4096x128x128,8x2048x64x64"}


def problem(shape: Shape, correlated: bool, device: str) -> list[torch.Tensor]:
    """Keys of norm one, independent or around one direction; prior N(0, I), noise variance 0.1."""
    generator = torch.Generator().manual_seed(0)
    batch, steps, slots, code = shape

    def keys():
        x = torch.randn(batch, steps, slots, generator=generator, dtype=torch.float64)
        if correlated:
            x = x / slots**0.5 + 3 * torch.randn(batch, 1, slots, generator=generator).double()
        return torch.nn.functional.normalize(x, dim=-1)

    values = torch.randn(batch, steps, code, generator=generator, dtype=torch.float64)
    noise = torch.full((batch, steps), 0.1, dtype=torch.float64)
    return [x.float().to(device) for x in (keys(), values, keys(), noise)]


def exact(weights, values, queries, noise_var):
    return ops.causal_scan(None, None, weights, values, queries, noise_var)[0]


class Precision:
    """H of every step of every chunk, as an operator on (B, chunks, L, K)."""

    def __init__(self, weights, values, queries, noise_var):
        self.shape = values.shape
        split = [x.unflatten(1, (-1, CHUNK)) for x in (weights, values, queries, noise_var)]
        self.w, self.z, self.q, v = split
        self.scaled = self.w / v[..., None]
        outer = self.scaled.mT @ self.w
        self.before = outer.cumsum(1) - outer
        shift = self.scaled.mT @ self.z
        self.shift = shift.cumsum(1) - shift

    def __call__(self, x):
        return x @ self.before + (x @ self.w.mT).tril() @ self.scaled + x

    def read(self, x):
        return (x @ self.shift + (x @ self.scaled.mT).tril() @ self.z).reshape(self.shape)


def conjugate_gradients(weights, values, queries, noise_var):
    apply = Precision(weights, values, queries, noise_var)
    x = torch.zeros_like(apply.q)
    rest = direction = apply.q
    energy = (rest * rest).sum(-1, keepdim=True)
    for _ in range(ITERATIONS):
        image = apply(direction)
        rate = energy / (direction * image).sum(-1, keepdim=True).clamp(min=1e-30)
        x = x + rate * direction
        rest = rest - rate * image
        before, energy = energy, (rest * rest).sum(-1, keepdim=True)
        direction = rest + energy / before.clamp(min=1e-30) * direction
    return apply.read(x)


def relative_error(reads: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest error over largest value, the worst row."""
    gap = (reads.double() - truth).abs().flatten(1).amax(1)
    return (gap / truth.abs().flatten(1).amax(1)).max().item()


@dataclass
class Row:
    """One shape; times in milliseconds, errors of the reads against float64."""

    shape: str
    exact_ms: float = 0.0
    conjugate_gradients_ms: float = 0.0
    ratio: float = 0.0
    exact_error_independent: float = 0.0
    conjugate_gradients_error_independent: float = 0.0
    exact_error_correlated: float = 0.0
    conjugate_gradients_error_correlated: float = 0.0
    other_load: float | None = None

    def line(self) -> str:
        return (
            f"{self.shape}: exact {self.exact_ms:.1f} ms, {ITERATIONS} iterations "
            f"{self.conjugate_gradients_ms:.1f} ms, ratio {self.ratio:.2f}; errors with "
            f"independent keys {self.exact_error_independent:.0e} and "
            f"{self.conjugate_gradients_error_independent:.0e}, with correlated keys "
            f"{self.exact_error_correlated:.0e} and {self.conjugate_gradients_error_correlated:.0e}"
        )


def compare(shape: Shape, timer: Timer, rounds: int, seconds: float) -> Row:
    row = Row(str(shape))
    for name, correlated in (("independent", False), ("correlated", True)):
        inputs = problem(shape, correlated, timer.device)
        truth = exact(*(x.double() for x in inputs))
        for method in (exact, conjugate_gradients):
            error = relative_error(method(*inputs), truth)
            setattr(row, f"{method.__name__}_error_{name}", error)
    calls = {f.__name__: (lambda f=f: f(*inputs)) for f in (exact, conjugate_gradients)}
    with machine.OtherLoad() as load:
        found = interleaved(calls, rounds, seconds, timer=timer)
    for method, times in found.items():
        setattr(row, f"{method}_ms", 1e3 * statistics.median(times))
    row.ratio, row.other_load = row.conjugate_gradients_ms / row.exact_ms, load.cores
    return row


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.iterative", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=timers.default_device())
    parser.add_argument("--shapes", type=parse_shapes, help="BxTxKxC,...; B is batch times heads")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=11, help="rounds at most")
    parser.add_argument("--seconds", type=float, default=20.0, help="per shape")
    parser.add_argument("--json", type=Path, nargs="?", const=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    timer = timers.of(options.device)
    about = machine.describe(timer)
    print(machine.headline(about))
    rows = []
    with torch.inference_mode():
        for shape in options.shapes or parse_shapes(SHAPES[options.device]):
            rows.append(compare(shape, timer, options.repeats, options.seconds))
            print(rows[-1].line(), flush=True)
    if options.json:
        print(f"written to {write_json(options.json, 'iterative', about, rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
