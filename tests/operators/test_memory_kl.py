import functools

import pytest
import torch
from helpers import Case, assert_as_accurate, problem
from operator_checks import STATE, OperatorChecks
from selection import INTERPRETER, TEAMS, engine, grid, not_on

from kanerva_ext import ops, reference


class TestMemoryKl(OperatorChecks):
    name = "memory_kl"
    function = staticmethod(ops.memory_kl)
    signature = (
        ("mean", STATE, "KC"),
        ("cov", STATE, "KK"),
        ("prior_mean", STATE, "KC"),
        ("prior_cov", STATE, "KK"),
    )


CASES = [
    Case(kind, noise, steps, *sizes)
    for kind, noise in (("iid", 1.0), ("collinear", 1e-2), ("softmax", 1e-4), ("rank8", 1e3))
    for steps, sizes in ((3, (1, 1)), (40, (33, 17)), (50, (130, 300)))
]


@functools.cache
def posterior_and_prior(case: Case):
    p = problem(case)
    return *reference.bayes_write(*p)[:2], p.mean, p.cov


def beliefs(case: Case, dtype):
    """A posterior and its prior, the same numbers in every dtype."""
    return [x.float().to(dtype) for x in posterior_and_prior(case)]


def test_is_the_divergence_of_the_stacked_columns():
    mean, cov, prior_mean, prior_cov = beliefs(Case("iid", 1.0, 6, 4, 3), torch.float64)

    def stacked(mean, cov):
        return torch.distributions.MultivariateNormal(mean.mT, cov[:, None])

    want = torch.distributions.kl_divergence(stacked(mean, cov), stacked(prior_mean, prior_cov))
    torch.testing.assert_close(ops.memory_kl(mean, cov, prior_mean, prior_cov), want.sum(-1))


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c), marks=c.marks) for c in CASES])
def test_float32(case):
    def run(function, dtype):
        args = [x.requires_grad_() for x in beliefs(case, dtype)]
        result = function(*args)
        return result.detach(), *torch.autograd.grad(result.sum(), args)

    names = ("kl", "d mean", "d cov", "d prior_mean", "d prior_cov")
    for name, got, want, rival in zip(
        names,
        run(ops.memory_kl, torch.float32),
        run(reference.memory_kl, torch.float64),
        run(reference.memory_kl, torch.float32),
        strict=True,
    ):
        assert_as_accurate(got, want, rival, name=name)


@not_on(INTERPRETER, TEAMS, reason="all problems, the large ones too")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_positive_and_zero_for_equal_beliefs(dtype):
    for case in CASES:
        if engine() is not None and case.slots > 100:
            continue
        mean, cov, prior_mean, prior_cov = beliefs(case, dtype)
        assert (ops.memory_kl(mean, cov, prior_mean, prior_cov) > 0).all()
        rounding = 8 * torch.finfo(dtype).eps * mean[0].numel()
        for m, u in ((mean, cov), (prior_mean, prior_cov)):
            kl = ops.memory_kl(m, u, m, u)
            assert (kl.abs() <= rounding).all(), (case, kl)


@not_on(INTERPRETER, TEAMS, reason="many tiles")
@pytest.mark.parametrize(
    ("which", "jitter"),
    grid(("belief", "prior", "both"), (0.1, 1e-2, 1e-6), values=lambda w, j: (w, j < 0.1)),
)
def test_many_slots(which, jitter):
    """On both sides of the condition from which float32 states are served in float64."""
    slots, code, rank = (257, 40, 230) if engine() is None else (129, 20, 115)
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        draws = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
        return draws.to(torch.get_default_device())

    eye = torch.eye(slots, dtype=torch.float64)
    root = randn(1, slots, rank) / rank**0.5
    hard, easy = root @ root.mT + jitter * eye, (1 + 0.1 * randn(1, slots, 1).abs()) * eye
    cov, prior_cov = (hard if which in (side, "both") else easy for side in ("belief", "prior"))
    if which == "both":
        cov = cov + 0.1 * jitter * eye
    prior_mean = randn(1, slots, code)
    beliefs = [prior_mean + prior_cov @ randn(1, slots, code), cov, prior_mean, prior_cov]

    def run(function, dtype):
        args = [x.float().to(dtype).requires_grad_() for x in beliefs]
        result = function(*args)
        return result.detach(), *torch.autograd.grad(result.sum(), args)

    got, want, rival = (
        run(ops.memory_kl, torch.float32),
        run(reference.memory_kl, torch.float64),
        run(reference.memory_kl, torch.float32),
    )
    names = ("kl", "d mean", "d cov", "d prior_mean", "d prior_cov")
    for name, x, y, z in zip(names, got, want, rival, strict=True):
        assert_as_accurate(x, y, None if jitter < 0.1 else z, name=name)
