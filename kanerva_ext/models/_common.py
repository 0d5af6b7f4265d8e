"""Small pieces that the models share."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..memory import standard_normal
from .linear_path import squash

INITIAL_STD = 0.2  # of a code's posterior: small, so that coders learn to reconstruct first
MAX_LOG_STD = 7.0


def start(module: Starting) -> None:
    """Give a module its start at the end of a constructor, and from then on with each reset."""
    module.started = True
    module.start()


class Starting:
    """A base of modules whose parameters start in another way than PyTorch's.

    The start is a module's own, so that ``reset_parameters`` of every module, in any order, makes
    a whole model new, as after ``to_empty``. It is not yet made in PyTorch's constructor, which
    resets parameters too: `start` makes it, at the place in the stream of random numbers where it
    has always been.
    """

    started = False

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.started:
            self.start()

    def start(self) -> None:
        raise NotImplementedError


class HeLinear(Starting, nn.Linear):
    """Starts with weights that keep the scale through a ReLU; biases as PyTorch has them."""

    def start(self) -> None:
        nn.init.normal_(self.weight, std=math.sqrt(2 / self.in_features))


class _NormalLinear(Starting, nn.Linear):
    """To means and log-standard-deviations, of which the second start small and alike."""

    start_std = INITIAL_STD
    from_zero = False

    def start(self) -> None:
        size = self.out_features // 2
        scale = 0.0 if self.from_zero else math.sqrt(1 / self.in_features)
        with torch.no_grad():
            nn.init.normal_(self.weight[:size], std=scale)
            nn.init.normal_(self.weight[size:], std=0.1 * scale)
            nn.init.constant_(self.bias[size:], math.log(self.start_std))
            nn.init.zeros_(self.bias[:size])


class Normal(nn.Module):
    """Two-layer ReLU network to a diagonal normal: (..., inputs) to mean and log-std (..., size).

    Starts with means of about unit scale and standard deviations of about ``std``, or
    (``from_zero``) at mean 0 and ``std`` exactly, for a head that corrects another mean. The
    log-std stays in [-7, 7] by a scaled tanh, so that no step can overflow.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        size: int,
        std: float = INITIAL_STD,
        from_zero: bool = False,
    ) -> None:
        super().__init__()
        self.hidden = HeLinear(inputs, hidden)
        self.out = _NormalLinear(hidden, 2 * size)
        self.out.start_std, self.out.from_zero = std, from_zero
        for layer in (self.hidden, self.out):
            start(layer)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        # Under autocast the layers are in half precision; sums of KL terms must not be.
        out = self.out(F.relu(self.hidden(inputs))).to(self.out.weight.dtype)
        mean, log_std = out.chunk(2, dim=-1)
        return mean, MAX_LOG_STD * torch.tanh(log_std / MAX_LOG_STD)


class CodeNormal(nn.Module):
    """q of a code from features and the code of the linear path: a diagonal normal (..., C).

    Its mean is between the code and what the prior expects, ``expected + gate (code - expected)``
    with one trainable gate in (0, 1) for each number, plus what a `Normal` of the features and of
    what was expected adds, nothing at first. With gate ``v / (v + 1)`` and variance ``gate`` that
    is the exact posterior of a linear model in noise units whose prior's variance is v.
    """

    def __init__(self, features: int, hidden: int, size: int, expects: bool) -> None:
        super().__init__()
        inputs = features + size if expects else features
        # Both as for a prior of unit variance.
        self.correction = Normal(inputs, hidden, size, math.sqrt(0.5), from_zero=True)
        self.gate = nn.Parameter(torch.empty(size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gate)

    @torch.no_grad()
    def start(self, prior_var: Tensor) -> None:
        """Put the gate and the standard deviation where a prior of that variance (C,) has them."""
        self.gate.copy_(prior_var.log())
        log_std = -0.5 * (1 / prior_var).log1p()
        log_std = MAX_LOG_STD * torch.atanh((log_std / MAX_LOG_STD).clamp(min=-0.99))
        self.correction.out.bias[len(prior_var) :] = log_std

    def forward(
        self, features: Tensor, code: Tensor, expected: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean less what was expected, and log-std."""
        if expected is not None:
            features = torch.cat([features, squash(expected)], dim=-1)
            code = code - expected
        correction, log_std = self.correction(features)
        return torch.sigmoid(self.gate) * code + correction, log_std


def hyperparameters(model: type[nn.Module], given: Mapping[str, Any]) -> dict[str, Any]:
    """A model's ``config``: its constructor's arguments by name, from the ``locals()`` there.

    The backend is left out, which is no property of the model.
    """
    names = inspect.signature(model.__init__).parameters
    return {name: given[name] for name in names if name not in ("self", "backend")}


def sample_normal(
    mean: Tensor, log_std: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """One reparameterised sample, of the shape of ``mean``."""
    return mean + log_std.exp() * standard_normal(mean, generator)


def kl_normal(
    mean: Tensor, log_std: Tensor, prior_mean: Tensor | float = 0.0, prior_var: float | Tensor = 1.0
) -> Tensor:
    """KL(N(mean, diag std^2) || N(prior_mean, diag prior_var)), nats: (..., size) to (...)."""
    ratio = (2 * log_std).exp() / prior_var
    distance = (mean - prior_mean).square() / prior_var
    log_var = prior_var.log() if isinstance(prior_var, Tensor) else math.log(prior_var)
    return 0.5 * (ratio + distance - 1 - 2 * log_std + log_var).sum(-1)


def check_images(images: Tensor, num_channels: int, image_size: int) -> None:
    """Raises unless images are floating point, (B, T, num_channels, image_size, image_size)."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.ndim != 5 or tuple(images.shape[2:]) != (num_channels, image_size, image_size):
        raise ValueError(
            f"images must have shape (B, T, {num_channels}, {image_size}, {image_size}), "
            f"got {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point with values in [0, 1], got {images.dtype}")


def replace_first(whole: Tensor, first: Tensor) -> Tensor:
    """``whole`` (B, T, ...) with its first Q of T replaced by ``first`` (B, Q, ...)."""
    if len(first) != len(whole) or first.shape[1] > whole.shape[1]:
        raise ValueError(
            f"queries must be (B, Q, ...) with B = {len(whole)} and Q <= {whole.shape[1]}, the "
            f"images', got {tuple(first.shape[:2])}"
        )
    return torch.cat([first, whole[:, first.shape[1] :]], dim=1)


def next_query(read: Tensor, seen: Tensor, noise: float) -> Tensor:
    """P(ink) of every pixel, with prior ``read``, after ``seen``, of which a share is noise.

    A pixel that was replaced is 0 or 1 with the same probability, so that ``seen`` is right with
    probability ``1 - noise / 2``. Without noise: ``read``, as the paper has it.
    """
    if noise == 0:
        return read
    right = 1 - noise / 2
    if_ink = seen * right + (1 - seen) * (1 - right)
    if_blank = seen * (1 - right) + (1 - seen) * right
    return read * if_ink / (read * if_ink + (1 - read) * if_blank)


def check_denoising(num_steps: int, noise: float) -> None:
    check_sizes(num_steps=num_steps)
    if not 0 <= noise < 1:
        raise ValueError(f"noise must be in [0, 1), got {noise}")


def check_sizes(**sizes: int) -> None:
    """Raises unless every size is a positive int."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a positive int, got {size!r}")
