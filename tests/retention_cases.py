"""Problems of a memory that moves, and the rule by which results and gradients pass."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from helpers import CASES, DTYPES, Case, assert_as_accurate, assert_same_direction
from retention_truth import (
    COVARIANCES,
    GRADS,
    NAMES,
    RETENTIONS,
    Moving,
    MovingProblem,
    moving_problem,
    moving_scan,
    moving_scan_grads,
    random_grads,
)
from selection import INTERPRETER, covering, not_on

from kanerva_ext import ops, reference

CHUNKS = (1, 2, 3, 5, 16, 31, 64, 1000)
HARD = [c for c in CASES if c.steps <= 100 and c.slots <= 65 and not c.decay]
MOVING = [
    Moving(case, RETENTIONS[i % 4], COVARIANCES[(i // 4 + i) % 4]) for i, case in enumerate(HARD)
]
EASY = [
    Moving(Case("iid", noise, 70, 9, 4, mask), retention, stationary)
    for noise, mask in ((1.0, "none"), (0.1, "some"))
    for retention in RETENTIONS
    for stationary in COVARIANCES
]
COLLINEAR = [
    Moving(Case("collinear", noise, 60, 12, 5, "some"), retention, "matrix")
    for noise in (1e-6, 1e-3, 1e3)
    for retention in ("strong", "gentle")
]
ALL = EASY + MOVING + COLLINEAR
#: A few problems, easy and hard, for the interpreter.
FEW = (EASY[5], EASY[15], COLLINEAR[1], COLLINEAR[2])
OFTEN_ENOUGH = not_on(INTERPRETER, reason="others of its kind run there")


def affordable(*axes):
    """Marks for a grid of problems with what follows: the interpreter runs those rows, of the
    problems that it can afford, in which every two traits meet."""
    rows = [row for row in itertools.product(*axes) if not row[0].case.marks]
    traits = [(*m.case.traits()[:4], m.retention, m.stationary, *more) for m, *more in rows]
    chosen = {rows[i] for i in covering(traits)}
    return lambda *row: row[0].case.marks or (() if row in chosen else (OFTEN_ENOUGH,))


AFFORDABLE = affordable(ALL, DTYPES)


def a_few(movings):
    """Of these the interpreter runs those in `FEW`."""
    return [pytest.param(m, id=str(m), marks=() if m in FEW else (OFTEN_ENOUGH,)) for m in movings]


def call(m: MovingProblem, **options):
    p = m.p
    return ops.causal_scan(*p[:4], m.queries, p.noise_var, **m.options(), **options)


def plain_call(m: MovingProblem):
    """The recursion in PyTorch."""
    p = m.p
    return reference.causal_scan(
        *p[:4], m.queries, p.noise_var, p.mask, None, m.retention, m.matrix()
    )


@functools.cache
def truth(moving: Moving):
    return moving_scan(moving_problem(moving))


@functools.cache
def plain(moving: Moving, dtype):
    return plain_call(moving_problem(moving, dtype))


def assert_true(moving: Moving, dtype, results, floor: float | None = None) -> None:
    floor = 1e-10 if dtype == torch.float64 else floor
    known = truth(moving), plain(moving, dtype)
    for name, got, want, rival in zip(NAMES, results, *known, strict=True):
        assert_as_accurate(got, want, rival, floor=floor, name=name)


@functools.cache
def truth_of_gradients(moving: Moving):
    m = moving_problem(moving)
    grads = random_grads(m)
    return grads, moving_scan_grads(m, grads)


def gradients(m: MovingProblem, grads, function):
    """Of `GRADS`, as ``function`` of them has them for ``grads`` of its results, some None."""
    leaves = [x.detach().clone().requires_grad_() for x in m.inputs()]
    results = function(leaves)
    used = [(r, g.to(r.dtype)) for r, g in zip(results, grads, strict=True) if r is not None]
    outputs, seeds = zip(*used, strict=True)
    return torch.autograd.grad(outputs, leaves, seeds, materialize_grads=True)


def scan_of(m: MovingProblem, **options):
    """The scan as a function of `GRADS`."""
    options["mask"] = m.p.mask
    return lambda x: ops.causal_scan(*x[:6], retention=x[6], stationary_cov=x[7], **options)


def recursion_of(m: MovingProblem):
    return lambda x: reference.causal_scan(*x[:6], m.p.mask, None, *x[6:])


def assert_true_gradients(dtype, got, want, rivals=None) -> None:
    """Of `GRADS`: as accurate as autograd through the recursion, or to 1e-9 in float64."""
    floor = 1e-9 if dtype == torch.float64 else None
    rivals = [None] * len(GRADS) if rivals is None else rivals
    for name, g, w, r in zip(GRADS, got, want, rivals, strict=True):
        if r is not None and name in ("cov", "stationary_cov"):
            r = (r + r.mT) / 2
        assert_as_accurate(g, w, r, floor=floor, name=f"gradient of {name}")
        if dtype == torch.float64:
            assert_same_direction(g, w, name=f"gradient of {name}")


def small(seed=0, dtype=torch.float64, b=2, t=6, k=4, c=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.device("cpu"):

        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        root = randn(b, k, k)
        made = {
            "mean": randn(b, k, c),
            "cov": root @ root.mT / k + 0.5 * torch.eye(k, dtype=torch.float64),
            "weights": randn(b, t, k),
            "values": randn(b, t, c),
            "queries": randn(b, t, k),
            "noise_var": torch.rand(b, t, generator=generator, dtype=torch.float64) + 0.1,
        }
    return {n: x.to(torch.get_default_device(), dtype) for n, x in made.items()}


def without_queries(args):
    return {n: x for n, x in args.items() if n != "queries"}
