import pytest
import torch
from helpers import assert_as_accurate, assert_as_accurate_on_average
from operator_checks import DATA, RIDGE, STATE, OperatorChecks
from selection import INTERPRETER, PTX, TEAMS, engine, not_on

from kanerva_ext import ops, reference


class TestRecall(OperatorChecks):
    name = "recall"
    function = staticmethod(ops.recall)
    signature = (
        ("mean", STATE, "KC"),
        ("cov", STATE, "KK"),
        ("queries", DATA, "TC"),
        ("ridge", RIDGE, ""),
    )
    saved_outputs = (2,)
    factors_covariance = False


def inputs(t, k, c, dtype, batch=2):
    torch.manual_seed(0)
    root = torch.randn(batch, k, k) / k**0.5
    cov = root @ root.mT + 0.1 * torch.eye(k)
    ridge = torch.tensor([0.01, 1.0]).repeat(batch // 2)
    args = (torch.randn(batch, k, c), cov, torch.randn(batch, t, c), ridge)
    return [x.to(dtype) for x in args]


LARGE = not_on(INTERPRETER, reason="many tiles")
LARGEST = not_on(INTERPRETER, TEAMS, reason="many tiles")
SIZES = [
    (5, 64, 16),
    (3, 9, 20),
    pytest.param(33, 32, 100, marks=LARGE),
    (1, 1, 1),
    pytest.param(100, 17, 31, marks=LARGE),
    pytest.param(9, 300, 65, marks=LARGEST),
]
MOST = pytest.param(
    *(3, 257, 300), marks=not_on(INTERPRETER, PTX, reason="257 slots of 300 columns, both ways")
)


@pytest.mark.parametrize(("t", "k", "c"), [*SIZES, MOST])
def test_is_solve_then_read(t, k, c):
    mean, cov, queries, ridge = inputs(t, k, c, torch.float64)
    values, var, weights = ops.recall(mean, cov, queries, ridge)
    solved = ops.solve_addresses(mean, queries, ridge)
    torch.testing.assert_close(weights, solved, rtol=1e-10, atol=1e-12)
    for got, want in zip((values, var), ops.read(mean, cov, solved), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("t", "k", "c"), [*SIZES, MOST])
def test_float32(t, k, c):
    """Values and gradients, against the plain computation in float32 and float64."""

    def run(function, dtype):
        batch = {None: 32, INTERPRETER: 4}.get(engine(), 8)
        args = [x.requires_grad_() for x in inputs(t, k, c, dtype, batch=batch)]
        results = function(*args)
        cotangents = [torch.randn(r.shape).to(dtype) for r in results]
        *grads, d_ridge = torch.autograd.grad(results, args, cotangents)
        return *results, *grads, d_ridge

    names = ("values", "var", "weights", "d mean", "d cov", "d queries", "d ridge")
    for name, got, want, rival in zip(
        names,
        run(ops.recall, torch.float32),
        run(reference.recall, torch.float64),
        run(reference.recall, torch.float32),
        strict=True,
    ):
        agree = assert_as_accurate_on_average if name == "d ridge" else assert_as_accurate
        agree(got.detach(), want.detach(), rival.detach(), name=name)


def test_each_result_alone_is_differentiable():
    args = [x.requires_grad_() for x in inputs(3, 4, 5, torch.float64)]
    for i in range(3):
        got = torch.autograd.grad(ops.recall(*args)[i].square().sum(), args, materialize_grads=True)
        want = torch.autograd.grad(
            reference.recall(*args)[i].square().sum(), args, materialize_grads=True
        )
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
