"""`kanerva_ext.distributed.write`: several processes write what one would."""

import pytest
import torch
from helpers import run_processes

from kanerva_ext.distributed import _statistics
from kanerva_ext.distributed._collectives import pack

COUNTS = [1, 2, pytest.param(4, marks=pytest.mark.slow)]


def together(check: str, folder, count: int = 2) -> list[str]:
    """Run a function of `distributed_checks` in ``count`` processes."""
    code = "from distributed_checks import *; start({store!r}, {count}); {check}; finish('agreed')"
    printed = run_processes(
        lambda store: code.format(store=store, count=count, check=check), folder, count
    )
    assert all("agreed" in text for text in printed)
    return printed


@pytest.mark.parametrize("count", COUNTS)
def test_posterior_and_gradients_are_those_of_one_process(count, tmp_path):
    together("check_write()", tmp_path, count)


@pytest.mark.parametrize("count", [1, 2])
def test_strided_priors_and_no_memories(count, tmp_path):
    together("check_strides(); check_no_memories()", tmp_path, count)


def test_sums_of_losses_wide_sums_and_bytes(tmp_path):
    together(
        "check_sum_of_losses(); check_wide(); check_bytes(); check_plain_prior(); check_repeats()",
        tmp_path,
    )


@pytest.mark.parametrize("count", COUNTS)
def test_sequence_over_processes(count, tmp_path):
    together("check_scan(); check_scan_of_sums()", tmp_path, count)


@pytest.mark.parametrize("arithmetic", [torch.float32, torch.float64])
@pytest.mark.parametrize("data", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("steps", "slots", "code"), [(0, 3, 2), (5, 1, 1), (700, 33, 18)])
def test_sums_by_the_kernel_are_those_of_pytorch(arithmetic, data, steps, slots, code, monkeypatch):
    """Of columns of strided values, of steps that do not count, of none."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, steps, slots, generator=generator).to(data)
    values = torch.randn(2, steps, 2 * code, generator=generator).to(data)[..., ::2]
    scale = torch.rand(2, steps, generator=generator, dtype=torch.float64)
    scale = scale * (scale > 0.2)

    def sums(scale):
        g, h, energy = _statistics.products(weights, values, scale, arithmetic)
        alone = _statistics.products(weights, values, scale, arithmetic, with_g=False)
        assert alone[0] is None and torch.equal(alone[1], h) and torch.equal(alone[2], energy)
        return _statistics.mirrored(g.double()), h.double(), energy

    exact = weights.double(), values.double()
    for s in (scale, torch.full((2, 1), 0.3, dtype=torch.float64).expand(2, steps)):
        rows = (exact[0] * s[..., None]).mT
        want = rows @ exact[0], rows @ exact[1], (exact[1].square().sum(-1) * s).sum(-1)
        compiled = sums(s)
        with monkeypatch.context() as patch:
            patch.setattr(_statistics, "_HAS_KERNELS", False)
            plain = sums(s)
        bound = 1e-5 if arithmetic == torch.float32 else 1e-12
        for found in (compiled, plain):
            for got, right in zip(found, want, strict=True):
                torch.testing.assert_close(got, right, rtol=bound, atol=bound * max(steps, 1))


@pytest.mark.skipif(not _statistics._HAS_KERNELS, reason="the compiled library is not here")
@pytest.mark.parametrize("arithmetic", [torch.float32, torch.float64])
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
@pytest.mark.parametrize(("slots", "code"), [(1, 1), (33, 18)])
@pytest.mark.parametrize("written", [False, True])
def test_posterior_of_sums_is_that_of_pytorch(arithmetic, state, slots, code, written):
    """Of a mean that is zero or not; too hard a sum is refused for its item alone."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64

    def normal(*shape):
        return torch.randn(2, *shape, generator=generator, dtype=wide)

    root = normal(slots, slots) / slots**0.5
    cov = (root @ root.mT + torch.eye(slots, dtype=wide)).to(state)
    mean = (normal(slots, code) * written).to(state)
    weights, values = normal(20, slots) / slots**0.5, normal(20, code)
    sums = [weights.mT @ weights, weights.mT @ values, values.square().sum((1, 2))]
    sums[0][1] *= 1e12
    given = mean, cov, pack(sums[0]), *sums[1:]
    for always in (False, True):
        found, log_det, left = _statistics.compiled_posterior(*given, arithmetic, always)
        served = 2 if always and (arithmetic == wide or slots == 1) else 1  # by the condition
        assert log_det.isnan().tolist() == left.isnan().tolist() == [False, served < 2]
        summed = _statistics.Summed(None, None, *given[2:4])
        prior_root = _statistics.root_of(cov)
        want, explained = _statistics.factored(mean.to(wide), prior_root, summed)
        pairs = zip(
            (*found[:2], log_det, left),
            (want.mean, want.cov, want.log_det(), given[4] - explained),
            strict=True,
        )
        bound = 1e-5 if torch.float32 in (arithmetic, state) else 1e-10
        for got, right in pairs:
            got, right = got[0].to(wide), right[0]
            assert (got - right).norm() <= bound * right.norm()
