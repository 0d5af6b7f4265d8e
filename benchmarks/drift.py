"""How far an inverse that is kept up to date wanders off, with and without a refresh.

    python -m benchmarks.drift [--steps 32 256 2048 8192]

Adaptive writes of T codes, one row per problem and T: relative error of the final mean against the
float64 recursion with a full solve per step, for that recursion in float32, for the rank-2 identity
without a refresh (`rivals.adaptive_write.inverse`) in float32 and float64, and for ours.
"""

from __future__ import annotations

import argparse

import torch

from kanerva_ext import ops, reference

from .rivals.adaptive_write import inverse

#: slots, code size, noise variance = ridge
PROBLEMS = ((16, 24, 0.1), (24, 16, 1.0), (24, 24, 1e-2), (32, 8, 1e-4), (24, 16, 0.1))
COLUMNS = (
    "solve per step, float32",
    "no refresh, float32",
    "no refresh, float64",
    "ours, float32",
    "ours, float64",
)


def problem(slots: int, code: int, noise: float, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mean, values = (torch.randn(1, n, code, generator=generator) for n in (slots, steps))
    return [
        mean,
        torch.eye(slots)[None],
        values,
        torch.full((1, steps), noise),
        torch.tensor([noise]),
    ]


def error(mean: torch.Tensor, truth: torch.Tensor) -> float:
    gap = ((mean.double() - truth).abs().max() / truth.abs().max()).item()
    return gap if gap == gap else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[32, 256, 2048, 8192])
    options = parser.parse_args()
    print(f"| K, C, noise | T | {' | '.join(COLUMNS)} |")
    print("|---|---" + "|---" * len(COLUMNS) + "|")
    for slots, code, noise in PROBLEMS:
        for steps in options.steps:
            single = problem(slots, code, noise, steps)
            double = [x.double() for x in single]
            truth = reference.adaptive_write(*double)[0]
            with torch.no_grad():
                means = (
                    reference.adaptive_write(*single)[0],
                    inverse(*single)[0],
                    inverse(*double)[0],
                    ops.adaptive_write(*single)[0],
                    ops.adaptive_write(*double)[0],
                )
            errors = " | ".join(f"{error(m, truth):.0e}" for m in means)
            print(f"| {slots}, {code}, {noise:g} | {steps} | {errors} |", flush=True)


if __name__ == "__main__":
    main()
