"""What a memory that moves takes: ways to say the same, wrong arguments, wrong numbers."""

import math

import pytest
import torch
from retention_cases import small, without_queries
from torch import Tensor

from kanerva_ext import ops


def test_ways_to_say_the_same():
    args = small()
    sigma = 0.3 * torch.eye(4, dtype=torch.float64)
    per_step = torch.full((2, 6), 0.8, dtype=torch.float64)
    whole = sigma.repeat(2, 1, 1)
    for function, rest in ((ops.causal_scan, args), (ops.bayes_write, without_queries(args))):
        want = function(**rest, retention=per_step, stationary_cov=whole)
        for retention in (0.8, torch.tensor(0.8, dtype=torch.float64), per_step[:, :1]):
            for given in (0.3, torch.tensor(0.3), sigma, whole[:1], whole):
                got = function(**rest, retention=retention, stationary_cov=given)
                tight = given if isinstance(given, Tensor) and given.dim() else None
                rtol = 1e-6 if tight is None else 1e-12  # 0.3 may come as a float32
                torch.testing.assert_close(got, want, rtol=rtol, atol=1e-7)
        unit = function(**rest, retention=0.8, stationary_cov=1.0)
        torch.testing.assert_close(function(**rest, retention=0.8), unit)
        zeros = torch.zeros(4, 4, dtype=torch.float64)  # what it held fades to certainty
        for none in (0, 0.0, torch.tensor(0.0)):
            got = function(**rest, retention=0.8, stationary_cov=none)
            torch.testing.assert_close(got, function(**rest, retention=0.8, stationary_cov=zeros))


FUNCTIONS = {
    "causal_scan": (ops.causal_scan, small()),
    "bayes_write": (ops.bayes_write, without_queries(small())),
    "causal_step": (
        ops.causal_step,
        {n: x if n in ("mean", "cov") else x[:, 0] for n, x in small().items()},
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"stationary_cov": 1.0}, ValueError, r"stationary_cov .* got retention=None"),
        ({"decay": 0.9, "retention": 0.9}, ValueError, "decay and retention"),
        ({"retention": 0.0}, ValueError, r"retention must be in \(0, 1\], got 0"),
        ({"retention": 1.5}, ValueError, r"retention must be in \(0, 1\], got 1.5"),
        ({"retention": math.nan}, ValueError, r"retention must be in \(0, 1\], got nan"),
        ({"retention": "half"}, TypeError, "retention must be a float or a torch.Tensor"),
        (
            {"retention": 0.5, "stationary_cov": -1.0},
            ValueError,
            "stationary_cov must be finite and at least 0, got -1",
        ),
        ({"retention": 0.5, "stationary_cov": True}, TypeError, "stationary_cov must be a float"),
        (
            {"retention": 0.5, "stationary_cov": torch.eye(3, dtype=torch.float64)},
            ValueError,
            r"stationary_cov must have shape \(..., K, K\) with K \(slots\) = 4 as in mean, got",
        ),
        (
            {"retention": 0.5, "stationary_cov": torch.eye(4)},
            TypeError,
            "stationary_cov must be torch.float64 like the rest of the state",
        ),
        (
            {"retention": 0.5, "stationary_cov": torch.ones(4, dtype=torch.float64)},
            ValueError,
            r"stationary_cov must have shape \(..., K, K\), got \(4,\)",
        ),
    ],
    ids=str,
)
def test_wrong_dynamics(name, options, error, text):
    function, args = FUNCTIONS[name]
    args = {n: x.clone() for n, x in args.items()}
    with pytest.raises(error, match=rf"^{name}: {text}"):
        function(**args, **options)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("value", [0.0, -0.5, 1.001, math.nan, math.inf])
def test_a_retention_out_of_range_is_nan_in_its_item(name, value):
    function, args = FUNCTIONS[name]
    shape = args["noise_var"].shape
    retention = torch.full(shape, 0.9, dtype=torch.float64)
    retention[1].view(-1)[-1] = value
    fresh = {n: x.clone() for n, x in args.items()}
    results = function(**fresh, retention=retention)
    if name == "causal_step":
        results = (*results, fresh["mean"], fresh["cov"])
    assert all(r[1].isnan().all() and r[0].isfinite().all() for r in results)
    fresh = {n: x.clone() for n, x in args.items()}
    with pytest.raises(ValueError, match=rf"{name}: retention .* in batch item\(s\) 1$"):
        function(**fresh, retention=retention, check=True)
    if name == "causal_step":
        return
    leaves = {n: x.clone().requires_grad_() for n, x in args.items()}
    retention.requires_grad_()
    results = function(**leaves, retention=retention)
    grads = torch.autograd.grad([r.sum() for r in results], [*leaves.values(), retention])
    assert all(g[1].isnan().all() and g[0].isfinite().all() for g in grads)


def test_sums_over_the_steps_have_no_retention():
    with pytest.raises(ValueError, match=r"bayes_write: method=.* has no retention"):
        ops.bayes_write(**without_queries(small()), retention=0.5, method="information")


@pytest.mark.parametrize("noise", [0.5, 1e-7])
def test_covariances_count_by_their_symmetric_part(noise):
    args = small(t=20)
    args["noise_var"] = noise * args["noise_var"]
    crooked = torch.triu(torch.full((4, 4), 0.02, dtype=torch.float64), 1)
    crooked = crooked - crooked.mT
    sigma = args["cov"].flip(0).clone()
    bent = {**args, "cov": args["cov"] + crooked}

    def both(args, sigma):
        leaves = {n: x.clone().requires_grad_() for n, x in args.items()}
        moves = {"retention": 0.9, "stationary_cov": sigma.clone().requires_grad_()}
        found = ops.causal_scan(**leaves, **moves)
        inputs = [*leaves.values(), moves["stationary_cov"]]
        return *found, *torch.autograd.grad([x.sum() for x in found], inputs)

    torch.testing.assert_close(both(bent, sigma + crooked), both(args, sigma))
    step = {n: x if n in ("mean", "cov") else x[:, 0] for n, x in args.items()}
    states = []
    for cov, settled in ((args["cov"], sigma), (bent["cov"], sigma + crooked)):
        state = {**step, "mean": step["mean"].clone(), "cov": cov.clone()}
        read = ops.causal_step(**state, retention=0.9, stationary_cov=settled)
        states.append((*read, state["mean"], state["cov"]))
    torch.testing.assert_close(*states)
