"""What goes wrong between processes; run by `helpers.run_processes`."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist
from distributed_checks import assert_same_everywhere, share
from helpers import Case, problem

from kanerva_ext import distributed, ops
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
