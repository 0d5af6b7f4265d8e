import pytest
import torch
from helpers import LD, Case, assert_as_accurate, problem, relative_error
from operator_checks import DATA, MASK, NOISE, STATE, OperatorChecks
from selection import INTERPRETER, not_on

from kanerva_ext import ops, reference


class TestForget(OperatorChecks):
    name = "forget"
    function = staticmethod(ops.forget)
    signature = (
        ("mean", STATE, "KC"),
        ("cov", STATE, "KK"),
        ("weights", DATA, "TK"),
        ("values", DATA, "TC"),
        ("noise_var", NOISE, "T"),
        ("mask", MASK, "T"),
    )
    optional = ("mask",)
    saved_outputs = (0, 1)
    factors_covariance = False

    def arguments(self, *args, **options):
        """Small addresses, which every memory can forget: ``W U W'`` is far below the noise."""
        result = super().arguments(*args, **options)
        weights = result["weights"]
        scale = min(0.05, 0.2 / sum(n**0.5 for n in weights.shape[-2:]))  # over the norm of W
        result["weights"] = (scale * weights.detach()).requires_grad_(weights.requires_grad)
        return result


def episode(steps, slots, code, noise, mask="none", kind="iid", dtype=torch.float64, seed=0):
    return problem(Case(kind, noise, steps, slots, code, mask), dtype, seed)


def split(p, at):
    """The items before and from step ``at``: (weights, values, noise_var), mask."""
    masks = (None, None) if p.mask is None else (p.mask[:, :at], p.mask[:, at:])
    return (
        ([x[:, :at] for x in p[2:5]], masks[0]),
        ([x[:, at:] for x in p[2:5]], masks[1]),
    )


CASES = [
    (9, 5, 7, 1.0, "none", "iid"),
    (40, 32, 100, 1.0, "some", "iid"),
    (100, 17, 31, 0.1, "none", "softmax"),
    (60, 65, 70, 1e-2, "none", "iid"),
    (200, 8, 3, 1.0, "some", "repeated"),
    (33, 1, 4, 1.0, "none", "iid"),
    (5, 130, 40, 1.0, "all", "iid"),
]


def name_of(case):
    steps, slots, code, noise, mask, kind = case
    return f"{kind}-v{noise:g}-T{steps}-K{slots}-C{code}-mask_{mask}"


