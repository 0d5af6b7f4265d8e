"""What would fail on a GPU whatever the kernels do, found on the CPU."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
import torch
from checkout import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu import phases
from benchmarks.gpu.phases import OPERATORS, WITHOUT_GRADIENT
from benchmarks.gpu.problems import as_tuple, problem

#: Of floating-point numbers on CUDA; from the documentation of torch.use_deterministic_algorithms.
#: (The gradient of cumprod is a cumsum.)
NOT_DETERMINISTIC = {
    "cumsum",
    "scatter_add",
    "scatter_reduce",
    "index_reduce",
    "put",
    "histc",
    "bincount",
    "kthvalue",
    "median",
    "nanmedian",
    "_ctc_loss",
    "grid_sampler_2d_backward",
    "upsample_bilinear2d_backward",
}


class Called(TorchDispatchMode):
    """Collects the names of the ATen operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__.rstrip("_"))
        return func(*args, **(kwargs or {}))


WITH_DECAY = ("bayes_write", "causal_scan", "causal_step")


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize(
    ("operator", "with_decay"), [(x, False) for x in OPERATORS] + [(x, True) for x in WITH_DECAY]
)
def test_the_reference_calls_what_is_deterministic_on_a_gpu(operator, with_decay, backend):
    """Results, gradients and second derivatives: of the recursion and, where a compiled operator is
    differentiated twice, of the gradient's closed form."""
    found = problem(operator, (2, 7, 4, 3)).on(backend)
    leaves = [x.clone().requires_grad_() for x in found.inputs]
    options = {}
    if with_decay:
        options["decay"] = torch.full_like(leaves[-1], 0.9).requires_grad_()
    if operator == "causal_step":
        leaves = [x.detach() for x in leaves]
        options = {name: x.detach() for name, x in options.items()}
    with Called() as called:
        results = as_tuple(found.function(*leaves, **options))
        if operator not in WITHOUT_GRADIENT:
            every = [*leaves, *options.values()]
            total = sum((x * x).sum() for x in results if x.requires_grad)
            grads = torch.autograd.grad(total, every, create_graph=True)
            again = sum((g * g).sum() for g in grads if g.requires_grad)
            torch.autograd.grad(again, every, allow_unused=True)
    if operator not in WITHOUT_GRADIENT:
        assert "isnan" in called.names  # what the operator calls was seen: it alone looks for NaN
    assert not called.names & NOT_DETERMINISTIC


DRAWS = {"normal", "rand", "randint", "randn", "randperm"}
#: Functions that are only called inside ``with torch.device("cpu")``.
ON_THE_CPU = {"_problem"}


def draws_anywhere(tree: ast.AST, on_cpu: bool = False) -> Iterator[int]:
    """Lines that draw from a generator, which is the CPU's, on whatever device is the default."""
    for node in ast.iter_child_nodes(tree):
        inside = on_cpu
        if isinstance(node, ast.With):
            inside |= any(ast.unparse(x.context_expr) == "torch.device('cpu')" for x in node.items)
        if isinstance(node, ast.FunctionDef):
            inside |= node.name in ON_THE_CPU
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given = {keyword.arg for keyword in node.keywords}
            is_draw = node.func.attr in DRAWS and "generator" in given
            if is_draw and "device" not in given and not inside:
                yield node.lineno
        yield from draws_anywhere(node, inside)


@pytest.mark.parametrize("name", [*(f"operators/test_{name}" for name in phases.TESTS), "helpers",
                                  "scan_truth", "operator_base"])  # fmt: skip
def test_tests_draw_on_the_cpu(name):
    """A CPU's generator draws nothing for a default device of "cuda"."""
    path = ROOT / f"tests/{name}.py"
    found = [f"{path.name}:{line}" for line in draws_anywhere(ast.parse(path.read_text()))]
    assert not found, "give device='cpu', then move"
