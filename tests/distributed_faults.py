"""What goes wrong between processes; run by `helpers.run_processes`."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist
from distributed_checks import assert_same_everywhere, share
from helpers import Case, Problem, problem
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from kanerva_ext import FusedKanervaMemory, distributed, ops
from kanerva_ext.distributed import _collectives

CASE = Case("iid", 0.5, 40, 6, 4, batch=3)


def _write(p, part=None, **options):
    part = share(CASE.steps) if part is None else part
    return distributed.write(p[:2], *(x[:, part] for x in p[2:5]), **options)


def check_bad_items() -> None:
    """A NaN, a noise that is not positive: that item on all ranks, and no other."""
    for what in ("values", "noise_var"):
        p = problem(CASE)
        want = ops.bayes_write(*p[:5])
        if dist.get_rank() == 1:
            p = p._replace(**{what: getattr(p, what).clone()})
            getattr(p, what)[1, -1] = torch.nan if what == "values" else -1.0
        for method in ("auto", "sqrt", "information"):
            state, evidence = _write(p, method=method)
            for got, right in zip((*state, evidence), want, strict=True):
                assert got[1].isnan().all()
                torch.testing.assert_close(got[[0, 2]], right[[0, 2]], rtol=1e-9, atol=1e-9)
                assert_same_everywhere(got[[0, 2]])
        with pytest.raises(ValueError, match=r"batch item\(s\) 1"):
            _write(p, check=True)
        part = share(CASE.steps)
        steps = [x[:, part] for x in (*p[2:4], p.weights, p.noise_var)]
        results = distributed.causal_scan(*p[:2], *steps)
        assert all(r[1].isnan().all() for r in results)
        assert not any(r[[0, 2]].isnan().any() for r in results)


def check_disagreement() -> None:
    """What one rank calls otherwise is an error on all of them, and the group works on."""
    p, rank = problem(CASE), dist.get_rank()
    other = p if rank == 0 else problem(CASE._replace(code=5))
    with pytest.raises(ValueError, match=r"same sizes.*3x6x[45].*rank"):
        _write(other)
    with pytest.raises(ValueError, match=r"loss (same|sum).* something else on rank"):
        _write(p, loss=("same", "sum")[rank])
    bad = p if rank == 0 else p._replace(weights=p.weights[..., :5])
    error, words = (RuntimeError, "rank 1 refused") if rank == 0 else (ValueError, "weights must")
    with pytest.raises(error, match=words):
        _write(bad)
    bad = p if rank == 0 else p._replace(values=p.values.long())
    with pytest.raises(RuntimeError if rank == 0 else TypeError):
        _write(bad)
    with pytest.raises(ValueError, match="loss must be one of"):
        _write(p, loss="mean")
    with pytest.raises(TypeError, match="state must be a MemoryState"):
        distributed.write(p.mean, *p[2:5])
    with pytest.raises(TypeError, match="group must be a"):
        _write(p, group=3)
    one = dist.new_group([0])
    if rank == 0:
        alone = _write(p, slice(None), group=one)[0]
        torch.testing.assert_close(alone.mean, ops.bayes_write(*p[:5])[0])
    else:
        with pytest.raises(RuntimeError, match="not a member"):
            _write(p, group=one)
    torch.testing.assert_close(_write(p)[0].mean, ops.bayes_write(*p[:5])[0])


def check_other_states() -> None:
    """Priors that are not the same are an error on all ranks; those of other roundings are not."""
    p, rank = problem(CASE), dist.get_rank()
    part = share(CASE.steps)
    scanned = [x[:, part] for x in (*p[2:4], p.weights, p.noise_var)]
    others = {
        "mean": [
            p.mean + 0.01,
            p.mean.flip(0),
            p.mean.flip(1),
            torch.where(torch.arange(4) == 1, torch.nan, p.mean),
        ],
        "cov": [2 * p.cov, p.cov.flip(0)],
    }
    for name, choices in others.items():
        for other in choices:
            q = p._replace(**{name: other}) if rank else p
            words = f"state must be the same on every rank, got a {name} on rank 1"
            with pytest.raises(ValueError, match=words):
                _write(q)
            with pytest.raises(ValueError, match=f"causal_scan: {words}"):
                distributed.causal_scan(*q[:2], *scanned)
    near = p._replace(mean=p.mean * (1 + 1e-7 * rank))
    torch.testing.assert_close(_write(near)[0].mean, ops.bayes_write(*p[:5])[0])
    nowhere = p._replace(mean=torch.full_like(p.mean, torch.nan))
    assert _write(nowhere)[0].mean.isnan().all()


def check_other_tensors() -> None:
    """What would hang or fail without a word: gradients on one rank, meta tensors, DTensors."""
    p, rank = problem(CASE), dist.get_rank()
    grads = p._replace(weights=p.weights.clone().requires_grad_())
    for steps in (CASE.steps, 4):  # summed, and gathered
        part = share(steps)
        with pytest.raises(ValueError, match=r"gradients here and something else on rank"):
            _write(p if rank else grads, part, loss="sum")
        with pytest.raises(ValueError, match=r"gradients here"), torch.set_grad_enabled(rank == 0):
            _write(grads, part, loss="sum")
        _write(p if rank else grads, part)[1].sum()  # the same loss sends nothing in its gradient
    bad = Problem(*(x if x is None else x.to("meta") for x in p)) if rank else p
    words = "mean must hold numbers, got a meta tensor" if rank else "rank 1 refused"
    with pytest.raises(ValueError if rank else RuntimeError, match=words):
        _write(bad)
    mesh = init_device_mesh("cpu", (2,))
    split = distribute_tensor(p.weights, mesh, [Shard(1)])
    with pytest.raises(TypeError, match=r"write: weights must be a plain tensor .* got a DTensor"):
        distributed.write(p[:2], split, *p[3:5])
    with pytest.raises(TypeError, match=r"causal_scan: queries must be a plain tensor"):
        distributed.causal_scan(*p[:4], split, p.noise_var)
    torch.testing.assert_close(_write(p)[0].mean, ops.bayes_write(*p[:5])[0])


def check_shared_state() -> None:
    """An adaptive write of all, with another state or with gradients on one rank alone."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    memory = FusedKanervaMemory(3, 4)
    values = torch.randn(2, 5, 4)
    with distributed.shared_writes(memory):
        memory.write(values)
        with pytest.raises(ValueError, match="gradients here"), torch.set_grad_enabled(rank == 0):
            memory.write(values)
        with torch.no_grad():
            memory.prior_mean += rank
        with pytest.raises(ValueError, match="got a mean on rank 1 that is not that of rank 0"):
            memory.write(values)


