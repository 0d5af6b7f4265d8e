"""causal_scan of sequences packed one after another."""

import itertools

import pytest
import torch
from helpers import Case
from scan_truth import scan_problem
from selection import MANY_CALLS

from kanerva_ext import ops

BOUNDS = (0, 7, 7, 20, 21, 60)


def packed(dtype=torch.float64, grad=False, rows=2):
    """Arguments with a state for each of the sequences, and their bounds."""
    p, queries = scan_problem(Case("iid", 0.1, BOUNDS[-1], 6, 4, "some", True, rows), dtype)
    count = len(BOUNDS) - 1
    mean = torch.randn(rows, count, 6, 4, dtype=dtype)
    root = torch.randn(rows, count, 6, 6, dtype=dtype)
    cov = root @ root.mT / 6 + 0.5 * torch.eye(6, dtype=dtype)
    args = [mean, cov, *p[2:4], queries, p.noise_var, p.decay]
    return [x.requires_grad_(grad) for x in args], p.mask, torch.tensor(BOUNDS)


def call(args, mask, bounds, **options):
    return ops.causal_scan(*args[:6], mask=mask, decay=args[6], cu_seqlens=bounds, **options)


def one_by_one(args, mask):
    results = []
    for n, (a, b) in enumerate(itertools.pairwise(BOUNDS)):
        steps = [x[:, a:b] for x in args[2:]]
        results.append(
            ops.causal_scan(
                args[0][:, n], args[1][:, n], *steps[:4], mask=mask[:, a:b], decay=steps[4]
            )
        )
    columns = list(zip(*results, strict=True))
    return [*(torch.cat(c, 1) for c in columns[:2]), *(torch.stack(c, 1) for c in columns[2:])]


@pytest.mark.parametrize(
    ("index", "dtype"),
    [(torch.int64, torch.float32), (torch.int32, torch.float64)],
    ids=["int64-float32", "int32-float64"],
)
def test_packed_sequences_know_nothing_of_each_other(dtype, index):
    args, mask, bounds = packed(dtype, grad=True)
    results = call(args, mask, bounds.to(index))
    expected = one_by_one(args, mask)
    weight = [torch.randn_like(r) for r in results]
    close = {} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got, want, **close)
    for got, want in zip(
        torch.autograd.grad(results, args, weight),
        torch.autograd.grad(expected, args, weight),
        strict=True,
    ):
        torch.testing.assert_close(got, want, **close)


def test_packed_leading_dimensions_and_default_state():
    args, mask, bounds = packed()
    want = call(args, mask, bounds)
    lifted = [x[None] for x in args]
    for got, expected in zip(call(lifted, mask[None], bounds), want, strict=True):
        assert got.shape == (1, *expected.shape)
        torch.testing.assert_close(got[0], expected)
    zero = [torch.zeros_like(args[0]), torch.eye(6, dtype=torch.float64).expand_as(args[1])]
    for got, expected in zip(
        call([None, None, *args[2:]], mask, bounds),
        call([*zero, *args[2:]], mask, bounds),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


@MANY_CALLS
def test_packed_gradcheck():
    args, mask, bounds = packed(rows=1)
    args = [x[:, :4] if i < 2 else x[:, :20] for i, x in enumerate(args)]
    args = [x.detach().clone().requires_grad_() for x in args]

    def function(mean, cov, *steps):
        return call([mean, (cov + cov.mT) / 2, *steps], mask[:, :20], bounds[[0, 1, 2, 3, 3]])

    assert torch.autograd.gradcheck(function, args)
    assert torch.autograd.gradgradcheck(function, args, fast_mode=True)


@MANY_CALLS
def test_packed_vmap_and_compile():
    args, mask, bounds = packed()
    several = [torch.stack([x, x.flip(0)]) for x in args]
    mapped = torch.vmap(lambda *a: call(a, mask, bounds))(*several)
    for i in range(2):
        for got, want in zip(mapped, call([x[i] for x in several], mask, bounds), strict=True):
            torch.testing.assert_close(got[i], want)
    with pytest.raises(NotImplementedError, match="cu_seqlens"):
        torch.vmap(
            lambda b: torch.ops.kanerva.causal_scan(
                *(x.flatten(0, 1) for x in args[:2]), *args[2:6], mask, args[6], None, None, b, 0
            )
        )(torch.stack([bounds, bounds]))
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(args, mask, bounds), call(args, mask, bounds), strict=True):
        torch.testing.assert_close(got, want)
    torch._dynamo.reset()


