"""`kanerva_ext.distributed.write`: several processes write what one would."""

import pytest
import torch
from helpers import run_processes

from kanerva_ext.distributed import _statistics

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
        return _statistics.mirrored(g), h, energy

    exact = weights.double(), values.double()
    for s in (scale, torch.full((2, 1), 0.3, dtype=torch.float64).expand(2, steps)):
        rows = (exact[0] * s[..., None]).mT
        want = rows @ exact[0], rows @ exact[1], (exact[1].square().sum(-1) * s).sum(-1)
        compiled = sums(s)
        with monkeypatch.context() as patch:
            patch.setattr(_statistics, "_HAS_KERNEL", False)
            plain = sums(s)
        bound = 1e-5 if arithmetic == torch.float32 else 1e-12
        for found in (compiled, plain):
            for got, right in zip(found, want, strict=True):
                torch.testing.assert_close(got, right, rtol=bound, atol=bound * max(steps, 1))
