"""What every operator must do, as tests: each test_<operator>.py inherits `OperatorChecks`."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from helpers import symmetric
from torch import Tensor

import kanerva_ext
from kanerva_ext import reference

STATE, DATA, NOISE, RIDGE, MASK = "state", "data", "noise", "ridge", "mask"
NATIVE = kanerva_ext.backends()["cpu"] == "available"


class OperatorChecks:
    """Subclasses set ``name``, ``function``, ``kinds`` and ``dims``; arguments go by name."""

    name: str
    function: staticmethod
    #: argument -> kind, in the public order; the first sets the state dtype
    kinds: dict[str, str]
    #: argument -> trailing dimensions
    dims: dict[str, str]
    optional: tuple[str, ...] = ()
    raw_order: tuple[str, ...] = ()
    raw_tail: tuple = ()
    #: indices of the outputs that the gradient takes after the inputs
    saved_outputs: tuple[int, ...] = ()
    #: an indefinite covariance cannot go unnoticed, because a factor of it is needed
    factors_covariance = True

    # ------------------------------------------------------------------ inputs

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
        return getattr(torch.ops.kanerva, self.name).default(*self.raw_args(args))

    def raw_args(self, args: dict) -> tuple:
        return (*(args.get(n) for n in self.raw_order or self.kinds), *self.raw_tail)

    def split(self, args: dict):
        """Tensors that can be differentiated, and a function that takes just these."""
        names = [n for n, a in args.items() if a.is_floating_point()]

        def function(*tensors):
            return self.call_symmetric({**args, **dict(zip(names, tensors, strict=True))})

        return names, [args[n] for n in names], function

    # ------------------------------------------------------------------ derivatives

    @property
    def optionals(self) -> tuple[bool, ...]:
        """Without the optional arguments and, if there are any, with them."""
        return (False, True) if self.optional else (False,)

    @pytest.mark.parametrize("sizes", [(3, 4, 3), (5, 2, 3), (2, 1, 1), (0, 2, 2)], ids=str)
    def test_gradcheck(self, sizes):
        t, k, c = sizes
        for optional in self.optionals:
            args = self.arguments(t=t, k=k, c=c, grad=True, optional=optional)
            _, tensors, function = self.split(args)
            assert torch.autograd.gradcheck(function, tensors)
            assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)

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
                grads = [torch.randn_like(r) if on else None for r, on in zip(results, chosen)]
                expected = torch.autograd.grad(
                    [r for r, on in zip(results, chosen) if on],
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

    def test_torch_func(self):
        args = {n: a for n, a in self.arguments(optional=False).items()}
        names, tensors, function = self.split(args)
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
            tensors = [torch.stack([a[n] for a in stacked], min(out, stacked[0][n].dim()))
                       for n in names]
            dims = tuple(min(out, stacked[0][n].dim()) for n in names)
            mapped = torch.vmap(
                lambda *ts: self.call(dict(zip(names, ts, strict=True))), in_dims=dims
            )(*tensors)
            for i, want in enumerate(zip(*expected, strict=True)):
                torch.testing.assert_close(mapped[i], torch.stack(want))

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
        with pytest.raises(NotImplementedError, match="jvp"), torch.autograd.forward_ad.dual_level():
            function(
                *(
                    torch.autograd.forward_ad.make_dual(t, d)
                    for t, d in zip(tensors, tangents, strict=True)
                )
            )
        raw = getattr(torch.ops.kanerva, self.name).default
        with pytest.raises(RuntimeError, match=f"kanerva_ext.ops|{self.name}"):
            torch.func.jvp(
                lambda *ts: raw(*self.raw_args({**args, **dict(zip(args, ts, strict=True))})),
                tuple(args.values()),
                tuple(torch.randn_like(a) for a in args.values()),
            )

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
        with pytest.raises(RuntimeError, match="kanerva_ext.ops"):
            torch.func.grad(
                lambda x: _first(self.raw({**args, names[0]: x})).sum()
            )(args[names[0]])

    @pytest.mark.parametrize("grad", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("sizes", [(3, 4, 3), (0, 2, 1), (1, 1, 1)], ids=str)
    def test_opcheck(self, sizes, dtype, grad):
        t, k, c = sizes
        for optional in self.optionals:
            args = self.raw_args(self.arguments((2,), t, k, c, dtype, grad, optional))
            raw = getattr(torch.ops.kanerva, self.name).default
            torch.library.opcheck(raw, args)

    def test_opcheck_of_the_gradient(self):
        for optional in self.optionals:
            args = self.raw_args(self.arguments(optional=optional))
            results = getattr(torch.ops.kanerva, self.name).default(*args)
            results = results if isinstance(results, tuple) else (results,)
            saved = [results[i] for i in self.saved_outputs]
            raw = getattr(torch.ops.kanerva, f"{self.name}_backward").default
            grads = [torch.randn_like(r) for r in results]
            torch.library.opcheck(raw, (*grads, *args, *saved))
            for i in range(len(grads) if len(grads) > 1 else 0):
                some = [g if j == i else None for j, g in enumerate(grads)]
                torch.library.opcheck(raw, (*some, *args, *saved), test_utils="test_schema")

    def test_gradients_of_torch_ops(self):
        """`torch.ops` users get the public function's gradients, of first and second order."""
        args = self.arguments(grad=True, optional=False)
        names, tensors, _ = self.split(args)
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

    # ------------------------------------------------------------------ torch.compile

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
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

    # ------------------------------------------------------------------ shapes, strides, dtypes

    def test_non_contiguous(self):
        args = self.arguments(b=(3,), grad=True)
        expected = self.call(args)
        strided = {}
        for n, a in args.items():
            wide = torch.stack([a.detach(), torch.zeros_like(a)], -1)
            odd = wide.mT.contiguous().mT[..., 0] if a.dim() > 1 else wide[..., 0]
            assert not odd.is_contiguous()
            strided[n] = odd.requires_grad_(a.requires_grad)
        results = self.call(strided)
        names, tensors, _ = self.split(args)
        grads = [torch.randn_like(r) for r in expected]
        odd_grads = [torch.stack([g, g], -1)[..., 0] for g in grads]
        want = torch.autograd.grad(expected, tensors, grads)
        got = torch.autograd.grad(results, [strided[n] for n in names], odd_grads)
        for a, b in zip((*results, *got), (*expected, *want), strict=True):
            torch.testing.assert_close(a, b)
        for r in results:
            assert r.is_contiguous()

    def test_grad_of_an_expanded_result(self):
        """sum() hands back a gradient with strides of zero."""
        args = self.arguments(grad=True, optional=False)
        names, tensors, _ = self.split(args)
        got = torch.autograd.grad([r.sum() for r in self.call(args)], tensors)
        results = self.call(args)
        want = torch.autograd.grad(results, tensors, [torch.ones_like(r) for r in results])
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 1, 2)], ids=str)
    def test_leading_dimensions(self, lead):
        args = self.arguments(b=lead)
        results = self.call(args)
        flat = {n: a.reshape(-1, *a.shape[len(lead) :]) for n, a in args.items()}
        for got, want in zip(results, self.call(flat), strict=True):
            assert got.shape == (*lead, *want.shape[1:])
            torch.testing.assert_close(got.reshape(want.shape), want)

    def test_broadcasting(self):
        whole = self.arguments(b=(2, 3))
        for name in whole:
            lead = () if self.kinds[name] not in (NOISE, MASK) else (1, 1)
            small = self.arguments(b=lead)[name]
            args = {**whole, name: small}
            full = {**whole, name: small.expand(2, 3, *small.shape[len(lead) :]).contiguous()}
            for got, want in zip(self.call(args), self.call(full), strict=True):
                torch.testing.assert_close(got, want)

    def test_gradient_of_a_broadcast_argument_is_summed(self):
        args = self.arguments(b=(3,), optional=False)
        name = next(iter(args))
        one = args[name][:1].clone().requires_grad_()
        got = self.call({**args, name: one[0]})[0].square().sum()
        want = self.call({**args, name: one.expand(3, *one.shape[1:])})[0].square().sum()
        torch.testing.assert_close(
            torch.autograd.grad(got, one)[0], torch.autograd.grad(want, one)[0]
        )

    @pytest.mark.parametrize("sizes", [(0, 3, 4, 3), (2, 0, 4, 3), (2, 3, 1, 3), (2, 3, 4, 1)],
                             ids=["B0", "T0", "K1", "C1"])
    def test_degenerate_sizes(self, sizes):
        b, t, k, c = sizes
        args = self.arguments((b,), t, k, c, torch.float32, grad=True)
        results = self.call(args)
        _, tensors, _ = self.split(args)
        grads = torch.autograd.grad([r.sum() for r in results], tensors)
        want = self.call({n: a.double() if a.is_floating_point() else a for n, a in args.items()},
                         backend="reference")
        for got, expected in zip(results, want, strict=True):
            torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
        for g, a in zip(grads, tensors, strict=True):
            assert g.shape == a.shape and not g.isnan().any()

    @pytest.mark.parametrize("state", [torch.float32, torch.float64])
    @pytest.mark.parametrize("data", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_data_dtypes(self, state, data):
        names = [n for n, kind in self.kinds.items() if kind == DATA]
        if not names:
            data = state
        args = self.arguments(dtype=state)
        for n in names:
            args[n] = args[n].to(data)
        args = {n: a.requires_grad_(a.is_floating_point()) for n, a in args.items()}
        results = self.call(args)
        assert all(r.dtype == state for r in results)
        wide = {n: a.detach().to(state) if a.is_floating_point() else a for n, a in args.items()}
        for got, want in zip(results, self.call(wide), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        tensors = [a for a in args.values() if a.requires_grad]
        for g, a in zip(torch.autograd.grad([r.sum() for r in results], tensors), tensors,
                        strict=True):
            assert g.dtype == a.dtype

    def test_other_float_dtype_is_cast_to_the_state(self):
        names = [n for n, kind in self.kinds.items() if kind != STATE]
        for state, other in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
            args = self.arguments(dtype=state)
            for n in names:
                if args[n].is_floating_point():
                    cast = {**args, n: args[n].to(other).requires_grad_()}
                    results = self.call(cast)
                    assert all(r.dtype == state for r in results)
                    grad, = torch.autograd.grad([r.sum() for r in results], [cast[n]])
                    assert grad.dtype == other and not grad.isnan().any()

    def test_autocast(self):
        args = self.arguments(dtype=torch.float32, grad=True, optional=False)
        names, tensors, _ = self.split(args)
        expected = self.call(args)
        want = torch.autograd.grad([r.square().sum() for r in expected], tensors)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results = self.call(args)
            plain = self.call(args, backend="reference")
            got = torch.autograd.grad([r.square().sum() for r in results], tensors)
        for a, b in zip((*results, *got), (*expected, *want), strict=True):
            torch.testing.assert_close(a, b)
        for a, b in zip(plain, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        halves = {n: a.detach().to(torch.bfloat16) if self.kinds[n] == STATE else a
                  for n, a in args.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert all(r.dtype == torch.float32 for r in self.call(halves))
        with pytest.raises(TypeError, match="state in float32"):
            self.call(halves)

    def test_backends_agree(self):
        args = self.arguments(b=(3,), t=6, k=5, c=4)
        for a, b in zip(self.call(args), self.call(args, backend="reference"), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)

    def test_deterministic(self):
        args = self.arguments(b=(5,), t=40, k=17, c=33, dtype=torch.float32, grad=True)
        _, tensors, _ = self.split(args)
        first, second = (
            (*r, *torch.autograd.grad([x.square().sum() for x in r], tensors))
            for r in (self.call(args), self.call(args))
        )
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)

    # ------------------------------------------------------------------ bad input

    def wrong_arguments(self):
        """(argument, wrong value, exception) for every argument and every way to be wrong."""
        good = self.arguments(dtype=torch.float32)
        first = next(iter(good))
        for n, a in good.items():
            kind, number = self.kinds[n], self.kinds[n] in (NOISE, RIDGE)
            yield n, a.tolist(), TypeError
            yield n, "text", TypeError
            if n not in self.optional:
                yield n, None, TypeError
            yield n, a.to(torch.int64), TypeError
            yield n, a.to(torch.complex64), TypeError
            if kind != MASK:
                yield n, a > 0, TypeError
            else:
                yield n, a.float(), TypeError
            if kind == STATE:
                yield n, a.half(), TypeError
                yield n, a.bfloat16(), TypeError
                if n != first:
                    yield n, a.double(), TypeError
            letters = "".join(self.dims[m] for m in good)
            for axis, letter in enumerate(self.dims[n], start=1):
                if letters.count(letter) > 1:
                    yield n, torch.cat([a, a], axis), ValueError
            yield n, torch.cat([a] * 3, 0)[:5], ValueError  # leading dimension 5, not 2
            if self.dims[n]:
                yield n, a[0, ..., 0] if a.dim() > 2 else a.flatten(), ValueError
            yield n, a.to("meta"), ValueError
            if number:
                for value in (0.0, -1.0, float("nan"), 0):
                    yield n, value, ValueError
                yield n, True, TypeError
                if n != "decay":
                    yield n, float("inf"), ValueError
                else:
                    yield n, 1.5, ValueError

    def test_wrong_arguments(self):
        count = 0
        for name, value, error in self.wrong_arguments():
            args = {**self.arguments(dtype=torch.float32), name: value}
            shown = value.shape if isinstance(value, Tensor) else value
            with pytest.raises(error) as info:
                self.call(args)
                pytest.fail(f"{name} = {shown} of {getattr(value, 'dtype', '')} was accepted")
            message = str(info.value)
            public = self.function.__name__
            assert message.startswith(f"{public}: "), message
            others = [n for n in self.kinds if n in message.split()]
            assert name in others or value is not None, message
            assert "got" in message, message
            count += 1
        assert count >= 8 * len(self.kinds)

    def test_wrong_backend(self):
        args = self.arguments()
        for backend in ("cuda", "triton"):
            with pytest.raises(RuntimeError, match="not part of this release yet"):
                self.call(args, backend=backend)
        with pytest.raises(ValueError, match="backend must be one of"):
            self.call(args, backend="tpu")
        with pytest.raises(TypeError, match="backend must be a str"):
            self.call(args, backend=None)

    def test_backend_cpu(self):
        args = self.arguments()
        if NATIVE:
            for a, b in zip(self.call(args, backend="cpu"), self.call(args), strict=True):
                assert torch.equal(a, b)
        else:
            with pytest.raises(RuntimeError, match="reinstall"):
                self.call(args, backend="cpu")

    def test_nan_stays_in_its_item(self):
        """Each argument in turn holds a NaN in item 1: that item is NaN, the others unchanged."""
        for dtype, name in itertools.product((torch.float32, torch.float64), self.kinds):
            if self.kinds[name] == MASK:
                continue
            for at in (0, -1):
                args = self.arguments(b=(3,), t=9, k=6, c=5, dtype=dtype, optional=name == "decay")
                args.pop("mask", None)
                expected = self.call(args)
                args[name][1].view(-1)[at] = torch.nan
                if self.dims[name] == "KK" and at == -1:
                    args[name][1] = torch.nan
                self.assert_only_item_is_nan(1, self.call(args), expected, name)
                with pytest.raises(ValueError, match=rf"{name} holds NaN in batch item\(s\) 1$"):
                    self.call(args, check=True)

    def test_non_positive_number_gives_nan_in_its_item(self):
        names = [n for n, kind in self.kinds.items() if kind in (NOISE, RIDGE)]
        for name, value in itertools.product(names, (0.0, -0.3)):
            args = self.arguments(b=(3,), t=9, k=6, c=5, optional=name == "decay")
            args.pop("mask", None)
            expected = self.call(args)
            args[name][1].view(-1)[-1] = value
            self.assert_only_item_is_nan(1, self.call(args), expected, name)
            with pytest.raises(ValueError, match=rf"{name} is not .* in batch item\(s\) 1$"):
                self.call(args, check=True)

    def test_indefinite_covariance(self):
        """NaN or, where the operator needs no factor of it, a number; ``check`` always tells."""
        for name in (n for n, d in self.dims.items() if d == "KK"):
            args = self.arguments(b=(2, 2), t=5, k=4, c=3, optional=False)
            expected = self.call(args)
            args[name][1, 0] -= 50 * torch.eye(4, dtype=torch.float64)
            for got, want in zip(self.call(args), expected, strict=True):
                torch.testing.assert_close(got[0], want[0])
                torch.testing.assert_close(got[1, 1], want[1, 1])
                if self.factors_covariance:
                    assert got[1, 0].isnan().all()
            with pytest.raises(
                ValueError, match=rf"{name} is not positive definite in batch item\(s\) \(1, 0\)$"
            ):
                self.call(args, check=True)

    def test_check_accepts_good_items(self):
        args = self.arguments()
        for a, b in zip(self.call(args, check=True), self.call(args), strict=True):
            assert torch.equal(a, b)

    def assert_only_item_is_nan(self, item, results, expected, name):
        for got, want in zip(results, expected, strict=True):
            others = [i for i in range(len(want)) if i != item]
            torch.testing.assert_close(got[others], want[others], rtol=0, atol=0)
            if self.depends(name, got, results):
                assert got[item].isnan().all(), f"{name}: item {item} is {got[item]}"

    def depends(self, name, result, results) -> bool:
        """Whether this result depends on the argument ``name`` at all."""
        return True

    def test_no_warning_with_compiled_operators(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if NATIVE:
                self.call(self.arguments())
            self.call(self.arguments(), backend="reference")


def _first(results):
    return results[0] if isinstance(results, tuple) else results
