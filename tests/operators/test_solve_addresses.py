import functools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import LD, assert_as_accurate, extended, solve_spd
from operator_checks import DATA, RIDGE, STATE, OperatorChecks
from selection import INTERPRETER, TEAMS, not_on

from kanerva_ext import ops, reference


class TestSolveAddresses(OperatorChecks):
    name = "solve_addresses"
    function = staticmethod(ops.solve_addresses)
    signature = (
        ("mean", STATE, "KC"),
        ("queries", DATA, "TC"),
        ("ridge", RIDGE, ""),
    )
    saved_outputs = (0,)


class Case(NamedTuple):
    kind: str
    ridge: float
    slots: int
    code: int
    steps: int = 5

    @property
    def marks(self):
        large = max(self.slots, self.code, self.steps) > 100
        engines = (INTERPRETER, TEAMS) if self.slots > 250 else (INTERPRETER,)
        return [not_on(*engines, reason="many tiles")] if large else []

    def __str__(self):
        return f"{self.kind}-{self.ridge:g}-K{self.slots}-C{self.code}-T{self.steps}"


def _grid():
    sizes = ((64, 16), (16, 64), (31, 31), (1, 5), (17, 1), (33, 100))
    kinds = ("iid", "collinear", "rank8", "scaled")
    points = [(kind, ridge) for kind in kinds for ridge in (1e-6, 1e-4, 1e-2, 1.0, 1e3)]
    cases = [Case(kind, ridge, *sizes[i % 6], 1 + i % 40) for i, (kind, ridge) in enumerate(points)]
    return [
        *cases,
        Case("iid", 1.0, 300, 257, 3),
        Case("iid", 0.1, 129, 300, 2),
        Case("collinear", 1e-6, 64, 200),
        Case("collinear", 1e-6, 200, 64),
        Case("iid", 1.0, 5, 7, 1000),
    ]


CASES = _grid()


def inputs(case: Case, dtype=torch.float64):
    """mean, queries and ridge, equal in every dtype."""
    k, c = case.slots, case.code
    double = torch.float64
    mean = torch.randn(2, k, c, dtype=double)
    if case.kind == "collinear":
        mean = torch.randn(2, 1, c, dtype=double) + 1e-3 * mean
    elif case.kind == "rank8":
        mean = torch.randn(2, k, 8, dtype=double) @ torch.randn(2, 8, c, dtype=double)
    elif case.kind == "scaled":
        mean = mean * torch.logspace(-3, 2, k, dtype=double)[:, None]
    queries = torch.randn(2, case.steps, c, dtype=double)
    ridge = case.ridge * torch.tensor([1.0, 1.5])
    return tuple(x.float().to(dtype) for x in (mean, queries, ridge))


@functools.cache
def truth(case: Case):
    """The smaller normal equations in longdouble."""
    torch.manual_seed(0)
    results = []
    for mean, queries, ridge in zip(*map(extended, inputs(case)), strict=True):
        if case.slots <= case.code:
            system = mean @ mean.T + ridge * np.eye(case.slots, dtype=LD)
            results.append(solve_spd(system, mean @ queries.T).T)
        else:
            system = mean.T @ mean + ridge * np.eye(case.code, dtype=LD)
            results.append((mean @ solve_spd(system, queries.T)).T)
    return np.stack(results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", [pytest.param(c, id=str(c), marks=c.marks) for c in CASES])
def test_accuracy(case, dtype):
    want = truth(case)
    torch.manual_seed(0)
    args = inputs(case, dtype)
    assert_as_accurate(
        ops.solve_addresses(*args),
        want,
        reference.solve_addresses(*args),
        floor=1e-10 if dtype == torch.float64 else None,
        name="weights",
    )


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c), marks=c.marks) for c in CASES])
def test_float32_gradients(case):
    """Against automatic differentiation of the plain solve, in float32 and, as truth, float64."""

    def grads(dtype, function):
        torch.manual_seed(0)
        args = [x.requires_grad_() for x in inputs(case, dtype)]
        cotangent = torch.randn(2, case.steps, case.slots).to(dtype)
        return torch.autograd.grad(function(*args), args, cotangent)

    plain = reference.solve_addresses
    for name, got, want, rival in zip(
        ("mean", "queries", "ridge"),
        grads(torch.float32, ops.solve_addresses),
        grads(torch.float64, plain),
        grads(torch.float32, plain),
        strict=True,
    ):
        # The gradient of the ridge is one number per item in which much may cancel.
        assert_as_accurate(got, want, rival, broken=float("inf"), name=f"gradient of {name}")


def test_minimises_the_regularised_error():
    mean, queries, ridge = torch.randn(3, 6, 9), torch.randn(3, 4, 9), torch.rand(3) + 0.1
    weights = ops.solve_addresses(mean, queries, ridge)
    residual = queries - weights @ mean
    stationary = residual @ mean.mT - ridge[:, None, None] * weights
    assert stationary.abs().max() < 1e-4


def test_ridge_as_number_scalar_and_tensor():
    mean, queries = torch.randn(2, 6, 4), torch.randn(2, 3, 4)
    want = ops.solve_addresses(mean, queries, torch.full((2,), 0.25))
    for ridge in (0.25, torch.tensor(0.25), torch.full((1,), 0.25), np.float64(0.25)):
        torch.testing.assert_close(ops.solve_addresses(mean, queries, ridge), want)
