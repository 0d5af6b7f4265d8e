"""What turns a key into an address: the features that an episodic memory is linear in."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._checks import check_int
from .._memory_checks import positive

__all__ = ["NoFeatures", "RandomFourier", "RandomReLU", "make_features"]

#: Names that ``features=`` takes, besides a callable.
KINDS = ("auto", "none", "relu", "fourier")


def unit_rows(rows: Tensor) -> Tensor:
    """Rows over their norms, for any finite rows; rows of zeros stay zero.

    Their squares would overflow or vanish where the numbers themselves do not: each row is first
    divided by its largest entry.
    """
    largest = rows.detach().abs().amax(-1, keepdim=True)
    # Where the largest one is so small that 1 over it is not finite, the gradient is not either.
    rows = rows / torch.where(largest > 0, largest, 1)
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=0.5)  # at least 1, or of zeros 0


class Features(nn.Module):
    """Keys (..., key_size) to addresses (..., slots), in the keys' dtype."""

    kind: str

    def __init__(self, key_size: int, slots: int):
        super().__init__()
        self.key_size = check_int("", "key_size", key_size)
        self.slots = check_int("", "slots", slots)
        # Products of these in float64 are the same to rounding whatever the batch, which is what
        # lets a fact be forgotten at the address that it was written at.
        self._wide: dict[str, Tensor] = {}

    def _as(self, name: str, like: Tensor) -> Tensor:
        """A buffer in the dtype of the keys; the copy in float64 is kept."""
        own = getattr(self, name)
        if own.dtype == like.dtype:
            return own
        kept = self._wide.get(name)
        if kept is None or kept.dtype != like.dtype or kept.device != own.device:
            with torch.inference_mode(False):  # kept for calls outside of it
                kept = self._wide[name] = own.to(like.dtype)
        return kept

    def __getstate__(self):
        return {**super().__getstate__(), "_wide": {}}


class NoFeatures(Features):
    """The key itself: as many slots as the key has numbers."""

    kind = "none"

    def forward(self, keys: Tensor) -> Tensor:
        return keys


class RandomReLU(Features):
    """``sqrt(2 / slots) relu(A key)`` with A standard normal: the first-order arc-cosine kernel.

    The squared norm of an address is that of its key on average (Cho and Saul, Kernel Methods for
    Deep Learning, NeurIPS 2009; Rahimi and Recht, NeurIPS 2007, for the random features).

    Args:
        key_size: S.
        slots: K, number of features.
        seed: of the random matrix.
    """

    kind = "relu"

    def __init__(self, key_size: int, slots: int, seed: int = 0):
        super().__init__(key_size, slots)
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(self.slots, self.key_size, generator=generator)
        self.register_buffer("matrix", matrix)

    def forward(self, keys: Tensor) -> Tensor:
        return torch.relu(keys @ self._as("matrix", keys).mT).mul(math.sqrt(2 / self.slots))


class RandomFourier(Features):
    """``sqrt(2 / slots) cos(A key / bandwidth + b)``: the Gaussian (RBF) kernel.

    The inner product of two addresses is ``exp(-|key - key'|^2 / (2 bandwidth^2))`` on average
    (Rahimi and Recht, Random Features for Large-Scale Kernel Machines, NeurIPS 2007).

    Args:
        key_size: S.
        slots: K, number of features.
        seed: of the random matrix and the phases.
        bandwidth: distance at which a key stops being like another. Smaller: less interference
            between facts, less tolerance of paraphrases.
    """

    kind = "fourier"

    def __init__(self, key_size: int, slots: int, seed: int = 0, bandwidth: float = 0.5):
        super().__init__(key_size, slots)
        self.bandwidth = positive("bandwidth", bandwidth)
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(self.slots, self.key_size, generator=generator)
        self.register_buffer("matrix", matrix)
        phase = torch.rand(self.slots, generator=generator)
        self.register_buffer("phase", 2 * math.pi * phase)

    def forward(self, keys: Tensor) -> Tensor:
        angle = keys @ self._as("matrix", keys).mT / self.bandwidth + self._as("phase", keys)
        return torch.cos(angle).mul(math.sqrt(2 / self.slots))


def make_features(
    features: str | Callable[[Tensor], Tensor],
    key_size: int,
    slots: int,
    seed: int,
    bandwidth: float | None,
) -> Callable[[Tensor], Tensor]:
    """The features that a memory's arguments name.

    Raises:
        TypeError, ValueError: no such features, or sizes that do not fit them.
    """
    if not isinstance(features, str):
        if not callable(features):
            raise TypeError(
                f"features must be one of {KINDS} or a callable, got {type(features).__name__}"
            )
        if bandwidth is not None:
            raise ValueError('bandwidth must be None unless features="fourier"')
        return features
    if features not in KINDS:
        raise ValueError(f"features must be one of {KINDS} or a callable, got {features!r}")
    if features == "auto":
        features = "none" if slots == key_size else "relu"
    if bandwidth is not None and features != "fourier":
        raise ValueError('bandwidth must be None unless features="fourier"')
    if features == "none":
        if slots != key_size:
            raise ValueError(
                f'slots must be key_size = {key_size} with features="none", whose addresses are '
                f"the keys, got {slots}"
            )
        return NoFeatures(key_size, slots)
    if features == "relu":
        return RandomReLU(key_size, slots, seed)
    options = {} if bandwidth is None else {"bandwidth": bandwidth}
    return RandomFourier(key_size, slots, seed, **options)
