"""PyTorch's FlopCounterMode counts the operators once kanerva_ext.flops is imported."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import kanerva_ext.flops
from kanerva_ext import ops
from kanerva_ext.distributed import _statistics

B, T, K, C = 3, 5, 4, 7


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def state(**options):
    return torch.randn(B, K, C, **options), torch.eye(K).expand(B, K, K)


def test_a_read_and_its_gradient():
    mean, cov = state(requires_grad=True)
    products = B * (2 * T * K * C + 2 * T * K * K + 2 * T * K)
    forward = counted(lambda: ops.read(mean, cov, torch.randn(B, T, K)))
    both = counted(lambda: ops.read(mean, cov, torch.randn(B, T, K))[0].sum().backward())
    assert forward == products
    assert both == 3 * products


def test_packed_sequences_count_their_steps_once():
    offsets = torch.tensor([0, 2, T])
    mean, cov = torch.randn(1, 2, K, C), torch.eye(K).expand(1, 2, K, K)
    weights, values = torch.randn(1, T, K), torch.randn(1, T, C)

    def scan(mean, cov, **options):
        return counted(lambda: ops.causal_scan(mean, cov, weights, values, weights, 0.1, **options))

    assert scan(mean, cov, cu_seqlens=offsets) == scan(mean[:, 0], cov[:, 0]) > 0


@pytest.mark.parametrize("name", ops.OPERATORS)
def test_every_operator_counts_and_grows_with_every_size(name):
    sizes = kanerva_ext.flops.Sizes(2, 8, 8, 16)
    least = kanerva_ext.flops.FORWARD[name](sizes)
    assert least > 0
    for field in sizes._fields:
        larger = kanerva_ext.flops.FORWARD[name](sizes._replace(**{field: 64}))
        without = field == "steps" and all("T" not in a.dims for a in ops.OPERATORS[name].args)
        assert (larger == least) if without else (larger > least)


def test_every_operator_is_registered():
    from torch.utils.flop_counter import flop_registry

    for namespace in ("kanerva", "kanerva_triton"):
        for schema in torch._C._jit_get_all_schemas():
            if schema.name.startswith(f"{namespace}::"):
                packet = getattr(getattr(torch.ops, namespace), schema.name.split("::")[1])
                assert packet in flop_registry, schema.name


@pytest.mark.skipif(not _statistics._HAS_KERNELS, reason="the compiled library is not here")
def test_sums_of_several_processes_count():
    """With W'W, of which half is computed, and without it."""
    g, h = torch.zeros(2, 4, 4), torch.zeros(2, 4, 5)
    steps = torch.ones(2, 7, 4), torch.ones(2, 7, 5), torch.ones(2, 7, dtype=torch.float64)
    for given, expected in ((g, 2 * 7 * 4 * (4 + 2 * 5)), (None, 2 * 7 * 4 * 2 * 5)):
        assert counted(lambda g=given: torch.ops.kanerva.episode_sums(g, h, *steps)) == expected


@pytest.mark.skipif(not _statistics._HAS_KERNELS, reason="the compiled library is not here")
def test_the_posterior_of_sums():
    mean, cov, wide = torch.ones(2, 4, 5), torch.eye(4).expand(2, 4, 4), torch.float64
    sums = torch.ones(2, 10, dtype=wide), torch.ones(2, 4, 5, dtype=wide), torch.ones(2, dtype=wide)
    outs = torch.empty_like(mean), torch.empty(2, 4, 4)
    call = torch.ops.kanerva.posterior_of_sums
    # Two factors of K^3 / 3, an inverse of as many, four products of K^3; two of 2 K^2 C.
    expected = 2 * 4 * 4 * (5 * 4 + 2 * 2 * 5)
    assert counted(lambda: call(*outs, mean, cov, *sums, False, False)) == expected
