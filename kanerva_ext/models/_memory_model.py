"""What the Kanerva Machine and the Dynamic Kanerva Machine have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._settings import SavedSettings
from ..memory import MemoryState
from ._common import check_denoising, check_images, check_sizes, next_query
from ._pretrained import Pretrained
from .coders import CodeLinear, ConvDecoder, ConvEncoder, HeConv, he_init
from .likelihoods import BernoulliPixels, GaussianPixels, make_likelihood
from .linear_path import LinearPath, PrincipalComponents, principal_components, squash

__all__ = ["EpisodeCoders", "MemoryModel"]


class LogScale(nn.Module):
    """What the pixels' standard deviation is multiplied by, from the picture that is decoded.

    A picture in blocks of ``BLOCK`` x ``BLOCK`` pixels: of each block the means of the channels,
    the logarithm of the variance in it, and that of the picture's whole variance; two convolutions
    of these; one number for each block, interpolated. What a code leaves out of a picture is small
    where the picture is smooth, anywhere in it: few parameters say so, and cannot learn the
    training images by heart, as a network of the code can.
    """

    BLOCK = 4
    FLOOR = 1e-4  # of a variance, of pixels of unit scale

    def __init__(self, num_channels: int, image_size: int, hidden: int = 32) -> None:
        super().__init__()
        if image_size % self.BLOCK:
            raise ValueError(
                f"image_size must be a multiple of {self.BLOCK} with "
                f'likelihood="scaled_gaussian", got {image_size}'
            )
        self.image_size, self.grid = image_size, image_size // self.BLOCK
        self.hidden = HeConv(num_channels + 2, hidden, 3, padding=1).apply(he_init)
        self.out = HeConv(hidden, 1, 3, padding=1)
        self.out.weight_start = 0.0
        he_init(self.out)
        # A product with the interpolation's matrix is faster than the interpolation.
        spread = torch.empty(self.grid**2, image_size**2)
        self.register_buffer("spread", spread, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The interpolation; the convolutions have their own reset."""
        cells = torch.eye(self.grid**2, device=self.spread.device)
        cells = cells.view(-1, 1, self.grid, self.grid)
        size = (self.image_size, self.image_size)
        self.spread.copy_(F.interpolate(cells, size, mode="bilinear").flatten(1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Standardised pictures (..., channels, H, W) to (..., 1, H, W), zero at first."""
        lead, blocks = pictures.shape[:-3], (self.grid, self.BLOCK, self.grid, self.BLOCK)
        split = pictures.reshape(-1, pictures.shape[-3], *blocks)
        mean = split.mean((3, 5))
        square = split.square().mean((3, 5))
        var = (square - mean.square()).mean(1, keepdim=True)
        whole_mean = mean.mean((2, 3), keepdim=True)
        whole_var = (square.mean((2, 3), keepdim=True) - whole_mean.square()).mean(1, keepdim=True)
        logs = [0.5 * (each.clamp(min=0) + self.FLOOR).log() for each in (var, whole_var)]
        seen = torch.cat([mean, logs[0], logs[1].expand_as(var)], dim=1)
        grid = self.out(F.relu(self.hidden(seen))).flatten(1)
        whole = grid.to(self.spread.dtype) @ self.spread
        return whole.view(*lead, 1, self.image_size, self.image_size)


class EpisodeCoders(Pretrained, nn.Module):
    """An encoder and a decoder of episodes of images, and the likelihood of their pixels.

    With ``linear_path``, a linear map goes beside the convolutions on either side, started at the
    data's principal components (`start_linear_path`): codes are in units of the pixels' noise, the
    convolutions add to both, nothing at first, and ``num_filters=0`` leaves them out.

    Attributes:
        config: what the model was made with, by the names of its constructor's arguments.
    """

    def __init__(self, num_features: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        code_size, num_filters = config["code_size"], config["num_filters"]
        image_size, num_channels = config["image_size"], config["num_channels"]
        likelihood, linear_path = config["likelihood"], config["linear_path"]
        check_sizes(code_size=code_size, image_size=image_size, num_channels=num_channels)
        self.image_shape = (num_channels, image_size, image_size)
        self.likelihood = make_likelihood(likelihood)
        self.linear = None
        if linear_path:
            if not isinstance(self.likelihood, GaussianPixels):
                raise ValueError(
                    f'likelihood must be "gaussian" with linear_path=True, got {likelihood!r}'
                )
            self.linear = LinearPath(code_size, self.image_shape)
            self.code_features = CodeLinear(code_size, num_features).apply(he_init)
            self.log_scale = None
            if self.likelihood.extra_outputs:
                self.log_scale = LogScale(num_channels, image_size)
        coder = {
            "num_filters": num_filters, "image_size": image_size, "num_channels": num_channels
        }  # fmt: skip
        self.encoder = self.decoder = None
        if linear_path and num_filters == 0:
            return
        self.encoder = ConvEncoder(num_features, **coder)
        start = self.likelihood.initial_output
        coder["num_channels"] += self.likelihood.extra_outputs
        self.decoder = ConvDecoder(code_size, initial_output=start, **coder)
        if linear_path:
            self.image_features = CodeLinear(num_features, num_features)
            for last in (self.image_features, self.decoder.blocks[-1]):
                last.weight_start = 0.0
                he_init(last)

    def start_linear_path(self, images: Tensor | PrincipalComponents) -> None:
        """Start the linear path, and what depends on its codes' scale, at principal components.

        Args:
            images: (N, ...) of the data, as `principal_components` takes them; or what that made
                of them.

        Raises:
            ValueError: a model without a linear path, or images of another size.
        """
        if self.linear is None:
            raise ValueError("start_linear_path needs a model with linear_path=True")
        code_size, num_dims = self.linear.encoder_weight.shape
        if isinstance(images, Tensor):
            if images[:1].numel() != num_dims:
                raise ValueError(
                    f"images must have {num_dims} numbers each, got {images[:1].numel()}"
                )
            images = principal_components(images, code_size)
        elif images.directions.shape != (code_size, num_dims):
            raise ValueError(
                f"images must have {code_size} components of {num_dims} numbers, "
                f"got {tuple(images.directions.shape)}"
            )
        self.linear.start(images)
        self.likelihood.start(self.linear.noise_std.item())
        self._start_codes(self.linear.signal_var)

    def _start_codes(self, signal_var: Tensor) -> None:
        """Start what depends on the codes' variances (C,)."""
        raise NotImplementedError

    def forward(self, images: Tensor, *args, **options) -> NamedTuple:
        """`elbo`, so that wrappers such as DistributedDataParallel can be called."""
        return self.elbo(images, *args, **options)

    def _features(self, images: Tensor) -> Tensor:
        """Features (..., num_features), and after them, with a linear path, its codes."""
        check_images(images, self.image_shape[0], self.image_shape[1])
        if self.linear is None:
            return self.encoder(self.likelihood.standardize(images))
        codes = self.linear.encode(images)
        features = self.code_features(squash(codes))
        if self.encoder is not None:
            features = features + self.image_features(
                self.encoder(self.likelihood.standardize(images))
            )
        return torch.cat([F.relu(features), codes], dim=-1)

    def _split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features and the linear path's codes."""
        code_size = len(self.linear.encoder_weight)
        return features[..., :-code_size], features[..., -code_size:]

    def _decode(self, codes: Tensor) -> Tensor:
        """Parameters of the pixels' distribution (..., C, H, W)."""
        if self.linear is None:
            return self.decoder(codes)
        outputs, seen = self.likelihood.standardize(self.linear.decode(codes)), squash(codes)
        if self.log_scale is not None:
            outputs = torch.cat([outputs, self.log_scale(outputs).to(outputs.dtype)], dim=-3)
        return outputs if self.decoder is None else outputs + self.decoder(seen)

    def _pictures(self, codes: Tensor) -> Tensor:
        """Mean images (..., C, H, W) in [0, 1] of codes."""
        return self.likelihood.mean(self._decode(codes))

    def _read_again(
        self, read: Callable[[Tensor], Tensor], images: Tensor, num_steps: int, noise: float
    ) -> Tensor:
        """Pictures (num_steps, B, T, C, H, W) of the codes ``read`` makes of one query after the
        other, the images first; see `MemoryModel.denoise`.
        """
        check_denoising(num_steps, noise)
        if noise and not isinstance(self.likelihood, BernoulliPixels):
            raise ValueError(f"noise must be 0 without Bernoulli pixels, got {noise}")
        steps, queries = [], images
        for _ in range(num_steps):
            steps.append(self._pictures(read(queries)))
            queries = next_query(steps[-1], images, noise)
        return torch.stack(steps)


class MemoryModel(SavedSettings, EpisodeCoders):
    """A model of episodes whose images are read from a memory that was written from them.

    A subclass has ``elbo`` and ``write``, and says how an image is read:

    * ``_query(images)``: what is kept of images (B, T, C, H, W) to find their addresses by;
    * ``_addresses(query, state)``: mean addresses (B, T, K);
    * ``_codes_read(query, state)``: the codes (B, T, code_size) to decode, by the means;
    * ``_prior_codes(state, num_samples, generator)``: codes at addresses drawn from their prior.
    """

    #: Names in ``config`` of numbers that change the bound and are no parameters.
    SETTINGS: tuple[str, ...] = ()

    def settings(self) -> dict[str, float]:
        """What the ``state_dict`` holds beside the parameters."""
        return {name: float(self.config[name]) for name in self.SETTINGS}

    @torch.no_grad()
    def reconstruct(self, images: Tensor, state: MemoryState | None = None) -> Tensor:
        """Mean images (B, T, C, H, W) of what is read at the mean addresses.

        Args:
            images: (B, T, C, H, W), floating point in [0, 1].
            state: memory to read from; None: write the episode first.
        """
        if state is None:
            state = self.write(images).state
        return self.denoise(images, state, num_steps=1)[0]

    @torch.no_grad()
    def denoise(
        self, images: Tensor, state: MemoryState, num_steps: int = 3, noise: float = 0.0
    ) -> Tensor:
        """Iterative reading (Wu et al., ICLR 2018, Algorithm 1): what is read is the next query.

        Nothing is sampled and nothing is written; the memory stays as it is.

        Args:
            images: (B, T, C, H, W), floating point in [0, 1]; corrupted or partial queries.
            state: memory to read from.
            num_steps: reads, at least 1.
            noise: share of the pixels of ``images`` that were replaced by 0 or 1 at random, in
                [0, 1). If 0, the next query is what was read, as in the paper, and what was seen
                first is forgotten: after a short training, reads drift. If given (Bernoulli pixels
                only), the next query is the probability of ink given both: Bayes' rule with the
                read as the prior.

        Returns:
            (num_steps, B, T, C, H, W), mean images after each read.

        Raises:
            ValueError: a noise outside [0, 1), or a number of steps that is not positive.
        """
        return self._read_again(
            lambda queries: self._codes_read(self._query(queries), state), images, num_steps, noise
        )

    @torch.no_grad()
    def generate(
        self,
        state: MemoryState,
        num_samples: int,
        num_steps: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One-shot generation: new images in the manner of what the memory holds.

        Args:
            state: memory to generate from.
            num_samples: images per memory.
            num_steps: rounds of `denoise` that follow (the paper's iterative sampling).
            generator: of the addresses, on the state's device; None: PyTorch's own.

        Returns:
            (B, num_samples, C, H, W), mean images at R'w for addresses w drawn from their prior.
        """
        check_sizes(num_samples=num_samples)
        images = self._pictures(self._prior_codes(state, num_samples, generator))
        return self.denoise(images, state, num_steps)[-1] if num_steps else images

    @torch.no_grad()
    def addresses(self, images: Tensor, state: MemoryState) -> Tensor:
        """Mean addresses (B, T, K) at which images (B, T, C, H, W) are read from ``state``."""
        return self._addresses(self._query(images), state)

    @torch.no_grad()
    def read_images(self, weights: Tensor, state: MemoryState) -> Tensor:
        """Mean images (B, N, C, H, W) at R'w for given addresses w (B, N, K)."""
        return self._pictures(self._codes_at(weights, state))

    def _codes_at(self, weights: Tensor, state: MemoryState) -> Tensor:
        """Codes (B, N, code_size) at given addresses."""
        return weights @ state.mean