@MANY_CALLS
def test_opcheck_packed():
    args, mask, bounds = packed(grad=True)
    raw = (*(x.detach().flatten(0, 1).requires_grad_() for x in args[:2]), *args[2:6])
    given = (*raw, mask, args[6], None, None, bounds, 0)
    torch.library.opcheck(torch.ops.kanerva.causal_scan.default, given)


def test_a_bad_sequence_is_nan_alone():
    args, mask, bounds = packed()
    mask = torch.ones_like(mask)
    expected = call(args, mask, bounds)
    args[5][1, 25] = -1.0  # in the last sequence of row 1
    results = call(args, mask, bounds)
    for got, want in zip(results, expected, strict=True):
        assert torch.equal(got[0], want[0])
        last = slice(21, 60) if got.shape[1] == 60 else slice(4, 5)
        first = slice(0, last.start)
        assert torch.equal(got[1, first], want[1, first])
        assert got[1, last].isnan().all()
    with pytest.raises(ValueError, match=r"noise_var is not positive in batch item\(s\) 1$"):
        call(args, mask, bounds, check=True)


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ([0, 60], TypeError, "must be a torch.Tensor, got list"),
        (torch.tensor([0.0, 60.0]), TypeError, "must be torch.int32 or torch.int64"),
        (torch.tensor([[0, 60]]), ValueError, r"must have shape \(N \+ 1,\)"),
        (torch.tensor([0]), ValueError, r"must have shape \(N \+ 1,\)"),
        (torch.tensor([0, 7, 7, 20, 21, 59]), ValueError, "must rise from 0 to T = 60"),
        (torch.tensor([1, 7, 7, 20, 21, 60]), ValueError, "must rise from 0 to T = 60"),
        (torch.tensor([0, 7, 6, 20, 21, 60]), ValueError, "must rise from 0 to T = 60"),
        (torch.tensor([0, 7, 60]), ValueError, r"N \(sequences\) = 2 as in cu_seqlens, got N = 5"),
    ],
    ids=str,
)
def test_bad_cu_seqlens(bounds, error, message):
    args, mask, _ = packed()
    with pytest.raises(error, match=f"causal_scan: .*{message}"):
        call(args, mask, bounds)


@MANY_CALLS
def test_bad_cu_seqlens_are_found_in_a_compiled_graph():
    torch._dynamo.reset()
    args, mask, bounds = packed()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for bad in ((0, 5, 7, 20, 21, 59), (2, 7, 7, 20, 21, 60), (0, 7, 6, 20, 21, 60)):
        with pytest.raises(ValueError, match="causal_scan: cu_seqlens must rise from 0 to T = 60"):
            compiled(args, mask, torch.tensor(bad))
    torch.testing.assert_close(compiled(args, mask, bounds), call(args, mask, bounds))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "bounds", [(0, 7, 90, 20, 21, 60), (-5, 7, 7, 20, 21, 60), (3, 7, 7, 9, 9, 30)]
)
def test_raw_operator_with_bad_bounds_is_nan(bounds):
    """Who calls torch.ops is not checked."""
    args, _, _ = packed()
    raw = (*(x.flatten(0, 1) for x in args[:2]), *args[2:6], None, args[6], None, None)
    results = torch.ops.kanerva.causal_scan(*raw, torch.tensor(bounds), 0)
    assert all(r.isnan().all() for r in results)
    assert not any(
        r.isnan().any() for r in torch.ops.kanerva.causal_scan(*raw, torch.tensor(BOUNDS), 0)
    )
