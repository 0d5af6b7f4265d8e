"""Random changes to images."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["occlude", "random_affine", "salt_and_pepper"]

# At strength 1; half of it trains best on Omniglot.
MAX_ROTATION = 0.3  # radians
MAX_LOG_SCALE = 0.2  # of each axis
MAX_SHEAR = 0.2
MAX_SHIFT = 4 / 28  # of half the image's size
INK_THRESHOLD = 0.4  # of the interpolated image: keeps thin strokes connected


def random_affine(
    images: Tensor, strength: float = 0.5, generator: torch.Generator | None = None
) -> Tensor:
    """Rotate, scale, shear and shift every drawing at random, and binarise again.

    Args:
        images: (..., H, W) float, 0 or 1, on the CPU.
        strength: 0 leaves them as they are; 1 is up to 17 degrees, 22 %, and 2 pixels of 28.
        generator: a CPU generator, for repeatable results.

    Returns:
        A new tensor like ``images``, 0 or 1.

    Raises:
        ValueError: strength outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    if strength == 0 or images.numel() == 0:
        return images.clone()
    flat = images.reshape(-1, 1, *images.shape[-2:])

    def uniform(*size: int) -> Tensor:
        return strength * (2 * torch.rand(len(flat), *size, generator=generator) - 1)

    angle, scale = MAX_ROTATION * uniform(), (MAX_LOG_SCALE * uniform(2)).exp()
    shear, shift = MAX_SHEAR * uniform(), MAX_SHIFT * uniform(2)
    cos, sin = angle.cos(), angle.sin()
    x_axis = torch.stack([cos * scale[:, 0], (shear - sin) * scale[:, 0], shift[:, 0]], dim=1)
    y_axis = torch.stack([sin * scale[:, 1], cos * scale[:, 1], shift[:, 1]], dim=1)
    grid = F.affine_grid(torch.stack([x_axis, y_axis], dim=1), list(flat.shape), False)
    moved = F.grid_sample(flat, grid.to(flat.dtype), align_corners=False)
    return (moved > INK_THRESHOLD).to(images.dtype).view_as(images)


def salt_and_pepper(
    images: Tensor, share: float, generator: torch.Generator | None = None
) -> Tensor:
    """Replace a share of the pixels by 0 or 1 at random (so that half of them change).

    Args:
        images: any shape, float, 0 or 1, on the CPU.
        share: probability that a pixel is replaced.
        generator: a CPU generator, for repeatable results.

    Raises:
        ValueError: share outside [0, 1].
    """
    if not 0 <= share <= 1 or math.isnan(share):
        raise ValueError(f"share must be in [0, 1], got {share}")
    chance = torch.rand(images.shape, generator=generator)
    corrupted = torch.where(chance < share / 2, 0.0, images)
    return torch.where((chance >= share / 2) & (chance < share), 1.0, corrupted)


def occlude(images: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Set a rectangle of every image to 0, in all channels alike, at a random place inside it.

    The rectangle has about the shape of the image: its height is ``H * sqrt(share)``, rounded, and
    its width then the one that brings its area closest to ``share * H * W``, at least one pixel
    each. A share of 0 changes nothing.

    Args:
        images: (..., C, H, W), any dtype, on the CPU.
        share: of the image's area.
        generator: a CPU generator, for repeatable results.

    Returns:
        A new tensor like ``images``.

    Raises:
        ValueError: share outside [0, 1], or images of fewer than three dimensions.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    if images.ndim < 3:
        raise ValueError(f"images must have shape (..., C, H, W), got {tuple(images.shape)}")
    if share == 0 or images.numel() == 0:
        return images.clone()
    *batch, _, image_height, image_width = images.shape
    height = max(1, round(image_height * math.sqrt(share)))
    width = min(image_width, max(1, round(share * image_height * image_width / height)))

    def covered(size: int, length: int) -> Tensor:
        start = torch.randint(size - length + 1, (*batch, 1), generator=generator)
        distance = torch.arange(size) - start
        return (distance >= 0) & (distance < length)

    rows, columns = covered(image_height, height), covered(image_width, width)
    inside = rows.unsqueeze(-1) & columns.unsqueeze(-2)
    return images.masked_fill(inside.unsqueeze(-3), 0)