def check_no_data() -> None:
    """A rank without steps, and no step anywhere: the state as it was."""
    p = problem(CASE)
    part = slice(0, CASE.steps) if dist.get_rank() else slice(0, 0)
    torch.testing.assert_close(_write(p, part)[0].mean, ops.bayes_write(*p[:5])[0])
    for method in ("auto", "sqrt", "information"):
        state, evidence = _write(p, slice(0, 0), method=method)
        torch.testing.assert_close(state.mean, p.mean)
        torch.testing.assert_close(state.cov, p.cov)
        assert torch.equal(evidence, torch.zeros(3, dtype=torch.float64))


def check_versions() -> None:
    if dist.get_rank() == 1:
        torch.__version__ = "2.99.0"
    with pytest.raises(RuntimeError, match=r"same versions, got torch 2\..* on rank 0 and torch "
                       r"2\.99\.0, kanerva_ext .* on rank 1"):  # fmt: skip
        _write(problem(CASE))


def check_death() -> None:
    """A rank that dies before it adds its sums: the others say so, and soon."""
    p = problem(CASE)
    _write(p)
    if dist.get_rank() == 1:
        _collectives.Group.start_sum = lambda *_: os._exit(0)
    begun = time.monotonic()
    try:
        _write(p)
    except RuntimeError as error:
        assert "distributed.write: rank 0 of 2 could not finish" in str(error), error
        assert "has ended" in str(error)
        assert time.monotonic() - begun < 60
        print("told", flush=True)
    os._exit(0)


def check_time_out() -> None:
    """A rank that does not come: an error after the group's time-out, no hang."""
    p = problem(CASE)
    _write(p)
    if dist.get_rank() == 1:
        time.sleep(25)
        os._exit(0)
    begun = time.monotonic()
    try:
        _write(p)
    except RuntimeError as error:
        assert "does not answer within the group's time-out" in str(error), error
        assert time.monotonic() - begun < 20
        print("told", flush=True)
    os._exit(0)
