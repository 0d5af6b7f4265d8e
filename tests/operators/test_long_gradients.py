"""The gradient of the covariance at the start where it cancels: few addresses, little noise, many
steps, all of them kept or nearly so. The recursion in extended precision has three digits more than
in float64, and the square root's coordinates have six."""

import numpy as np
import pytest
import torch
from helpers import LD, Case
from retention_cases import gradients, scan_of
from retention_truth import Moving, extended, moving_problem, moving_scan_with_grads, random_grads
from scan_truth import scan_grads
from selection import INTERPRETER, PTX, not_on

from kanerva_ext import ops

pytestmark = not_on(INTERPRETER, PTX, reason="of the CPU's square roots")


@pytest.fixture(autouse=True)
def on_the_cpu():
    """Whatever the default device is."""
    with torch.device("cpu"):
        yield


def error_of(found, want) -> float:
    found = extended((found + found.mT) / 2)
    return float(np.max(abs(found - want).max((1, 2)) / abs(want).max((1, 2))))


def problem_of(kind, mask="none", move=0.0, code=3):
    m = moving_problem(Moving(Case(kind, 1e-6, 600, 8, code, mask, batch=2), "kept", "matrix"))
    u = torch.rand(m.retention.shape, generator=torch.Generator().manual_seed(1)).double()
    return m._replace(retention=1 - move * u)


@pytest.mark.parametrize("mask", ["none", "some"])
@pytest.mark.parametrize("move", [0.0, 1e-9, 1e-7])
@pytest.mark.parametrize("kind", ["repeated", "iid"])
def test_moving_memories(kind, move, mask):
    m = problem_of(kind, mask, move)
    grads = random_grads(m)
    want, rival = (moving_scan_with_grads(m, grads, x)[1][1] for x in (LD, np.float64))
    lost = error_of(torch.from_numpy(rival), want)
    assert lost > 1e-6
    found = gradients(m, grads, scan_of(m))[1]
    assert error_of(found, want) < lost / 100


@pytest.mark.parametrize("code", [3, 150])
@pytest.mark.parametrize("mask", ["none", "some"])
def test_memories_that_keep_still(mask, code):
    m = problem_of("repeated", mask, code=code)
    grads = random_grads(m)
    p = m.p
    want, rival = (moving_scan_with_grads(m, grads, x)[1][1] for x in (LD, np.float64))
    lost = error_of(torch.from_numpy(rival), want)
    found = gradients(m, grads, lambda x: ops.causal_scan(*x[:6], mask=p.mask))[1]
    assert error_of(found, want) < lost / 100
    none = [torch.zeros_like(g) if i < 2 else g for i, g in enumerate(grads)]
    want, rival = (moving_scan_with_grads(m, none, x)[1][1] for x in (LD, np.float64))
    lost = error_of(torch.from_numpy(rival), want)
    for method in ("auto", "sqrt"):
        options = {"mask": p.mask, "method": method}
        written = gradients(m, grads[2:], lambda x: ops.bayes_write(*x[:4], x[5], **options))[1]  # noqa: B023
        assert error_of(written, want) < lost / 100


@pytest.mark.parametrize("forget", [1e-9, 1e-4])
def test_decays(forget):
    m = problem_of("repeated")
    grads = random_grads(m)
    u = torch.rand(m.retention.shape, generator=torch.Generator().manual_seed(1)).double()
    p = m.p._replace(decay=1 - forget * u)
    want = scan_grads(p, m.queries, grads)[1]
    leaf = p.cov.clone().requires_grad_()
    results = ops.causal_scan(p.mean, leaf, *p[2:4], m.queries, p.noise_var, decay=p.decay)
    (found,) = torch.autograd.grad(results, leaf, grads)
    assert error_of(found, want) < 1e-5


def test_a_start_without_a_root():
    """Semi-definite: what the root would give is worthless, and is not taken."""
    m = problem_of("repeated")
    cov = m.p.cov.clone()
    cov[:, :, 0] = cov[:, 0, :] = 0
    m = m._replace(p=m.p._replace(cov=cov))
    grads = random_grads(m)
    want, rival = (moving_scan_with_grads(m, grads, x)[1][1] for x in (LD, np.float64))
    found = gradients(m, grads, scan_of(m))[1]
    assert error_of(found, want) < 3 * error_of(torch.from_numpy(rival), want)
