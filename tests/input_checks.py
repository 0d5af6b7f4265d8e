"""Shapes, strides, dtypes and backends of every operator."""

from __future__ import annotations

import pytest
import torch
from helpers import DTYPES
from operator_base import DATA, MASK, NOISE, STATE, OperatorBase
from selection import AROUND_A_KERNEL, INTERPRETER, grid, not_on

ONE_TILE = not_on(INTERPRETER, reason="many tiles")


class InputChecks(OperatorBase):
    """Inherited by the tests of each operator."""

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

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("sizes", [(3, 4, 3), pytest.param((33, 20, 21), marks=ONE_TILE)])
    def test_nothing_between_the_rows_is_read(self, sizes, dtype):
        """Kernels may read rows where they lie, and whole vectors of them."""

        def within_nan(x):
            room = torch.full((*x.shape[:-1], x.shape[-1] + 5), torch.nan, dtype=x.dtype)
            room[..., 2:-3] = x.detach()
            return room[..., 2:-3].requires_grad_(x.requires_grad)

        args = self.arguments((2,), *sizes, dtype=dtype, grad=True)
        apart = {n: within_nan(a) if a.is_floating_point() else a for n, a in args.items()}
        names, tensors, _ = self.split(args)
        expected, results = self.call(args), self.call(apart)
        grads = [torch.randn_like(r) for r in expected]
        want = torch.autograd.grad(expected, tensors, grads)
        far = [within_nan(g) if g.dim() else g for g in grads]
        got = torch.autograd.grad(results, [apart[n] for n in names], far)
        for a, b in zip((*results, *got), (*expected, *want), strict=True):
            torch.testing.assert_close(a, b)

    def test_grad_of_an_expanded_result(self):
        """sum() hands back a gradient with strides of zero."""
        args = self.arguments(grad=True, optional=False)
        _, tensors, _ = self.split(args)
        got = torch.autograd.grad([r.sum() for r in self.call(args)], tensors)
        results = self.call(args)
        want = torch.autograd.grad(results, tensors, [torch.ones_like(r) for r in results])
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize(
        ("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str
    )
    @pytest.mark.parametrize(
        "sizes",
        [
            (3, 4, 3),
            pytest.param((33, 20, 21), marks=ONE_TILE),
            pytest.param((9, 40, 45), marks=ONE_TILE),
        ],
        ids=str,
    )
    def test_covariances_count_by_their_symmetric_part(self, sizes, dtype, near):
        """In the results and in every gradient."""
        t, k, c = sizes
        straight = self.arguments(t=t, k=k, c=c, dtype=dtype)
        skew = torch.triu(torch.full((k, k), 0.05, dtype=dtype), 1)
        bent = {n: a for n, a in straight.items() if self.dims[n] == "KK"}
        if not bent:
            pytest.skip("it takes no covariance")
        bent = {**straight, **{n: a + skew - skew.mT for n, a in bent.items()}}

        def both(args):
            torch.manual_seed(0)
            leaves = {n: a.clone().requires_grad_(a.is_floating_point()) for n, a in args.items()}
            _, tensors, _ = self.split(leaves)
            results = self.call(leaves)
            grads = [torch.randn(r.shape, dtype=torch.float64).to(r.dtype) for r in results]
            return *results, *torch.autograd.grad(results, tensors, grads)

        for got, want in zip(both(bent), both(straight), strict=True):
            assert (got - want).norm() <= near * want.norm()

    @pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 1, 2)], ids=str)
    def test_leading_dimensions(self, lead):
        args = self.arguments(b=lead)
        results = self.call(args)
        flat = {n: a.reshape(-1, *a.shape[len(lead) :]) for n, a in args.items()}
        for got, want in zip(results, self.call(flat), strict=True):
            assert got.shape == (*lead, *want.shape[1:])
            torch.testing.assert_close(got.reshape(want.shape), want)

    @AROUND_A_KERNEL
    def test_broadcasting(self):
        whole = self.arguments(b=(2, 3))
        for name in whole:
            lead = () if self.kinds[name] not in (NOISE, MASK) else (1, 1)
            small = self.arguments(b=lead)[name]
            args = {**whole, name: small}
            full = {**whole, name: small.expand(2, 3, *small.shape[len(lead) :]).contiguous()}
            for got, want in zip(self.call(args), self.call(full), strict=True):
                torch.testing.assert_close(got, want)

    @AROUND_A_KERNEL
    def test_gradient_of_a_broadcast_argument_is_summed(self):
        args = self.arguments(b=(3,), optional=False)
        name = next(iter(args))
        one = args[name][:1].clone().requires_grad_()
        got = self.call({**args, name: one[0]})[0].square().sum()
        want = self.call({**args, name: one.expand(3, *one.shape[1:])})[0].square().sum()
        torch.testing.assert_close(
            torch.autograd.grad(got, one)[0], torch.autograd.grad(want, one)[0]
        )

    @pytest.mark.parametrize(
        "sizes",
        [(0, 3, 4, 3), (2, 0, 4, 3), (2, 3, 1, 3), (2, 3, 4, 1)],
        ids=["B0", "T0", "K1", "C1"],
    )
    def test_degenerate_sizes(self, sizes):
        b, t, k, c = sizes
        args = self.arguments((b,), t, k, c, torch.float32, grad=True)
        results = self.call(args)
        _, tensors, _ = self.split(args)
        grads = torch.autograd.grad([r.sum() for r in results], tensors)
        want = self.call(
            {n: a.double() if a.is_floating_point() else a for n, a in args.items()},
            backend="reference",
        )
        for got, expected in zip(results, want, strict=True):
            torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
        of_reference = torch.autograd.grad([r.sum() for r in want], tensors, materialize_grads=True)
        for g, w, a in zip(grads, of_reference, tensors, strict=True):
            assert g.shape == a.shape
            torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize(
        ("data", "state"),
        grid((torch.float16, torch.bfloat16, torch.float32, torch.float64), DTYPES),
    )
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
        for g, a in zip(
            torch.autograd.grad([r.sum() for r in results], tensors), tensors, strict=True
        ):
            assert g.dtype == a.dtype

    @AROUND_A_KERNEL
    def test_other_float_dtype_is_cast_to_the_state(self):
        names = [n for n, kind in self.kinds.items() if kind != STATE]
        for state, other in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
            args = self.arguments(dtype=state)
            for n in names:
                if args[n].is_floating_point():
                    cast = {**args, n: args[n].to(other).requires_grad_()}
                    results = self.call(cast)
                    assert all(r.dtype == state for r in results)
                    (grad,) = torch.autograd.grad([r.sum() for r in results], [cast[n]])
                    assert grad.dtype == other and not grad.isnan().any()

    @AROUND_A_KERNEL
    def test_autocast(self):
        device = torch.get_default_device().type
        args = self.arguments(dtype=torch.float32, grad=True, optional=False)
        _, tensors, _ = self.split(args)
        expected = self.call(args)
        want = torch.autograd.grad([r.square().sum() for r in expected], tensors)
        with torch.autocast(device, dtype=torch.bfloat16):
            results = self.call(args)
            plain = self.call(args, backend="reference")
            got = torch.autograd.grad([r.square().sum() for r in results], tensors)
        for a, b in zip((*results, *got), (*expected, *want), strict=True):
            torch.testing.assert_close(a, b)
        for a, b in zip(plain, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        halves = {
            n: a.detach().to(torch.bfloat16) if self.kinds[n] == STATE else a
            for n, a in args.items()
        }
        with torch.autocast(device, dtype=torch.bfloat16):
            assert all(r.dtype == torch.float32 for r in self.call(halves))
        with pytest.raises(TypeError, match="state in float32"):
            self.call(halves)

    def test_backends_agree(self):
        args = self.arguments(b=(3,), t=6, k=5, c=4)
        for a, b in zip(self.call(args), self.call(args, backend="reference"), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)

    @not_on(INTERPRETER, reason="one program after another")
    def test_deterministic(self):
        args = self.arguments(b=(5,), t=40, k=17, c=33, dtype=torch.float32, grad=True)
        _, tensors, _ = self.split(args)
        first, second = (
            (*r, *torch.autograd.grad([x.square().sum() for x in r], tensors))
            for r in (self.call(args), self.call(args))
        )
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)
