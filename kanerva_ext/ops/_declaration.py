"""What an operator is, said once: arguments, results, and what its gradient needs.

Each ``ops/x.py`` holds an ``OPERATOR``. Its schema, that of its gradient and the shapes of both
follow by one rule. ``x_backward`` takes the gradients of the results, of which any may be None
where there are several, then the arguments of ``x``, then the results that were saved for it. It
gives the gradient of every argument but a mask, in order, and one without elements for an absent
argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import Arg


class Result(NamedTuple):
    """One result: its name, its dimensions after the batch as letters of K, C, T, the name under
    which the gradient takes it, if it does, and whether it is a sum over the memory's columns, of
    which a process that has some of them gives its part (`kanerva_ext.distributed`)."""

    name: str
    dims: str
    saved_as: str = ""
    is_sum: bool = False


class Declaration(NamedTuple):
    """An operator.

    ``args`` are the first arguments of the raw operator; what follows them is in ``options`` as
    PyTorch writes it in a schema (``"str method"``) and has no gradient. The first ``in_place`` of
    the arguments are overwritten. A result without a name has the gradient ``grad``.
    """

    name: str
    args: tuple[Arg, ...]
    results: tuple[Result, ...]
    options: tuple[str, ...] = ()
    in_place: int = 0

    @property
    def schema(self) -> str:
        """That of the raw operator, as PyTorch writes it."""
        given = ", ".join(["Tensor"] * len(self.results))
        return f"{self.name}({self._taken}) -> " + (
            f"({given})" if len(self.results) > 1 else given
        )

    @property
    def _taken(self) -> str:
        kinds = [f"Tensor({letter}!)" for letter in "abcd"[: self.in_place]]
        kinds += ["Tensor?" if arg.optional else "Tensor" for arg in self.args[self.in_place :]]
        tensors = [f"{kind} {arg.name}" for kind, arg in zip(kinds, self.args, strict=True)]
        return ", ".join([*tensors, *self.options])

    @property
    def differentiable(self) -> tuple[int, ...]:
        """Indices of the arguments that have a gradient: none where the state is overwritten."""
        if self.in_place:
            return ()
        return tuple(i for i, arg in enumerate(self.args) if arg.kind != "mask")

    @property
    def saved_results(self) -> tuple[int, ...]:
        """Indices of the results that the gradient takes after the arguments."""
        return tuple(i for i, result in enumerate(self.results) if result.saved_as)

    @property
    def backward_schema(self) -> str:
        kind = "Tensor" if len(self.results) == 1 else "Tensor?"
        grads = [f"{kind} grad_{r.name}" if r.name else f"{kind} grad" for r in self.results]
        saved = [f"Tensor {r.saved_as}" for r in self.results if r.saved_as]
        taken = ", ".join([*grads, self._taken, *saved])
        given = ", ".join(["Tensor"] * len(self.differentiable))
        return f"{self.name}_backward({taken}) -> ({given})"

    def fake(self, *args: Any) -> Tensor | tuple[Tensor, ...]:
        """Results without values, for raw arguments whose shapes are checked."""
        results = empty_results(self.results, check_shapes(self.args, args, {}), args[0])
        return results if len(results) > 1 else results[0]

    def backward_fake(self, *args: Any) -> tuple[Tensor, ...]:
        """Gradients without values."""
        inputs, state = args[len(self.results) :], args[len(self.results)]
        given = [inputs[i] for i in self.differentiable]
        return tuple(_empty(state, (0,)) if x is None else _empty(x, x.shape) for x in given)


def check_shapes(
    specs: Sequence[Arg], args: Sequence[Any], sizes: dict[str, int]
) -> dict[str, int]:
    """The sizes of the letters, B among them, once every argument agrees with ``sizes`` and with
    those before it; a RuntimeError if one does not."""
    sizes = dict(sizes)
    for spec, arg in zip(specs, args, strict=False):
        if arg is not None:
            _check_shape(spec, arg, sizes)
            if spec.kind in ("state", "covariance"):
                _check_dtype(spec, arg, args[0].dtype)
    return sizes


def empty_results(
    results: Sequence[Result], sizes: dict[str, int], state: Tensor
) -> tuple[Tensor, ...]:
    """Tensors of the results' shapes, with the dtype and device of ``state``."""
    return tuple(_empty(state, [sizes[letter] for letter in f"B{r.dims}"]) for r in results)


def _check_shape(spec: Arg, tensor: Tensor, sizes: dict[str, int]) -> None:
    dims = f"B{spec.dims}"
    shape = tensor.shape
    wanted = f"{spec.name} must be ({', '.join(dims)})"
    torch._check(len(shape) == len(dims), lambda: f"{wanted}, got {tuple(shape)}")
    expected = tuple(sizes.setdefault(d, size) for d, size in zip(dims, shape, strict=True))
    torch._check(shape == expected, lambda: f"{wanted} = {expected}, got {tuple(shape)}")


def _check_dtype(spec: Arg, tensor: Tensor, dtype: torch.dtype) -> None:
    torch._check(tensor.dtype == dtype, lambda: f"{spec.name} must be {dtype}, got {tensor.dtype}")


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)
