"""A memory that moves for tens of thousands of steps, in a chain and in segments that go on at
once, against the step-by-step filter in extended precision: results and every gradient."""

import functools
import itertools

import numpy as np
import pytest
import torch
from helpers import DTYPES, LD, Case, Problem, assert_as_accurate
from retention_cases import (
    assert_true,
    assert_true_gradients,
    call,
    gradients,
    scan_of,
    truth_of_gradients,
)
from retention_truth import (
    GRADS,
    NAMES,
    Moving,
    MovingProblem,
    moving_problem,
    moving_scan,
    moving_scan_with_grads,
    random_grads,
    stacked,
)
from selection import INTERPRETER, PTX, covering, not_on

from kanerva_ext import ops

pytestmark = not_on(INTERPRETER, PTX, reason="long sequences, and of the CPU's threads")

KINDS = ("iid", "collinear", "repeated", "zeros", "softmax")
NOISES = (1e-6, 1e-3, 1.0, 1e3)
MOVES = ("kept", "gentle", "half", "hardly", "strong", "mixed")
STATIONARY = ("none", "matrix", "rank1")


def _covering(steps: int, *axes) -> list[Moving]:
    rows = list(itertools.product(*axes))
    return [
        Moving(Case(kind, noise, steps, 6, 3, mask, batch=2), retention, stationary)
        for kind, noise, retention, stationary, mask in (rows[i] for i in covering(rows))
    ]


#: Every kind with every noise, retention, covariance and mask; and the longest.
PROBLEMS = {
    4_096: _covering(4_096, KINDS, NOISES, MOVES, STATIONARY, ("none", "some")),
    65_536: _covering(65_536, KINDS, (1e-6, 1.0, 1e3), MOVES[:4], ("matrix",), ("some",)),
}


@functools.cache
def known(steps: int):
    """Gradients that come in, the truth, and what the same recursion makes of it in each dtype."""
    movings = PROBLEMS[steps]
    m = stacked(movings)
    grads = random_grads(m)
    made = {}
    for number in (LD, np.float64, np.float32):
        made[number] = moving_scan_with_grads(m, grads, number)
    return grads, made


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("segments", [1, 9])
@pytest.mark.parametrize("steps", PROBLEMS)
def test_long_sequences_are_the_filter(monkeypatch, steps, segments, dtype):
    monkeypatch.setenv("KANERVA_SEGMENTS", str(segments))
    grads, made = known(steps)
    m = stacked(PROBLEMS[steps], dtype)
    leaves = [x.clone().requires_grad_() for x in m.inputs()]
    results = scan_of(m)(leaves)
    found = torch.autograd.grad(results, leaves, [g.to(dtype) for g in grads])
    rivals = made[np_of(dtype)]
    floors = (1e-10, 1e-9) if dtype == torch.float64 else (None, None)
    for names, got, part in ((NAMES, results, 0), (GRADS, found, 1)):
        for name, g, w, r in zip(names, got, made[LD][part], rivals[part], strict=True):
            for i, moving in enumerate(PROBLEMS[steps]):
                if part and name == "cov" and cancels(moving) and dtype == torch.float32:
                    continue
                label = f"{moving}: {'gradient of ' * part}{name}"
                two = slice(2 * i, 2 * i + 2)
                assert_as_accurate(g[two].detach(), w[two], r[two], floor=floors[part], name=label)


def cancels(moving: Moving) -> bool:
    """Of the gradient of the covariance at the start: written at the same addresses for ever and
    all but without noise it cancels to nothing, unless it is carried with a square root, as that of
    a float64 state is (test_long_gradients.py)."""
    case = moving.case
    return (case.kind, case.noise, moving.retention) == ("repeated", 1e-6, "kept")


@pytest.mark.slow
def test_strong_forgetting_for_long():
    """0.5 a step for 10,000 steps: the products of the retentions are beyond all floats."""
    moving = Moving(Case("iid", 0.1, 10_000, 6, 3, batch=1), "half", "matrix")
    for dtype in DTYPES:
        results = call(moving_problem(moving, dtype))
        assert_true(moving, dtype, results)
        assert results[1].max() < 10
    grads, want = truth_of_gradients(moving)
    m = moving_problem(moving)
    assert_true_gradients(torch.float64, gradients(m, grads, scan_of(m)), want)


