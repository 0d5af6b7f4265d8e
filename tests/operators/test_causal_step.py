"""causal_step: that it is a scan of one step, in place."""

import pytest
import torch
from helpers import Case
from operator_base import NAMESPACE
from scan_truth import scan_problem
from selection import MANY_CALLS

from kanerva_ext import ops


def steps_problem(dtype, mask="some"):
    p, queries = scan_problem(Case("iid", 0.1, 50, 7, 5, mask, True), dtype)
    return p, queries


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_are_one_scan(dtype):
    p, queries = steps_problem(dtype)
    want = ops.causal_scan(*p[:4], queries, p.noise_var, mask=p.mask, decay=p.decay)
    mean, cov = p.mean.clone(), p.cov.clone()
    places = mean.data_ptr(), cov.data_ptr()
    evidence = 0
    close = (
        {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-5}
    )
    for t in range(50):
        reads, read_var, more = ops.causal_step(
            mean,
            cov,
            p.weights[:, t],
            p.values[:, t],
            queries[:, t],
            p.noise_var[:, t],
            mask=p.mask[:, t],
            decay=p.decay[:, t],
        )
        evidence = evidence + more
        torch.testing.assert_close(reads, want[0][:, t], **close)
        torch.testing.assert_close(read_var, want[1][:, t], **close)
    assert (mean.data_ptr(), cov.data_ptr()) == places
    for got, expected in zip((mean, cov, evidence), want[2:], strict=True):
        torch.testing.assert_close(got, expected, **close)


def one_step(**changes):
    p, queries = steps_problem(torch.float32, "none")
    args = {
        "mean": p.mean.clone(),
        "cov": p.cov.clone(),
        "weights": p.weights[:, 0],
        "values": p.values[:, 0],
        "queries": queries[:, 0],
        "noise_var": 0.3,
    }
    return {**args, **changes}


