"""The Kanerva Machine without its memory: a VAE with the same coders and code size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._state import register_for_loading
from ..memory import standard_normal
from ._common import (
    CodeNormal,
    Normal,
    check_sizes,
    hyperparameters,
    kl_normal,
    replace_first,
    sample_normal,
)
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
        linear_path: linear maps beside the convolutions, see `EpisodeCoders`. Codes are then in
            units of the pixels' noise, and p(z) = N(0, diag(v)) with trainable v; where the maps
            start and the convolutions add nothing yet, the bound is the exact likelihood of
            probabilistic PCA. Call `start_linear_path` before training. Gaussian pixels only.

    Raises:
        ValueError: sizes that are not positive ints.
    """

    TYPE = "vae"

    def __init__(
        self,
        code_size: int = 100,
        *,
        hidden_size: int = 200,
        num_filters: int = 16,
        image_size: int = 28,
        num_channels: int = 1,
        likelihood: str = "bernoulli",
        linear_path: bool = False,
    ) -> None:
        config = hyperparameters(MatchedVAE, locals())
        check_sizes(code_size=code_size, hidden_size=hidden_size)
        num_features = hidden_size if linear_path else 2 * code_size
        super().__init__(num_features, config)
        if linear_path:
            self.code = CodeNormal(num_features, hidden_size, code_size, expects=False)
            self.log_prior_var = nn.Parameter(torch.empty(code_size))
            self.reset_parameters()
        else:
            self.code = Normal(num_features, hidden_size, code_size)

    def reset_parameters(self) -> None:
        """The prior's own; every module in the model has its own reset."""
        if self.linear is not None:
            nn.init.zeros_(self.log_prior_var)

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
        mean, log_std = self._posterior(features)
        outputs = self._decode(sample_normal(mean, log_std, generator))
        reconstruction = self.likelihood.nll(outputs, images)
        prior_var = 1.0 if self.linear is None else self.log_prior_var.exp()
        kl_z = kl_normal(mean, log_std, 0.0, prior_var)
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
        weight = next(self.code.parameters())
        codes = standard_normal(weight.new_empty(num_samples, self.config["code_size"]), generator)
        if self.linear is not None:
            codes = codes * (0.5 * self.log_prior_var).exp()
        return self._pictures(codes)

    def _mean_codes(self, images: Tensor) -> Tensor:
        return self._posterior(self._features(images))[0]

    def _posterior(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-std of q(z|x)."""
        return self.code(*((features,) if self.linear is None else self._split(features)))

    def _start_codes(self, signal_var: Tensor) -> None:
        with torch.no_grad():
            self.log_prior_var.copy_(signal_var.log())
        self.code.start(signal_var)
