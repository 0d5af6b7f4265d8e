"""Memories of at most 64 slots that drift back to the identity, in float32: GPUs have a kernel for
them, and another for those of a batch that are too hard for it."""

import itertools
import math

import pytest
import torch
from helpers import Case
from retention_cases import OFTEN_ENOUGH, assert_true, call, plain, small, without_queries
from retention_truth import NAMES, Moving, moving_problem
from selection import INTERPRETER, not_on

from kanerva_ext import ops, reference

KINDS = ("iid", "zeros", "softmax", "collinear", "repeated", "rank8")
NOISES = (1.0, 1e3, 0.3, 30.0, 1e-2, 1e-6)
RETENTIONS = ("gentle", "strong", "kept", "half", "hardly", "mixed")
STEPS = (17, 70, 1, 33, 300)
SIZES = ((64, 64), (32, 32), (33, 17), (16, 40), (48, 129), (17, 100), (64, 10))
MASKS = ("none", "some", "none", "some", "all", "none", "some")


def _grid():
    """Every kind with every noise; the others take turns."""
    pairs = [(kind, noise) for noise in NOISES for kind in KINDS]
    for i, (kind, noise) in enumerate(pairs):
        steps, sizes = STEPS[i % 5], SIZES[i % 7]
        case = Case(kind, noise, steps, *sizes, MASKS[(i + i // 7) % 7], batch=1 + i % 2)
        yield Moving(case, RETENTIONS[(i + i // 6) % 6], "none")


GRID = list(_grid())
#: A chunk's factor of keys that are alike has digits less than the recursion: 13 ulp, which has 2.
LESS_EXACT = {"collinear-v0.3-T17-K32-C32-mask_some-mixed-none": 2e-6}
#: Of long sequences the truth in extended precision takes seconds.
LONG = [
    Moving(Case("zeros", 1.0, 2000, 32, 32, "some", batch=1), "gentle", "none"),
    Moving(Case("iid", 1.0, 2000, 64, 64, batch=1), "kept", "none"),
    Moving(Case("collinear", 1e-6, 2000, 33, 8, batch=1), "hardly", "none"),
    # Beyond what float32 carries where next to nothing is forgotten.
    Moving(Case("iid", 1.0, 5000, 16, 8, batch=1), "kept", "none"),
]


def affordable(moving: Moving):
    affords = moving.case.steps <= 70 or moving.case.code <= 32
    return () if affords else (OFTEN_ENOUGH,)


def params(movings, marks=affordable):
    return [pytest.param(m, id=str(m), marks=marks(m)) for m in movings]


def assert_all_true(moving: Moving) -> None:
    m, floor = moving_problem(moving, torch.float32), LESS_EXACT.get(str(moving))
    results = call(m)
    assert_true(moving, torch.float32, results, floor)
    assert torch.equal(results[3], results[3].mT)
    assert (results[1] >= 0).all()
    written = ops.bayes_write(*m.p[:5], **m.options())
    assert_true(moving, torch.float32, (*results[:2], *written), floor)
    assert torch.equal(written[1], written[1].mT)


@pytest.mark.parametrize("moving", params(GRID))
def test_accuracy(moving):
    assert_all_true(moving)


@pytest.mark.parametrize("moving", params(LONG, marks=lambda m: affordable(m) and m.case.marks))
@pytest.mark.slow
def test_long(moving):
    assert_all_true(moving)


@pytest.mark.parametrize("moving", params(GRID[::4]))
def test_of_few_processors(moving, monkeypatch):
    """More memories than processors: of few slots in blocks of half the threads."""
    monkeypatch.setenv("KANERVA_PTX_PROCESSORS", "1")
    assert_all_true(moving)


def reference_of(args):
    """Step by step, with a retention of 0.95."""
    retention = torch.full_like(args["noise_var"], 0.95)
    names = ("mean", "cov", "weights", "values", "queries", "noise_var")
    eye = torch.eye(args["cov"].shape[-1]).to(args["cov"]).expand_as(args["cov"])
    return reference.causal_scan(*(args[n] for n in names), None, None, retention, eye)


def easy(b=3, t=70, k=32, c=20, seed=0):
    args = small(seed, torch.float32, b, t, k, c)
    return args | {"weights": args["weights"] / k**0.5, "noise_var": args["noise_var"] + 1}


@pytest.mark.parametrize("processors", ["1", "132"])
def test_hard_items_do_not_change_the_others(processors, monkeypatch):
    """Bit for bit, whatever is beside them; and they are what they are alone."""
    monkeypatch.setenv("KANERVA_PTX_PROCESSORS", processors)
    args = easy()
    alone = ops.causal_scan(**args, retention=0.9)
    hard = {n: x.clone() for n, x in args.items()}
    hard["noise_var"][1, 40:] = 1e-7
    mixed = ops.causal_scan(**hard, retention=0.9)
    only = ops.causal_scan(**{n: x[1:2] for n, x in hard.items()}, retention=0.9)
    for name, a, m, o in zip(NAMES, alone, mixed, only, strict=True):
        assert torch.equal(a[[0, 2]], m[[0, 2]]), name
        assert not torch.equal(a[1], m[1]), name
        torch.testing.assert_close(m[1:2], o, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mean", "cov", "weights", "values", "noise_var", "retention"])
def test_nan_stays_in_its_item(name):
    args = easy() | {"retention": torch.full((3, 70), 0.9)}
    whole = ops.causal_scan(**args)
    args = {n: x.clone() for n, x in args.items()}
    args[name][1, ..., -1] = math.nan
    for result, x, want in zip(NAMES, ops.causal_scan(**args), whole, strict=True):
        assert torch.equal(x[[0, 2]], want[[0, 2]]), result
    assert x[1].isnan()


def test_packed():
    """Sequences of a row, one of them empty, in chunks of their own."""
    args = easy(b=1, t=140)
    starts = [0, 33, 33, 98, 140]
    states = easy(b=4, seed=5)
    args |= {n: states[n][None] for n in ("mean", "cov")}
    draws = torch.rand(1, 140, generator=torch.Generator().manual_seed(1), device="cpu")
    retention = 1 - 0.3 * draws.to(torch.get_default_device())
    packed = ops.causal_scan(**args, retention=retention, cu_seqlens=torch.tensor(starts))
    for i, (start, end) in enumerate(itertools.pairwise(starts)):
        one = {n: x[:, start:end] for n, x in args.items() if n not in ("mean", "cov")}
        one |= {n: args[n][:, i] for n in ("mean", "cov")}
        want = ops.causal_scan(**one, retention=retention[:, start:end])
        got = (*(x[:, start:end] for x in packed[:2]), *(x[:, i] for x in packed[2:]))
        for name, g, w in zip(NAMES, got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_any_layout(width):
    """Rows that are not aligned, and values whose columns do not lie side by side."""
    args = easy(c=21)
    want = ops.causal_scan(**args, retention=0.8)
    apart = {}
    for name, x in args.items():
        if x.dim() == 3:
            room = x.new_zeros(*x.shape[:2], x.shape[2] + width)
            room[..., width:] = x
            x = room[..., width:]
        apart[name] = x
    for name, g, w in zip(NAMES, ops.causal_scan(**apart, retention=0.8), want, strict=True):
        assert torch.equal(g, w), name
    args["values"] = args["values"].mT.contiguous().mT
    got = ops.causal_scan(**args, retention=0.8)
    for name, g, w in zip(NAMES, got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("noise", [1.0, 1e-6])
@pytest.mark.parametrize("slots", [24, 64])
def test_in_segments(slots, noise, monkeypatch):
    """The segments that are easy by the same kernel, from beliefs in float64, the others not."""
    monkeypatch.setenv("KANERVA_SEGMENTS", "4")
    args = easy(b=2, t=150, k=slots, c=12)
    args["noise_var"][1, 90:100] = noise
    results = ops.causal_scan(**args, retention=0.95)
    written = ops.bayes_write(**without_queries(args), retention=0.95)
    exact = reference_of({n: x.double() for n, x in args.items()})
    for name, got, want in zip(NAMES, results, exact, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5, msg=name)
    for name, got, want in zip(NAMES[2:], written, exact[2:], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5, msg=name)


@not_on(INTERPRETER, reason="the layer's own size, 8 heads")
def test_size_of_the_layer():
    moving = Moving(Case("iid", 1.0, 512, 64, 64, batch=8), "gentle", "none")
    results = call(moving_problem(moving, torch.float32))
    for got, want in zip(results, plain(moving, torch.float64), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
