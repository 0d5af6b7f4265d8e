"""What PyTorch is told of the operators, as it was when saved programs were made with them.

Programs that `torch.export` saved hold the operators' names and arguments, so that a change here
is a change for users. These lists are written by hand on purpose: the package derives them.
"""

from __future__ import annotations

import importlib
import inspect
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kanerva_ext
from kanerva_ext import ops

#: Without the name, which precedes it.
SCHEMAS = {
    "bayes_write": "(Tensor mean, Tensor cov, Tensor weights, Tensor values, Tensor noise_var, "
    "Tensor? mask, Tensor? decay, Tensor? retention, Tensor? stationary_cov, str method) "
    "-> (Tensor, Tensor, Tensor)",
    "bayes_write_backward": "(Tensor? grad_mean, Tensor? grad_cov, Tensor? grad_log_evidence, "
    "Tensor mean, Tensor cov, Tensor weights, Tensor values, Tensor noise_var, Tensor? mask, "
    "Tensor? decay, Tensor? retention, Tensor? stationary_cov, str method, "
    "Tensor posterior_mean, Tensor posterior_cov) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "solve_addresses": "(Tensor mean, Tensor queries, Tensor ridge) -> Tensor",
    "solve_addresses_backward": "(Tensor grad_weights, Tensor mean, Tensor queries, Tensor ridge, "
    "Tensor weights) -> (Tensor, Tensor, Tensor)",
    "read": "(Tensor mean, Tensor cov, Tensor weights) -> (Tensor, Tensor)",
    "read_backward": "(Tensor? grad_values, Tensor? grad_var, Tensor mean, Tensor cov, "
    "Tensor weights) -> (Tensor, Tensor, Tensor)",
    "recall": "(Tensor mean, Tensor cov, Tensor queries, Tensor ridge) -> (Tensor, Tensor, Tensor)",
    "recall_backward": "(Tensor? grad_values, Tensor? grad_var, Tensor? grad_weights, "
    "Tensor mean, Tensor cov, Tensor queries, Tensor ridge, Tensor weights) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "memory_kl": "(Tensor mean, Tensor cov, Tensor prior_mean, Tensor prior_cov) -> Tensor",
    "memory_kl_backward": "(Tensor grad, Tensor mean, Tensor cov, Tensor prior_mean, "
    "Tensor prior_cov) -> (Tensor, Tensor, Tensor, Tensor)",
    "statistics": "(Tensor mean, Tensor cov) -> (Tensor, Tensor)",
    "statistics_backward": "(Tensor? grad_shift, Tensor? grad_precision, Tensor mean, Tensor cov, "
    "Tensor shift, Tensor precision) -> (Tensor, Tensor)",
    "adaptive_write": "(Tensor mean, Tensor cov, Tensor values, Tensor noise_var, Tensor ridge, "
    "Tensor? mask, int num_iters) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "adaptive_write_backward": "(Tensor? grad_mean, Tensor? grad_cov, Tensor? grad_weights, "
    "Tensor? grad_step_kl, Tensor? grad_log_evidence, Tensor mean, Tensor cov, Tensor values, "
    "Tensor noise_var, Tensor ridge, Tensor? mask, int num_iters, Tensor weights) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "forget": "(Tensor mean, Tensor cov, Tensor weights, Tensor values, Tensor noise_var, "
    "Tensor? mask) -> (Tensor, Tensor)",
    "forget_backward": "(Tensor? grad_mean, Tensor? grad_cov, Tensor mean, Tensor cov, "
    "Tensor weights, Tensor values, Tensor noise_var, Tensor? mask, Tensor rest_mean, "
    "Tensor rest_cov) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "causal_scan": "(Tensor mean, Tensor cov, Tensor weights, Tensor values, Tensor queries, "
    "Tensor noise_var, Tensor? mask, Tensor? decay, Tensor? retention, Tensor? stationary_cov, "
    "Tensor? cu_seqlens, int chunk_size) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "causal_scan_backward": "(Tensor? grad_reads, Tensor? grad_read_var, Tensor? grad_mean, "
    "Tensor? grad_cov, Tensor? grad_log_evidence, Tensor mean, Tensor cov, Tensor weights, "
    "Tensor values, Tensor queries, Tensor noise_var, Tensor? mask, Tensor? decay, "
    "Tensor? retention, Tensor? stationary_cov, Tensor? cu_seqlens, int chunk_size) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "causal_step": "(Tensor(a!) mean, Tensor(b!) cov, Tensor weights, Tensor values, "
    "Tensor queries, Tensor noise_var, Tensor? mask, Tensor? decay, Tensor? retention, "
    "Tensor? stationary_cov) -> (Tensor, Tensor, Tensor)",
}


class Gradient(NamedTuple):
    #: indices of the raw inputs that the gradient's results belong to, in order
    inputs: tuple[int, ...]
    #: indices of the outputs that it takes after the inputs
    saved_outputs: tuple[int, ...]
    outputs: int


GRADIENTS = {
    "bayes_write": Gradient((0, 1, 2, 3, 4, 6, 7, 8), (0, 1), 3),
    "solve_addresses": Gradient((0, 1, 2), (0,), 1),
    "read": Gradient((0, 1, 2), (), 2),
    "recall": Gradient((0, 1, 2, 3), (2,), 3),
    "memory_kl": Gradient((0, 1, 2, 3), (), 1),
    "statistics": Gradient((0, 1), (0, 1), 2),
    "adaptive_write": Gradient((0, 1, 2, 3, 4), (2,), 5),
    "forget": Gradient((0, 1, 2, 3, 4), (0, 1), 2),
    "causal_scan": Gradient((0, 1, 2, 3, 4, 5, 7, 8, 9), (), 5),
}
B, T, K, C = 2, 3, 4, 5
MOVING = ("bayes_write", "causal_scan")  # with gradients, and either kind of dynamics
EACH = [*((name, "decay") for name in GRADIENTS), *((name, "retention") for name in MOVING)]
STEPS = [("causal_step", "decay"), ("causal_step", "retention")]


def test_every_operator_is_in_the_lists():
    public = {n for n, f in vars(ops).items() if inspect.isfunction(f)}
    forward = {name for name in SCHEMAS if not name.endswith("_backward")}
    assert forward - {"statistics"} == public - {"to_statistics", "from_statistics"}
    assert {f"{name}_backward" for name in GRADIENTS} == set(SCHEMAS) - forward
    assert len(SCHEMAS) == 19


@pytest.mark.parametrize("namespace", ["kanerva", "kanerva_triton"])
def test_no_operator_is_without_a_schema_here(namespace):
    registered = {
        name.removeprefix(f"{namespace}::").removesuffix(".default")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(f"{namespace}::")
    }
    parts = {"episode_sums", "posterior_of_sums"} if namespace == "kanerva" else set()
    assert registered == set(SCHEMAS) | parts


@pytest.mark.parametrize("namespace", ["kanerva", "kanerva_triton"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(namespace, name):
    operator = getattr(getattr(torch.ops, namespace), name).default
    assert str(operator._schema) == f"{namespace}::{name}{SCHEMAS[name]}"
    assert torch.Tag.pt2_compliant_tag in operator.tags


@pytest.mark.parametrize("name", [*GRADIENTS, "causal_step"])
def test_a_declaration_agrees_with_itself(name):
    operator = importlib.import_module(f"kanerva_ext.ops.{name}").OPERATOR
    schema = getattr(torch.ops.kanerva, name).default._schema
    assert operator.name == name
    assert len(operator.results) == len(schema.returns)
    for arg, declared in zip(operator.args, schema.arguments, strict=False):
        optional = str(declared.type) == "Optional[Tensor]"
        assert (arg.name, arg.optional) == (declared.name, optional)
    assert all(
        "Tensor" not in str(a.type) or a.name == "cu_seqlens"
        for a in schema.arguments[len(operator.args) :]
    )


class Calls(TorchDispatchMode):
    """Records what each raw operator is called with and what it returns."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        results = operator(*args, **(kwargs or {}))
        if operator.namespace == "kanerva":
            self.made[operator.__name__.removesuffix(".default")] = args, as_tuple(results)
        return results


def as_tuple(results):
    return results if isinstance(results, tuple) else (results,)


def raw_arguments(name, dynamics="decay"):
    """Valid ones; the optional masks and ``dynamics`` are there, sequences are not packed."""
    moves = dynamics == "retention"
    made = {
        "mean": torch.randn(B, K, C),
        "cov": torch.eye(K).repeat(B, 1, 1),
        "weights": torch.randn(B, T, K),
        "values": torch.randn(B, T, C),
        "queries": torch.randn(B, T, K if name == "causal_scan" else C),
        "noise_var": torch.rand(B, T) + 0.5,
        "ridge": torch.rand(B) + 0.5,
        "mask": torch.ones(B, T, dtype=torch.bool),
        "decay": None if moves else torch.rand(B, T) / 2 + 0.5,
        "retention": torch.rand(B, T) / 2 + 0.5 if moves else None,
        "stationary_cov": torch.eye(K).repeat(B, 1, 1) if moves else None,
        "prior_mean": torch.randn(B, K, C),
        "prior_cov": 2 * torch.eye(K).repeat(B, 1, 1),
        "method": "auto",
        "num_iters": 1,
        "cu_seqlens": None,
        "chunk_size": 0,
    }
    schema = getattr(torch.ops.kanerva, name).default._schema
    return [made[argument.name] for argument in schema.arguments]


def same_memory(a, b):
    return isinstance(a, torch.Tensor) and a.data_ptr() == b.data_ptr() and a.shape == b.shape


@pytest.mark.parametrize(("name", "dynamics"), EACH)
def test_what_the_gradient_takes_and_gives(name, dynamics):
    expected = GRADIENTS[name]
    args = raw_arguments(name, dynamics)
    if name == "forget":  # only what was written can be forgotten
        args[:2] = torch.ops.kanerva.bayes_write(*args, None, None, None, "auto")[:2]
    for arg in args:
        if isinstance(arg, torch.Tensor) and arg.is_floating_point():
            arg.requires_grad_()
    leaves = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.requires_grad]
    results = as_tuple(getattr(torch.ops.kanerva, name)(*args))
    assert len(results) == expected.outputs
    seeds = [torch.ones_like(r) for r in results]
    with Calls() as calls:
        grads = torch.autograd.grad(results, [args[i] for i in leaves], seeds)
    taken, given = calls.made[f"{name}_backward"]
    assert tuple(leaves) == tuple(i for i in expected.inputs if args[i] is not None)
    assert len(given) == len(expected.inputs)
    present = [g for g, i in zip(given, expected.inputs, strict=True) if args[i] is not None]
    assert all(same_memory(a, b) for a, b in zip(present, grads, strict=True))
    inputs, saved = taken[len(results) :][: len(args)], taken[len(results) + len(args) :]
    assert len(saved) == len(expected.saved_outputs)
    for found, index in zip(saved, expected.saved_outputs, strict=True):
        assert same_memory(found, results[index])
    for found, arg in zip(inputs, args, strict=True):
        assert same_memory(found, arg) if isinstance(arg, torch.Tensor) else found == arg


def arguments_of(name, dynamics):
    """`raw_arguments`, those of one step for ``causal_step``."""
    args = raw_arguments(name, dynamics)
    if name == "causal_step":
        whole = (0, 1, 9)  # the state and the covariance that it drifts back to
        args = [a if a is None or i in whole else a[:, 0].contiguous() for i, a in enumerate(args)]
        args[4] = torch.randn(B, K)
    return args


@pytest.mark.parametrize(("name", "dynamics"), [*EACH, *STEPS])
def test_shapes_without_values_are_those_of_the_results(name, dynamics):
    """The fakes: shapes, dtypes and strides on the meta device are those of a real call."""
    args = arguments_of(name, dynamics)
    operator = getattr(torch.ops.kanerva, name)
    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in args]
    expected = as_tuple(operator(*args))
    found = as_tuple(operator(*meta))
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    if name in GRADIENTS:
        grads = [torch.ones_like(r) for r in expected]
        saved = [expected[i] for i in GRADIENTS[name].saved_outputs]
        backward = getattr(torch.ops.kanerva, f"{name}_backward")
        first = 7 if name == "causal_scan" else 6  # of decay, retention and stationary_cov
        absences = {"decay": [(), (first,)], "retention": [(), (first + 2,)]}[dynamics]
        for absent in absences if name in MOVING else [()]:
            given = [*grads, *args, *saved]
            for index in absent:
                given[len(grads) + index] = None
            meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in given]
            with torch._C._AutoDispatchBelowAutograd():  # above, what is absent has no result
                found, expected = backward(*meta), backward(*given)
            for a, b in zip(found, expected, strict=True):
                assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@pytest.mark.parametrize("namespace", ["kanerva", "kanerva_triton"])
@pytest.mark.parametrize(("name", "dynamics"), [*EACH, *STEPS])
def test_wrong_shapes_are_refused_by_name(namespace, name, dynamics):
    """Of every tensor, one number too many in its last dimension."""
    args = [
        a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments_of(name, dynamics)
    ]
    operator = getattr(getattr(torch.ops, namespace), name).default
    names = [argument.name for argument in operator._schema.arguments]
    for index, arg in enumerate(args):
        if not isinstance(arg, torch.Tensor) or index == 0:
            continue
        wrong = arg.new_empty(*arg.shape[:-1], arg.shape[-1] + 1)
        with pytest.raises(RuntimeError, match=rf"^{names[index]} must "):
            operator(*args[:index], wrong, *args[index + 1 :])


def backward_arguments(name, dynamics):
    """What the gradient of a call with ``raw_arguments`` is given."""
    args = raw_arguments(name, dynamics)
    results = as_tuple(getattr(torch.ops.kanerva, name)(*args))
    saved = [results[i] for i in GRADIENTS[name].saved_outputs]
    return [*(torch.ones_like(r) for r in results), *args, *saved]


@pytest.mark.skipif(kanerva_ext.backends()["cpu"] != "available", reason="needs the C++ library")
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("name", "dynamics"), [*EACH, *STEPS])
def test_the_compiled_library_refuses_by_name(name, dynamics, backward):
    """Of every tensor: another dtype than it may have, and one number too many."""
    if backward and name == "causal_step":
        pytest.skip("has no gradient")
    args = backward_arguments(name, dynamics) if backward else arguments_of(name, dynamics)
    operator = getattr(torch.ops.kanerva, f"{name}_backward" if backward else name).default
    names = [argument.name for argument in operator._schema.arguments]
    unread = {"mean", "cov"} if backward and name == "statistics" else set()
    half = {arg.name for arg in ops.OPERATORS[name].args if arg.kind == "data"}
    if backward and GRADIENTS[name].saved_outputs:
        half.discard(names[-1])
    with torch._C._AutoDispatchBelowAutograd():
        for index, arg in enumerate(args):
            if not isinstance(arg, torch.Tensor) or names[index] in unread:
                continue
            message = rf", {names[index]} must .*, got "
            given = [*args[:index], arg.half(), *args[index + 1 :]]
            if names[index] in half:
                operator(*given)
            else:
                with pytest.raises(RuntimeError, match=f"{message}(Half|float16)"):
                    operator(*given)
            if names[index] in ("mean", "shift"):  # gives the sizes
                continue
            shape = (*arg.shape[:-1], arg.shape[-1] + 1)
            given[index] = arg.new_ones(shape)
            with pytest.raises(RuntimeError, match=message + rf"\({', '.join(map(str, shape))}"):
                operator(*given)
