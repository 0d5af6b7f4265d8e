"""The module's configurations, and an episode for each."""

import pytest
import torch

from kanerva_ext import FusedKanervaMemory

B, T, K, C, S = 3, 6, 5, 4, 7

CONFIGURATIONS = {
    "plain": {},
    "noise": {"learn_noise": True, "noise_std": 0.3},
    "iterated": {"num_write_iters": 3},
    "sampled": {"sample_weights": True, "sample_memory": True, "weight_std": 0.7},
    "key": {"addressing": "key", "key_size": S},
    "key_noise": {"addressing": "key", "key_size": S, "learn_noise": True, "sample_memory": True},
}


each_config = pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS)


def make(**options):
    return FusedKanervaMemory(K, C, **options)


def episode(module, dtype=torch.float32, b=(B,), t=T):
    """Values, and the keyword arguments of forward."""
    is_key = module.key_size is not None
    keys = {"keys": torch.randn(*b, t, S, dtype=dtype)} if is_key else {}
    return torch.randn(*b, t, C, dtype=dtype), keys


def loss(out):
    return out.values.square().sum() + out.kl_weights.sum() + out.kl_memory.sum()
