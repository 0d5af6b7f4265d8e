"""The Kanerva Machine without its memory: a VAE with the same coders and code size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._state import register_for_loading
from ..memory import standard_normal
from ._common import Normal, check_sizes, kl_normal, replace_first, sample_normal
from ._memory_model import EpisodeCoders

__all__ = ["MatchedVAE", "VAEBound"]


class VAEBound(NamedTuple):
    """Terms of the bound, nats per image, each (B, T); ``bound`` is the sum of the others.

    Attributes:
        bound: upper bound on -ln p(x) by one sample: the negative ELBO, lower is better.
        reconstruction: -ln p(x|z).
        kl_z: KL(q(z|x) || N(0, I)).
    """

    bound: Tensor
    reconstruction: Tensor
    kl_z: Tensor


register_for_loading(VAEBound)


class MatchedVAE(EpisodeCoders):
    """A variational autoencoder that matches `KanervaMachine` in all but the memory.

    Same encoder, decoder, head of q(z|x) and code size; p(z) = N(0, I). It sees each image on its
    own: episodes (B, T) are just images.

    Args:
        code_size: C.
        hidden_size: hidden units of the head of q(z|x).
        num_filters: filters of every convolution.
        image_size: height and width of the images.
        num_channels: of the images.
        likelihood: of the pixels, ``"bernoulli"`` or ``"gaussian"``.

    Raises:
        ValueError: sizes that are not positive ints.
    """

    def __init__(
        self,
        code_size: int = 100,
        *,
        hidden_size: int = 200,
        num_filters: int = 16,
        image_size: int = 28,
        num_channels: int = 1,
        likelihood: str = "bernoulli",
    ) -> None:
        check_sizes(code_size=code_size, hidden_size=hidden_size)
        super().__init__(
            2 * code_size,
            code_size,
            num_filters=num_filters,
            image_size=image_size,
            num_channels=num_channels,
            likelihood=likelihood,
        )
        self.config = {
            "code_size": code_size,
            "hidden_size": hidden_size,
            "num_filters": num_filters,
            "image_size": image_size,
            "num_channels": num_channels,
            "likelihood": likelihood,
        }
        self.code = Normal(2 * code_size, hidden_size, code_size)

    def elbo(
        self,
        images: Tensor,
        queries: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> VAEBound:
        """The bound and its terms by one sample.

        Args:
            images: (B, T, C, H, W), floating point in [0, 1].
            queries: (B, Q, C, H, W), Q <= T: corrupted versions of the first Q images of each
                episode, for q(z|.) to see in their place.
            generator: of the sample, on the images' device; None: PyTorch's own.

        Returns:
            `VAEBound`, each term (B, T), nats per image. Minimise ``bound.mean()``.
        """
        features = self._features(images)
        if queries is not None:
            features = replace_first(features, self._features(queries))
        mean, log_std = self.code(features)
        outputs = self.decoder(sample_normal(mean, log_std, generator))
        reconstruction = self.likelihood.nll(outputs, images)
        kl_z = kl_normal(mean, log_std)
        return VAEBound(reconstruction + kl_z, reconstruction, kl_z)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Mean images (B, T, C, H, W), from the mean of q(z|x)."""
        return self._pictures(self._mean_codes(images))

    @torch.no_grad()
    def denoise(self, images: Tensor, num_steps: int = 3, noise: float = 0.0) -> Tensor:
        """`KanervaMachine.denoise` without a memory to read: (num_steps, B, T, C, H, W)."""
        return self._read_again(self._mean_codes, images, num_steps, noise)

    @torch.no_grad()
    def generate(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Mean images (num_samples, C, H, W) of codes drawn from the prior."""
        check_sizes(num_samples=num_samples)
        weight = self.decoder.linear.weight
        codes = weight.new_empty(num_samples, self.config["code_size"])
        return self._pictures(standard_normal(codes, generator))

    def _mean_codes(self, images: Tensor) -> Tensor:
        return self.code(self._features(images))[0]
