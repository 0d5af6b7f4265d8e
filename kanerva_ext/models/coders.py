"""Convolutional coders shared by the models.

Three blocks, each a 4 x 4 convolution of stride 2 and one basic residual block, 16 filters (32 for
colour), as in The Kanerva Machine (Wu, Wayne, Graves, Lillicrap, ICLR 2018, section 4). The decoder
is the mirror image with transposed convolutions.

Where the paper is silent: padding 1; activation ReLU, before each convolution of a residual block;
no normalisation, for the statistics of a batch would carry information between the images of an
episode; He's initialisation, the second convolution of a residual block at zero, so that the block
starts as the identity.

Weights are kept in channels-last order, which is faster; ``fully_shard`` of PyTorch refuses that:
``model.to(memory_format=torch.contiguous_format)`` first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._common import Starting, check_sizes, start

__all__ = ["ConvDecoder", "ConvEncoder", "ResidualBlock"]


class _He(Starting):
    """He's start: keeps the scale of activations through the layers, where PyTorch's own halves it
    at each."""

    weight_start: float | None = None  # None: random
    bias_start = 0.0

    def start(self) -> None:
        nn.init.normal_(self.weight, std=math.sqrt(2 / self._fan_in()))
        nn.init.constant_(self.bias, self.bias_start)
        if self.weight_start is not None:
            nn.init.constant_(self.weight, self.weight_start)


class CodeLinear(_He, nn.Linear):
    def _fan_in(self) -> int:
        return self.in_features


class HeConv(_He, nn.Conv2d):
    def _fan_in(self) -> int:
        return self.in_channels * math.prod(self.kernel_size)


class _ConvTranspose(_He, nn.ConvTranspose2d):
    def _fan_in(self) -> int:  # a pixel sees 1 / stride^2 of the kernel
        return self.in_channels * math.prod(self.kernel_size) // math.prod(self.stride)


def he_init(module: nn.Module) -> None:
    """For ``module.apply``: `start` of every convolution and linear map."""
    if isinstance(module, _He):
        start(module)


class ResidualBlock(nn.Module):
    """Basic residual block without bottleneck: (N, F, H, W) to (N, F, H, W)."""

    def __init__(self, num_filters: int) -> None:
        super().__init__()
        self.first = HeConv(num_filters, num_filters, 3, padding=1)
        self.second = HeConv(num_filters, num_filters, 3, padding=1)
        self.second.weight_start = 0.0
        self.apply(he_init)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def _image_sizes(image_size: int, num_blocks: int) -> list[int]:
    """Heights after each halving, the image's own first."""
    check_sizes(image_size=image_size, num_blocks=num_blocks)
    if image_size < 2**num_blocks:
        raise ValueError(
            f"image_size must be at least {2**num_blocks} for {num_blocks} blocks, got {image_size}"
        )
    sizes = [image_size]
    for _ in range(num_blocks):
        sizes.append(sizes[-1] // 2)
    return sizes


class ConvEncoder(nn.Module):
    """Images to features.

    Args:
        num_features: size of the output.
        num_filters: filters of every convolution.
        image_size: height and width of the images.
        num_channels: of the images.
        num_blocks: blocks, each halving the image.

    Raises:
        ValueError: sizes that are not positive, or too many blocks for the image.
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_filters: int = 16,
        image_size: int = 28,
        num_channels: int = 1,
        num_blocks: int = 3,
    ) -> None:
        super().__init__()
        check_sizes(num_features=num_features, num_filters=num_filters, num_channels=num_channels)
        sizes = _image_sizes(image_size, num_blocks)
        blocks: list[nn.Module] = []
        for i in range(num_blocks):
            conv = HeConv(num_filters if i else num_channels, num_filters, 4, stride=2, padding=1)
            blocks += [conv.apply(he_init), ResidualBlock(num_filters)]
        self.blocks = nn.Sequential(*blocks)
        self.linear = CodeLinear(num_filters * sizes[-1] ** 2, num_features).apply(he_init)
        self.to(memory_format=torch.channels_last)  # a third faster on CPUs

    def forward(self, images: Tensor) -> Tensor:
        """Images (..., num_channels, H, W) to features (..., num_features), all >= 0."""
        batch = images.shape[:-3]
        x = self.blocks(images.reshape(-1, *images.shape[-3:]))
        return F.relu(self.linear(F.relu(x).flatten(1))).unflatten(0, batch)


class ConvDecoder(nn.Module):
    """Codes to the parameters of the pixels' distribution (`likelihoods`).

    Args:
        code_size: size of a code.
        num_filters: filters of every convolution.
        image_size: height and width of the images.
        num_channels: of the images.
        initial_output: what every pixel's output starts at, but for the weights.
        num_blocks: blocks, each doubling the image.

    Raises:
        ValueError: sizes that are not positive, or too many blocks for the image.
    """

    def __init__(
        self,
        code_size: int,
        *,
        num_filters: int = 16,
        image_size: int = 28,
        num_channels: int = 1,
        initial_output: float = 0.0,
        num_blocks: int = 3,
    ) -> None:
        super().__init__()
        check_sizes(code_size=code_size, num_filters=num_filters, num_channels=num_channels)
        sizes = _image_sizes(image_size, num_blocks)[::-1]
        self.start = (num_filters, sizes[0], sizes[0])
        self.linear = CodeLinear(code_size, math.prod(self.start)).apply(he_init)
        blocks: list[nn.Module] = []
        for i in range(num_blocks):
            last = i + 1 == num_blocks
            conv = _ConvTranspose(
                num_filters,
                num_channels if last else num_filters,
                4,
                stride=2,
                padding=1,
                output_padding=sizes[i + 1] - 2 * sizes[i],  # 1 where the encoder rounded down
            )
            blocks += [ResidualBlock(num_filters), nn.ReLU(), conv.apply(he_init)]
        self.blocks = nn.Sequential(*blocks)
        nn.init.constant_(blocks[-1].bias, initial_output)
        blocks[-1].bias_start = initial_output
        self.to(memory_format=torch.channels_last)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (..., code_size) to outputs (..., num_channels, H, W)."""
        batch = codes.shape[:-1]
        x = self.linear(codes.reshape(-1, codes.shape[-1])).unflatten(1, self.start)
        return self.blocks(x.contiguous(memory_format=torch.channels_last)).unflatten(0, batch)
