"""Gradients, batching and routing of every operator, once for all.

Two routes reach a raw operator ``kanerva::<name>`` (and ``kanerva_triton::<name>``, the same for
Triton):

* the public functions go through `Operator`: under ``torch.func``, and in eager mode without the
  C++ kernel below, by a `torch.autograd.Function` with ``setup_context`` and ``vmap``, else
  straight to the raw operator;
* ``torch.ops.kanerva.<name>`` itself has an Autograd kernel with the same gradient, in C++ where
  that serves (`_cpp_autograd`), and the same batching rule, but no tangents.
  ``torch.library.register_autograd`` is not used because ``torch.func.jvp`` over operators made
  differentiable that way returns zeros; here it raises.

The gradient is the raw operator ``<name>_backward(*grads of outputs, *inputs, *saved outputs)``.
Its own derivative is taken through the closed form in `reference`, which is plain PyTorch, so
second and higher derivatives are right, and slower.

Tangents are those of the closed form too. A gradient is linear in the gradients of the outputs,
``g = J' u``, so its transpose, which reverse mode finds, is the tangent ``J t``. That needs no
second level of forward mode, which ``torch.autograd.forward_ad`` does not have, and the mapped
tangents of ``torch.func.jacfwd`` share all that does not depend on them. A Function that has
tangents keeps more, so that calls without a tangent go by one that has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _backend, reference
from . import _cpp_autograd, _library
from ._declaration import Declaration

_OFFSETS = (torch.int32, torch.int64)  # the dtypes of cu_seqlens


class Operator:
    """Declares one operator, and calls it on raw arguments by the cheapest route that is right.

    ``fake`` is that of `_library.declare`. The operator's name is also that of its reference and,
    with ``_backward``, of its gradient.
    """

    def __init__(self, declaration: Declaration, fake: Callable | None = None) -> None:
        _library.declare(declaration, fake)
        self.name = declaration.name
        #: Serves most calls at once; see `_cpp_autograd.direct`.
        self.direct = _cpp_autograd.direct(_library.NATIVE, declaration)
        self.reference = getattr(reference, self.name)
        self._native = _Route(_library.NATIVE, declaration)
        self._triton = _Route(_library.TRITON, declaration)
        self._grad_args = 1 + max(declaration.differentiable)

    def __call__(self, backend: str, *args):
        if _library.SPLIT and self.name in _library.SPLIT:
            results = _library.SPLIT[self.name](*args)
            if results is not NotImplemented:
                return results
        route = self._native
        if backend != "auto" or _backend.must_choose:
            choice = _backend.choose(backend, args[0].device)
            if choice == "reference":
                return self.reference(*args)
            if choice == "triton":
                route = self._triton
        if torch.compiler.is_compiling():
            return route.raw(*args)
        if torch._C._are_functorch_transforms_active():
            return route.with_tangents(*args)
        if forward_ad._current_level >= 0:
            return route.with_tangents(*args)
        if self._needs_grad(args):
            return route.apply(*args)
        return _call_raw(route.raw, args)

    def _needs_grad(self, args) -> bool:
        if torch.is_grad_enabled():
            for arg in args[: self._grad_args]:
                if arg is not None and arg.requires_grad:
                    return True
        return False


class _Route:
    """The raw operator of one namespace, and the Functions over it."""

    def __init__(self, namespace: str, declaration: Declaration) -> None:
        self.raw = _library.raw(namespace, declaration.name)
        self.apply, self.with_tangents = _differentiable(namespace, self.raw, declaration)


class _Functions(NamedTuple):
    """How a Function is called: for gradients alone, and where there may be tangents."""

    apply: Callable
    with_tangents: Callable


def _call_raw(raw, args):
    """Call a raw operator below its Autograd kernel, which is Python."""
    with torch._C._AutoDispatchBelowAutograd():
        return raw(*args)


def _differentiable(namespace: str, raw, declaration: Declaration) -> _Functions:
    """The Functions of an operator, whose backward is the Function of its gradient."""
    name, differentiable = declaration.name, declaration.differentiable
    saved_results = declaration.saved_results
    arity, outputs = len(raw._schema.arguments), len(declaration.results)
    gradient_raw = _library.raw(namespace, f"{name}_backward")
    save, restore = _save_and_restore(raw)
    save_gradient, restore_gradient = _save_and_restore(gradient_raw)

    def call_gradient(*args):
        grads = _call_raw(gradient_raw, args)
        count = len(differentiable)
        while args[outputs + differentiable[count - 1]] is None:  # no argument, no gradient
            count -= 1
        return grads[:count]

    gradient = _make_function(
        namespace,
        f"{name}_backward",
        gradient_raw,
        call_gradient,
        lambda ctx, inputs, output: save_gradient(ctx, inputs),
        _differentiate_reference(f"{name}_backward", restore_gradient),
        _transpose_derivative(f"{name}_backward"),
    )

    def setup_context(ctx, inputs, output):
        results = output if isinstance(output, tuple) else (output,)
        save(ctx, (*inputs, *[results[i] for i in saved_results]))

    def backward(ctx, *grads):
        result = [None] * arity
        if any(g is not None for g in grads):
            args = (*grads, *restore(ctx))
            if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
                grads = gradient.with_tangents(*args)
            elif torch.is_grad_enabled():
                grads = gradient.apply(*args)
            else:
                grads = _call_raw(gradient_raw, args)
            for index, grad in zip(differentiable, grads, strict=False):
                if args[outputs + index] is not None:
                    result[index] = grad
        return tuple(result) if arity > 1 else result[0]

    return _make_function(
        namespace,
        name,
        raw,
        lambda *args: _call_raw(raw, args),
        setup_context,
        backward,
        _transpose_gradient(f"{name}_backward", differentiable, saved_results),
        in_cpp=_cpp_autograd.register(namespace, declaration, gradient.with_tangents),
    )


def _differentiate_reference(name: str, restore: Callable) -> Callable:
    """The derivative of a gradient, by automatic differentiation of its closed form."""
    closed_form = getattr(reference, name)

    def backward(ctx, *grads):
        args = restore(ctx)
        result = [None] * len(args)
        given = [i for i, g in enumerate(grads) if g is not None]
        places = [i for i, a in enumerate(args) if _is_floating(a)]

        def wanted(*tensors):
            filled = list(args)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            outputs = closed_form(*filled)
            return tuple(outputs[i] for i in given)

        if given:
            _, pullback = torch.func.vjp(wanted, *(args[i] for i in places))
            for place, grad in zip(places, pullback(tuple(grads[i] for i in given)), strict=True):
                result[place] = grad
        return tuple(result)

    return backward


def _transpose_gradient(
    name: str, differentiable: Sequence[int], saved_results: Sequence[int]
) -> Callable:
    """The tangents of an operator: the transpose of its gradient, which is called ``name``."""
    closed_form = getattr(reference, name)

    def tangents_of(args, results, tangents):
        given = [i for i, t in enumerate(tangents) if t is not None]
        saved = [results[i] for i in saved_results]

        def gradient(*grads):
            found = dict(zip(differentiable, closed_form(*grads, *args, *saved), strict=True))
            return tuple(found[i] for i in given)

        _, pullback = torch.func.vjp(gradient, *map(torch.zeros_like, results))
        return pullback(tuple(tangents[i] for i in given))

    return tangents_of


def _transpose_derivative(name: str) -> Callable:
    """The tangents of a gradient: the transpose of the derivative of its closed form."""
    closed_form = getattr(reference, name)

    def tangents_of(args, results, tangents):
        given = [i for i, t in enumerate(tangents) if t is not None]

        def wanted(*tensors):
            filled = list(args)
            for place, tensor in zip(given, tensors, strict=True):
                filled[place] = tensor
            return tuple(closed_form(*filled)[: len(results)])

        def derivative(*grads):
            _, pullback = torch.func.vjp(wanted, *(args[i] for i in given))
            return pullback(grads)

        _, pullback = torch.func.vjp(derivative, *map(torch.zeros_like, results))
        return pullback(tuple(tangents[i] for i in given))

    return tangents_of


def _is_floating(arg) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point()


def _make_function(
    namespace, name, raw, forward, setup_context, backward, tangents_of, in_cpp=False
) -> _Functions:
    """Functions over ``raw``, and the same formulas attached to ``torch.ops``.

    With ``in_cpp`` these have an Autograd kernel already, which is a call's cheapest way.
    """

    def vmap(info, in_dims, *args):
        return _fold_vmap(with_tangents.apply, info.batch_size, in_dims, args)

    def setup_with_tangents(ctx, inputs, output):
        setup_context(ctx, inputs, output)
        results = output if isinstance(output, tuple) else (output,)
        ctx.plain = [None if isinstance(a, Tensor) else a for a in inputs]
        ctx.save_for_forward(*(a if isinstance(a, Tensor) else None for a in inputs), *results)

    def jvp(ctx, *tangents):
        # PyTorch turns forward mode off here, so that tangents of tangents (torch.func.jvp within
        # jvp) would be zero. With it on, the tangents of this level have to be taken off first.
        with forward_ad._set_fwd_grad_enabled(True):
            return without_own_level(ctx, tangents)

    def without_own_level(ctx, tangents):
        tensors = [None if t is None else forward_ad.unpack_dual(t)[0] for t in ctx.saved_tensors]
        args = [plain if t is None else t for t, plain in zip(tensors, ctx.plain, strict=False)]
        results = tensors[len(args) :]
        found = tangents_of(args, results, tangents)
        # What is NaN has no tangent; the closed form's derivative would make it zero.
        found = tuple(
            t.masked_fill(r.isnan(), float("nan")) for t, r in zip(found, results, strict=True)
        )
        return found if len(found) > 1 else found[0]

    methods = {"forward": forward, "setup_context": setup_context, "backward": backward}
    function, with_tangents = (
        type(
            f"Kanerva_{name}",
            (torch.autograd.Function,),
            {key: staticmethod(value) for key, value in {**methods, **more}.items()},
        )
        for more in ({}, {"setup_context": setup_with_tangents, "jvp": jvp, "vmap": vmap})
    )
    # Function.apply binds its arguments by inspect.signature (10 us); its base class does not.
    apply = super(torch.autograd.Function, function).apply

    def kernel(*args):
        if torch._C._are_functorch_transforms_active() and any(
            isinstance(a, Tensor) and torch._C._functorch.is_gradtrackingtensor(a) for a in args
        ):
            raise RuntimeError(
                f"torch.ops.{namespace}.{name} does not go through torch.func.grad, vjp, jvp or "
                "jacrev, nor do these inside torch.compile; call the function of that name in "
                "kanerva_ext.ops, outside torch.compile"
            )
        return apply(*args)

    if in_cpp:
        apply = raw
    else:
        _library.LIBRARIES[namespace].impl(name, kernel, "Autograd")
    torch.library.register_vmap(
        raw, lambda info, in_dims, *args: _fold_vmap(raw, info.batch_size, in_dims, args)
    )
    return _Functions(apply, with_tangents.apply)


def _fold_vmap(call: Callable, size: int, in_dims: tuple, args: tuple):
    """Serve ``torch.vmap`` by making the mapped dimension part of the batch dimension."""
    folded = []
    for arg, dim in zip(args, in_dims, strict=True):
        if isinstance(arg, Tensor) and arg.dtype in _OFFSETS:
            if dim is not None:
                raise NotImplementedError("cu_seqlens cannot be mapped over by torch.vmap")
        elif isinstance(arg, Tensor):
            arg = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            arg = arg.reshape(size * arg.shape[1], *arg.shape[2:])
        folded.append(arg)
    result = call(*folded)
    if isinstance(result, Tensor):
        return result.unflatten(0, (size, result.shape[0] // size)), 0
    split = tuple(r.unflatten(0, (size, r.shape[0] // size)) for r in result)
    return split, (0,) * len(split)


def _save_and_restore(raw) -> tuple[Callable, Callable]:
    """How a Function keeps the arguments of ``raw`` (and more tensors), and finds them again."""
    plain = ("StringType", "IntType")
    others = [i for i, a in enumerate(raw._schema.arguments) if a.type.kind() in plain]
    at = others[0] if others else None

    def save(ctx, args):
        ctx.set_materialize_grads(False)
        if at is None:
            ctx.save_for_backward(*args)
        else:
            ctx.other = args[at]
            ctx.save_for_backward(*args[:at], *args[at + 1 :])

    def restore(ctx):
        tensors = ctx.saved_tensors
        return tensors if at is None else (*tensors[:at], ctx.other, *tensors[at:])

    return save, restore
