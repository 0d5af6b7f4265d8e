import functools

import numpy as np
import pytest
import torch
from helpers import (
    DTYPES,
    LD,
    Case,
    assert_as_accurate,
    assert_as_accurate_on_average,
    assert_same_direction,
    extended,
    problem,
    solve_spd,
)
from operator_checks import DATA, MASK, NOISE, RIDGE, STATE, OperatorChecks
from selection import ENGINES, INTERPRETER, SANITIZED, grid, not_on

from kanerva_ext import ops, reference

NAMES = ("mean", "cov", "weights", "step_kl", "log_evidence")
GRADS = ("mean", "cov", "values", "noise_var", "ridge")


def adaptive_write(*args, **options):
    """With every result, and through the tentative memories."""
    return ops.adaptive_write(*args, num_iters=2, return_evidence=True, **options)


class TestAdaptiveWrite(OperatorChecks):
    name = "adaptive_write"
    function = staticmethod(adaptive_write)
    signature = (
        ("mean", STATE, "KC"),
        ("cov", STATE, "KK"),
        ("values", DATA, "TC"),
        ("noise_var", NOISE, "T"),
        ("ridge", RIDGE, ""),
        ("mask", MASK, "T"),
    )
    optional = ("mask",)
    raw_tail = (2,)
    saved_outputs = (2,)
    factors_covariance = False


#: (steps, slots, code, noise variance, mask, num_iters); the ridge is the noise of each item.
CASES = [
    (7, 5, 9, 1.0, "none", 1),
    (32, 32, 100, 1.0, "none", 1),
    (33, 17, 65, 1e-2, "some", 1),
    (100, 8, 8, 1e-1, "none", 1),
    (20, 40, 13, 1.0, "some", 1),
    (64, 24, 7, 1e-2, "none", 1),
    (40, 12, 30, 1e-4, "none", 1),
    (30, 1, 4, 1e-2, "none", 1),
    (30, 6, 1, 1.0, "some", 1),
    (9, 4, 5, 1e3, "all", 1),
    (0, 4, 5, 1.0, "none", 1),
    (25, 9, 20, 1e-1, "some", 2),
    (12, 20, 6, 1e-1, "none", 3),
    (50, 70, 75, 1.0, "none", 1),
    (70, 40, 50, 1.0, "some", 2),  # slots and steps beyond what CUDA's fast kernel takes at a time
    (34, 32, 65, 1e-1, "none", 3),
]
HARD = [
    (48, 32, 8, 1e-4, "none", 1),  # more slots than columns, small noise
    (48, 16, 64, 1e-6, "some", 1),
    (24, 24, 24, 1e-6, "none", 2),
]


def name_of(case):
    steps, slots, code, noise, mask, num_iters = case
    return f"T{steps}-K{slots}-C{code}-v{noise:g}-mask_{mask}-n{num_iters}"


def marks_of(case, dtype):
    """The interpreter takes up to a third of a second for a step."""
    marks = [] if case[0] <= 12 else [not_on(INTERPRETER, reason="many steps, each alone")]
    if case[:3] == (33, 17, 65) and dtype == torch.float32:
        marks.append(not_on(SANITIZED, reason="checked loops sum one by one: 1.7 of the bound"))
    return marks


EASY_AND_HARD = pytest.mark.parametrize(
    ("case", "dtype"),
    grid(
        CASES + HARD,
        DTYPES,
        values=lambda case, dtype: (case[1] > case[2], *case[3:], dtype),
        name=lambda case, dtype: f"{name_of(case)}-{dtype}",
        marks=marks_of,
    ),
)


