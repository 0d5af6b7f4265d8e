from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._common import Normal, bernoulli_nll, kl_normal, sample_normal
from .coders import ConvDecoder, ConvEncoder


class VAEBound(NamedTuple):
    bound: Tensor
    reconstruction: Tensor
    kl_z: Tensor


class MatchedVAE(nn.Module):
    def __init__(self, code_size=100, *, hidden_size=200, num_filters=16, image_size=28):
        super().__init__()
        self.encoder = ConvEncoder(2*code_size, num_filters=num_filters, image_size=image_size)
        self.decoder = ConvDecoder(code_size, num_filters=num_filters, image_size=image_size)
        self.code = Normal(2*code_size, hidden_size, code_size)

    def elbo(self, images):
        mean, log_std = self.code(F.relu(self.encoder(images)))
        logits = self.decoder(sample_normal(mean, log_std))
        nll = bernoulli_nll(logits, images)
        kl = kl_normal(mean, log_std, 0.0, 1.0)
        return VAEBound(nll + kl, nll, kl)
