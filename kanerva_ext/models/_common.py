"""Small pieces that the models share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Normal(nn.Module):
    """Two-layer ReLU network to a diagonal normal: (..., inputs) to mean and log-std (..., size).

    The last layer starts small, so that the mean starts near 0 and the standard deviation near
    ``std``. The log-std is kept in [-7, 7] smoothly (a scaled tanh), so that no step can overflow.
    """

    def __init__(self, inputs: int, hidden: int, size: int, *, std: float = 0.2) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, 2 * size)
        with torch.no_grad():
            nn.init.normal_(self.hidden.weight, std=(2/inputs)**.5)
            nn.init.normal_(self.out.weight, std=(1/hidden)**.5)
            self.out.weight[size:]*=.1
            self.out.bias.zero_()
            self.out.bias[size:] = torch.tensor(std).log()

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.out(F.relu(self.hidden(inputs))).chunk(2, dim=-1)
        return mean, 7 * torch.tanh(log_std / 7)


def sample_normal(mean: Tensor, log_std: Tensor) -> Tensor:
    """One reparameterised sample, of the shape of ``mean``."""
    return mean + log_std.exp() * torch.randn_like(mean)


def kl_normal(mean: Tensor, log_std: Tensor, prior_mean: Tensor | float, prior_var: float):
    """KL(N(mean, exp(2 log_std)) || N(prior_mean, prior_var I)) over the last dim, nats: (...)."""
    ratio = (2 * log_std).exp() / prior_var
    distance = (mean - prior_mean).square() / prior_var
    return 0.5 * (ratio + distance - 1 - ratio.log()).sum(-1)


def bernoulli_nll(logits: Tensor, images: Tensor) -> Tensor:
    """-ln p(image) of independent Bernoulli pixels, nats: (..., 1, H, W) to (...)."""
    pixels = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
    return pixels.flatten(-3).sum(-1)
