"""A memory that drifts back to a stationary state between writes: results."""

import math

import pytest
import torch
from helpers import DTYPES, Case, assert_as_accurate
from operator_checks import DATA, MASK, NOISE, STATE, OperatorChecks
from retention_cases import (
    AFFORDABLE,
    ALL,
    CHUNKS,
    COLLINEAR,
    EASY,
    MOVING,
    OFTEN_ENOUGH,
    a_few,
    affordable,
    assert_true,
    call,
    plain,
    small,
    truth,
)
from retention_truth import NAMES, Moving, moving_problem
from selection import grid

from kanerva_ext import ops

CHUNKED = [
    Moving(Case("iid", 1.0, 100, 17, 5, "some"), "gentle", "none"),
    Moving(Case("iid", 1.0, 100, 17, 5), "strong", "matrix"),
    Moving(Case("softmax", 1e3, 33, 64, 16, "some"), "half", "rank1"),
    Moving(Case("repeated", 1e-6, 100, 12, 3), "mixed", "matrix"),
    Moving(Case("rank8", 1e-2, 20, 9, 5, "some"), "gentle", "scalar"),
]


class _MovingChecks(OperatorChecks):
    optional = ("mask", "stationary_cov")
    semidefinite = ("stationary_cov",)
    factors_covariance = False


class TestMovingScan(_MovingChecks):
    name = "causal_scan"
    function = staticmethod(ops.causal_scan)
    signature = (
        ("mean", STATE, "KC"),
        ("cov", STATE, "KK"),
        ("weights", DATA, "TK"),
        ("values", DATA, "TC"),
        ("queries", DATA, "TK"),
        ("noise_var", NOISE, "T"),
        ("mask", MASK, "T"),
        ("retention", NOISE, "T"),
        ("stationary_cov", STATE, "KK"),
    )
    raw_order = (
        *("mean", "cov", "weights", "values", "queries", "noise_var", "mask", "decay"),
        *("retention", "stationary_cov"),
    )
    raw_tail = (None, 0)
    with_default = ("mean", "cov", "retention")

    def depends(self, name, result, results):
        return name != "queries"  # a NaN in a query stays in its read


class TestMovingWrite(_MovingChecks):
    name = "bayes_write"
    function = staticmethod(ops.bayes_write)
    signature = tuple(x for x in TestMovingScan.signature if x[0] != "queries")
    raw_order = tuple(x for x in TestMovingScan.raw_order if x != "queries")
    raw_tail = ("auto",)
    saved_outputs = (0, 1)
    with_default = ("retention",)


@pytest.mark.parametrize(("moving", "dtype"), grid(ALL, DTYPES, marks=AFFORDABLE))
def test_accuracy(moving, dtype):
    m = moving_problem(moving, dtype)
    results = call(m)
    assert_true(moving, dtype, results)
    assert torch.equal(results[3], results[3].mT)
    assert (results[1] >= 0).all()
    written = ops.bayes_write(*m.p[:5], **m.options())
    assert_true(moving, dtype, (*results[:2], *written))
    assert torch.equal(written[1], written[1].mT)


@pytest.mark.parametrize(
    "moving", [pytest.param(m, id=str(m), marks=affordable(EASY)(m)) for m in EASY]
)
def test_float64_is_exact(moving):
    """To the truth in extended precision, whatever the recursion in float64 makes of it."""
    for name, got, want in zip(NAMES, call(moving_problem(moving)), truth(moving), strict=True):
        assert_as_accurate(got, want, floor=1e-12, name=name)


@pytest.mark.parametrize(
    ("moving", "chunk_size", "dtype"),
    grid(
        *([*CHUNKED, *COLLINEAR, *MOVING[::4]], CHUNKS, DTYPES),
        marks=lambda m, *_: m.case.marks or ((OFTEN_ENOUGH,) if m.case.steps > 33 else ()),
    ),
)
def test_every_chunk_length(moving, chunk_size, dtype):
    results = call(moving_problem(moving, dtype), chunk_size=chunk_size)
    assert_true(moving, dtype, results)


@pytest.mark.parametrize("method", ["auto", "chunk", "sqrt"])
@pytest.mark.parametrize("moving", a_few([*EASY[::5], *COLLINEAR]))
def test_every_method(moving, method):
    for dtype in DTYPES:
        m = moving_problem(moving, dtype)
        written = ops.bayes_write(*m.p[:5], **m.options(), method=method)
        assert_true(moving, dtype, (*plain(moving, dtype)[:2], *written))