def test_step_leading_dimensions_and_numbers():
    args = one_step()
    want = ops.causal_step(**args)
    lifted = {n: x[:, None] if isinstance(x, torch.Tensor) else x for n, x in one_step().items()}
    for got, expected in zip(ops.causal_step(**lifted), want, strict=True):
        torch.testing.assert_close(got[:, 0], expected)
    torch.testing.assert_close(lifted["mean"][:, 0], args["mean"])
    half = one_step(weights=args["weights"].bfloat16(), queries=args["queries"].half(), decay=0.9)
    assert all(r.dtype == torch.float32 and r.isfinite().all() for r in ops.causal_step(**half))


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_step_of_the_backends(backend):
    args, other = one_step(), one_step()
    for got, want in zip(
        ops.causal_step(**args, backend=backend), ops.causal_step(**other), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(args["cov"], other["cov"], rtol=1e-5, atol=1e-6)


def test_step_says_what_is_wrong():
    cases = (
        ({"mean": one_step()["mean"].mT.contiguous().mT}, ValueError, "mean must be contiguous"),
        (
            {"cov": one_step()["cov"][:1]},
            ValueError,
            r"cov must have the leading dimensions \(2,\)",
        ),
        (
            {"retention": torch.full((2, 1), 0.9)},
            ValueError,
            r"retention must have shape \(\.\.\.\) with .* those of mean, \(2,\), .* got \(2, 1\)",
        ),
        (
            {"queries": torch.ones(3, 2, 7)},
            ValueError,
            r"queries must have shape \(\.\.\., K\) with",
        ),
        ({"mean": one_step()["mean"][:1]}, ValueError, r"cov must have .* \(1,\) of mean"),
        ({"weights": torch.ones(2, 6)}, ValueError, r"weights must have shape \(..., K\)"),
        ({"noise_var": -1.0}, ValueError, "noise_var must be positive"),
        ({"mean": None}, TypeError, "mean must be a torch.Tensor, got None"),
        ({"values": torch.ones(2, 5).requires_grad_()}, RuntimeError, "use causal_scan"),
    )
    for change, error, message in cases:
        args = one_step(**change)
        before = {n: x.detach().clone() for n, x in args.items() if isinstance(x, torch.Tensor)}
        with pytest.raises(error, match=f"causal_step: .*{message}"):
            ops.causal_step(**args)
        for name, x in before.items():
            assert torch.equal(args[name], x)
    leaf = one_step(values=torch.ones(2, 5).requires_grad_())
    with torch.no_grad():
        ops.causal_step(**leaf)


def test_a_bad_step_is_nan_alone():
    noise = torch.tensor([0.3, -1.0])
    args = one_step(noise_var=noise)
    results = ops.causal_step(**args)
    good = one_step()
    want = ops.causal_step(**good)
    for got, expected in zip(
        (*results, args["mean"], args["cov"]), (*want, good["mean"], good["cov"]), strict=True
    ):
        assert torch.equal(got[0], expected[0]) and got[1].isnan().all()
    with pytest.raises(ValueError, match=r"noise_var is not positive in batch item\(s\) 1$"):
        ops.causal_step(**one_step(noise_var=noise), check=True)


@MANY_CALLS
@pytest.mark.parametrize("route", ["auto", "reference", "raw", "compiled"])
def test_autograd_knows_that_a_step_changed_the_state(route):
    """A gradient through a state that was stepped afterwards must not come out wrong."""
    torch._dynamo.reset()
    args = one_step(noise_var=torch.full((2,), 0.3))
    call = {
        "auto": ops.causal_step,
        "reference": lambda **a: ops.causal_step(**a, backend="reference"),
        "raw": lambda **a: torch.ops.kanerva.causal_step(*a.values(), None, None, None, None),
        "compiled": torch.compile(ops.causal_step, fullgraph=True, backend="aot_eager"),
    }[route]
    for name in ("mean", "cov"):
        scale = torch.ones((), requires_grad=True)
        product = scale * args[name]  # keeps the state for its gradient
        with torch.no_grad():
            call(**args)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()
    with torch.inference_mode():
        call(**{n: x.clone() for n, x in args.items()})
    torch._dynamo.reset()


@MANY_CALLS
def test_step_under_vmap():
    """Ensembles decode: the states of all members change in their places."""
    several = [one_step(noise_var=torch.full((2,), 0.3 + i)) for i in range(3)]
    for i, args in enumerate(several):
        args["mean"] += i
    stacked = {n: torch.stack([a[n] for a in several]) for n in several[0]}
    results = torch.vmap(lambda a: ops.causal_step(**a))(stacked)
    for i, args in enumerate(several):
        want = ops.causal_step(**args)
        for got, expected in zip(results, want, strict=True):
            torch.testing.assert_close(got[i], expected)
        for name in ("mean", "cov"):
            torch.testing.assert_close(stacked[name][i], args[name])
    one = one_step(noise_var=torch.full((2,), 0.3))
    with pytest.raises(RuntimeError, match=r"mean must be mapped over by torch.vmap"):
        torch.vmap(lambda v: ops.causal_step(**{**one, "values": v}))(stacked["values"])


@MANY_CALLS
def test_opcheck_step():
    args = one_step(noise_var=torch.full((2,), 0.3))
    torch.library.opcheck(torch.ops.kanerva.causal_step.default, (*args.values(), *[None] * 4))


@MANY_CALLS
def test_compiled_step():
    torch._dynamo.reset()
    compiled = torch.compile(ops.causal_step, fullgraph=True, backend="aot_eager")
    args, other = one_step(), one_step()
    for got, want in zip(compiled(**args), ops.causal_step(**other), strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(args["mean"], other["mean"])
    torch._dynamo.reset()


@pytest.mark.parametrize("place", range(6))
def test_forward_mode_is_never_silent(place):
    forward_ad = torch.autograd.forward_ad
    key, code = torch.randn(1, 3), torch.randn(1, 2)
    args = [torch.randn(1, 3, 2), torch.eye(3)[None], key, code, key, torch.ones(1)]

    def reads(x):
        given = [x if i == place else a.clone() for i, a in enumerate(args)]
        return NAMESPACE.causal_step(*given, None, None, None, None)[0]

    x = args[place]
    with pytest.raises(NotImplementedError, match="causal_scan"):
        torch.func.jvp(reads, (x.clone(),), (torch.ones_like(x),))
    with pytest.raises(NotImplementedError, match="causal_scan"), forward_ad.dual_level():
        reads(forward_ad.make_dual(x.clone(), torch.ones_like(x)))
    with forward_ad.dual_level():
        reads(x.clone())
