"""Episodes: batches of random images for training, and partitions of a set for evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .augment import random_affine

__all__ = ["PIXELS", "EpisodeSampler", "split_episodes"]

#: What ``pixels`` may be, see `EpisodeSampler`.
PIXELS = ("as_is", "sample", "threshold", "dequantize")

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# 256 float32 levels are 2^-16 apart at most, so that no level plus noise rounds up to the next one.
_NOISE_STEPS = 2**16


def _check_images(images: Tensor, labels: Tensor | None, pixels: str) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    if images.dtype not in (torch.bool, torch.uint8, *_FLOATS):
        raise TypeError(f"images must be bool, uint8 or floating point, got {images.dtype}")
    if images.ndim not in (3, 4):
        raise ValueError(
            f"images must have shape (N, H, W) or (N, C, H, W), got {tuple(images.shape)}"
        )
    if labels is not None and not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
    if labels is not None and tuple(labels.shape) != (len(images),):
        raise ValueError(f"labels must have shape ({len(images)},), got {tuple(labels.shape)}")
    if pixels not in PIXELS:
        raise ValueError(f"pixels must be one of {', '.join(map(repr, PIXELS))}, got {pixels!r}")
    if pixels == "dequantize" and images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 with pixels='dequantize', got {images.dtype}")
    if images.is_floating_point() and images.numel():
        low, high = (value.item() for value in images.aminmax())
        if not (low >= 0 and high <= 1):  # so that NaN is refused too
            raise ValueError(f"images must be in [0, 1], got values from {low} to {high}")


def _is_binary(images: Tensor, pixels: str) -> bool:
    if images.dtype == torch.bool or pixels in ("sample", "threshold"):
        return True
    ink = 255 if images.dtype == torch.uint8 else 1
    return pixels == "as_is" and bool(((images == 0) | (images == ink)).all())


def _convert(images: Tensor, pixels: str, generator: torch.Generator | None) -> Tensor:
    """(B, T, H, W) or (B, T, C, H, W) checked images to (B, T, C, H, W) float32 in [0, 1]."""
    if images.ndim == 4:
        images = images.unsqueeze(2)
    levels = images.to(torch.float32)
    if pixels == "dequantize":
        noise = torch.empty_like(levels).random_(0, _NOISE_STEPS, generator=generator)
        return noise.mul_(1 / _NOISE_STEPS).add_(levels).mul_(1 / 256)
    if images.dtype == torch.uint8:
        levels = levels / 255
    if pixels == "sample" and images.dtype != torch.bool:
        return (torch.rand(levels.shape, generator=generator) < levels).to(torch.float32)
    if pixels == "threshold":
        return (levels > 0.5).to(torch.float32)
    return levels


class EpisodeSampler:
    """Endless batches of random episodes; no image is twice in an episode.

    Args:
        images: (N, H, W) or (N, C, H, W), on the CPU. Bool: True is ink, 1. Uint8: levels, scaled
            by 1/255 (so that 1 is nearly black, not ink). Floating point: as it is, in [0, 1].
        labels: (N,) integer classes; needed for ``num_classes`` alone.
        episode_length: T, images in an episode.
        batch_size: B, episodes in a batch.
        num_classes: classes in an episode, drawn anew for each; None: any (the paper's training: T
            random images, labels ignored).
        augment: strength of `random_affine`, applied to every image anew, after ``pixels``; 0: as
            they are. For binary images of one channel alone: bool ones, ``"sample"``,
            ``"threshold"``, or others that hold nothing but no and full ink.
        pixels: what becomes of the levels, every time an image is drawn.

            - ``"as_is"``: nothing.
            - ``"sample"``: each pixel is 1 with probability its level, else 0 (the dynamic
              binarisation of Burda, Grosse, Salakhutdinov 2016).
            - ``"threshold"``: 1 where the level is above 0.5, else 0.
            - ``"dequantize"``: (0..255 + noise uniform in [0, 1)) / 256, of uint8 images alone. If
              p is a density of such images, bits per dimension of the levels are at most
              8 - log2(p) / (C H W) on average.

            Bool images stay what they are with the first three.
        generator: a CPU generator that every random choice is made with; None: PyTorch's own.

    Attributes:
        generator: the one above. It may be seeded anew or replaced between two batches: a batch is
            drawn when it is asked for, not before, and depends on nothing else that changes. So a
            loop that seeds it by the number of the step sees the same batches when it resumes.

    Iterating gives float32 tensors (B, T, C, H, W), values in [0, 1], without end; C is 1 for
    images (N, H, W).

    Raises:
        TypeError: images or labels of another type or dtype.
        ValueError: shapes that do not fit, values outside [0, 1], fewer images than an episode
            needs, or ``augment`` of images that are not binary or have more channels.

    >>> images = torch.arange(6 * 4, dtype=torch.uint8).view(6, 2, 2)
    >>> sampler = EpisodeSampler(images, episode_length=3, batch_size=2, pixels="dequantize")
    >>> next(iter(sampler)).shape
    torch.Size([2, 3, 1, 2, 2])
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        episode_length: int = 32,
        batch_size: int = 16,
        num_classes: int | None = None,
        augment: float = 0.0,
        pixels: str = "as_is",
        generator: torch.Generator | None = None,
    ) -> None:
        _check_images(images, labels, pixels)
        for name, value in (("episode_length", episode_length), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= augment <= 1:
            raise ValueError(f"augment must be in [0, 1], got {augment}")
        if augment and images.ndim == 4 and images.shape[1] != 1:
            raise ValueError(
                f"augment must be 0 for images of more than one channel, got {augment} "
                f"and {images.shape[1]} channels"
            )
        if augment and not _is_binary(images, pixels):
            raise ValueError(
                f"augment must be 0 for images that are not binary, got {augment} and {pixels=}"
            )
        if len(images) < episode_length:
            raise ValueError(
                f"episode_length must be at most the number of images, {len(images)}, "
                f"got {episode_length}"
            )
        self.images = images
        self.episode_length = episode_length
        self.batch_size = batch_size
        self.num_classes = num_classes
        self.augment = augment
        self.pixels = pixels
        self.generator = generator
        self._rows_of_class: list[Tensor] = []
        if num_classes is not None:
            if labels is None:
                raise ValueError("labels must be given with num_classes, got None")
            classes = labels.unique()
            self._rows_of_class = [torch.nonzero(labels == c).flatten() for c in classes]
            if not 1 <= num_classes <= len(classes):
                raise ValueError(f"num_classes must be in [1, {len(classes)}], got {num_classes}")
            fewest = sum(sorted(map(len, self._rows_of_class))[:num_classes])
            if fewest < episode_length:
                raise ValueError(
                    f"episode_length must be at most the images of any {num_classes} classes, "
                    f"{fewest}, got {episode_length}"
                )

    def sample_rows(self) -> Tensor:
        """(B, T) int64, the rows of ``images`` that the next batch is made of."""
        if self.num_classes is None:
            noise = torch.rand(self.batch_size, len(self.images), generator=self.generator)
            return noise.topk(self.episode_length, dim=1).indices
        episodes = []
        for _ in range(self.batch_size):
            chosen = torch.randperm(len(self._rows_of_class), generator=self.generator)
            pool = torch.cat([self._rows_of_class[c] for c in chosen[: self.num_classes].tolist()])
            order = torch.randperm(len(pool), generator=self.generator)
            episodes.append(pool[order[: self.episode_length]])
        return torch.stack(episodes)

    def sample(self) -> Tensor:
        """One batch, (B, T, C, H, W) float32."""
        batch = _convert(self.images[self.sample_rows()], self.pixels, self.generator)
        return random_affine(batch, self.augment, self.generator) if self.augment else batch

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield self.sample()


def split_episodes(
    images: Tensor,
    *,
    episode_length: int = 32,
    pixels: str = "as_is",
    generator: torch.Generator | None = None,
) -> Tensor:
    """A random partition into episodes, for evaluation: every image once, the remainder dropped.

    Args:
        images: (N, H, W) or (N, C, H, W), dtypes as `EpisodeSampler`.
        episode_length: T.
        pixels: as `EpisodeSampler`.
        generator: a CPU generator, for a repeatable partition and noise; None: PyTorch's own.

    Returns:
        (N // T, T, C, H, W) float32, values in [0, 1]; C is 1 for images (N, H, W).

    Raises:
        TypeError: images of another type or dtype.
        ValueError: images of another rank, values outside [0, 1], or fewer than one episode of
            them.
    """
    _check_images(images, None, pixels)
    num_episodes = len(images) // episode_length if episode_length > 0 else 0
    if num_episodes < 1:
        raise ValueError(
            f"episode_length must be in [1, {len(images)}], the number of images, "
            f"got {episode_length}"
        )
    order = torch.randperm(len(images), generator=generator)[: num_episodes * episode_length]
    return _convert(images[order.view(num_episodes, episode_length)], pixels, generator)
