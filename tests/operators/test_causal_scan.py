import functools

import pytest
import torch
from helpers import (
    CASES,
    DTYPES,
    LONG,
    Case,
    Problem,
    assert_as_accurate,
    assert_same_direction,
    problem,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_checks import DATA, MASK, NOISE, STATE, OperatorChecks
from scan_truth import scan, scan_grads, scan_problem
from selection import INTERPRETER, MANY_CALLS, PTX, REFERENCE_ALONE, TEAMS, grid, not_on
from torch import Tensor

from kanerva_ext import ops, reference

NAMES = ("reads", "read_var", "mean", "cov", "log_evidence")
GRADS = ("mean", "cov", "weights", "values", "queries", "noise_var", "decay")
GRAD_CASES = [c for c in CASES if c.steps <= 100 and c.slots <= 65]
CHUNKS = (1, 3, 16, 64, 1000)
CHUNK_CASES = (
    Case("iid", 1.0, 100, 17, 5, "some", True),
    Case("collinear", 1e-4, 70, 33, 20),
    Case("softmax", 1e3, 33, 64, 16, "some"),
    Case("repeated", 1e-6, 100, 12, 3),
    Case("rank8", 1e-2, 20, 9, 5, "some", True),
)


class TestCausalScan(OperatorChecks):
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
        ("decay", NOISE, "T"),
    )
    optional = ("mask", "decay")
    with_default = ("mean", "cov")
    raw_tail = (None, None, None, 0)
    factors_covariance = False

    def depends(self, name, result, results):
        return name != "queries"  # a NaN in a query stays in its read


def cases_dtypes(cases):
    return pytest.mark.parametrize(
        ("case", "dtype"),
        grid(
            cases,
            DTYPES,
            values=lambda case, dtype: (*case, dtype),
            marks=lambda case, dtype: case.marks,
        ),
    )


def chunk_marks(case: Case):
    """In the interpreter one of the problems, with every chunk length."""
    return () if case.steps <= 20 else (not_on(INTERPRETER, reason="too large a problem"),)


def call(p: Problem, queries: Tensor, **options):
    return ops.causal_scan(*p[:4], queries, p.noise_var, mask=p.mask, decay=p.decay, **options)


def plain_call(p: Problem, queries: Tensor):
    """The symmetric recursion in PyTorch."""
    return reference.causal_scan(*p[:4], queries, p.noise_var, p.mask, p.decay)


@functools.cache
def truth(case: Case):
    return scan(*scan_problem(case))


@functools.cache
def plain(case: Case, dtype: torch.dtype):
    return plain_call(*scan_problem(case, dtype))


def assert_true(case: Case, dtype: torch.dtype, results) -> None:
    floor = 1e-10 if dtype == torch.float64 else None
    for name, got, want, rival in zip(NAMES, results, truth(case), plain(case, dtype), strict=True):
        assert_as_accurate(got, want, rival, floor=floor, name=name)


@cases_dtypes(CASES)
def test_accuracy(case, dtype):
    results = call(*scan_problem(case, dtype))
    assert_true(case, dtype, results)
    assert torch.equal(results[3], results[3].mT)
    assert (results[1] >= 0).all()


@pytest.mark.parametrize(
    ("case", "chunk_size", "dtype"),
    grid(CHUNK_CASES, CHUNKS, DTYPES, marks=lambda case, chunk_size, dtype: chunk_marks(case)),
)
def test_any_chunk_length_gives_the_same(case, chunk_size, dtype):
    assert_true(case, dtype, call(*scan_problem(case, dtype), chunk_size=chunk_size))


@not_on(INTERPRETER, PTX, reason="65,536 steps")
@pytest.mark.parametrize("dtype", grid(DTYPES, values=lambda dtype: ()))
def test_65536_steps(dtype):
    assert_true(LONG, dtype, call(*scan_problem(LONG, dtype)))


@not_on(INTERPRETER, reason="200 steps")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_strong_decay(decay, dtype):
    p, queries = scan_problem(Case("iid", 0.1, 200, 6, 3), dtype)
    p = p._replace(decay=torch.full_like(p.noise_var, decay))
    floor = 1e-10 if dtype == torch.float64 else None
    true, rivals = scan(p, queries), plain_call(p, queries)
    for name, got, want, rival in zip(NAMES, call(p, queries), true, rivals, strict=True):
        assert_as_accurate(got, want, rival, floor=floor, name=name)


# ---------------------------------------------------------------------------- gradients


@functools.cache
def incoming(case: Case):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(r.shape, generator=generator, dtype=torch.float32, device="cpu")
        .to(r.device)
        .double()
        for r in plain(case, torch.float64)
    ]


