"""Wrong arguments, NaN, and numbers out of range, for every operator."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from operator_base import MASK, NATIVE, NOISE, RIDGE, STATE, OperatorBase
from selection import MANY_CALLS
from torch import Tensor

import kanerva_ext

FRACTIONS = ("decay", "retention")  # in (0, 1]


class BadInputChecks(OperatorBase):
    """Inherited by the tests of each operator."""

    def wrong_arguments(self):
        """(argument, wrong value, exception) for every argument and every way to be wrong."""
        good = self.arguments(dtype=torch.float32)
        first = next(iter(good))
        for n, a in good.items():
            kind, number = self.kinds[n], self.kinds[n] in (NOISE, RIDGE)
            yield n, a.tolist(), TypeError
            yield n, "text", TypeError
            if n not in (*self.optional, *self.with_default):
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
                if n not in FRACTIONS:
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
        device = torch.get_default_device().type
        serving = {device}
        if kanerva_ext.backends()["triton"] == "available":
            serving.add("triton")  # on a GPU, or in its interpreter
        for backend in {"cpu", "cuda", "triton"} - serving:
            with pytest.raises(RuntimeError, match=r"is not available: |serves .* tensors, got"):
                self.call(args, backend=backend)
        with pytest.raises(ValueError, match="backend must be one of"):
            self.call(args, backend="tpu")
        with pytest.raises(TypeError, match="backend must be a str"):
            self.call(args, backend=None)

    def test_backend_of_the_device(self):
        args, device = self.arguments(), torch.get_default_device().type
        if NATIVE:
            with kanerva_ext.use_backend("auto"):
                automatic = self.call(args)
            for a, b in zip(self.call(args, backend=device), automatic, strict=True):
                assert torch.equal(a, b)
        else:
            with pytest.raises(RuntimeError, match="install"):
                self.call(args, backend=device)

    @MANY_CALLS
    def test_nan_stays_in_its_item(self):
        """Each argument in turn holds a NaN in item 1: that item is NaN, the others unchanged."""
        for dtype, name in itertools.product((torch.float32, torch.float64), self.kinds):
            if self.kinds[name] == MASK:
                continue
            for at in (0, -1):
                args = self.arguments(
                    b=(3,), t=9, k=6, c=5, dtype=dtype, optional=name in self.optional
                )
                args.pop("mask", None)
                expected = self.call(args)
                args[name][1].view(-1)[at] = torch.nan
                if self.dims[name] == "KK" and at == -1:
                    args[name][1] = torch.nan
                self.assert_only_item_is_nan(1, self.call(args), expected, name)
                with pytest.raises(ValueError, match=rf"{name} holds NaN in batch item\(s\) 1$"):
                    self.call(args, check=True)

    @MANY_CALLS
    def test_non_positive_number_gives_nan_in_its_item(self):
        names = [n for n, kind in self.kinds.items() if kind in (NOISE, RIDGE)]
        for name, value in itertools.product(names, (0.0, -0.3)):
            args = self.arguments(b=(3,), t=9, k=6, c=5, optional=name in self.optional)
            args.pop("mask", None)
            expected = self.call(args)
            args[name][1].view(-1)[-1] = value
            self.assert_only_item_is_nan(1, self.call(args), expected, name)
            with pytest.raises(ValueError, match=rf"{name} is not .* in batch item\(s\) 1$"):
                self.call(args, check=True)

    def test_indefinite_covariance(self):
        """NaN or, where the operator needs no factor of it, a number; ``check`` always tells."""
        for name in (n for n, d in self.dims.items() if d == "KK"):
            args = self.arguments(b=(2, 2), t=5, k=4, c=3, optional=name in self.optional)
            args.pop("mask", None)
            expected = self.call(args)
            args[name][1, 0] -= 50 * torch.eye(4, dtype=torch.float64)
            for got, want in zip(self.call(args), expected, strict=True):
                torch.testing.assert_close(got[0], want[0])
                torch.testing.assert_close(got[1, 1], want[1, 1])
                if self.factors_covariance:
                    assert got[1, 0].isnan().all()
            kind = "semi-definite" if name in self.semidefinite else "definite"
            with pytest.raises(
                ValueError, match=rf"{name} is not positive {kind} in batch item\(s\) \(1, 0\)$"
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