def inputs(case, dtype=torch.float64, seed=0):
    steps, slots, code, noise, mask, _ = case
    p = problem(Case("iid", noise, steps, slots, code, mask), dtype, seed)
    values = p.values
    if steps > 3:  # patterns come again, and resemble each other
        values = values.clone()
        values[:, steps // 2] = values[:, 0]
        values[:, -1] = values[:, 1] + 0.01 * values[:, 2]
    ridge = torch.tensor([noise, 2 * noise], dtype=dtype)
    return p.mean, p.cov, values, p.noise_var, ridge, p.mask


def write(args, num_iters, **options):
    *tensors, mask = args
    return ops.adaptive_write(
        *tensors, mask=mask, num_iters=num_iters, return_evidence=True, **options
    )


def recursion(args, num_iters):
    """Step by step with full solves, in numpy.longdouble."""
    items = [
        _item(*(None if x is None else x[i : i + 1] for x in args), num_iters)
        for i in range(len(args[0]))
    ]
    return [np.stack(x) for x in zip(*items, strict=True)]


def _item(mean, cov, values, noise, ridge, mask, num_iters):
    mean, cov, values, noise, ridge = (extended(x[0]) for x in (mean, cov, values, noise, ridge))
    counts = np.ones(len(values), bool) if mask is None else mask[0].cpu().numpy()
    slots, code = mean.shape
    weights, kls, evidence = np.zeros((len(values), slots), LD), np.zeros(len(values), LD), LD(0)
    for t in np.flatnonzero(counts):
        now = mean
        for _ in range(num_iters):
            system = now @ now.T + ridge * np.eye(slots, dtype=LD)
            w = solve_spd(system, now @ values[t])
            c, d = cov @ w, values[t] - mean.T @ w
            h = w @ c
            s = h + noise[t]
            now = mean + np.outer(c, d) / s
        mean, cov, weights[t] = now, cov - np.outer(c, c) / s, w
        kls[t] = (d @ d * h / s**2 - code * h / s - code * np.log(noise[t] / s)) / 2
        evidence -= (d @ d / s + code * np.log(2 * LD(np.pi) * s)) / 2
    return mean, cov, weights, kls, evidence


@functools.cache
def truth(case):
    return recursion(inputs(case), case[-1])


@EASY_AND_HARD
def test_accuracy(case, dtype):
    args = inputs(case, dtype)
    rivals = reference.adaptive_write(*args, case[-1])
    floor = 1e-9 if dtype == torch.float64 else None
    for name, got, want, rival in zip(
        NAMES, write(args, case[-1]), truth(case), rivals, strict=True
    ):
        assert_as_accurate(got, want, rival, floor=floor, name=name)
        if name == "cov":
            assert torch.equal(got, got.mT)


def grads(function, args, dtype):
    leaves = [x.to(dtype).requires_grad_() for x in args[:5]]
    results = function([*leaves, args[5]])
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(r.shape, generator=generator, device="cpu").to(r) for r in results]
    pairs = [(r, g) for r, g in zip(results, cotangents, strict=True) if r.requires_grad]
    results, cotangents = zip(*pairs, strict=True)
    return torch.autograd.grad(results, leaves, cotangents, materialize_grads=True)


@EASY_AND_HARD
def test_gradients(case, dtype):
    args = inputs(case, torch.float32)
    num_iters = case[-1]
    got = grads(lambda a: write(a, num_iters), args, dtype)
    want = grads(lambda a: reference.adaptive_write(*a, num_iters), args, torch.float64)
    rival = grads(lambda a: reference.adaptive_write(*a, num_iters), args, dtype)
    for name, a, b, c in zip(GRADS, got, want, rival, strict=True):
        b = b.detach()
        if name == "cov":
            b, c = (b + b.mT) / 2, (c + c.mT) / 2
        label = f"gradient of {name}"
        if dtype == torch.float64:
            # The truth is a float64 recursion too: where the problem is hard they differ by its
            # own rounding.
            floor = 1e-9 if case not in HARD else 1e-5
            assert_as_accurate(a, b.numpy(force=True).astype(LD), floor=floor, name=label)
        else:
            agree = assert_as_accurate_on_average if name == "ridge" else assert_as_accurate
            b = b.numpy(force=True).astype(LD)
            agree(a, b, c, name=label)
            if name == "ridge":
                a, b = a[None], b[None]
            assert_same_direction(a, b, name=label)


@pytest.mark.slow
@not_on(*ENGINES, reason="8,192 steps, each alone")
@pytest.mark.parametrize("shape", [(16, 24), (24, 16)], ids=str)
def test_8192_steps_without_drift(shape):
    """Inverses kept up to date do not wander off."""
    slots, code = shape
    args = inputs((8192, slots, code, 0.1, "none", 1), torch.float32)
    double = [x if x is None else x.double() for x in args]
    want = reference.adaptive_write(*double)
    rivals = reference.adaptive_write(*args)
    for dtype, rival in ((torch.float64, None), (torch.float32, rivals)):
        results = write([x if x is None else x.to(dtype) for x in args], 1)
        for i, (name, got, true) in enumerate(zip(NAMES, results, want, strict=True)):
            true = true.numpy(force=True).astype(LD)
            if rival is None:
                assert_as_accurate(got, true, floor=1e-9, name=name)
            else:
                assert_as_accurate(got, true, rival[i], name=name)