@functools.cache
def true_grads(case: Case):
    return scan_grads(*scan_problem(case), incoming(case))


def grads(case: Case, dtype: torch.dtype, function):
    """Gradients in the order of GRADS, that of decay only where there is one."""
    p, queries = scan_problem(case, dtype)
    p = Problem(*(x if x is None or x.dtype == torch.bool else x.requires_grad_() for x in p))
    queries.requires_grad_()
    inputs = [x for x in (*p[:4], queries, p.noise_var, p.decay) if x is not None]
    pairs = [
        (result, grad.to(dtype))
        for result, grad in zip(function(p, queries), incoming(case), strict=True)
        if result.requires_grad
    ]
    results, cotangents = zip(*pairs, strict=True)
    return torch.autograd.grad(results, inputs, cotangents, materialize_grads=True)


@functools.cache
def plain_grads(case: Case, dtype: torch.dtype):
    """Automatic differentiation through the symmetric recursion."""
    return grads(case, dtype, plain_call)


@cases_dtypes(GRAD_CASES)
def test_gradients(case, dtype):
    got = grads(case, dtype, call)
    floor = 1e-10 if dtype == torch.float64 else None
    for name, g, want, rival in zip(
        GRADS, got, true_grads(case), plain_grads(case, dtype), strict=False
    ):
        assert_as_accurate(g, want, rival, floor=floor, name=f"gradient of {name}")
        assert_same_direction(g, want, name=f"gradient of {name}")


@REFERENCE_ALONE
@pytest.mark.parametrize("case", grid(GRAD_CASES, values=Case.traits))
def test_closed_form_of_the_reference(case):
    p, queries = scan_problem(case)
    got = reference.causal_scan_backward(
        *incoming(case), *p[:4], queries, p.noise_var, p.mask, p.decay
    )
    for name, g, want, rival in zip(
        GRADS, got, true_grads(case), plain_grads(case, torch.float64), strict=False
    ):
        # It serves devices without kernels; chunks of it lose a few digits where noise is tiny.
        floor = 1e-10 if case.noise >= 1e-2 and case.kind != "scaled" else 1e-7
        if name != "decay" or case.decay:
            assert_as_accurate(g, want, rival, floor=floor, name=f"gradient of {name}")


@not_on(INTERPRETER, reason="300 steps")
@pytest.mark.parametrize(
    "chunk_size",
    [pytest.param(1, marks=not_on(TEAMS, reason="300 chunks")), *CHUNKS[1:]],
)
def test_gradients_with_any_chunk_length(chunk_size):
    """Several chunks in the adjoint, with decay across them."""
    for decay in (False, True):
        case = Case("iid", 1.0, 300, 9, 4, "some", decay)
        got = grads(case, torch.float64, functools.partial(call, chunk_size=chunk_size))
        for name, a, b in zip(GRADS, got, true_grads(case), strict=False):
            assert_as_accurate(a, b, floor=1e-10, name=name)


