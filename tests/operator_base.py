"""One operator as the shared tests see it."""

from __future__ import annotations

import os

import torch
from helpers import symmetric

import kanerva_ext

STATE, DATA, NOISE, RIDGE, MASK = "state", "data", "noise", "ridge", "mask"
NAMESPACE = (
    torch.ops.kanerva_triton if os.environ.get("KANERVA_BACKEND") == "triton" else torch.ops.kanerva
)
NATIVE = kanerva_ext.backends()[torch.get_default_device().type] == "available"


class OperatorBase:
    """An operator under test: its arguments go by name."""

    name: str
    function: staticmethod
    #: (argument, kind, trailing dimensions) in the public order; the first sets the state dtype
    signature: tuple[tuple[str, str, str], ...]
    optional: tuple[str, ...] = ()
    #: arguments that None stands for as well
    with_default: tuple[str, ...] = ()
    #: covariances that may be singular
    semidefinite: tuple[str, ...] = ()
    raw_order: tuple[str, ...] = ()
    raw_tail: tuple = ()
    #: indices of the outputs that the gradient takes after the inputs
    saved_outputs: tuple[int, ...] = ()
    #: an indefinite covariance cannot go unnoticed, because a factor of it is needed
    factors_covariance = True

    @property
    def kinds(self) -> dict[str, str]:
        return {name: kind for name, kind, _ in self.signature}

    @property
    def dims(self) -> dict[str, str]:
        return {name: dims for name, _, dims in self.signature}

    def arguments(self, b=(2,), t=3, k=4, c=3, dtype=torch.float64, grad=False, optional=True):
        """Valid arguments with leading dimensions ``b``."""
        sizes = {"T": t, "K": k, "C": c}
        result = {}
        for name, kind in self.kinds.items():
            if name in self.optional and not optional:
                continue
            shape = (*b, *(sizes[d] for d in self.dims[name]))
            if kind == MASK:
                result[name] = torch.rand(shape) < 0.7
                continue
            if self.dims[name] == "KK":
                root = torch.randn(shape, dtype=torch.float64)
                value = root @ root.mT / k + 0.5 * torch.eye(k, dtype=torch.float64)
            elif kind in (NOISE, RIDGE):
                value = 0.5 + 0.4 * torch.rand(shape, dtype=torch.float64)
            else:
                value = torch.randn(shape, dtype=torch.float64)
            result[name] = value.to(dtype).requires_grad_(grad)
        return result

    def call(self, args: dict, **options):
        results = self.function(**args, **options)
        return results if isinstance(results, tuple) else (results,)

    def call_symmetric(self, args: dict, **options):
        """With covariances made symmetric, so that derivatives move them within their set."""
        fixed = {n: symmetric(a) if self.dims[n] == "KK" else a for n, a in args.items()}
        return self.call(fixed, **options)

    def raw(self, args: dict):
        """The raw operator on the same arguments (one batch dimension)."""
        return self.raw_operator()(*self.raw_args(args))

    def raw_operator(self, suffix: str = ""):
        return getattr(NAMESPACE, self.name + suffix).default

    def raw_args(self, args: dict) -> tuple:
        return (*(args.get(n) for n in self.raw_order or self.kinds), *self.raw_tail)

    def split(self, args: dict):
        """Tensors that can be differentiated, and a function that takes just these."""
        names = [n for n, a in args.items() if a.is_floating_point()]

        def function(*tensors):
            return self.call_symmetric({**args, **dict(zip(names, tensors, strict=True))})

        return names, [args[n] for n in names], function