@not_on(INTERPRETER, reason="40 steps")
def test_is_bayes_write_at_its_addresses():
    args = inputs((40, 12, 30, 0.1, "some", 1))
    mean, cov, weights, _, evidence = write(args, 1)
    again = ops.bayes_write(*args[:2], weights, args[2], args[3], mask=args[5])
    for a, b in zip((mean, cov, evidence), again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_step_kl_is_the_kl_of_each_step():
    args = inputs((5, 4, 6, 0.3, "none", 1))
    step_kl = write(args, 1)[3]
    state = args[:2]
    for t in range(5):
        step = (slice(None), slice(t, t + 1))
        after = ops.adaptive_write(*state, args[2][step], args[3][step], args[4])
        kl = ops.memory_kl(*after[:2], *state)
        torch.testing.assert_close(kl, step_kl[:, t], rtol=1e-9, atol=1e-10)
        state = after[:2]


@not_on(INTERPRETER, reason="30 steps, twice")
def test_a_masked_step_is_a_removed_step():
    args = inputs((30, 12, 7, 0.1, "some", 2))
    mean, cov, values, noise, ridge, mask = (x[:1] for x in args)
    kept = mask[0]
    want = write((mean, cov, values[:, kept], noise[:, kept], ridge, None), 2)
    garbage = (
        mean.requires_grad_(),
        cov,
        torch.where(mask[..., None], values, torch.nan).requires_grad_(),
        torch.where(mask, noise, -1.0).requires_grad_(),
        ridge,
        mask,
    )
    got = write(garbage, 2)
    for i in (0, 1, 4):
        torch.testing.assert_close(got[i], want[i], rtol=1e-10, atol=1e-12)
    for i in (2, 3):
        torch.testing.assert_close(got[i][:, kept], want[i], rtol=1e-10, atol=1e-12)
        assert (got[i][:, ~kept] == 0).all()
    loss = sum(r.sum() for r in got)
    for grad, x in zip(
        torch.autograd.grad(loss, [garbage[0], garbage[2], garbage[3]]),
        (None, values, noise),
        strict=True,
    ):
        assert not grad.isnan().any()
        if x is not None:
            assert (grad[:, ~kept] == 0).all()


@not_on(INTERPRETER, reason="20 steps, four times")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_values_of_another_dtype_or_layout(dtype):
    """They are converted, whatever kernel serves."""
    mean, cov, values, noise, ridge, mask = inputs((20, 17, 33, 1.0, "some", 1), torch.float32)
    values = values.to(dtype).to(torch.float32)
    want = ops.adaptive_write(mean, cov, values, noise, ridge, mask=mask, return_evidence=True)
    for other in (values.to(dtype), values.mT.contiguous().mT, values.repeat(1, 1, 2)[..., :33]):
        got = ops.adaptive_write(mean, cov, other, noise, ridge, mask=mask, return_evidence=True)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)


@not_on(INTERPRETER, reason="33 steps, three times")
def test_a_hard_item_changes_no_other():
    """Where a kernel for easy items leaves the others to a slower one."""
    easy, hard = (inputs((33, 20, 30, v, "none", 1), torch.float32)[:5] for v in (1.0, 1e-6))
    mixed = [torch.cat([a[:1], b[:1], a[1:]]) for a, b in zip(easy, hard, strict=True)]
    got = write((*mixed, None), 1)
    alone = [write((*args, None), 1) for args in (easy, hard)]
    for result, of_easy, of_hard in zip(got, *alone, strict=True):
        assert torch.equal(result, torch.cat([of_easy[:1], of_hard[:1], of_easy[1:]]))


@not_on(INTERPRETER, reason="40 steps")
@pytest.mark.parametrize("bad", ["value", "noise", "ridge"])
def test_a_bad_item_is_nan_and_changes_no_other(bad):
    """Of a size that float32 kernels serve, in the second chunk of 32 steps."""
    args = [x.clone() for x in inputs((40, 17, 33, 1.0, "none", 1), torch.float32)[:5]]
    want = write((*args, None), 1)
    if bad == "value":
        args[2][1, 35, 3] = torch.nan
    elif bad == "noise":
        args[3][1, 35] = -1.0
    else:
        args[4][1] = 0.0
    for result, before in zip(write((*args, None), 1), want, strict=True):
        assert torch.equal(result[0], before[0])
        assert result[1].isnan().all()


def test_a_mean_of_zero_has_addresses_of_zero():
    mean, cov, values, noise, ridge, _ = inputs((4, 3, 5, 1.0, "none", 1))
    after, cov_after, weights, kl, _ = write((0 * mean, cov, values, noise, ridge, None), 1)
    assert (weights == 0).all() and (after == 0).all() and (kl == 0).all()
    torch.testing.assert_close(cov_after, cov)


@pytest.mark.slow
@not_on(INTERPRETER, reason="256 steps")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_more_slots_than_columns_with_tiny_noise(dtype):
    """Where an inverse kept up to date in float32 ends in NaN."""
    args = inputs((256, 64, 16, 1e-4, "none", 1), dtype)
    want = reference.adaptive_write(*(x if x is None else x.double() for x in args))
    rival = reference.adaptive_write(*args)
    for name, got, true, other in zip(NAMES, write(args, 1), want, rival, strict=True):
        assert not got.isnan().any()
        floor = 1e-7 if dtype == torch.float64 else None
        assert_as_accurate(got, true.numpy(force=True).astype(LD), other, floor=floor, name=name)


def test_num_iters():
    args = inputs((3, 3, 4, 1.0, "none", 1))
    with pytest.raises(ValueError, match="num_iters must be at least 1, got 0"):
        write(args, 0)
    for bad in (1.0, True, "2"):
        with pytest.raises(TypeError, match="num_iters must be an int"):
            write(args, bad)


def test_returns_four_results():
    args = inputs((3, 3, 4, 1.0, "none", 1))
    assert len(ops.adaptive_write(*args[:5])) == 4
