"""Results of long episodes do not depend on the number of threads that share them out."""

import pytest
import torch
from helpers import Case, problem
from selection import INTERPRETER, PTX, not_on

from kanerva_ext import ops

pytestmark = not_on(INTERPRETER, PTX, reason="of the CPU's threads")

STEPS, SLOTS = 9000, 20


@pytest.fixture(autouse=True)
def on_the_cpu():
    """Whatever the default device is."""
    with torch.device("cpu"):
        yield


def queries(p):
    return torch.randn(p.values.shape, generator=torch.Generator().manual_seed(1), device="cpu")


def scan(p, **options):
    return ops.causal_scan(*p[:4], p.weights.flip(1), p.noise_var, mask=p.mask, **options)


CALLS = {
    "bayes_write": lambda p: ops.bayes_write(*p[:5], mask=p.mask),
    "causal_scan": scan,
    "causal_scan, decay": lambda p: scan(p, decay=0.99 + 0.009 * p.noise_var.sigmoid()),
    "causal_scan, moving": lambda p: scan(p, retention=0.95 + 0.04 * p.noise_var.sigmoid()),
    "read": lambda p: ops.read(p.mean, p.cov, p.weights),
    "recall": lambda p: ops.recall(p.mean, p.cov, queries(p), 0.1),
    "solve_addresses": lambda p: (ops.solve_addresses(p.mean, queries(p), 0.1),),
}


def results_and_gradients(name, case, threads):
    p = problem(case, torch.float32)
    leaves = [x.clone().requires_grad_() for x in p[:5]]
    p = p._replace(**dict(zip(p._fields, leaves, strict=False)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = CALLS[name](p)
        total = sum((r * r).sum() for r in results)
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
    finally:
        torch.set_num_threads(before)
    return [*results, *(g for g in grads if g is not None)]


def assert_the_same(name, case, counts):
    first, *others = (results_and_gradients(name, case, threads) for threads in counts)
    for each in others:
        assert all(torch.equal(a, b) for a, b in zip(each, first, strict=True))


@pytest.mark.parametrize("code", [9, 70])
@pytest.mark.parametrize("name", CALLS)
def test_results_do_not_depend_on_the_number_of_threads(name, code):
    assert_the_same(name, Case("iid", 1.0, STEPS, SLOTS, code, "some", batch=1), (1, 2, 3))


@pytest.mark.parametrize("name", [name for name in CALLS if "scan" in name])
def test_chunks_that_are_kept_or_prepared_again_give_the_same(name):
    # Of so many slots one thread keeps all chunks, and two prepare them in segments.
    assert_the_same(name, Case("iid", 1.0, 640, 200, 24, "some", batch=1), (1, 2))
