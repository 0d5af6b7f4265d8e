"""What a memory that moves costs: ``python -m benchmarks.moving``.

`causal_scan` with ``retention`` beside the one with ``decay``, and beside the fastest composition
of PyTorch's operators that gives the same: chunks by the formulas of `docs/algorithms.md`, with all
that no state is needed for made of all chunks at once, in several lengths, and the steps in place.
The first item is verified against the float64 recursion in the same run. Times are medians of
rounds in which all take turns, forward in inference mode, and with the gradient of every argument.
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch
from torch import Tensor

from kanerva_ext import ops, reference

from .compare import parse_shapes
from .measure import interleaved
from .rivals.spec import Shape, random_state, random_steps
from .timers import quick_time

LENGTHS = (16, 32, 64, 128)
TOLERANCE = 1e-4  # relative to the largest true value, float32


def arguments(shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    """mean, cov, weights, values, queries, noise_var, retention."""
    generator = torch.Generator().manual_seed(0)
    mean, cov = random_state(shape, generator)
    weights, queries = (
        random_steps(shape, shape.slots, generator) / shape.slots**0.5 for _ in range(2)
    )
    values = random_steps(shape, shape.code, generator)
    noise, u = (
        torch.rand(weights.shape[:2], generator=generator, dtype=torch.float64) for _ in range(2)
    )
    every = (mean, cov, weights, values, queries, 0.5 + noise, 1 - 0.02 * u)
    return [x.to(dtype) for x in every]


def moving(*x: Tensor) -> tuple[Tensor, ...]:
    return ops.causal_scan(*x[:6], retention=x[6])[:4]


def decaying(*x: Tensor) -> tuple[Tensor, ...]:
    return ops.causal_scan(*x[:6], decay=x[6])[:4]


def recursion(*x: Tensor) -> tuple[Tensor, ...]:
    unit = torch.eye(x[1].shape[-1], dtype=x[1].dtype).expand_as(x[1])
    return reference.causal_scan(*x[:6], None, None, x[6], unit)[:4]


def chunked(length: int):
    """As in `docs/algorithms.md`, with stationary covariance I, in chunks of ``length``."""

    def scan(mean, cov, weights, values, queries, noise_var, retention):
        slots = cov.shape[-1]
        count = weights.shape[1] // length
        w, z, q = (x.unflatten(1, (count, length)) for x in (weights, values, queries))
        v, a = (x.unflatten(1, (count, length)) for x in (noise_var, retention))
        total = a.log().cumsum(-1)
        kept = total.exp()
        between = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
        moved, asking = kept[..., None] * w, kept[..., None] * q
        both, last = torch.cat([moved, asking], 2), kept[..., -1, None, None]
        fresh = (w @ w.mT) * (between + between.tril(-1).mT) + torch.diag_embed(v)
        seen, to_end = (q @ w.mT) * between, between[..., -1, :, None] * w
        squares = q.square().sum(-1)
        unit = torch.eye(length, dtype=w.dtype).expand(w.shape[0], length, length)
        state = torch.cat([cov - torch.eye(slots, dtype=cov.dtype), mean], -1)
        reads, read_var = [], []
        for i in range(count):
            wide = torch.bmm(both[:, i], state)
            cross, asked = wide[:, :length], wide[:, length:]
            prior = torch.bmm(wide[..., :slots], moved[:, i].mT)
            factor = torch.linalg.cholesky(prior[:, :length] + fresh[:, i])
            inverse = torch.linalg.solve_triangular(factor, unit, upper=False)
            gain = last[:, i] * cross[..., :slots] + to_end[:, i]
            white = torch.bmm(inverse, torch.cat([gain, z[:, i] - cross[..., slots:]], -1))
            gains, errors = white[..., :slots], white[..., slots:]
            inside = torch.bmm((prior[:, length:] + seen[:, i]).tril(), inverse.mT).tril()
            reads.append(torch.baddbmm(asked[..., slots:], inside, errors))
            var = (asked[..., :slots] * asking[:, i]).sum(-1) + squares[:, i]
            read_var.append(var - inside.square().sum(-1))
            x = torch.baddbmm(last[:, i] ** 2 * state[..., :slots], gains.mT, gains, alpha=-1)
            r = torch.baddbmm(last[:, i] * state[..., slots:], gains.mT, errors)
            state = torch.cat([x, r], -1)
        cov = state[..., :slots] + torch.eye(slots, dtype=cov.dtype)
        return torch.cat(reads, 1), torch.cat(read_var, 1), state[..., slots:], cov

    return scan


@torch.no_grad()
def steps_inplace(mean, cov, weights, values, queries, noise_var, retention):
    mean, cov = mean.clone(), cov.clone()
    reads, read_var = torch.empty_like(values), torch.empty_like(noise_var)
    unit = torch.eye(cov.shape[-1], dtype=cov.dtype)
    for t in range(weights.shape[1]):
        w, q, a = weights[:, t, None], queries[:, t, None], retention[:, t, None, None]
        mean.mul_(a)
        cov.mul_(a * a).add_((1 - a * a) * unit)
        c = torch.bmm(w, cov)
        scaled = (c / (torch.bmm(c, w.mT) + noise_var[:, t, None, None])).mT
        mean.baddbmm_(scaled, torch.baddbmm(values[:, t, None], w, mean, alpha=-1))
        cov.baddbmm_(scaled, c, alpha=-1)
        reads[:, t] = torch.bmm(q, mean)[:, 0]
        read_var[:, t] = torch.bmm(torch.bmm(q, cov), q.mT)[:, 0, 0]
    return reads, read_var, mean, cov


def forward(function, inputs):
    with torch.inference_mode():
        return function(*inputs)


def with_gradient(function, inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    results = function(*leaves)
    return torch.autograd.grad(results, leaves, [torch.ones_like(x) for x in results])


def symmetrised(found):
    """The gradients with that of the covariance, of which only the symmetric half has a meaning."""
    return [(x + x.mT) / 2 if i == 1 else x for i, x in enumerate(found)]


def error(found, truth) -> float:
    return max(
        float((a.double() - b).abs().max() / b.abs().max())
        for a, b in zip(found, truth, strict=True)
    )


def rivals(direction: str, steps: int) -> dict:
    every = {f"chunks of {n}": chunked(n) for n in LENGTHS if steps % n == 0}
    return every if direction == "gradient" else {**every, "steps in place": steps_inplace}


def measure(shape: Shape, direction: str, rounds: int) -> None:
    """Verify, find the fastest rival by a few calls each, and print the times of a row."""
    run = forward if direction == "forward" else with_gradient
    inputs = arguments(shape, torch.float32)
    truth = run(recursion, [x[:1].double() for x in inputs])
    everyone = {"retention": moving, **rivals(direction, shape.steps)}
    for name, function in everyone.items():
        found = [x[:1] for x in run(function, inputs)]
        off = error(*((found, truth) if run is forward else map(symmetrised, (found, truth))))
        if not off < TOLERANCE:
            raise SystemExit(f"{name}, {direction}: off by {off:.1e}")
    calls = {n: lambda f=f: run(f, inputs) for n, f in everyone.items() if n != "retention"}
    quick = {name: quick_time(call) for name, call in calls.items()}
    best = min(quick, key=quick.__getitem__)
    ours = {n: lambda f=f: run(f, inputs) for n, f in (("r", moving), ("d", decaying))}
    found = interleaved({**ours, "best": calls[best]}, rounds, seconds=math.inf)
    took = {name: statistics.median(x) for name, x in found.items()}
    print(
        f"| {shape} | {direction} | {1e3 * took['r']:.1f} | {1e3 * took['d']:.1f} | "
        f"{took['r'] / took['d']:.2f} | {1e3 * took['best']:.1f}, {best} | "
        f"{took['best'] / took['r']:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.moving", description=__doc__)
    parser.add_argument("--shapes", type=parse_shapes, default="8x2048x64x64", help="BxTxKxC,...")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"float32, {torch.get_num_threads()} threads, PyTorch {torch.__version__}; milliseconds")
    print("| shape | direction | retention | decay | ratio | fastest in PyTorch | times |")
    print("|---|---|---|---|---|---|---|")
    for shape in options.shapes:
        for direction in ("forward", "gradient"):
            measure(shape, direction, options.rounds)


if __name__ == "__main__":
    main()
