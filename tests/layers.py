"""A small sequence layer and its tokens, for the tests of the layer and of its cache."""

from __future__ import annotations

import torch

from kanerva_ext import KanervaLayer

WIDTH, HEADS = 12, 2


def make(dtype=torch.float64, **options):
    torch.manual_seed(0)
    layer = KanervaLayer(WIDTH, HEADS, **options).to(dtype)
    for gate in (layer.decay_proj, layer.retention_proj):
        if gate is not None:  # strong enough to matter in a few tokens
            with torch.no_grad():
                gate.bias += 6
    return layer


def tokens(batch, steps, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, steps, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
