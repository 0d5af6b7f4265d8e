"""The Kanerva Machine (Wu, Wayne, Graves, Lillicrap, ICLR 2018) on `FusedKanervaMemory`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..memory import FusedKanervaMemory, MemoryState
from ._common import Normal, bernoulli_nll, kl_normal, sample_normal
from .coders import ConvDecoder, ConvEncoder

__all__ = ["KanervaBound", "KanervaMachine"]


class KanervaBound(NamedTuple):
    bound: Tensor
    reconstruction: Tensor
    kl_y: Tensor
    kl_z: Tensor
    kl_memory: Tensor


class KanervaMachine(nn.Module):
    def __init__(
        self,
        memory_size: int = 32,
        code_size: int = 100,
        *,
        key_size: int = 50,
        hidden_size: int = 200,
        num_filters: int = 16,
        image_size: int = 28,
        noise_std: float = 1.0,
        code_std: float = 1.0,
        encoder_noise_std: float = 0.2,
        latent_size=None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        num_features = 2 * code_size
        latent_size = latent_size or key_size
        self.latent_size = latent_size
        self.code_var = code_std**2
        self.encoder_noise_std = encoder_noise_std
        self.encoder = ConvEncoder(num_features, num_filters=num_filters, image_size=image_size)
        self.decoder = ConvDecoder(code_size, num_filters=num_filters, image_size=image_size)
        self.latent = Normal(num_features, hidden_size, latent_size)
        self.write_code = Normal(num_features, hidden_size, code_size)
        self.read_code = Normal(num_features + code_size, hidden_size, code_size)
        self.key = nn.Sequential(
            nn.Linear(latent_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, key_size)
        )
        self.memory = FusedKanervaMemory(
            memory_size,
            code_size,
            addressing="key",
            noise_std=noise_std,
            key_size=key_size,
        )

    def _features(self, images):
        return F.relu(self.encoder(images))

    def _latent(self, features):
        if self.training:
            features = features + self.encoder_noise_std * torch.randn_like(features)
        return self.latent(features)

    def elbo(self, images, state=None):
        features = self._features(images)
        y_mean, y_log_std = self._latent(features)
        kl_memory = None
        if state is None:
            values = sample_normal(*self.write_code(features))
            keys = self.key(sample_normal(y_mean, y_log_std))
            out = self.memory.write(values, keys=keys)
            state, kl_memory = out.state, out.kl_memory
        keys = self.key(sample_normal(y_mean, y_log_std))
        prior = self.memory.read(keys, state).values
        delta, log_std = self.read_code(torch.cat([features, prior], -1))
        mean = prior + delta
        codes = sample_normal(mean, log_std)
        logits = self.decoder(codes)
        nll = bernoulli_nll(logits, images)
        kl_y = kl_normal(y_mean, y_log_std, 0.0, 1.0)
        kl_z = kl_normal(mean, log_std, prior, self.code_var)
        return KanervaBound(nll + kl_y + kl_z, nll, kl_y, kl_z, kl_memory)