@pytest.mark.parametrize("wanted", range(5))
def test_gradient_of_one_result(wanted):
    """The gradients of the other results are absent, not zero."""
    case = Case("softmax", 0.1, 40, 9, 7, "some", True)
    p, queries = scan_problem(case)
    inputs = [x.requires_grad_() for x in (*p[:4], queries, p.noise_var, p.decay)]
    loss = [f(p, queries)[wanted].square().sum() for f in (call, plain_call)]
    got, want = (torch.autograd.grad(x, inputs, materialize_grads=True) for x in loss)
    for name, a, b in zip(GRADS, got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------------------- what it means


def test_reads_are_those_of_a_write_up_to_the_step():
    p, queries = scan_problem(Case("iid", 0.1, 12, 5, 3, "some", True))
    reads, read_var, mean, cov, evidence = call(p, queries)
    for t in range(12):
        until = [None if x is None else x[:, : t + 1] for x in (*p[2:5], p.mask, p.decay)]
        state = ops.bayes_write(*p[:2], *until[:3], mask=until[3], decay=until[4])
        values, var = ops.read(*state[:2], queries[:, t : t + 1])
        torch.testing.assert_close(reads[:, t], values[:, 0])
        torch.testing.assert_close(read_var[:, t], var[:, 0])
    for got, want in zip((mean, cov, evidence), state, strict=True):
        torch.testing.assert_close(got, want)


def test_a_masked_step_is_a_removed_step_whose_query_is_answered():
    case = Case("iid", 0.1, 30, 12, 7, "some", True, batch=1)
    p, queries = scan_problem(case)
    garbage = p._replace(
        weights=torch.where(p.mask[..., None], p.weights, torch.nan),
        values=torch.where(p.mask[..., None], p.values, torch.inf),
        noise_var=torch.where(p.mask, p.noise_var, -1.0),
        decay=torch.where(p.mask, p.decay, torch.nan),
    )
    inputs = [x.requires_grad_() for x in (*garbage[:4], queries, garbage.noise_var, garbage.decay)]
    results = call(garbage, queries)
    for name, got, want in zip(NAMES, results, truth(case), strict=True):
        assert_as_accurate(got, want, floor=1e-10, name=name)
    kept = p.mask[0]
    removed = Problem(*p[:2], *(x[:, kept] for x in p[2:5]), None, p.decay[:, kept])
    reads, read_var, *rest = call(removed, queries[:, kept])
    for got, want in zip(
        (results[0][:, kept], results[1][:, kept], *results[2:]),
        (reads, read_var, *rest),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)
    for name, grad in zip(
        GRADS, torch.autograd.grad([r.sum() for r in results], inputs), strict=True
    ):
        assert not grad.isnan().any(), name
        if grad.shape[1] == 30:
            masked = grad[~p.mask]
            assert (masked != 0).any() if name == "queries" else (masked == 0).all(), name


def test_nan_in_a_query_stays_in_its_read():
    p, queries = scan_problem(Case("iid", 0.1, 40, 5, 3))
    expected = call(p, queries)
    queries[1, 11, 2] = torch.nan
    results = call(p, queries)
    assert results[0][1, 11].isnan().all() and results[1][1, 11].isnan()
    for got, want in zip(results, expected, strict=True):
        if got.dim() > 1 and got.shape[1] == 40:
            got, want = got.clone(), want.clone()
            got[1, 11] = want[1, 11] = 0
        assert torch.equal(got, want)


@MANY_CALLS
def test_default_state_is_zero_mean_and_identity():
    p, queries = scan_problem(Case("iid", 0.1, 9, 4, 3), torch.float32)
    steps = (*p[2:4], queries, p.noise_var)
    want = ops.causal_scan(torch.zeros_like(p.mean), torch.eye(4).repeat(2, 1, 1), *steps)
    for state in ((None, None), (torch.zeros(4, 3), None), (None, torch.eye(4))):
        for a, b in zip(ops.causal_scan(*state, *steps), want, strict=True):
            torch.testing.assert_close(a, b)
    half = [x.bfloat16() for x in steps[:3]]
    assert ops.causal_scan(None, None, *half, 0.1)[0].dtype == torch.float32
    double = [x.double() for x in steps]
    assert ops.causal_scan(None, None, *double)[0].dtype == torch.float64
    with pytest.raises(TypeError, match=r"causal_scan: weights must be a torch\.Tensor, got None"):
        ops.causal_scan(None, None, None, *steps[1:])
    with pytest.raises(ValueError, match=r"values must have shape \(..., T, C\), got \(3,\)"):
        ops.causal_scan(None, None, steps[0], torch.ones(3), *steps[2:])


def test_chunk_size_is_checked():
    p, queries = scan_problem(Case("iid", 0.1, 9, 4, 3))
    for value, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(
            error, match=f"chunk_size must be .*got {value if error is ValueError else ''}"
        ):
            call(p, queries, chunk_size=value)


def test_indefinite_system_is_nan():
    for dtype in DTYPES:
        p, queries = scan_problem(Case("iid", 0.01, 5, 4, 3), dtype)
        p.cov[1] -= 50 * torch.eye(4, dtype=dtype)
        for result in call(p, queries):
            assert result[1].isnan().all() and not result[0].isnan().any()


@not_on(INTERPRETER, PTX, reason="40 examples of up to 40 steps")
@settings(max_examples=40, deadline=None)
@given(
    b=st.integers(1, 3),
    t=st.integers(0, 40),
    k=st.integers(1, 20),
    c=st.integers(1, 20),
    kind=st.sampled_from(("iid", "rank8", "softmax", "repeated")),
    noise=st.sampled_from((1e-2, 1.0, 1e2)),
    mask=st.sampled_from(("none", "some", "all")),
    decay=st.booleans(),
    chunk_size=st.sampled_from((None, 1, 5, 16, 100)),
    seed=st.integers(0, 99),
    transposed=st.booleans(),
)
def test_random_shapes(b, t, k, c, kind, noise, mask, decay, chunk_size, seed, transposed):
    p = problem(Case(kind, noise, t, k, c, mask, decay, b), seed=seed)
    queries = torch.randn_like(p.weights)
    if transposed:
        p = Problem(*(None if x is None else x.mT.contiguous().mT for x in p))
        queries = queries.mT.contiguous().mT
    results = call(p, queries, chunk_size=chunk_size)
    for name, got, want in zip(NAMES, results, scan(p, queries), strict=True):
        assert_as_accurate(got, want, floor=1e-10, name=name)
