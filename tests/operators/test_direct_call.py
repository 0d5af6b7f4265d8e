"""The calls that public functions pass to the dispatcher at once, and those that they may not."""

from __future__ import annotations

import importlib

import pytest
import torch
from samples import NAMES, sample
from torch.utils._python_dispatch import TorchDispatchMode

import kanerva_ext
from kanerva_ext import ops
from kanerva_ext.ops import _cpp_autograd

pytestmark = pytest.mark.skipif(
    bool(_cpp_autograd.why_not), reason=f"calls go through Python: {_cpp_autograd.why_not}"
)
B, T, K, C = 2, 5, 3, 4


@pytest.fixture
def served(monkeypatch):
    """For every call since: whether it was passed on at once."""
    calls = []
    for name in NAMES:
        operator = importlib.import_module(f"kanerva_ext.ops.{name}")._call

        def spy(*args, direct=operator.direct):
            results = direct(*args)
            calls.append(results is not None)
            return results

        monkeypatch.setattr(operator, "direct", spy)
    return calls


def arguments(dtype=torch.float32, **options):
    torch.manual_seed(0)
    return sample("bayes_write").arguments((B,), T, K, C, dtype, **options)


def write(args, **changed):
    given = {"mask": args["mask"], "decay": args["decay"], **changed}
    names = ("mean", "cov", "weights", "values", "noise_var")
    positional = [given.pop(name, args[name]) for name in names]
    return ops.bayes_write(*positional, **given)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_results_and_gradients(name, optional, dtype, served, monkeypatch):
    own = sample(name)
    args = own.arguments((B,), T, K, C, dtype, grad=True, optional=optional)
    leaves = [x for x in args.values() if isinstance(x, torch.Tensor) and x.requires_grad]

    def run():
        results = own.call(args)
        results = results if isinstance(results, tuple) else (results,)
        loss = sum(r.sin().sum() for r in results)
        return results, torch.autograd.grad(loss, leaves, allow_unused=True)

    at_once = run()
    assert served
    assert all(served)
    operator = importlib.import_module(f"kanerva_ext.ops.{name}")._call
    monkeypatch.setattr(operator, "direct", lambda *args: None)
    for ours, theirs in zip(at_once, run(), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            assert a is None or (torch.equal(a, b) and a.requires_grad == b.requires_grad)


@pytest.mark.parametrize("noise_var", [0.3, torch.tensor(0.3)])
def test_one_number_for_all(noise_var, served):
    args = arguments()
    leaf = noise_var.requires_grad_() if isinstance(noise_var, torch.Tensor) else None
    ours = write(args, noise_var=noise_var)
    every = write(args, noise_var=torch.full((B, T), 0.3))
    assert served == [True, True]
    for a, b in zip(ours, every, strict=True):
        assert torch.equal(a, b)
    if leaf is not None:
        assert torch.autograd.grad(ours[2].sum(), leaf)[0].isfinite()


def test_half_precision_parameters_and_threads_are_passed_on(served):
    args = arguments()
    write(args, values=args["values"].half(), weights=args["weights"].bfloat16())
    write(args, mean=torch.nn.Parameter(args["mean"]))
    with torch.inference_mode():
        write(args)
    assert served == [True] * 3


class Own(torch.Tensor):
    pass


class Nothing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_what_asks_for_more_goes_by_python(served):
    args = arguments()
    truth = write(args)
    served.clear()
    same = [
        write(args, check=True),
        write(args, backend="cpu"),
        write(args, mean=args["mean"].as_subclass(Own)),
        write(args, backend="auto"),
    ]
    assert served == [False, False, False, True]
    served.clear()
    with kanerva_ext.use_backend("cpu"):
        same.append(write(args))
    with Nothing():
        same.append(write(args))
    with torch.overrides.BaseTorchFunctionMode():
        same.append(write(args))
    same.append([x[0] for x in torch.vmap(lambda x: write(args, mean=x))(args["mean"][None])])
    same.append(torch.func.vjp(lambda x: write(args, mean=x), args["mean"])[0])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(args["mean"], torch.ones_like(args["mean"]))
        found = write(args, mean=dual)
        assert torch.autograd.forward_ad.unpack_dual(found[0]).tangent is not None
        same.append([torch.autograd.forward_ad.unpack_dual(x).primal for x in found])
    assert served == [False] * 6
    for found in same:
        for a, b in zip(found, truth, strict=True):
            torch.testing.assert_close(a.as_subclass(torch.Tensor), b)
    served.clear()
    write(args)
    assert served == [True]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"mean": torch.zeros(B, K, C).half()}, TypeError, "mean must be torch.float32"),
        ({"cov": torch.eye(K).expand(B, K, K).double()}, TypeError, "cov must be torch.float32"),
        ({"weights": torch.zeros(B, T, K + 1)}, ValueError, "weights must have shape"),
        ({"noise_var": -1.0}, ValueError, "noise_var must be positive"),
        ({"noise_var": float("nan")}, ValueError, "noise_var must be positive"),
        ({"noise_var": 1e39}, ValueError, r"noise_var must be from 1.4e-45 to 3.4e\+38, .* 1e\+39"),
        ({"noise_var": 1e-50}, ValueError, "noise_var must be from 1.4e-45"),
        ({"decay": 1e-50}, ValueError, "decay must be from 1.4e-45"),
        ({"mask": torch.ones(B, T)}, TypeError, "mask must be torch.bool"),
        ({"mean": None}, TypeError, "mean must be a torch.Tensor"),
        ({"decay": 1.5}, ValueError, "decay must be in"),
        ({"backend": "gpu"}, ValueError, "backend must be one of"),
    ],
)
def test_errors_are_those_of_python(changed, error, message, served):
    with pytest.raises(error, match=message):
        write(arguments(), **changed)
    assert served in ([], [False])


@pytest.mark.parametrize(
    "changed",
    [
        {"mean": torch.zeros(K, C), "cov": torch.eye(K)},  # to be expanded
        {"noise_var": 1},
        {"noise_var": torch.ones(1, T)},
        {"noise_var": torch.ones((), dtype=torch.float64)},
        {"values": torch.zeros(B, T, C, dtype=torch.float64)},
    ],
)
def test_what_is_not_raw_is_brought_to_it(changed, served):
    assert all(x.isfinite().all() for x in write(arguments(), **changed))
    assert served == [False]


def test_no_steps(served):
    args = arguments()
    changed = {"weights": torch.zeros(B, 0, K), "values": torch.zeros(B, 0, C), "noise_var": 1.0}
    mean, cov, evidence = write(args, mask=None, decay=None, **changed)
    assert served == [True]
    assert torch.equal(mean, args["mean"])
    torch.testing.assert_close(cov, args["cov"])
    assert not evidence.any()


def test_the_raw_call_counts_its_arguments():
    with pytest.raises(TypeError, match="kanerva::read takes 5 arguments, got 1"):
        importlib.import_module("kanerva_ext.ops.read")._call.direct("auto")


def test_a_number_beyond_int64_is_an_error_of_pythons(served):
    args = arguments()
    names = ("mean", "cov", "weights", "values", "weights", "noise_var")
    with pytest.raises((RuntimeError, OverflowError, ValueError), match="chunk_size"):
        ops.causal_scan(*(args[name] for name in names), chunk_size=2**70)
    assert served in ([], [False])
