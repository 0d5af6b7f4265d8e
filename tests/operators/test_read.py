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


def test_variance_of_what_was_just_written_is_below_the_noise():
    p = problem(Case("iid", 0.5, 20, 8, 3))
    mean, cov, _ = ops.bayes_write(*p[:5])
    _, var = ops.read(mean, cov, p.weights)
    assert (var < p.noise_var).all() and (var >= 0).all()
