"""A memory that moves, one step at a time: `ops.causal_step`."""

import pytest
import torch
from helpers import DTYPES
from retention_cases import COLLINEAR, EASY, a_few, assert_true, small
from retention_truth import moving_problem
from selection import MANY_CALLS
from torch import Tensor

from kanerva_ext import ops


@pytest.mark.parametrize("moving", a_few([*EASY[::5], *COLLINEAR]))
def test_steps_are_a_scan(moving):
    for dtype in DTYPES:
        m = moving_problem(moving, dtype)
        mean, cov = m.p.mean.clone(), m.p.cov.clone()
        sigma, before = m.stationary_cov, (mean, cov)
        kept = sigma.clone() if isinstance(sigma, Tensor) else sigma
        rows, total = [], 0
        for t in range(moving.case.steps):
            steps = (m.p.weights, m.p.values, m.queries, m.p.noise_var)
            reads, var, more = ops.causal_step(
                *(mean, cov),
                *(x[:, t] for x in steps),
                mask=None if m.p.mask is None else m.p.mask[:, t],
                retention=m.retention[:, t],
                stationary_cov=sigma,
            )
            rows.append((reads, var))
            total = total + more
        reads, read_var = (torch.stack(x, 1) for x in zip(*rows, strict=True))
        assert before[0] is mean and before[1] is cov
        assert not isinstance(kept, Tensor) or torch.equal(kept, sigma)
        assert_true(moving, dtype, (reads, read_var, mean, cov, total))


@MANY_CALLS
def test_vmap_of_a_step():
    several = [
        {n: x if n in ("mean", "cov") else x[:, 0] for n, x in small(i).items()} for i in range(3)
    ]
    stacked = {n: torch.stack([a[n] for a in several]) for n in several[0]}
    retention = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    sigma = torch.stack([a["cov"] for a in several]).clone()
    results = torch.vmap(lambda a, r, s: ops.causal_step(**a, retention=r, stationary_cov=s))(
        stacked, retention[:, None].expand(3, 2), sigma
    )
    for i, args in enumerate(several):
        want = ops.causal_step(**args, retention=float(retention[i]), stationary_cov=sigma[i])
        torch.testing.assert_close(tuple(r[i] for r in results), want)
        torch.testing.assert_close(stacked["mean"][i], args["mean"])
        torch.testing.assert_close(stacked["cov"][i], args["cov"])


@MANY_CALLS
def test_opcheck_of_a_step():
    args = [x if n in ("mean", "cov") else x[:, 0] for n, x in small().items()]
    retention = torch.full((2,), 0.5, dtype=torch.float64)
    operator = torch.ops.kanerva.causal_step.default
    torch.library.opcheck(operator, (*args, None, None, retention, args[1].clone()))
    torch.library.opcheck(operator, (*args, None, None, retention, None))
