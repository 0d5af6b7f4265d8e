import pytest
import torch
from helpers import Case, assert_as_accurate, extended, problem, symmetric
from operator_checks import DATA, STATE, OperatorChecks

from kanerva_ext import ops, reference


class TestRead(OperatorChecks):
    name = "read"
    function = staticmethod(ops.read)
    signature = (
        ("mean", STATE, "KC"),
        ("cov", STATE, "KK"),
        ("weights", DATA, "TK"),
    )
    factors_covariance = False


CASES = [
    Case(kind, 1.0, steps, *sizes)
    for kind in ("iid", "scaled", "softmax")
    for steps, sizes in ((1, (1, 1)), (7, (17, 33)), (100, (64, 200)), (33, (257, 300)))
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", [pytest.param(c, id=str(c), marks=c.marks) for c in CASES])
def test_accuracy(case, dtype):
    p = problem(case, dtype)
    mean, cov, weights = map(extended, (p.mean, symmetric(p.cov), p.weights))
    wants = (weights @ mean, ((weights @ cov) * weights).sum(-1))
    args = (p.mean, p.cov, p.weights)
    for name, got, want, rival in zip(
        ("values", "var"), ops.read(*args), wants, reference.read(*args), strict=True
    ):
        assert_as_accurate(got, want, rival, name=name)


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c), marks=c.marks) for c in CASES])
def test_float32_gradients(case):
    def grads(dtype, function):
        torch.manual_seed(0)
        p = problem(case, dtype)
        args = [x.requires_grad_() for x in (p.mean, p.cov, p.weights)]
        results = function(*args)
        return torch.autograd.grad(results, args, [torch.randn(r.shape).to(dtype) for r in results])

    for name, got, want, rival in zip(
        ("mean", "cov", "weights"),
        grads(torch.float32, ops.read),
        grads(torch.float64, reference.read),
        grads(torch.float32, reference.read),
        strict=True,
    ):
        assert_as_accurate(got, want, rival, name=f"gradient of {name}")


@pytest.mark.parametrize("slots", [17, 40])
@pytest.mark.parametrize("large", ["mean", "cov", "weights", "grads"])
def test_gradients_of_numbers_near_the_largest_of_float32(large, slots):
    """Within a factor of 2,000 of it, the gradients themselves being far from it."""

    def grads(dtype, function):
        torch.manual_seed(0)
        shapes = ((2, slots, 20), (2, slots, slots), (2, 35, slots))
        scales = [2e35 if name == large else 1e-1 for name in ("mean", "cov", "weights")]
        drawn = [s * torch.randn(shape) for s, shape in zip(scales, shapes, strict=True)]
        drawn[1] = symmetric(drawn[1])
        args = [x.to(dtype).requires_grad_() for x in drawn]
        results = function(*args)
        scale = 2e35 if large == "grads" else 1e-36
        given = [scale * torch.randn(r.shape) for r in results]
        return torch.autograd.grad(results, args, [g.to(dtype) for g in given])

    wants = grads(torch.float64, reference.read)
    for got, want in zip(grads(torch.float32, ops.read), wants, strict=True):
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_gradients_beyond_float32_are_infinite():
    mean, weights = torch.full((1, 9, 7), 1e30), torch.full((1, 5, 9), 0.3)
    args = (mean, torch.eye(9)[None], weights.requires_grad_())
    (got,) = torch.autograd.grad(ops.read(*args)[0], weights, torch.full((1, 5, 7), 1e20))
    assert torch.equal(got, torch.full_like(got, torch.inf))


def test_variance_of_what_was_just_written_is_below_the_noise():
    p = problem(Case("iid", 0.5, 20, 8, 3))
    mean, cov, _ = ops.bayes_write(*p[:5])
    _, var = ops.read(mean, cov, p.weights)
    assert (var < p.noise_var).all() and (var >= 0).all()
