"""What a call costs besides its kernel: ``python -m benchmarks.overhead --json``.

At the smallest shape, (1, 1, 1, 1), where a kernel has next to nothing to do, the layers of a call
are timed one inside the other: the raw operator of the dispatcher as Python calls it (which boxes
its arguments and runs the kernel), the public function without gradients (which checks them and
calls the dispatcher in C++, and so takes less than the raw operator), with gradients recorded, and
with the backward, as ``torch.autograd.grad`` calls it. A layer's price is its time less that of the
layer inside it. Beside them stand what PyTorch itself takes: the
kernels of forward and backward alone, an autograd.Function in Python around nothing, and
``addcmul``, an operator of its own with as few numbers, one result and three gradients.
``KANERVA_AUTOGRAD=python`` measures the route that a PyTorch takes for which there is no
``_autograd`` library.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kanerva_ext import ops

from . import machine
from .compare import RESULTS, write_json
from .measure import interleaved

OPERATORS = ("bayes_write", "recall")
LIMIT_US = 25.0  # of forward and backward, beyond the kernels
#: Layers that no other contains.
APART = (
    "kernels of forward and backward alone",
    "an autograd.Function that does nothing, forward and backward",
    "torch.addcmul, forward and backward",
)


@dataclass
class Row:
    """One layer; microseconds per call."""

    operator: str
    layer: str
    total_us: float
    own_us: float  # beyond the layer inside it


def inputs(operator: str) -> list[Tensor]:
    one = torch.ones(1, 1, 1)
    if operator == "bayes_write":
        return [one, one, one, one, torch.ones(1, 1)]
    return [one, one, one, torch.ones(1)]


class _Nothing(torch.autograd.Function):
    """As many inputs and outputs as an operator, and no work."""

    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.detach() for tensor in tensors[:3])

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, ...]:
        return ctx.saved_tensors


def layers(operator: str) -> dict[str, Callable[[], object]]:
    """Calls from the inside out."""
    plain = inputs(operator)
    leaves = [x.clone().requires_grad_() for x in plain]
    function = getattr(ops, operator)
    grads = [torch.ones_like(x) for x in function(*plain)]
    raw = raw_call(operator, plain)

    def inference(call):
        def run():
            with torch.inference_mode():
                return call()

        return run

    def backward():
        return torch.autograd.grad(function(*leaves), leaves, grads)

    def nothing():
        return torch.autograd.grad(_Nothing.apply(*leaves), leaves, plain[:3])

    def addcmul():
        return torch.autograd.grad(torch.addcmul(*leaves[:3]), leaves[:3], plain[0])

    return {
        "raw operator, kernel included": inference(raw),
        "public function, no gradient": inference(lambda: function(*plain)),
        "public function, gradient recorded": lambda: function(*leaves),
        "forward and backward": backward,
        APART[0]: inference(kernels(operator, plain, grads)),
        APART[1]: nothing,
        APART[2]: addcmul,
    }


def kernels(operator: str, plain: list[Tensor], grads: list[Tensor]) -> Callable[[], object]:
    """The raw operator and its raw gradient, one after the other."""
    forward = raw_call(operator, plain)
    results = forward()
    arguments = forward.keywords["arguments"]
    saved = [results[i] for i in ops._library.OPERATORS[operator].saved_results]
    backward = getattr(torch.ops.kanerva, f"{operator}_backward").default
    return lambda: (forward(), backward(*grads, *arguments, *saved))


def raw_call(operator: str, plain: list[Tensor]) -> functools.partial:
    """The operator as PyTorch's dispatcher has it, with the arguments that the public one makes."""
    recorded = []
    packet = getattr(torch.ops.kanerva, operator)

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket is packet:
                recorded.append((func, args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    with Recorder():
        getattr(ops, operator)(*plain)
    if len(recorded) != 1:
        raise RuntimeError(f"{operator} calls its operator {len(recorded)} times, not once")
    func, args, kwargs = recorded[0]
    if kwargs:
        raise RuntimeError(f"{operator} calls its operator with keywords: {sorted(kwargs)}")
    return functools.partial(_call, func, arguments=args)


def _call(func, *, arguments):
    return func(*arguments)


def measure(operator: str, seconds: float) -> list[Row]:
    times = interleaved(layers(operator), 200, seconds)
    medians = {name: statistics.median(t) * 1e6 for name, t in times.items()}
    rows, inside = [], 0.0
    for name, total in medians.items():
        apart = name in APART
        rows.append(Row(operator, name, total, total if apart else total - inside))
        inside = total
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="per operator (default 5)")
    parser.add_argument("--json", type=Path, nargs="?", const=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    about = machine.describe()
    print(machine.headline(about))
    rows = []
    for operator in OPERATORS:
        rows += measure(operator, options.seconds)
    print(f"{'':14} {'us in all':>10} {'own':>7}")
    for row in rows:
        print(f"{row.operator:14} {row.total_us:10.2f} {row.own_us:7.2f}  {row.layer}")
    if options.json:
        print(f"written to {write_json(options.json, 'overhead', about, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
