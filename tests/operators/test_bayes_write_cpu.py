"""``bayes_write`` of the CPU: what its kernels and its sums by blocks must keep."""

import pytest
import torch
from helpers import METHODS
from selection import INTERPRETER, PTX, not_on

from kanerva_ext import ops

pytestmark = not_on(INTERPRETER, PTX, reason="of the CPU's kernels")


@pytest.fixture(autouse=True)
def on_the_cpu():
    """Whatever the default device is."""
    with torch.device("cpu"):
        yield


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("noise", "decay"), [(1e-6, None), (1e-6, 0.99), (1e-2, None)])
def test_a_covariance_that_is_symmetric_but_for_its_last_digit(method, noise, decay):
    """torch.linalg.inv leaves such ones; what differs across the diagonal must not stay."""
    if decay is not None and method == "information":
        pytest.skip("no decay in this form")
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(8, 16, generator=generator) / 8**0.5
    prior = torch.linalg.inv(root @ root.mT + 0.1 * torch.eye(8))[None]
    assert not torch.equal(prior, prior.mT)
    mean = torch.zeros(1, 8, 3)
    weights = torch.randn(1, 20, 8, generator=generator)
    values = torch.randn(1, 20, 3, generator=generator)
    given = (weights, values, noise)
    got = ops.bayes_write(mean, prior, *given, decay=decay, method=method)
    want = ops.bayes_write(mean, (prior + prior.mT) / 2, *given, decay=decay, method=method)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    assert torch.equal(got[1], got[1].mT)
    scan = (weights, values, weights, noise)
    got = ops.causal_scan(mean, prior, *scan, decay=decay)
    want = ops.causal_scan(mean, (prior + prior.mT) / 2, *scan, decay=decay)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    assert torch.equal(got[3], got[3].mT)


@pytest.mark.parametrize("steps", [990, 1100, 4096])
def test_gradient_of_the_evidence_where_the_mean_hardly_moves(steps):
    generator = torch.Generator().manual_seed(0)
    mean, cov = torch.ones(1, 8, 16), 1e-6 * torch.eye(8)[None]
    weights = torch.randn(1, steps, 8, generator=generator)
    noise = 0.5**0.5 * torch.randn(1, steps, 16, generator=generator)
    leaves = [mean, cov, weights, weights @ mean + noise]

    def grads(dtype):
        inputs = [x.to(dtype).requires_grad_() for x in leaves]
        return torch.autograd.grad(ops.bayes_write(*inputs, 0.5)[2].sum(), inputs)

    for got, want in zip(grads(torch.float32), grads(torch.float64), strict=True):
        assert (got.double() - want).norm() <= 5e-5 * want.norm()
