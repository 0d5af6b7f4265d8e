"""The true results where the differentiable truth of `rivals` would not fit into memory.

One Cholesky factor for an episode of T steps needs T x T numbers, and its gradient several of them.
Beyond `LONGEST` steps the reference gives both: its recursion, and its gradient in closed form,
which goes through the episode in chunks. At fewer steps autograd through the truth and the
reference are held against each other (`measure.Problem`, tests/benchmarks/test_benchmarks.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from kanerva_ext import reference

from .rivals import Shape

LONGEST = 1024  # steps whose truth is differentiated by autograd


def bayes_write_gradient(grads: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    d_mean, d_cov = grads
    return reference.bayes_write_backward(d_mean, d_cov, None, *inputs)[: len(inputs)]


#: operator -> gradients of its inputs from those of its outputs, in closed form. The truths of the
#: operators that are not here need memory in proportion to T.
GRADIENTS: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]]] = {
    "bayes_write": bayes_write_gradient,
}


def has_closed_form(operator: str, shape: Shape) -> bool:
    """Whether the truth at this shape is the reference's, gradient and all."""
    return operator in GRADIENTS and shape.steps > LONGEST


def reference_gradient(
    operator: str, grads: Sequence[Tensor], inputs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    return GRADIENTS[operator](grads, inputs)
