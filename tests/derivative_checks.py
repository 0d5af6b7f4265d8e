"""Derivatives of every operator: eager, torch.func, torch.compile, and the raw operators."""

from __future__ import annotations

import itertools

import pytest
import torch
from operator_base import OperatorBase
from selection import MANY_CALLS, REFERENCE_ALONE, grid
from torch import Tensor

from kanerva_ext import reference


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
                for want, got in zip(expected, actual, strict=False):
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

    def test_forward_mode_is_never_silent(self):
        args = self.arguments(optional=False)
        _, tensors, function = self.split(args)
        tangents = tuple(torch.randn_like(t) for t in tensors)
        with pytest.raises(NotImplementedError, match="jvp"):
            torch.func.jvp(function, tuple(tensors), tangents)
        with (
            pytest.raises(NotImplementedError, match="jvp"),
            torch.autograd.forward_ad.dual_level(),
        ):
            function(
                *(
                    torch.autograd.forward_ad.make_dual(t, d)
                    for t, d in zip(tensors, tangents, strict=True)
                )
            )
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
