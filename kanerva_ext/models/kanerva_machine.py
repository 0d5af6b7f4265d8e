"""The Kanerva Machine (Wu, Wayne, Graves, Lillicrap, ICLR 2018) on `FusedKanervaMemory`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._state import register_for_loading
from ..memory import FusedKanervaMemory, MemoryState, WriteOutput
from ._common import (
    CodeNormal,
    Normal,
    check_sizes,
    hyperparameters,
    kl_normal,
    replace_first,
    sample_normal,
    standard_normal,
)
from ._memory_model import MemoryModel

__all__ = ["KanervaBound", "KanervaMachine"]


class KanervaBound(NamedTuple):
    """Terms of the conditional bound, nats per image; ``bound`` is the sum of the next three.

    Attributes:
        bound: (B, T), upper bound on -ln p(x|M) by one sample: the negative ELBO of the paper's
            equation for ln p(X|M), lower is better. M was written from the same episode, and what
            M holds is not charged: this is not a bound on -ln p(X), and is below a VAE's for that
            reason too.
        reconstruction: (B, T), -ln p(x|z).
        kl_y: (B, T), KL(q(y|x) || N(0, I)): the price of the address.
        kl_z: (B, T), KL(q(z|x,y,M) || N(w'R, code_std^2 I)): the price of what M does not hold.
        kl_memory: (B,), KL(p(M|episode) || p(M)), nats per *episode*: the price of the memory, in
            no other term; None when the state was given.
    """

    bound: Tensor
    reconstruction: Tensor
    kl_y: Tensor
    kl_z: Tensor
    kl_memory: Tensor | None


register_for_loading(KanervaBound)


class KanervaMachine(MemoryModel):
    """A generative model of episodes of images, with a Bayesian memory as its prior.

    Generative: ``y ~ N(0, I)``, key ``b = f(y)``, address ``w = A b`` (rows of A of unit norm),
    ``z ~ N(w'M, code_std^2 I)``, image ~ likelihood(decoder(z)).

    Inference: q(y|x) from the encoder's features with noise added in training; the episode is
    written by one exact Bayesian update of the memory at codes sampled from q(z|x); then, with a
    fresh sample of y and the memory's mean R, q(z|x,y,M) from the features and w'R. The sample of y
    must be fresh: at the very address that was written, reading would be free of charge, and the
    bound would not be one.

    Where the paper is silent, or this differs: sizes of y and of the hidden layers; q(z|x,y,M) is
    parametrised by its distance from w'R; an episode is written at the mean of q(y|x) (any
    function of the episode is a valid memory under a bound on p(X|M), and the sample's noise costs
    several nats early in training; ``sample_write_address=True`` samples as the paper does).

    Args:
        memory_size: K, number of slots.
        code_size: C, size of a code z.
        key_size: S, size of a key b.
        latent_size: size of y.
        hidden_size: hidden units of f and of the heads of q.
        num_filters: filters of every convolution.
        image_size: height and width of the images.
        num_channels: of the images.
        likelihood: of the pixels, ``"bernoulli"`` or ``"gaussian"``.
        noise_std: standard deviation of the observation noise of a write.
        code_std: standard deviation of p(z|y,M), fixed.
        encoder_noise_std: standard deviation of the noise added to the features that q(y|x) sees,
            in training alone.
        min_latent_std: q(y|x) has that standard deviation at least, so that reads must be right
            as far around an address. 0: as small as pays.
        sample_write_address: write at a sample of q(y|x), not at its mean.
        linear_path: linear maps beside the convolutions, see `EpisodeCoders`: codes are in units
            of the pixels' noise, and what is written is the code of the linear path, not a sample.
            Call `start_linear_path` before training. Gaussian pixels only.
        backend: of the memory's operators, see `ops.bayes_write`.

    Raises:
        ValueError: sizes or standard deviations that are not positive.

    >>> import torch
    >>> from kanerva_ext.models import KanervaMachine
    >>> model = KanervaMachine(memory_size=8, code_size=16)
    >>> images = (torch.rand(2, 5, 1, 28, 28) < 0.1).float()  # 2 episodes of 5 images
    >>> model.elbo(images).bound.shape
    torch.Size([2, 5])
    >>> state = model.write(images).state
    >>> model.denoise(images, state, num_steps=3).shape
    torch.Size([3, 2, 5, 1, 28, 28])
    >>> model.generate(state, num_samples=4).shape
    torch.Size([2, 4, 1, 28, 28])
    """

    TYPE = "kanerva"
    SETTINGS = ("code_std", "encoder_noise_std", "min_latent_std")

    def __init__(
        self,
        memory_size: int = 32,
        code_size: int = 100,
        *,
        key_size: int = 50,
        latent_size: int = 20,
        hidden_size: int = 200,
        num_filters: int = 16,
        image_size: int = 28,
        num_channels: int = 1,
        likelihood: str = "bernoulli",
        noise_std: float = 1.0,
        code_std: float = 1.0,
        encoder_noise_std: float = 0.2,
        min_latent_std: float = 0.0,
        sample_write_address: bool = False,
        linear_path: bool = False,
        backend: str = "auto",
    ) -> None:
        config = hyperparameters(KanervaMachine, locals())
        check_sizes(code_size=code_size, latent_size=latent_size, hidden_size=hidden_size)
        if not 0 < code_std < math.inf:
            raise ValueError(f"code_std must be positive and finite, got {code_std}")
        if not 0 <= encoder_noise_std < math.inf:
            raise ValueError(
                f"encoder_noise_std must be at least 0 and finite, got {encoder_noise_std}"
            )
        if not 0 <= min_latent_std < math.inf:
            raise ValueError(f"min_latent_std must be at least 0 and finite, got {min_latent_std}")
        num_features = hidden_size if linear_path else 2 * code_size
        super().__init__(num_features, config)
        self.latent = Normal(num_features, hidden_size, latent_size)
        if linear_path:
            self.read_code = CodeNormal(num_features, hidden_size, code_size, expects=True)
        else:
            self.write_code = Normal(num_features, hidden_size, code_size)
            self.read_code = Normal(num_features + code_size, hidden_size, code_size)
        self.memory = FusedKanervaMemory(
            memory_size,
            code_size,
            addressing="key",
            key_size=key_size,
            noise_std=noise_std,
            backend=backend,
        )
        self.key = nn.Sequential(
            nn.Linear(latent_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, key_size)
        )

    def elbo(
        self,
        images: Tensor,
        state: MemoryState | None = None,
        queries: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> KanervaBound:
        """The bound and its terms by one sample.

        Args:
            images: (B, T, C, H, W), floating point in [0, 1].
            state: read from this memory and write nothing; None: write the episode into the prior
                first.
            queries: (B, Q, C, H, W), Q <= T: corrupted versions of the first Q images of each
                episode, for q(y|.) and q(z|.,y,M) to see in their place. Written, and compared with
                the reconstruction, are still the images.
            generator: of the samples, on the images' device; None: PyTorch's own.

        Returns:
            `KanervaBound`. Minimise ``bound.mean()``.
        """
        features = self._features(images)
        latent = self._latent(features, generator)
        kl_memory = None
        if state is None:
            state, _, _, kl_memory, _ = self._write(features, latent, None, generator)
        if queries is not None:
            features = replace_first(features, self._features(queries))
            latent = self._latent(features, generator)
        read = self._read(sample_normal(*latent, generator), state)
        mean, log_std = self._code(features, read)
        outputs = self._decode(sample_normal(mean, log_std, generator))
        reconstruction = self.likelihood.nll(outputs, images)
        kl_y = kl_normal(*latent)
        kl_z = kl_normal(mean, log_std, read, self.config["code_std"] ** 2)
        bound = reconstruction + kl_y + kl_z
        return KanervaBound(bound, reconstruction, kl_y, kl_z, kl_memory)

    def write(
        self,
        images: Tensor,
        state: MemoryState | None = None,
        generator: torch.Generator | None = None,
    ) -> WriteOutput:
        """Write an episode by one exact update; differentiable.

        Args:
            images: (B, T, C, H, W), floating point in [0, 1].
            state: belief before; the trained prior if None.
            generator: of the samples, on the images' device; None: PyTorch's own.

        Returns:
            `kanerva_ext.WriteOutput`: ``.state`` is what the other methods read from.
        """
        features = self._features(images)
        return self._write(features, self._latent(features, generator), state, generator)

    def _query(self, images: Tensor) -> Tensor:
        return self._features(images)

    def _addresses(self, query: Tensor, state: MemoryState) -> Tensor:
        return self.memory.address(self.key(self.latent(self._own_features(query))[0]))

    def _codes_read(self, query: Tensor, state: MemoryState) -> Tensor:
        latent = self.latent(self._own_features(query))[0]
        return self._code(query, self._read(latent, state))[0]

    def _prior_codes(
        self, state: MemoryState, num_samples: int, generator: torch.Generator | None
    ) -> Tensor:
        mean = state.mean
        shape = (*mean.shape[:-2], num_samples, self.config["latent_size"])
        return self._read(standard_normal(mean.new_empty(shape), generator), state)

    def _own_features(self, features: Tensor) -> Tensor:
        """Without the codes of the linear path."""
        return features if self.linear is None else self._split(features)[0]

    def _latent(
        self, features: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-std of q(y|x)."""
        features = self._own_features(features)
        if self.training:
            noise = standard_normal(features, generator)
            features = features + self.config["encoder_noise_std"] * noise
        mean, log_std = self.latent(features)
        if floor := self.config["min_latent_std"]:
            log_std = 0.5 * ((2 * log_std).exp() + floor**2).log()
        return mean, log_std

    def _written_code(self, features: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.linear is not None:
            return self._split(features)[1]
        return sample_normal(*self.write_code(features), generator)

    def _start_codes(self, signal_var: Tensor) -> None:
        with torch.no_grad():
            self.memory.prior_mean.zero_()
            self.memory.log_prior_var.fill_((1 + signal_var).mean().log())
        self.read_code.start(torch.full_like(signal_var, self.config["code_std"] ** 2))

    def _write(
        self,
        features: Tensor,
        latent: tuple[Tensor, Tensor],
        state: MemoryState | None,
        generator: torch.Generator | None,
    ) -> WriteOutput:
        sample = self.config["sample_write_address"]
        y = sample_normal(*latent, generator) if sample else latent[0]
        values = self._written_code(features, generator)
        return self.memory.write(values, state, keys=self.key(y))

    def _read(self, y: Tensor, state: MemoryState) -> Tensor:
        """w'R at the address of y."""
        return self.memory.read(self.key(y), state).values

    def _code(self, features: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-std of q(z|x,y,M)."""
        if self.linear is not None:
            distance, log_std = self.read_code(*self._split(features), read)
        else:
            distance, log_std = self.read_code(torch.cat([features, read], dim=-1))
        return read + distance, log_std