@pytest.mark.parametrize("retention", ["gentle", "mixed"])
def test_truth_has_the_gradient_of_its_results(retention):
    """By differences in extended precision along random directions."""
    m = moving_problem(Moving(Case("iid", 0.1, 300, 5, 3, "some"), retention, "matrix"))
    grads = random_grads(m)
    seeds = [g.numpy().astype(LD) for g in grads]
    found = moving_scan_with_grads(m, grads)[1]
    generator, h = np.random.default_rng(0), LD(1e-6)

    def loss(arrays):
        results = moving_scan(m, arrays=arrays)
        return sum((r * g).sum() for r, g in zip(results, seeds, strict=True))

    inputs = [x.numpy().astype(LD) for x in m.inputs()]
    for i, gradient in enumerate(found):
        direction = generator.standard_normal(inputs[i].shape).astype(LD)
        if GRADS[i] in ("cov", "stationary_cov"):
            direction = direction + np.swapaxes(direction, -1, -2)
        if GRADS[i] in ("noise_var", "retention"):
            direction = direction * inputs[i]
        ends = []
        for step in (h, -h):
            moved = list(inputs)
            moved[i] = inputs[i] + step * direction
            ends.append(loss(moved))
        slope, want = (gradient * direction).sum(), (ends[0] - ends[1]) / (2 * h)
        assert abs(slope - want) < 1e-7 * abs(want), GRADS[i]


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["iid", "collinear", "repeated", "zeros"])
def test_packed_sequences_are_the_filter(monkeypatch, kind, dtype, segments):
    monkeypatch.setenv("KANERVA_SEGMENTS", str(segments))
    bounds = (0, 0, 1, 70, 70, 90, 200)
    moving = Moving(Case(kind, 0.1, bounds[-1], 6, 3, "some", batch=1), "gentle", "matrix")
    exact, m = moving_problem(moving), moving_problem(moving, dtype)
    count = len(bounds) - 1
    state = [x.expand(count, -1, -1) for x in (m.p.mean, m.p.cov, m.stationary_cov)]
    mean, cov, sigma = (x[None].clone().requires_grad_() for x in state)
    steps = [x.clone().requires_grad_() for x in m.inputs()[2:7]]
    options = {"mask": m.p.mask, "retention": steps[4], "stationary_cov": sigma}
    results = ops.causal_scan(*(mean, cov, *steps[:4]), **options, cu_seqlens=torch.tensor(bounds))
    grads = random_grads(exact)
    grads[2:] = [torch.cat([g] * count) for g in grads[2:]]
    seeds = [grads[0], grads[1], *(g[None] for g in grads[2:])]
    found = torch.autograd.grad(results, [mean, cov, *steps, sigma], [g.to(dtype) for g in seeds])
    floor = 1e-11 if dtype == torch.float64 else None
    for n, (a, b) in enumerate(itertools.pairwise(bounds)):
        one = part_of(exact, a, b)
        seed = [grads[0][:, a:b], grads[1][:, a:b], *(g[n : n + 1] for g in grads[2:])]
        truth, rival = (moving_scan_with_grads(one, seed, x) for x in (LD, np_of(dtype)))
        got = [*(x[:, a:b] for x in results[:2]), *(x[:, n] for x in results[2:])]
        got += [x[:, n] if i in (0, 1, 7) else x[:, a:b] for i, x in enumerate(found)]
        wanted, rivals = [*truth[0], *truth[1]], [*rival[0], *rival[1]]
        for name, g, w, r in zip(NAMES + GRADS, got, wanted, rivals, strict=True):
            if b > a or name in ("mean", "cov"):
                label = f"{name} of sequence {n}"
                assert_as_accurate(g.detach(), w, r, floor=floor, name=label)


def part_of(m: MovingProblem, a: int, b: int) -> MovingProblem:
    """Steps a to b."""
    p = m.p
    steps = (x[:, a:b] for x in (p.weights, p.values, p.noise_var, p.mask))
    return MovingProblem(
        Problem(p.mean, p.cov, *steps), m.queries[:, a:b], m.retention[:, a:b], m.stationary_cov
    )


def np_of(dtype):
    return np.float64 if dtype == torch.float64 else np.float32
