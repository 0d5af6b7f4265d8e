"""The Dynamic Kanerva Machine (Wu, Wayne, Gregor, Lillicrap, NeurIPS 2018)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._state import register_for_loading
from ..memory import FusedKanervaMemory, MemoryState, WriteOutput, standard_normal
from ._common import hyperparameters, replace_first
from ._memory_model import MemoryModel
from .coders import CodeLinear, he_init

WEIGHT_COVS = ("isotropic", "full")

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


register_for_loading(DynamicKanervaBound)


class DynamicKanervaMachine(MemoryModel):
    """A generative model of episodes of images whose memory finds its addresses itself.

    A code ``z = e(x)`` is no random variable. The episode is written code by code at least-squares
    addresses (`ops.adaptive_write`); an image is read at a sample of
    ``q(w) = N((R R' + ridge I)^-1 R z, s^2 I)`` with trainable s, and decoded from ``R'w``.
    Decoding from ``R'w`` alone, the decoder cannot tell the noise of an address from what other
    slots hold: a sampled read carries little more than the address's KL pays for.

    Args:
        memory_size: K, number of slots.
        code_size: C, size of a code z.
        num_filters: filters of every convolution.
        image_size: height and width of the images.
        num_channels: of the images.
        likelihood: of the pixels, ``"bernoulli"`` or ``"gaussian"``.
        noise_std: standard deviation of the observation noise of a write.
        weight_std: standard deviation of the normal prior of an address.
        num_write_iters: solves per code written.
        weight_cov: of q(w). ``"isotropic"``: ``s^2 I``. ``"full"``: ``(R R' / noise_var +
            I / weight_var)^-1``, the exact posterior of an address given its code and the memory's
            mean (Lingle, Coordinate Ascent for the Dynamic Kanerva Machine, 2021, has it with a
            further term for the memory's own covariance, which a read at the mean does not meet).
        linear_path: linear maps beside the convolutions, see `EpisodeCoders`; codes are then in
            units of the pixels' noise. Call `start_linear_path` before training. Gaussian pixels
            only.
        hidden_size: number of features, with ``linear_path`` alone.
        sample_weights: read at a sample of q(w), as a bound must. False: read at its mean, at the
            price of ``|mean|^2 / (2 weight_std^2)`` alone, as the authors' published code does
            unless told otherwise. ``bound`` is then none, but the joint -ln p(x, w|M) at a point,
            without the constant of the address's prior, and far lower.
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

    TYPE = "dynamic_kanerva"
    SETTINGS = ("num_write_iters",)

    def __init__(
        self,
        memory_size: int = 32,
        code_size: int = 100,
        *,
        num_filters: int = 16,
        image_size: int = 28,
        num_channels: int = 1,
        likelihood: str = "bernoulli",
        noise_std: float = 1.0,
        weight_std: float = 1.0,
        num_write_iters: int = 1,
        sample_weights: bool = True,
        weight_cov: str = "isotropic",
        linear_path: bool = False,
        hidden_size: int = 400,
        backend: str = "auto",
    ) -> None:
        config = hyperparameters(DynamicKanervaMachine, locals())
        if weight_cov not in WEIGHT_COVS:
            raise ValueError(f"weight_cov must be one of {WEIGHT_COVS}, got {weight_cov!r}")
        if weight_cov == "full" and not sample_weights:
            raise ValueError('sample_weights must be True with weight_cov="full", got False')
        num_features = hidden_size if linear_path else 2 * code_size
        if not linear_path:
            del config["hidden_size"]
        super().__init__(num_features, config)
        # Features are positive; codes must not be, or all of them would share a direction.
        self.code = CodeLinear(num_features, code_size)
        if linear_path:  # nothing is added to its codes at first
            self.code.weight_start = 0.0
        self.code.apply(he_init)
        self.memory = FusedKanervaMemory(
            memory_size,
            code_size,
            noise_std=noise_std,
            weight_std=weight_std,
            num_write_iters=num_write_iters,
            sample_weights=sample_weights and weight_cov == "isotropic",
            backend=backend,
        )

    def elbo(
        self,
        images: Tensor,
        state: MemoryState | None = None,
        queries: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> DynamicKanervaBound:
        """The terms of the objective by one sample.

        Args:
            images: (B, T, C, H, W), floating point in [0, 1].
            state: read from this memory and write nothing; None: write the episode into the prior
                first.
            queries: (B, Q, C, H, W), Q <= T: corrupted versions of the first Q images of each
                episode, to find the addresses by. Written, and compared with what is read, are
                still the images.
            generator: of the samples, on the images' device; None: PyTorch's own.

        Returns:
            `DynamicKanervaBound`. The paper minimises ``bound + autoencoding`` and the memory's KL.
        """
        codes = self._query(images)
        kl_memory = None
        if state is None:
            written = self.memory.write(codes)
            state, kl_memory = written.state, written.kl_memory
        seen = codes if queries is None else replace_first(codes, self._query(queries))
        values, kl_weights = self._sample_read(seen, state, generator)
        reconstruction = self.likelihood.nll(self._decode(values), images)
        autoencoding = self.likelihood.nll(self._decode(codes), images)
        bound = reconstruction + kl_weights
        return DynamicKanervaBound(bound, reconstruction, kl_weights, kl_memory, autoencoding)

    def write(
        self,
        images: Tensor,
        state: MemoryState | None = None,
        generator: torch.Generator | None = None,
    ) -> WriteOutput:
        """Write an episode, code by code; differentiable. Nothing is sampled.

        Args:
            images: (B, T, C, H, W), floating point in [0, 1].
            state: belief before; the trained prior if None.
            generator: not used; as `KanervaMachine.write` has it.

        Returns:
            `kanerva_ext.WriteOutput`: ``.state`` is what the other methods read from.
        """
        return self.memory.write(self._query(images), state)

    def _sample_read(
        self, codes: Tensor, state: MemoryState, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """R'w (B, T, C) at a sample of q(w), and KL(q(w) || p(w)) (B, T)."""
        if self.config["weight_cov"] == "isotropic":
            read = self.memory.read(codes, state, generator=generator)
            return read.values, read.kl_weights
        memory, var = self.memory, self.memory.weight_std**2
        mean = state.mean
        with torch.autocast(codes.device.type, enabled=False):
            codes = codes.to(mean.dtype)
            eye = torch.eye(mean.shape[-2], dtype=mean.dtype, device=mean.device)
            precision = mean @ mean.mT / memory.noise_var + eye / var
            factor = torch.linalg.cholesky(precision)
            shift = codes @ mean.mT / memory.noise_var
            address = torch.cholesky_solve(shift.mT, factor).mT
            noise = standard_normal(address, generator)
            # Lower factor L of the precision: L'^-1 e has its inverse for a covariance.
            inverse = torch.linalg.solve_triangular(factor, eye.expand_as(precision), upper=False)
            weights = address + noise @ inverse
            log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            trace = inverse.square().sum((-2, -1))
            rest = trace / var - len(eye) + log_det + len(eye) * math.log(var)
            kl_weights = 0.5 * (address.square().sum(-1) / var + rest[..., None])
            return weights @ mean, kl_weights

    def _query(self, images: Tensor) -> Tensor:
        features = self._features(images)
        if self.linear is None:
            return self.code(features)
        features, codes = self._split(features)
        return codes + self.code(features)

    def _start_codes(self, signal_var: Tensor) -> None:
        with torch.no_grad():
            rows = self.memory.prior_mean
            rows.copy_(torch.randn_like(rows) * signal_var.sqrt())
            self.memory.log_prior_var.fill_((1 + signal_var).mean().log())

    def _addresses(self, query: Tensor, state: MemoryState) -> Tensor:
        return self.memory.attractor(query, state, num_steps=1).weights

    def _codes_read(self, query: Tensor, state: MemoryState) -> Tensor:
        return self.memory.attractor(query, state, num_steps=1).values

    def _prior_codes(
        self, state: MemoryState, num_samples: int, generator: torch.Generator | None
    ) -> Tensor:
        return self.memory.generate(state, num_samples, generator=generator)
