"""A linear path beside the convolutions, started at the data's principal components.

Probabilistic PCA (Tipping, Bishop, Probabilistic Principal Component Analysis, JRSS B 61, 1999) is
the best linear model of images with normal pixels of one standard deviation. It is where this path
starts: an image's code is its principal components, divided by the standard deviation of what they
leave out, so that a code is off by about one wherever the pixels are as noisy as that.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["LinearPath", "PrincipalComponents", "principal_components", "squash"]

_SQUASH = 10.0  # noise units up to which a code's number is taken as it is, about


class PrincipalComponents(NamedTuple):
    """What `principal_components` returns, float64, of images with D numbers each.

    Attributes:
        mean: (D,).
        directions: (C, D), orthonormal rows, the largest variance first.
        variances: (C,), of the images along the directions.
        noise_var: mean variance along the other D - C directions: the maximum-likelihood noise
            variance of probabilistic PCA (equation 8 there).
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    noise_var: float

    def log_likelihood(self, images: Tensor) -> Tensor:
        """ln p of images (N, ...), nats of a density, (N,) float64: equations 3 and 4 there."""
        centred = images.double().flatten(1) - self.mean
        num_dims, size = len(self.mean), len(self.variances)
        along = (centred @ self.directions.mT).square()
        across = centred.square().sum(1) - along.sum(1)
        distance = (along / self.variances).sum(1) + across / self.noise_var
        log_det = self.variances.log().sum() + (num_dims - size) * math.log(self.noise_var)
        return -0.5 * (distance + log_det + num_dims * math.log(2 * math.pi))


def principal_components(images: Tensor, size: int) -> PrincipalComponents:
    """The largest principal components of images.

    Args:
        images: (N, ...), uint8 levels, taken with uniform noise added as ``"dequantize"`` has it
            (`kanerva_ext.data.EpisodeSampler`), exactly and without drawing it; or floating point.
        size: C, smaller than the number of pixels times channels.

    Raises:
        ValueError: a size that is not in [1, D), or fewer than two images.
    """
    flat = images.flatten(1)
    count, num_dims = flat.shape
    if not 1 <= size < num_dims:
        raise ValueError(f"size must be in [1, {num_dims}), the numbers of an image, got {size}")
    if count < 2:
        raise ValueError(f"images must be at least 2, got {count}")
    levels = images.dtype == torch.uint8
    scale = 1 / 256 if levels else 1.0
    total = torch.zeros(num_dims, dtype=torch.float64)
    square = torch.zeros(num_dims, num_dims, dtype=torch.float64)
    for part in flat.split(2048):
        part = part.double()
        total += part.sum(0)
        square.addmm_(part.mT, part)
    mean = total / count
    cov = square.addmm_(mean[:, None], mean[None], alpha=-count).mul_(scale**2 / (count - 1))
    if levels:
        mean = mean + 0.5
        cov.diagonal().add_(scale**2 / 12)
    values, vectors = torch.linalg.eigh(cov)
    values, vectors = values.flip(0), vectors.flip(1)
    noise_var = max(values[size:].mean().item(), torch.finfo(torch.float32).tiny)
    directions = vectors[:, :size].mT.contiguous()
    return PrincipalComponents(scale * mean, directions, values[:size], noise_var)


def squash(codes: Tensor) -> Tensor:
    """Codes in noise units, (..., C), at a scale for networks to see: linear, then logarithmic."""
    return torch.asinh(codes / _SQUASH)


class LinearPath(nn.Module):
    """Image to code and code to image, each a linear map, both trainable.

    Until `start` or a checkpoint gives them values, both maps are zero. Computed in float32, also
    under autocast: the largest components are hundreds of noise units.

    Args:
        code_size: C.
        image_shape: (channels, height, width).

    Attributes:
        started: whether the maps have values.
        mean: (D,), subtracted from images and added to pictures.
        encoder_weight: (C, D); a code is ``encoder_weight @ (image - mean)``.
        decoder_weight: (C, D); a picture is ``mean + code @ decoder_weight``.
        signal_var: (C,), of codes less the noise: the variances of probabilistic PCA's latents, in
            noise units.
        noise_std: 0-d, of the pixels.
    """

    def __init__(self, code_size: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        num_dims = math.prod(image_shape)
        if code_size >= num_dims:
            raise ValueError(
                f"code_size must be below the numbers of an image, {num_dims}, with a linear "
                f"path, got {code_size}"
            )
        self.image_shape = image_shape
        self.encoder_weight = nn.Parameter(torch.empty(code_size, num_dims))
        self.decoder_weight = nn.Parameter(torch.empty(code_size, num_dims))
        self.mean = nn.Parameter(torch.empty(num_dims))
        self.register_buffer("signal_var", torch.empty(code_size))
        self.register_buffer("noise_std", torch.empty(()))
        self.register_buffer("started", torch.tensor(False))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Both maps zero, as before `start`."""
        for zero in (self.encoder_weight, self.decoder_weight, self.mean):
            zero.zero_()
        self.signal_var.fill_(1)
        self.noise_std.fill_(1)
        self.started.fill_(False)

    @torch.no_grad()
    def start(self, components: PrincipalComponents) -> None:
        """Put the maps at the components, codes in units of their noise."""
        noise_std = math.sqrt(components.noise_var)
        self.mean.copy_(components.mean)
        self.encoder_weight.copy_(components.directions / noise_std)
        self.decoder_weight.copy_(components.directions * noise_std)
        self.signal_var.copy_((components.variances / components.noise_var - 1).clamp(min=1e-3))
        self.noise_std.fill_(noise_std)
        self.started.fill_(True)

    def encode(self, images: Tensor) -> Tensor:
        """Images (..., channels, H, W) in [0, 1] to codes (..., C)."""
        with torch.autocast(images.device.type, enabled=False):
            centred = images.flatten(-3).to(self.mean.dtype) - self.mean
            return nn.functional.linear(centred, self.encoder_weight)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (..., C) to pictures (..., channels, H, W), of the scale of images."""
        with torch.autocast(codes.device.type, enabled=False):
            pictures = codes.to(self.mean.dtype) @ self.decoder_weight + self.mean
            return pictures.unflatten(-1, self.image_shape)
