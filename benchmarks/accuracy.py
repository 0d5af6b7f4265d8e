"""Error of every form of the write against an 80-bit recursion, on hard addresses.

    python -m benchmarks.accuracy [--dtype float32|float64] [--steps 32 256 1024]

One row per kind of address, number of steps and noise variance: the larger of the relative errors
of mean and covariance (largest absolute error over largest absolute value), for the plain recursion
in the same dtype and for every method. ``inf``: not finite.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from kanerva_ext import ops

SLOTS, CODE = 32, 24
METHODS = ("chunk", "information", "sqrt", "auto")
NOISE = (1.0, 1e-2, 1e-4, 1e-6)


def addresses(rng: np.random.Generator, kind: str, steps: int) -> np.ndarray:
    w = rng.standard_normal((steps, SLOTS))
    if kind == "collinear":  # addresses that differ by a thousandth
        return w[:1] + 1e-3 * w
    if kind == "rank 8":
        return rng.standard_normal((steps, 8)) @ rng.standard_normal((8, SLOTS))
    if kind == "scaled":
        return w * np.logspace(0, -3, SLOTS)
    if kind == "softmax":
        e = np.exp(3 * w)
        return e / e.sum(1, keepdims=True)
    if kind == "repeated":
        return w[rng.integers(0, 4, steps)]
    return w


KINDS = ("iid", "collinear", "rank 8", "scaled", "softmax", "repeated")


def recursion(mean, cov, weights, values, noise_var, dtype):
    """The symmetric rank-1 recursion (design: c = U w, g = c / sqrt(s)) in any NumPy dtype."""
    mean, cov = mean.astype(dtype), cov.astype(dtype)
    noise_var = dtype(noise_var)
    for w, z in zip(weights.astype(dtype), values.astype(dtype), strict=True):
        c = cov @ w
        s = np.sqrt(w @ c + noise_var)
        g, e = c / s, (z - mean.T @ w) / s
        mean, cov = mean + np.outer(g, e), cov - np.outer(g, g)
    return mean, cov


def error(result, truth) -> float:
    worst = 0.0
    for x, y in zip(result, truth, strict=True):
        e = np.abs(np.asarray(x, dtype=np.longdouble) - y).max() / np.abs(y).max()
        worst = max(worst, float(e) if np.isfinite(e) else np.inf)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--steps", type=int, nargs="+", default=[32, 256, 1024])
    options = parser.parse_args()
    dtype = np.dtype(options.dtype).type
    rng = np.random.default_rng(0)
    np.seterr(all="ignore")  # the recursion is meant to break down
    print(f"| addresses, T, noise variance | recursion | {' | '.join(METHODS)} |")
    print("|---|---" + "|---" * len(METHODS) + "|")
    for steps in options.steps:
        for kind in KINDS:
            for noise_var in NOISE:
                weights = addresses(rng, kind, steps).astype(dtype)
                values = rng.standard_normal((steps, CODE)).astype(dtype)
                mean = rng.standard_normal((SLOTS, CODE)).astype(dtype)
                cov = np.eye(SLOTS, dtype=dtype)
                noise = float(dtype(noise_var))
                case = (mean, cov, weights, values, noise)
                truth = recursion(*case, np.longdouble)
                errors = [error(recursion(*case, dtype), truth)]
                tensors = [torch.from_numpy(x)[None] for x in case[:4]]
                for method in METHODS:
                    result = ops.bayes_write(*tensors, noise, method=method)[:2]
                    errors.append(error([x[0].numpy() for x in result], truth))
                columns = " | ".join(f"{e:.0e}" for e in errors)
                print(f"| {kind}, {steps}, {noise_var:g} | {columns} |", flush=True)


if __name__ == "__main__":
    main()
