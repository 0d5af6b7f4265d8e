"""The Dynamic Kanerva Machine (Wu, Wayne, Gregor, Lillicrap, NeurIPS 2018)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..memory import FusedKanervaMemory, MemoryState, WriteOutput
from ._common import (
    bernoulli_nll,
    check_denoising,
    check_images,
    check_sizes,
    next_query,
    replace_first,
)
from .coders import ConvDecoder, ConvEncoder

__all__ = ["DynamicKanervaBound", "DynamicKanervaMachine"]


class DynamicKanervaBound(NamedTuple):
    """Terms of the objective, nats per image; ``bound`` is the sum of the next two.

    Attributes:
        bound: (B, T), upper bound on -ln p(x|M) by one sample, lower is better. M was written from
            the same episode, and what M holds is not charged, as in `KanervaBound`.
        reconstruction: (B, T), -ln p(x|w,M): the decoder's at what is read at a sample of q(w).
        kl_weights: (B, T), KL(q(w) || N(0, weight_std^2 I)): the price of the address.
        kl_memory: (B,), KL(p(M|episode) || p(M)), nats per *episode*; None when the state was
            given.
        autoencoding: (B, T), -ln p(x|e(x)): the decoder's at the code itself, without the memory.
            No part of the bound; the paper trains on it too, so that codes can be decoded.
    """

    bound: Tensor
    reconstruction: Tensor
    kl_weights: Tensor
    kl_memory: Tensor | None
    autoencoding: Tensor


class DynamicKanervaMachine(nn.Module):
    """A generative model of episodes of images whose memory finds its addresses itself.

    A code ``z = e(x)`` is no random variable. The episode is written code by code at least-squares
    addresses (`ops.adaptive_write`); an image is read at a sample of
    ``q(w) = N((R R' + ridge I)^-1 R z, s^2 I)`` with trainable s, and decoded from ``R'w``.

    Args:
        memory_size: K, number of slots.
        code_size: C, size of a code z.
        num_filters: filters of every convolution.
        image_size: height and width of the images.
        noise_std: standard deviation of the observation noise of a write.
        weight_std: standard deviation of the normal prior of an address.
        num_write_iters: solves per code written.
        backend: of the memory's operators, see `ops.bayes_write`.

    Raises:
        ValueError: sizes or standard deviations that are not positive.

    >>> import torch
    >>> from kanerva_ext.models import DynamicKanervaMachine
    >>> model = DynamicKanervaMachine(memory_size=8, code_size=16)
    >>> images = (torch.rand(2, 5, 1, 28, 28) < 0.1).float()  # 2 episodes of 5 images
    >>> model.elbo(images).bound.shape
    torch.Size([2, 5])
    >>> state = model.write(images).state
    >>> model.denoise(images, state, num_steps=3).shape
    torch.Size([3, 2, 5, 1, 28, 28])
    >>> model.generate(state, num_samples=4).shape
    torch.Size([2, 4, 1, 28, 28])
    """

    def __init__(
        self,
        memory_size: int = 32,
        code_size: int = 100,
        *,
        num_filters: int = 16,
        image_size: int = 28,
        noise_std: float = 1.0,
        weight_std: float = 1.0,
        num_write_iters: int = 1,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_sizes(code_size=code_size)
        self.config = {
            "memory_size": memory_size,
            "code_size": code_size,
            "num_filters": num_filters,
            "image_size": image_size,
            "noise_std": noise_std,
            "weight_std": weight_std,
            "num_write_iters": num_write_iters,
        }
        coder = {"num_filters": num_filters, "image_size": image_size}
        self.encoder = ConvEncoder(code_size, **coder)
        self.decoder = ConvDecoder(code_size, **coder)
        self.memory = FusedKanervaMemory(
            memory_size,
            code_size,
            noise_std=noise_std,
            weight_std=weight_std,
            num_write_iters=num_write_iters,
            sample_weights=True,
            backend=backend,
        )

    def forward(
        self,
        images: Tensor,
        state: MemoryState | None = None,
        queries: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> DynamicKanervaBound:
        """`elbo`, so that wrappers such as DistributedDataParallel can be called."""
        return self.elbo(images, state, queries, generator)

    def elbo(
        self,
        images: Tensor,
        state: MemoryState | None = None,
        queries: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> DynamicKanervaBound:
        """The terms of the objective by one sample.

        Args:
            images: (B, T, 1, H, W), floating point in [0, 1].
            state: read from this memory and write nothing; None: write the episode into the prior
                first.
            queries: (B, Q, 1, H, W), Q <= T: corrupted versions of the first Q images of each
                episode, to find the addresses by. Written, and compared with what is read, are
                still the images.
            generator: of the samples, on the images' device; None: PyTorch's own.

        Returns:
            `DynamicKanervaBound`. The paper minimises ``bound + autoencoding`` and the memory's KL.
        """
        codes = self._codes(images)
        kl_memory = None
        if state is None:
            written = self.memory.write(codes)
            state, kl_memory = written.state, written.kl_memory
        seen = codes if queries is None else replace_first(codes, self._codes(queries))
        read = self.memory.read(seen, state, generator=generator)
        reconstruction = bernoulli_nll(self.decoder(read.values), images)
        autoencoding = bernoulli_nll(self.decoder(codes), images)
        bound = reconstruction + read.kl_weights
        return DynamicKanervaBound(bound, reconstruction, read.kl_weights, kl_memory, autoencoding)

    def write(
        self,
        images: Tensor,
        state: MemoryState | None = None,
        generator: torch.Generator | None = None,
    ) -> WriteOutput:
        """Write an episode, code by code; differentiable. Nothing is sampled.

        Args:
            images: (B, T, 1, H, W), floating point in [0, 1].
            state: belief before; the trained prior if None.
            generator: not used; as `KanervaMachine.write` has it.

        Returns:
            `kanerva_ext.WriteOutput`: ``.state`` is what the other methods read from.
        """
        return self.memory.write(self._codes(images), state)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, state: MemoryState | None = None) -> Tensor:
        """Probabilities of ink (B, T, 1, H, W) at the means of q(w).

        Args:
            images: (B, T, 1, H, W), floating point in [0, 1].
            state: memory to read from; None: write the episode first.
        """
        if state is None:
            state = self.write(images).state
        return self.denoise(images, state, num_steps=1)[0]

    @torch.no_grad()
    def denoise(
        self, images: Tensor, state: MemoryState, num_steps: int = 3, noise: float = 0.0
    ) -> Tensor:
        """Iterative reading: what is read and decoded makes the next query.

        Nothing is sampled and nothing is written; the memory stays as it is. Without ``noise`` it
        is `FusedKanervaMemory.attractor` with decoding and encoding between the steps.

        Args:
            images: (B, T, 1, H, W), floating point in [0, 1]; corrupted or partial queries.
            state: memory to read from.
            num_steps: reads, at least 1.
            noise: as `KanervaMachine.denoise` has it.

        Returns:
            (num_steps, B, T, 1, H, W), probabilities of ink after each read.

        Raises:
            ValueError: a noise outside [0, 1), or a number of steps that is not positive.
        """
        check_denoising(num_steps, noise)
        steps: list[Tensor] = []

        def see(read: Tensor) -> Tensor:
            steps.append(self.decoder(read).sigmoid())
            return self._codes(next_query(steps[-1], images, noise))

        self.memory.attractor(self._codes(images), state, num_steps, see)
        return torch.stack(steps)

    @torch.no_grad()
    def generate(self, state: MemoryState, num_samples: int, num_steps: int = 0) -> Tensor:
        """One-shot generation: new images in the manner of what the memory holds.

        Args:
            state: memory to generate from.
            num_samples: images per memory.
            num_steps: rounds of `denoise` that follow.

        Returns:
            (B, num_samples, 1, H, W), probabilities of ink at R'w, for w ~ N(0, weight_std^2 I).
        """
        check_sizes(num_samples=num_samples)
        images = self.decoder(self.memory.generate(state, num_samples)).sigmoid()
        return self.denoise(images, state, num_steps)[-1] if num_steps else images

    def _codes(self, images: Tensor) -> Tensor:
        check_images(images, self.config["image_size"])
        return self.encoder(images)
