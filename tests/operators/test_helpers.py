"""The rule by which everything passes must itself be able to fail."""

import numpy as np
import pytest
import torch
from helpers import (
    CASES,
    Case,
    assert_as_accurate,
    assert_same_direction,
    extended,
    problem,
    recursion,
    recursion_grads,
    relative_error,
    solve_spd,
)

from kanerva_ext import reference

TRUTH = torch.tensor([[1.0, 2.0], [0.01, 0.02]], dtype=torch.float64)
RIVAL = TRUTH.float() * (1 + 1e-3)


def fails(*args, match, **options):
    with pytest.raises(pytest.fail.Exception, match=match):
        assert_as_accurate(*args, **options)


def test_rule():
    assert_as_accurate(TRUTH.float(), TRUTH)
    assert_as_accurate((TRUTH * (1 + 1.9e-3)).float(), TRUTH, RIVAL)
    fails((TRUTH * (1 + 2.1e-3)).float(), TRUTH, RIVAL, match="0.0021 exceeds 0.002")
    fails((TRUTH * (1 + 1e-5)).float(), TRUTH, match="exceeds 9.54e-07")
    fails(TRUTH * (1 + 2e-10), TRUTH, TRUTH, floor=1e-10, match="exceeds 1e-10")
    assert_as_accurate(TRUTH * (1 + 2e-10), TRUTH, TRUTH * (1 + 1.5e-10), floor=1e-10)


def test_rule_is_per_item():
    """An error that is small beside the largest item is not small in its own."""
    wrong = TRUTH.float()
    wrong[1, 0] += 1e-3
    fails(wrong, TRUTH, match=r"worst at \(1, 0\): got 0.0109999")


def test_rule_catches_nan_and_shape():
    wrong = TRUTH.float()
    wrong[0, 1] = torch.nan
    fails(wrong, TRUTH, RIVAL, match=r"inf exceeds .* worst at \(0, 1\)")
    fails(wrong, TRUTH, wrong, match="inf exceeds 0.01")
    with pytest.raises(AssertionError, match="has shape"):
        assert_as_accurate(TRUTH[:1], TRUTH)


def test_broken_rival_excuses_no_more_than_a_percent():
    broken = TRUTH.float() * 3
    assert_as_accurate(TRUTH.float() * 1.009, TRUTH, broken)
    fails(TRUTH.float() * 1.02, TRUTH, broken, match="0.02 exceeds 0.01")


def test_direction():
    assert_same_direction(TRUTH * 3, TRUTH)
    with pytest.raises(AssertionError, match="item 1"):
        assert_same_direction(TRUTH * torch.tensor([[1, 1], [1, 1.1]]), TRUTH)


def test_relative_error_of_nothing():
    assert relative_error(torch.zeros(2, 0, 3), np.zeros((2, 0, 3))) == 0


def test_unwritten_memory_is_nan():
    assert torch.empty(1000).isnan().all()
    assert torch.empty(1000, dtype=torch.float64).isnan().all()


def test_extended_precision_is_extended():
    assert np.finfo(extended(TRUTH).dtype).eps < 1e-18


def test_problems_are_the_same_in_both_dtypes():
    for case in CASES[:10]:
        for a, b in zip(problem(case), problem(case, torch.float32), strict=True):
            assert a is None or torch.equal(a, b.to(a.dtype))


def test_longdouble_recursion_against_the_torch_recursion():
    """Two independent programs, on benign input."""
    p = problem(Case("iid", 1.0, 20, 9, 5, "some", True))
    for got, want in zip(reference.bayes_write(*p), recursion(p), strict=True):
        assert_as_accurate(got, want, floor=1e-13)


def test_longdouble_gradients_are_finite_differences():
    p = problem(Case("iid", 1.0, 4, 3, 2, "some", True, batch=1))
    incoming = [torch.randn(s, dtype=torch.float64) for s in ((1, 3, 2), (1, 3, 3), (1,))]

    def loss(q):
        return sum((extended(g) * r).sum() for g, r in zip(incoming, recursion(q), strict=True))

    grads = recursion_grads(p, incoming)
    fields = [f for f in p._fields if f != "mask"]
    for name, grad in zip(fields, grads, strict=True):
        step = torch.randn_like(getattr(p, name)) * 1e-5
        if name == "cov":
            step = step + step.mT
        up, down = (p._replace(**{name: getattr(p, name) + s * step}) for s in (1, -1))
        numeric = float(loss(up) - loss(down)) / 2
        assert numeric == pytest.approx(float((extended(step) * grad).sum()), rel=1e-6), name


def test_solve_spd():
    root = np.random.default_rng(0).normal(size=(7, 7))
    matrix, right = root @ root.T + np.eye(7), root[:, :3]
    assert np.abs(matrix @ solve_spd(matrix, right) - right).max() < 1e-15 * 100
