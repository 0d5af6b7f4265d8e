"""Derivatives of every operator: eager, torch.func, torch.compile, and the raw operators."""

from __future__ import annotations

import itertools

import pytest
import torch
from operator_base import OperatorBase
from selection import MANY_CALLS, REFERENCE_ALONE, grid
from torch import Tensor

from kanerva_ext import reference
from kanerva_ext.ops._library import OPERATORS


class DerivativeChecks(OperatorBase):
    """Inherited by the tests of each operator."""

    @property
    def optionals(self) -> tuple[bool, ...]:
        """Without the optional arguments and, if there are any, with them."""
        return (False, True) if self.optional else (False,)

    @MANY_CALLS
    @pytest.mark.parametrize(
        "sizes",
        [
            (3, 4, 3),
            pytest.param((5, 2, 3), marks=pytest.mark.slow),
            pytest.param((2, 1, 1), marks=pytest.mark.slow),
            (0, 2, 2),
        ],
        ids=str,
    )
    def test_gradcheck(self, sizes):
        t, k, c = sizes
        for optional in self.optionals:
            args = self.arguments(t=t, k=k, c=c, grad=True, optional=optional)
            _, tensors, function = self.split(args)
            assert torch.autograd.gradcheck(function, tensors)
            assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)

    @REFERENCE_ALONE
    def test_reference_gradient_is_that_of_the_reference(self):
        """The closed form in `reference` against automatic differentiation of the operator."""
        for optional in self.optionals:
            args = self.arguments(b=(2,), t=5, k=4, c=3, grad=True, optional=optional)
            raw = self.raw_args(args)
            results = getattr(reference, self.name)(*raw)
            results = results if isinstance(results, tuple) else (results,)
            inputs = [a for a in raw if isinstance(a, Tensor) and a.is_floating_point()]
            for chosen in itertools.product((False, True), repeat=len(results)):
                if not any(chosen):
                    continue
                grads = [
                    torch.randn_like(r) if on else None
                    for r, on in zip(results, chosen, strict=True)
                ]
                expected = torch.autograd.grad(
                    [r for r, on in zip(results, chosen, strict=True) if on],
                    inputs,
                    [g for g in grads if g is not None],
                    retain_graph=True,
                    materialize_grads=True,
                )
                saved = [results[i] for i in self.saved_outputs]
                closed = getattr(reference, f"{self.name}_backward")
                actual = closed(*grads, *raw, *saved)
                places = OPERATORS[self.name].differentiable  # one gradient for each
                actual = [g for g, i in zip(actual, places, strict=True) if raw[i] is not None]
                for want, got in zip(expected, actual, strict=True):
                    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)

    @MANY_CALLS
    def test_torch_func(self):
        args = self.arguments(optional=False)
        _, tensors, function = self.split(args)
        weight = [torch.randn_like(r) for r in function(*tensors)]

        def loss(*ts):
            return sum((w * r).sum() for w, r in zip(weight, function(*ts), strict=True))

        leaves = [t.clone().requires_grad_() for t in tensors]
        expected = torch.autograd.grad(loss(*leaves), leaves)
        everything = tuple(range(len(tensors)))
        for got, want in zip(torch.func.grad(loss, everything)(*tensors), expected, strict=True):
            torch.testing.assert_close(got, want)
        jacobian = torch.func.jacrev(lambda x: function(x, *tensors[1:])[0])(tensors[0])
        want = torch.autograd.functional.jacobian(
            lambda x: function(x, *tensors[1:])[0], tensors[0]
        )
        torch.testing.assert_close(jacobian, want)
        hessian = torch.func.jacrev(torch.func.grad(loss))(*tensors)
        want = torch.autograd.functional.hessian(lambda x: loss(x, *tensors[1:]), tensors[0])
        torch.testing.assert_close(hessian, want)

    @MANY_CALLS
    def test_vmap(self):
        stacked = [self.arguments() for _ in range(3)]
        names = list(stacked[0])
        expected = [self.call(a) for a in stacked]
        for out in (0, 1):
            tensors = [
                torch.stack([a[n] for a in stacked], min(out, stacked[0][n].dim())) for n in names
            ]
            dims = tuple(min(out, stacked[0][n].dim()) for n in names)
            mapped = torch.vmap(
                lambda *ts: self.call(dict(zip(names, ts, strict=True))), in_dims=dims
            )(*tensors)
            for i, want in enumerate(zip(*expected, strict=True)):
                torch.testing.assert_close(mapped[i], torch.stack(want))

    @MANY_CALLS
    def test_vmap_over_one_argument_and_its_gradient(self):
        args = self.arguments(optional=False)
        names, tensors, function = self.split(args)
        for place in range(len(names)):
            several = torch.stack([tensors[place]] * 2)
            several[1] += 0.01 * several[1]

            def loss(x, place=place):
                ts = [x if i == place else t for i, t in enumerate(tensors)]
                return sum(r.square().sum() for r in function(*ts))

            got = torch.vmap(torch.func.grad(loss))(several)
            want = torch.stack([torch.func.grad(loss)(x) for x in several])
            torch.testing.assert_close(got, want)

    @MANY_CALLS
    def test_forward_mode(self):
        """`jacfwd` against `jacrev`, and every way to second derivatives."""
        for optional in self.optionals:
            args = self.arguments(t=2, k=2, c=2, optional=optional)
            _, tensors, function = self.split(args)
            every = tuple(range(len(tensors)))

            def loss(*ts, function=function):
                return sum(r.square().sum() for r in function(*ts))

            forward = torch.func.jacfwd(function, every)(*tensors)
            torch.testing.assert_close(forward, torch.func.jacrev(function, every)(*tensors))
            want = torch.func.jacrev(torch.func.jacrev(loss, every), every)(*tensors)
            for outer, inner in (
                (torch.func.jacfwd, torch.func.jacrev),
                (torch.func.jacrev, torch.func.jacfwd),
                (torch.func.jacfwd, torch.func.jacfwd),
            ):
                got = outer(inner(loss, every), every)(*tensors)
                torch.testing.assert_close(got, want)

    @MANY_CALLS
    def test_tangents_of_each_input_alone_and_batches_of_primals(self):
        args = self.arguments()
        _, tensors, function = self.split(args)
        for place, x in enumerate(tensors):
            tangent = torch.randn_like(x)

            def alone(x, place=place):
                return function(*tensors[:place], x, *tensors[place + 1 :])

            def jvp(x, tangent, alone=alone):
                return torch.func.jvp(alone, (x,), (tangent,))[1]

            got = jvp(x, tangent)
            for r, want in zip(got, torch.func.jacrev(alone)(x), strict=True):
                torch.testing.assert_close(r, (want * tangent).flatten(r.dim()).sum(-1))
            several = torch.stack([x, x + 0.01 * x])
            mapped = torch.vmap(jvp, (0, None))(several, tangent)
            for r, first, second in zip(mapped, got, jvp(several[1], tangent), strict=True):
                torch.testing.assert_close(r, torch.stack([first, second]))

    @pytest.mark.slow
    @MANY_CALLS
    def test_dual_numbers_and_linearize_in_both_dtypes(self):
        forward_ad = torch.autograd.forward_ad
        for dtype in (torch.float32, torch.float64):
            args = self.arguments(dtype=dtype)
            _, tensors, function = self.split(args)
            tangents = [torch.randn_like(t) for t in tensors]
            every = tuple(range(len(tensors)))
            double = [t.double() for t in tensors], [t.double() for t in tangents]
            wide = [
                torch.func.jacrev(lambda *ts, i=i, f=function: f(*ts)[i], every)
                for i in range(len(function(*tensors)))
            ]
            want = [
                sum(
                    (j * t).flatten(j.dim() - t.dim()).sum(-1)
                    for j, t in zip(jacobian(*double[0]), double[1], strict=True)
                ).to(dtype)
                for jacobian in wide
            ]
            with forward_ad.dual_level():
                duals = [forward_ad.make_dual(*x) for x in zip(tensors, tangents, strict=True)]
                got = [forward_ad.unpack_dual(r).tangent for r in function(*duals)]
            tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
            torch.testing.assert_close(got, want, **tolerance)
            _, linear = torch.func.linearize(function, *tensors)
            torch.testing.assert_close(list(linear(*tangents)), want, **tolerance)

    @MANY_CALLS
    def test_dual_numbers_through_backward(self):
        """Also where no graph of the gradient is made, and where the cotangent alone is dual."""
        forward_ad = torch.autograd.forward_ad
        args = self.arguments(optional=False)
        _, tensors, function = self.split(args)

        def loss(x):
            return sum(r.square().sum() for r in function(x, *tensors[1:]))

        tangent = torch.randn_like(tensors[0])
        leaf = tensors[0].clone().requires_grad_()
        hessian = torch.func.jacrev(torch.func.grad(loss))(tensors[0])
        want = (hessian * tangent).flatten(tangent.dim()).sum(-1)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(leaf, tangent)
            (grad,) = torch.autograd.grad(loss(dual), dual)
            torch.testing.assert_close(forward_ad.unpack_dual(grad).tangent, want)
        results = function(leaf, *tensors[1:])
        grads = [torch.randn_like(r) for r in results]
        want = torch.autograd.grad(results, leaf, grads, retain_graph=True)[0]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(torch.zeros_like(g), g) for g in grads]
            (grad,) = torch.autograd.grad(results, leaf, duals)
            torch.testing.assert_close(forward_ad.unpack_dual(grad).tangent, want)

    def test_tangent_of_what_is_nan_is_nan(self):
        args = self.arguments(optional=False)
        _, tensors, function = self.split(args)
        tensors[0][0] = float("nan")
        tangents = tuple(torch.randn_like(t) for t in tensors)
        results, found = torch.func.jvp(function, tuple(tensors), tangents)
        assert any(r.isnan().any() for r in results)
        for result, tangent in zip(results, found, strict=True):
            assert (result.isnan() == tangent.isnan()).all()

    def test_forward_mode_of_the_raw_operator_is_never_silent(self):
        args = self.arguments(optional=False)
        raw = self.raw_operator()
        with pytest.raises(RuntimeError, match=f"kanerva_ext.ops|{self.name}"):
            torch.func.jvp(
                lambda *ts: raw(*self.raw_args({**args, **dict(zip(args, ts, strict=True))})),
                tuple(args.values()),
                tuple(torch.randn_like(a) for a in args.values()),
            )

    @REFERENCE_ALONE
    def test_forward_mode_of_the_reference(self):
        args = self.arguments(optional=False)
        _, tensors, _ = self.split(args)
        names = list(args)

        def function(*ts):
            return self.call_symmetric(dict(zip(names, ts, strict=True)), backend="reference")

        tangents = tuple(torch.randn_like(t) for t in tensors)
        _, forward = torch.func.jvp(function, tuple(tensors), tangents)
        for i, got in enumerate(forward):
            _, pullback = torch.func.vjp(lambda *ts, i=i: function(*ts)[i].sum(), *tensors)
            grads = pullback(torch.ones((), dtype=torch.float64))
            want = sum((g * d).sum() for g, d in zip(grads, tangents, strict=True))
            torch.testing.assert_close(got.sum(), want)

    def test_raw_operator_in_torch_func_says_what_to_call(self):
        args = self.arguments(optional=False)
        names = list(args)
        with pytest.raises(RuntimeError, match=r"kanerva_ext\.ops"):
            torch.func.grad(lambda x: _first(self.raw({**args, names[0]: x})).sum())(args[names[0]])

    @MANY_CALLS
    @pytest.mark.parametrize(
        ("sizes", "dtype", "grad"),
        grid(((3, 4, 3), (0, 2, 1), (1, 1, 1)), (torch.float32, torch.float64), (False, True)),
    )
    def test_opcheck(self, sizes, dtype, grad):
        t, k, c = sizes
        for optional in self.optionals:
            args = self.raw_args(self.arguments((2,), t, k, c, dtype, grad, optional))
            raw = self.raw_operator()
            torch.library.opcheck(raw, args)

    @MANY_CALLS
    def test_opcheck_of_the_gradient(self):
        for optional in self.optionals:
            args = self.raw_args(self.arguments(optional=optional))
            results = self.raw_operator()(*args)
            results = results if isinstance(results, tuple) else (results,)
            saved = [results[i] for i in self.saved_outputs]
            raw = self.raw_operator("_backward")
            grads = [torch.randn_like(r) for r in results]
            torch.library.opcheck(raw, (*grads, *args, *saved))
            for i in range(len(grads) if len(grads) > 1 else 0):
                some = [g if j == i else None for j, g in enumerate(grads)]
                torch.library.opcheck(raw, (*some, *args, *saved), test_utils="test_schema")

    @MANY_CALLS
    def test_gradients_of_torch_ops(self):
        """`torch.ops` users get the public function's gradients, of first and second order."""
        args = self.arguments(grad=True, optional=False)
        _, tensors, _ = self.split(args)
        public, raw = self.call(args), self.raw(args)
        raw = raw if isinstance(raw, tuple) else (raw,)
        for a, b in zip(
            torch.autograd.grad([r.square().sum() for r in public], tensors, create_graph=True),
            torch.autograd.grad([r.square().sum() for r in raw], tensors, create_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
            for c, d in zip(
                torch.autograd.grad(a.square().sum(), tensors, retain_graph=True),
                torch.autograd.grad(b.square().sum(), tensors, retain_graph=True),
                strict=True,
            ):
                torch.testing.assert_close(c, d)

    @MANY_CALLS
    @pytest.mark.parametrize(
        "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
    )
    def test_compile(self, compiler):
        torch._dynamo.reset()
        args = self.arguments(grad=True)
        compiled = torch.compile(self.function, fullgraph=True, backend=compiler)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(3):
                args = self.arguments(grad=True)
                results = compiled(**args)
                results = results if isinstance(results, tuple) else (results,)
                tensors = [a for a in args.values() if a.requires_grad]
                got = torch.autograd.grad([r.square().sum() for r in results], tensors)
                expected = self.call(args)
                want = torch.autograd.grad([r.square().sum() for r in expected], tensors)
                for a, b in zip((*results, *got), (*expected, *want), strict=True):
                    torch.testing.assert_close(a, b)
        torch._dynamo.reset()

    @MANY_CALLS
    def test_compile_without_grad_and_with_dynamic_shapes(self):
        torch._dynamo.reset()
        compiled = torch.compile(self.function, fullgraph=True, backend="aot_eager", dynamic=True)
        compiled(**self.arguments(b=(2,), t=4, k=5, c=6))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for b, t, k, c in ((3, 5, 6, 7), (4, 7, 3, 2)):
                args = self.arguments(b=(b,), t=t, k=k, c=c)
                results = compiled(**args)
                results = results if isinstance(results, tuple) else (results,)
                for a, b in zip(results, self.call(args), strict=True):
                    torch.testing.assert_close(a, b)
        torch._dynamo.reset()

    @MANY_CALLS
    def test_derivatives_of_torch_func_inside_compile_are_never_silent(self):
        args = self.arguments(optional=False)
        _, tensors, function = self.split(args)
        x, tangent = tensors[0], torch.randn_like(tensors[0])

        def first(x):
            return function(x, *tensors[1:])[0]

        for transformed in (
            lambda x: torch.func.jvp(first, (x,), (tangent,))[1],
            torch.func.grad(lambda x: first(x).sum()),
        ):
            torch._dynamo.reset()
            try:  # PyTorch 2.14 leaves the compiled region where a transform meets the operator
                got = torch.compile(transformed, backend="aot_eager")(x)
            except Exception as error:
                assert "kanerva_ext.ops, outside torch.compile" in str(error), error
            else:
                torch.testing.assert_close(got, transformed(x))
        torch._dynamo.reset()

    @MANY_CALLS
    def test_compile_over_vmap(self):
        torch._dynamo.reset()
        stacked = [self.arguments(optional=False) for _ in range(2)]
        names = list(stacked[0])
        tensors = [torch.stack([a[n] for a in stacked]) for n in names]
        mapped = torch.vmap(lambda *ts: self.call(dict(zip(names, ts, strict=True))))
        results = torch.compile(mapped, fullgraph=True, backend="aot_eager")(*tensors)
        for got, want in zip(results, mapped(*tensors), strict=True):
            torch.testing.assert_close(got, want)
        torch._dynamo.reset()


def _first(results):
    return results[0] if isinstance(results, tuple) else results
