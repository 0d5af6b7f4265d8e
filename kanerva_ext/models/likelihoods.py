"""Distributions of the pixels given the decoder's outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LIKELIHOODS", "BernoulliPixels", "GaussianPixels", "bits_per_dim", "make_likelihood"]

INITIAL_INK = 0.08  # the share that Omniglot has
# Of natural pixels, about: what the coders see and make is of unit scale.
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
MIN_LOG_STD = math.log(1 / 512)  # half a level of 256


class BernoulliPixels(nn.Module):
    """Independent Bernoulli pixels; the decoder's outputs are logits."""

    initial_output = math.log(INITIAL_INK / (1 - INITIAL_INK))
    extra_outputs = 0  # channels of the decoder's beyond the images'

    def standardize(self, images: Tensor) -> Tensor:
        """What the encoder sees of images (..., C, H, W): the images."""
        return images

    def nll(self, outputs: Tensor, images: Tensor) -> Tensor:
        """-ln p(image), nats: (..., C, H, W) twice to (...), float32 at least."""
        pixels = F.binary_cross_entropy_with_logits(outputs, images, reduction="none")
        return pixels.flatten(-3).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """Probabilities of ink (..., C, H, W)."""
        return outputs.sigmoid()


class GaussianPixels(nn.Module):
    """Independent normal pixels of one trainable standard deviation; outputs are scaled means.

    A density on [0, 1): of images with uniform noise of one level in 256 added, so that
    `bits_per_dim` bounds the bits of the levels themselves (Theis et al., ICLR 2016, section 3.1).
    """

    initial_output = 0.0
    extra_outputs = 0

    def __init__(self) -> None:
        super().__init__()
        self.raw_log_std = nn.Parameter(torch.empty(1))  # not 0-d: fully_shard splits it
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Of softplus's argument, so that the standard deviation starts at PIXEL_STD.
        start = math.log(math.expm1(math.log(PIXEL_STD) - MIN_LOG_STD))
        nn.init.constant_(self.raw_log_std, start)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        saved = state_dict.get(f"{prefix}raw_log_std")
        if isinstance(saved, Tensor) and saved.dim() == 0:  # of an old checkpoint
            state_dict[f"{prefix}raw_log_std"] = saved.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def start(self, std: float) -> None:
        """Start at another standard deviation, one level's at least."""
        above = max(math.log(std) - MIN_LOG_STD, math.log(2))
        self.raw_log_std.fill_(math.log(math.expm1(above)))

    @property
    def log_std(self) -> Tensor:
        """Logarithm of the pixels' standard deviation, 0-d, at least ln 1/512."""
        return MIN_LOG_STD + F.softplus(self.raw_log_std).squeeze(0)

    def standardize(self, images: Tensor) -> Tensor:
        """What the encoder sees of images (..., C, H, W): about zero mean and unit scale."""
        return (images - PIXEL_MEAN) / PIXEL_STD

    def nll(self, outputs: Tensor, images: Tensor) -> Tensor:
        """-ln p(image), nats: (..., C, H, W) twice to (...), float32 at least."""
        log_std = self.log_std
        mean = PIXEL_MEAN + PIXEL_STD * outputs.to(log_std.dtype)
        # The factors outside the sum: a pass over all pixels less for each.
        error = (images - mean).flatten(-3).square().sum(-1)
        constant = log_std + 0.5 * math.log(2 * math.pi)
        return 0.5 * (-2 * log_std).exp() * error + math.prod(outputs.shape[-3:]) * constant

    def mean(self, outputs: Tensor) -> Tensor:
        """Pictures (..., C, H, W), in [0, 1]."""
        return (PIXEL_MEAN + PIXEL_STD * outputs).clamp(0, 1)


class ScaledGaussianPixels(GaussianPixels):
    """Independent normal pixels whose standard deviation is decoded too.

    The decoder's outputs have one channel more than the images: the last is the logarithm of a
    factor to the trainable standard deviation, for all channels of a pixel. Smooth images and
    smooth places then count for what they are; one standard deviation for all is wrong for most.
    """

    extra_outputs = 1

    def nll(self, outputs: Tensor, images: Tensor) -> Tensor:
        """-ln p(image), nats: (..., C + 1, H, W) and (..., C, H, W) to (...), float32 at least."""
        floor, raw = MIN_LOG_STD, self.raw_log_std
        channels = images.shape[-3]
        outputs, log_factor = outputs.to(raw.dtype).split([channels, 1], dim=-3)
        log_std = floor + F.softplus(raw + log_factor)
        mean = PIXEL_MEAN + PIXEL_STD * outputs
        error = (images - mean).square().sum(-3, keepdim=True)
        pixels = 0.5 * (-2 * log_std).exp() * error + channels * log_std
        constant = 0.5 * math.log(2 * math.pi) * math.prod(images.shape[-3:])
        return pixels.flatten(-3).sum(-1) + constant

    def mean(self, outputs: Tensor) -> Tensor:
        """Pictures (..., C, H, W), in [0, 1], of outputs (..., C + 1, H, W)."""
        return super().mean(outputs[..., :-1, :, :])


LIKELIHOODS = {
    "bernoulli": BernoulliPixels,
    "gaussian": GaussianPixels,
    "scaled_gaussian": ScaledGaussianPixels,
}


def make_likelihood(name: str) -> BernoulliPixels | GaussianPixels:
    """The likelihood of that name; raises ValueError for another."""
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {tuple(LIKELIHOODS)}, got {name!r}")
    return LIKELIHOODS[name]()


def bits_per_dim(nats: float, num_dims: int, levels: int = 256) -> float:
    """Bits per dimension of images of ``levels`` levels.

    Args:
        nats: -ln of a density on [0, 1)^num_dims, nats per image.
        num_dims: pixels times channels.
        levels: of each pixel before noise was added and the scale became [0, 1).
    """
    return nats / (num_dims * math.log(2)) + math.log2(levels)