@pytest.mark.parametrize("stationary_cov", [None, 3.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_retention_of_one_is_none(dtype, stationary_cov):
    args = small(dtype=dtype, t=40)
    still = ops.causal_scan(**args)
    kept = ops.causal_scan(**args, retention=1.0, stationary_cov=stationary_cov)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(kept, still, **tolerance)


def test_masked_steps_are_as_if_they_were_not_there():
    args = small(t=9)
    keep = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1, 0], dtype=torch.bool)
    retention = torch.linspace(0.2, 0.9, 9, dtype=torch.float64).expand(2, 9).clone()
    spoiled = {n: x.clone() for n, x in args.items()}
    for name in ("weights", "values", "noise_var"):
        spoiled[name][:, ~keep] = math.nan
    retention[:, ~keep] = math.nan
    got = ops.causal_scan(**spoiled, mask=keep.expand(2, 9), retention=retention)
    kept = {n: x[:, keep] if n not in ("mean", "cov") else x for n, x in args.items()}
    want = ops.causal_scan(**kept, retention=retention[:, keep])
    torch.testing.assert_close(got[0][:, keep], want[0])
    torch.testing.assert_close(got[1][:, keep], want[1])
    torch.testing.assert_close(got[2:], want[2:])
    query = args["queries"][:, :1]  # before the first step that counts
    torch.testing.assert_close(got[0][:, :1], query @ args["mean"])


def test_no_steps():
    args = small(t=0)
    results = ops.causal_scan(**args, retention=0.5, stationary_cov=2.0)
    assert torch.equal(results[2], args["mean"])
    torch.testing.assert_close(results[3], args["cov"])
    assert not results[4].any() and results[0].shape == (2, 0, 3)


@pytest.mark.parametrize("bounds", [(0, 6, 6, 13, 20), (0, 1, 2, 19, 20)])
def test_packed_sequences_are_separate_ones(bounds):
    b, n = 2, len(bounds) - 1
    args = small(t=20, b=b)
    states = [small(seed=1 + i, b=b) for i in range(n)]
    mean, cov = (torch.stack([s[x] for s in states], 1) for x in ("mean", "cov"))
    sigma = torch.stack([s["cov"].flip(0) for s in states], 1)
    steps = {x: args[x] for x in ("weights", "values", "queries", "noise_var")}
    steps["retention"] = 0.3 + 0.7 * torch.rand(b, 20, dtype=torch.float64)
    leaves = {**steps, "mean": mean, "cov": cov, "stationary_cov": sigma}
    leaves = {x: y.clone().requires_grad_() for x, y in leaves.items()}
    at = torch.tensor(bounds)
    got = ops.causal_scan(**leaves, cu_seqlens=at)
    apart = []
    for i in range(n):
        span = slice(bounds[i], bounds[i + 1])
        own = {x: leaves[x][:, span] for x in steps}
        own.update({x: leaves[x][:, i] for x in ("mean", "cov", "stationary_cov")})
        apart.append(ops.causal_scan(**own))
    columns = list(zip(*apart, strict=True))
    want = [*(torch.cat(c, 1) for c in columns[:2]), *(torch.stack(c, 1) for c in columns[2:])]
    torch.testing.assert_close(got, tuple(want))
    seeds = [torch.randn_like(r) for r in want]
    inputs = list(leaves.values())
    found = torch.autograd.grad(got, inputs, seeds)
    expected = torch.autograd.grad(want, inputs, seeds)
    torch.testing.assert_close(found, expected)
    one = {x: y.detach() for x, y in leaves.items()}
    one["stationary_cov"] = one["stationary_cov"][:, :1]
    shared = ops.causal_scan(**one, cu_seqlens=at)
    one["stationary_cov"] = one["stationary_cov"].expand(b, n, 4, 4)
    torch.testing.assert_close(shared, ops.causal_scan(**one, cu_seqlens=at))
    one["stationary_cov"] = 0.5 * torch.eye(4, dtype=torch.float64)
    shared = ops.causal_scan(**one, cu_seqlens=at)
    one["stationary_cov"] = 0.5
    torch.testing.assert_close(shared, ops.causal_scan(**one, cu_seqlens=at))


def test_a_memory_without_writes_becomes_stationary():
    args = small(t=50)
    args["weights"] = torch.zeros_like(args["weights"])
    sigma = args["cov"].flip(0)
    _, _, mean, cov, _ = ops.causal_scan(**args, retention=0.5, stationary_cov=sigma)
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    torch.testing.assert_close(cov, sigma)


def test_zero_stationary_covariance_is_accepted():
    args = small()
    zero = torch.zeros(2, 4, 4, dtype=torch.float64)
    results = ops.causal_scan(**args, retention=0.5, stationary_cov=zero, check=True)
    assert all(r.isfinite().all() for r in results)
