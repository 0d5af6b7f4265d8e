import pytest
import torch
from helpers import Case, assert_as_accurate, problem
from operator_checks import STATE, OperatorChecks
from selection import INTERPRETER, not_on

from kanerva_ext import MemoryState, ops, reference


class TestToStatistics(OperatorChecks):
    name = "statistics"
    function = staticmethod(ops.to_statistics)
    signature = (
        ("mean", STATE, "KC"),
        ("cov", STATE, "KK"),
    )
    saved_outputs = (0, 1)


class TestFromStatistics(OperatorChecks):
    name = "statistics"
    function = staticmethod(ops.from_statistics)
    signature = (
        ("precision", STATE, "KK"),
        ("shift", STATE, "KC"),
    )
    raw_order = ("shift", "precision")
    saved_outputs = (0, 1)


LARGE = not_on(INTERPRETER, reason="many tiles")
SIZES = [(1, 1), (5, 3), (33, 100), (64, 17), pytest.param(130, 300, marks=LARGE)]


def belief(k, c, dtype, jitter=0.1):
    torch.manual_seed(0)
    root = torch.randn(2, k, k) / k**0.5
    cov = root @ root.mT + jitter * torch.eye(k)
    return [x.to(dtype) for x in (torch.randn(2, k, c), (cov + cov.mT) / 2)]


@pytest.mark.parametrize(("k", "c"), SIZES)
def test_round_trip(k, c):
    mean, cov = belief(k, c, torch.float64)
    precision, shift = ops.to_statistics(mean, cov)
    assert torch.equal(precision, precision.mT)
    torch.testing.assert_close(precision @ cov, torch.eye(k).double().expand_as(cov))
    torch.testing.assert_close(shift, precision @ mean)
    state = ops.from_statistics(precision, shift)
    assert isinstance(state, MemoryState)
    assert torch.equal(state.cov, state.cov.mT)
    torch.testing.assert_close(state.mean, mean)
    torch.testing.assert_close(state.cov, cov)


@pytest.mark.parametrize("jitter", [0.1, 1e-4])
@pytest.mark.parametrize(("k", "c"), SIZES)
def test_float32(k, c, jitter):
    def run(function, dtype):
        args = [x.requires_grad_() for x in belief(k, c, dtype, jitter)]
        shift, precision = function(*args)
        cotangents = [torch.randn(r.shape).to(dtype) for r in (shift, precision)]
        grads = torch.autograd.grad((shift, precision), args, cotangents)
        return shift.detach(), precision.detach(), *grads

    def public(mean, cov):
        return ops.to_statistics(mean, cov)[::-1]

    for name, got, want, rival in zip(
        ("shift", "precision", "d mean", "d cov"),
        run(public, torch.float32),
        run(reference.statistics, torch.float64),
        run(reference.statistics, torch.float32),
        strict=True,
    ):
        assert_as_accurate(got, want, rival, name=name)


@LARGE
@pytest.mark.parametrize("jitter", [0.1, 1e-2, 1e-6], ids=lambda j: f"K257-jitter{j:g}")
def test_many_slots(jitter):
    """On both sides of the condition from which a float32 state is served in float64."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        draws = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
        return draws.to(torch.get_default_device())

    root = randn(1, 257, 230) / 230**0.5
    cov = root @ root.mT + jitter * torch.eye(257, dtype=torch.float64)
    mean = cov @ randn(1, 257, 40)
    state = [mean.float(), cov.float()]
    got = ops.to_statistics(*state)
    want = reference.statistics(*(x.double() for x in state))[::-1]
    rival = reference.statistics(*state)[::-1]
    for name, x, y, z in zip(("precision", "shift"), got, want, rival, strict=True):
        assert_as_accurate(x, y, None if jitter < 0.1 else z, name=name)


def test_takes_a_state():
    state = MemoryState(*belief(4, 3, torch.float32))
    for got, want in zip(ops.to_statistics(state), ops.to_statistics(*state), strict=True):
        assert torch.equal(got, want)
    with pytest.raises(TypeError, match="cov must be None"):
        ops.to_statistics(state, state.cov)
    with pytest.raises(TypeError, match=r"to_statistics: cov must be a torch\.Tensor, got None"):
        ops.to_statistics(state.mean)


def test_merging_two_memories_is_writing_both_episodes():
    p = problem(Case("softmax", 0.1, 40, 12, 7))
    prior = MemoryState(p.mean, p.cov)
    parts = [
        MemoryState(*ops.bayes_write(*prior, *(x[:, part] for x in p[2:5]))[:2])
        for part in (slice(0, 15), slice(15, 40))
    ]
    (a, s), (b, t), (base, shift) = map(ops.to_statistics, (*parts, prior))
    merged = ops.from_statistics(a + b - base, s + t - shift)
    mean, cov, _ = ops.bayes_write(*p[:5])
    torch.testing.assert_close(merged.mean, mean, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(merged.cov, cov, rtol=1e-9, atol=1e-11)