PARAMS = [
    pytest.param(
        case,
        id=name_of(case),
        marks=[] if case[0] <= 40 and case[1] <= 65 else not_on(INTERPRETER, reason="many tiles"),
    )
    for case in CASES
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", PARAMS)
def test_what_remains_is_what_was_before(case, dtype):
    steps, slots, code, noise, mask, kind = case
    p = episode(steps, slots, code, noise, mask, kind)
    (a, mask_a), (b, mask_b) = split(p, steps // 3)
    want = ops.bayes_write(p.mean, p.cov, *a, mask=mask_a)[:2]
    both = ops.bayes_write(*want, *b, mask=mask_b)[:2]
    both, b = [x.to(dtype) for x in both], [x.to(dtype) for x in b]
    got = ops.forget(*both, *b, mask=mask_b, check=True)
    rival = reference.forget(*both, *b, mask_b)
    for name, x, y, z in zip(("mean", "cov"), got, want, rival, strict=True):
        floor = 1e-10 if dtype == torch.float64 else None
        assert_as_accurate(x, y.numpy(force=True).astype(LD), z, floor=floor, name=name)
    assert torch.equal(got[1], got[1].mT)


def test_order_does_not_matter():
    """What was written first can be forgotten as well as what was written last."""
    p = episode(30, 12, 9, 0.5)
    (a, _), (b, _) = split(p, 10)
    both = ops.bayes_write(*p[:5])[:2]
    want = ops.bayes_write(p.mean, p.cov, *b)[:2]
    for got, true in zip(ops.forget(*both, *a), want, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-11)


@not_on(INTERPRETER, reason="3,000 steps")
def test_long_episode():
    p = episode(3000, 9, 6, 1.0)
    (a, _), (b, _) = split(p, 100)
    want = ops.bayes_write(p.mean, p.cov, *a)[:2]
    got = ops.forget(*ops.bayes_write(*p[:5])[:2], *b)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", PARAMS)
def test_gradients(case, dtype):
    steps, slots, code, noise, mask, kind = case
    p = episode(steps, slots, code, noise, mask, kind)
    _, (b, mask_b) = split(p, steps // 3)
    both = ops.bayes_write(*p[:5], mask=p.mask)[:2]
    args = [x.float() for x in (*both, *b)]

    def grads(function, wide):
        leaves = [x.to(wide).requires_grad_() for x in args]
        results = function(*leaves)
        generator = torch.Generator().manual_seed(1)
        cotangents = [
            torch.randn(r.shape, generator=generator, device="cpu").to(r) for r in results
        ]
        return torch.autograd.grad(results, leaves, cotangents)

    got = grads(lambda *xs: ops.forget(*xs, mask=mask_b), dtype)
    want = grads(lambda *xs: reference.forget(*xs, mask_b), torch.float64)
    rival = grads(lambda *xs: reference.forget(*xs, mask_b), dtype)
    for i, (x, y, z) in enumerate(zip(got, want, rival, strict=True)):
        floor = 1e-9 if dtype == torch.float64 else None
        assert_as_accurate(
            x, y.detach().numpy(force=True).astype(LD), z, floor=floor, name=f"gradient {i}"
        )


@not_on(INTERPRETER, reason="60 steps of 65 slots")
@pytest.mark.parametrize("noise", [1.0, 1e-2], ids=lambda v: f"T60-K65-v{v:g}")
def test_gradients_are_float64_where_little_was_left(noise):
    """On both sides of the growth ``w'Uw / v`` from which a float32 state is served in float64."""
    p = episode(60, 65, 70, noise)
    _, (b, _) = split(p, 20)
    args = [x.float() for x in (*ops.bayes_write(*p[:5])[:2], *b)]

    def grads(function, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in args]
        results = function(*leaves)
        generator = torch.Generator().manual_seed(1)
        draws = [torch.randn(r.shape, generator=generator, device="cpu") for r in results]
        cotangents = [x.to(r) for x, r in zip(draws, results, strict=True)]
        return torch.autograd.grad(results, leaves, cotangents)

    got, want = grads(ops.forget, torch.float32), grads(reference.forget, torch.float64)
    rival = grads(reference.forget, torch.float32)
    for i, (x, y, z) in enumerate(zip(got, want, rival, strict=True)):
        assert_as_accurate(x, y, z, name=f"gradient {i}")
        if noise < 0.1:
            assert relative_error(x, y) < 2 * torch.finfo(torch.float32).eps, f"gradient {i}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_items_that_were_not_written(dtype):
    """The item becomes NaN, an error says so on request, and the rest of the batch is right."""
    p = episode(12, 6, 4, 0.5, dtype=dtype)
    both = ops.bayes_write(*p[:5])[:2]
    copies = [x.clone() for x in both]
    strange = p.weights.clone()
    strange[1] *= 3
    mean, cov = ops.forget(*both, strange, *p[3:5])
    assert mean[1].isnan().all() and cov[1].isnan().all()
    want = ops.forget(*(x[:1] for x in both), *(x[:1] for x in p[2:5]))
    for got, one in zip((mean, cov), want, strict=True):
        torch.testing.assert_close(got[:1], one)
    for now, before in zip(both, copies, strict=True):
        assert torch.equal(now, before)
    with pytest.raises(
        ValueError, match=r"forget: what is to be forgotten was not written in batch item\(s\) 1"
    ):
        ops.forget(*both, strange, *p[3:5], check=True)


def test_twice_is_once_too_often():
    p = episode(4, 6, 3, 1e-2)
    once = ops.forget(*ops.bayes_write(*p[:5])[:2], *p[2:5])
    with pytest.raises(ValueError, match="what is to be forgotten was not written"):
        ops.forget(*once, *p[2:5], check=True)


def test_undoes_an_adaptive_write():
    p = episode(10, 8, 20, 0.5)
    mean, cov, weights, _ = ops.adaptive_write(p.mean, p.cov, p.values, p.noise_var, 1.0)
    for got, want in zip(
        ops.forget(mean, cov, weights, p.values, p.noise_var), (p.mean, p.cov), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
