"""Convolutional coders shared by the models.

Three blocks, each a 4 x 4 convolution of stride 2 and one basic residual block, 16 filters, as in
The Kanerva Machine (Wu, Wayne, Graves, Lillicrap, ICLR 2018, section 4). The decoder is the mirror
image with transposed convolutions.

Where the paper is silent: padding 1; activation ReLU, before each convolution of a residual block
(pre-activation); no normalisation, for the statistics of a batch would carry information between
the images of an episode; the second convolution of a residual block starts at zero, so that the
block starts as the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvDecoder", "ConvEncoder", "ResidualBlock"]


INITIAL_INK = 0.08  # share of ink of the images that the decoder starts from: Omniglot's


def _he_init(module: nn.Module) -> None:
    """Keeps the scale of activations through the layers; PyTorch's own start halves it at each."""
    if isinstance(module, nn.Linear):
        fan_in = module.in_features
    elif isinstance(module, nn.Conv2d):
        fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
    elif isinstance(module, nn.ConvTranspose2d):  # of stride s: a pixel sees 1/s^2 of the kernel
        fan_in = module.in_channels * math.prod(module.kernel_size) // math.prod(module.stride)
    else:
        return
    nn.init.normal_(module.weight, std=math.sqrt(2 / fan_in))
    nn.init.zeros_(module.bias)


class ResidualBlock(nn.Module):
    """Basic residual block without bottleneck: (N, F, H, W) to (N, F, H, W)."""

    def __init__(self, num_filters: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_filters, num_filters, 3, padding=1)
        self.second = nn.Conv2d(num_filters, num_filters, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def _sizes(image_size: int, num_blocks: int) -> list[int]:
    """Heights after each halving, the image's own first."""
    sizes = [image_size]
    for _ in range(num_blocks):
        sizes.append((sizes[-1] - 2) // 2 + 1)
    if sizes[-1] < 1:
        raise ValueError(
            f"image_size must be at least {2**num_blocks} for {num_blocks} blocks, got {image_size}"
        )
    return sizes


class ConvEncoder(nn.Module):
    """Images to features.

    Args:
        num_features: size of the output, the last linear layer's.
        num_filters: filters of every convolution.
        image_size: height and width of the images, at least 8.
        num_blocks: blocks, each halving the image.
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_filters: int = 16,
        image_size: int = 28,
        num_blocks: int = 3,
    ) -> None:
        super().__init__()
        sizes = _sizes(image_size, num_blocks)
        blocks: list[nn.Module] = []
        for i in range(num_blocks):
            blocks.append(nn.Conv2d(num_filters if i else 1, num_filters, 4, stride=2, padding=1))
            blocks.append(ResidualBlock(num_filters))
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(num_filters * sizes[-1] ** 2, num_features)
        self.apply(_he_init)
        for block in blocks[1::2]: nn.init.zeros_(block.second.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Images (..., 1, H, W), values in [0, 1], to features (..., num_features)."""
        batch = images.shape[:-3]
        x = self.blocks(images.reshape(-1, *images.shape[-3:]))
        return self.linear(F.relu(x).flatten(1)).unflatten(0, batch)


class ConvDecoder(nn.Module):
    """Codes to the logits of Bernoulli pixels.

    Args:
        code_size: size of a code.
        num_filters: filters of every convolution.
        image_size: height and width of the images, at least 8.
        num_blocks: blocks, each doubling the image.
    """

    def __init__(
        self,
        code_size: int,
        *,
        num_filters: int = 16,
        image_size: int = 28,
        num_blocks: int = 3,
    ) -> None:
        super().__init__()
        sizes = _sizes(image_size, num_blocks)[::-1]
        self.shape = (num_filters, sizes[0], sizes[0])
        self.linear = nn.Linear(code_size, num_filters * sizes[0] ** 2)
        blocks: list[nn.Module] = []
        for i in range(num_blocks):
            blocks.append(ResidualBlock(num_filters))
            blocks.append(nn.ReLU())
            blocks.append(
                nn.ConvTranspose2d(
                    num_filters,
                    num_filters if i + 1 < num_blocks else 1,
                    4,
                    stride=2,
                    padding=1,
                    output_padding=sizes[i + 1] - 2 * sizes[i],
                )
            )
        self.blocks = nn.Sequential(*blocks)
        self.apply(_he_init)
        for block in blocks[0::3]: nn.init.zeros_(block.second.weight)
        nn.init.constant_(blocks[-1].bias, math.log(INITIAL_INK / (1 - INITIAL_INK)))

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (..., code_size) to logits (..., 1, H, W)."""
        batch = codes.shape[:-1]
        x = self.linear(codes.reshape(-1, codes.shape[-1])).unflatten(1, self.shape)
        return self.blocks(x).unflatten(0, batch)
