"""A memory that drifts back to a stationary state between writes: gradients."""

import pytest
import torch
from helpers import DTYPES, Case
from retention_cases import (
    AFFORDABLE,
    ALL,
    CHUNKS,
    COLLINEAR,
    EASY,
    FEW,
    OFTEN_ENOUGH,
    a_few,
    assert_true_gradients,
    gradients,
    recursion_of,
    scan_of,
    small,
    truth_of_gradients,
)
from retention_truth import Moving, moving_problem, moving_scan_grads
from selection import INTERPRETER, PTX, SANITIZED, grid, not_on

from kanerva_ext import ops


def marks_of_gradients(moving, dtype):
    if (*moving.case[:5], dtype) == ("rank8", 0.01, 100, 5, 300, torch.float32):
        checked = not_on(SANITIZED, reason="checked loops sum one by one: 1.2 of the bound")
        return (*AFFORDABLE(moving, dtype), checked)
    return AFFORDABLE(moving, dtype)


@pytest.mark.parametrize(("moving", "dtype"), grid(ALL, DTYPES, marks=marks_of_gradients))
def test_gradients(moving, dtype):
    if moving.case.steps == 0:
        pytest.skip("no gradients of steps; see test_degenerate_sizes")
    grads, want = truth_of_gradients(moving)
    m = moving_problem(moving, dtype)
    got, rivals = (gradients(m, grads, f(m)) for f in (scan_of, recursion_of))
    assert_true_gradients(dtype, got, want, rivals)


@pytest.mark.parametrize(
    ("moving", "chunk_size"),
    grid(
        [*EASY[::3], *COLLINEAR],
        CHUNKS,
        values=lambda m, n: (m.case.kind, m.case.noise, m.retention, m.stationary, n),
        marks=lambda m, n: () if m in FEW and n in (5, 31) else (OFTEN_ENOUGH,),
    ),
)
def test_gradients_of_every_chunk_length(moving, chunk_size):
    grads, want = truth_of_gradients(moving)
    m = moving_problem(moving)
    got = gradients(m, grads, scan_of(m, chunk_size=chunk_size))
    assert_true_gradients(torch.float64, got, want, gradients(m, grads, recursion_of(m)))


@not_on(INTERPRETER, PTX, reason="hundreds of steps of the CPU's square roots")
@pytest.mark.parametrize(
    ("kind", "retention", "stationary"), [("iid", "kept", "none"), ("zeros", "gentle", "rank1")]
)
def test_gradients_that_cancel_for_long(kind, retention, stationary):
    """With little noise those of the state are 1e12 times as large between steps as at the end."""
    moving = Moving(Case(kind, 1e-6, 1000, 6, 3), retention, stationary)
    grads, want = truth_of_gradients(moving)
    m = moving_problem(moving)
    got, rivals = (gradients(m, grads, f(m)) for f in (scan_of, recursion_of))
    assert_true_gradients(torch.float64, got, want, rivals)


@pytest.mark.parametrize("moving", a_few(EASY[::3]))
def test_gradients_of_a_write(moving):
    grads, _ = truth_of_gradients(moving)
    grads = [torch.zeros_like(g) if i < 2 else g for i, g in enumerate(grads)]
    m = moving_problem(moving)
    want = moving_scan_grads(m, grads)

    def write(x):
        options = {"retention": x[6], "stationary_cov": x[7], "mask": m.p.mask}
        return None, None, *ops.bayes_write(*x[:4], x[5], **options)

    assert_true_gradients(torch.float64, gradients(m, grads, write), want)


def test_gradients_of_numbers_are_sums():
    args = small()
    retention = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def loss(retention, scale):
        results = ops.causal_scan(**args, retention=retention, stationary_cov=scale)
        return sum(r.square().sum() for r in results)

    assert torch.autograd.gradcheck(loss, (retention, scale))


@not_on(INTERPRETER, PTX, reason="threads of the CPU's kernels, and a long sequence")
def test_threads_share_a_long_sequence():
    """Two of them prepare and reverse, or factorise and write, different chunks at once."""
    args = small(seed=5, b=1, t=800, k=48, c=20)
    args["stationary_cov"] = args["cov"].flip(1, 2)
    args["retention"] = 1 - 0.1 * torch.rand(1, 800, dtype=torch.float64)
    args["weights"] = args["weights"] / 7
    mask = torch.arange(800)[None] % 5 != 3
    before, results = torch.get_num_threads(), []
    try:
        for threads, backend in ((1, "auto"), (2, "auto"), (1, "reference")):
            torch.set_num_threads(threads)
            leaves = {n: x.clone().requires_grad_() for n, x in args.items()}
            found = ops.causal_scan(**leaves, mask=mask, backend=backend)
            seeds = [x.detach().cos() for x in found]
            results.append((found, torch.autograd.grad(found, list(leaves.values()), seeds)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-9)


def test_second_derivatives_of_a_covariance_are_symmetric():
    args = small(seed=3, t=3)
    retention = torch.full(args["noise_var"].shape, 0.7, dtype=torch.float64)
    cov = args["cov"].clone().requires_grad_()
    write = [args["mean"], cov, args["weights"], args["values"], args["noise_var"]]
    loss = sum(x.sin().sum() for x in ops.bayes_write(*write, retention=retention))
    (first,) = torch.autograd.grad(loss, cov, create_graph=True)
    (second,) = torch.autograd.grad(first.cos().sum(), cov)
    torch.testing.assert_close(second, second.mT, rtol=1e-12, atol=1e-12)
