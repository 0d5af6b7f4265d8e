"""What a memory module is made with and learns: prior, noise, addresses; saved and loaded."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import _backend
from ._beliefs import wide
from ._checks import check_flags, check_int
from ._memory_checks import check_codes, fraction, positive
from ._settings import SavedSettings
from ._state import MemoryState

ADDRESSINGS = ("least_squares", "key")
INITIAL_WEIGHT_STD = 0.3  # of a sampled address, before training


class MemoryParameters(SavedSettings):
    """The parameters of `FusedKanervaMemory`, whose arguments these are."""

    def __init__(
        self,
        memory_size: int,
        code_size: int,
        *,
        addressing: str = "least_squares",
        noise_std: float = 1.0,
        learn_noise: bool = False,
        weight_std: float = 1.0,
        prior_var: float = 1.0,
        prior_mean_std: float = 1.0,
        num_write_iters: int = 1,
        sample_memory: bool = False,
        sample_weights: bool = False,
        key_size: int | None = None,
        retention: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if addressing not in ADDRESSINGS:
            raise ValueError(
                f"FusedKanervaMemory: addressing must be one of {ADDRESSINGS}, got {addressing!r}"
            )
        is_key = addressing == "key"
        if is_key != (key_size is not None):
            raise ValueError(
                'FusedKanervaMemory: key_size must be given with addressing="key" and only then, '
                f"got {key_size} with {addressing!r}"
            )
        if is_key and (sample_weights or num_write_iters != 1):
            raise ValueError(
                "FusedKanervaMemory: sample_weights and num_write_iters are for "
                'addressing="least_squares"; with "key" the model samples its keys itself'
            )
        self.memory_size = check_int("FusedKanervaMemory", "memory_size", memory_size)
        self.code_size = check_int("FusedKanervaMemory", "code_size", code_size)
        self.num_write_iters = check_int("FusedKanervaMemory", "num_write_iters", num_write_iters)
        self.key_size = check_int("FusedKanervaMemory", "key_size", key_size, optional=True)
        self.weight_std = positive("FusedKanervaMemory: weight_std", weight_std)
        check_flags(
            "FusedKanervaMemory",
            learn_noise=learn_noise,
            sample_memory=sample_memory,
            sample_weights=sample_weights,
        )
        self.addressing = addressing
        self.learn_noise = learn_noise
        self.sample_memory = sample_memory
        self.sample_weights = sample_weights
        self.backend = _backend.check_name(backend, "FusedKanervaMemory: backend")

        self.retention = fraction("FusedKanervaMemory: retention", retention)
        self._noise_std = positive("FusedKanervaMemory: noise_std", noise_std)
        self._prior_var = positive("FusedKanervaMemory: prior_var", prior_var)
        self._prior_mean_std = positive(
            "FusedKanervaMemory: prior_mean_std", prior_mean_std, zero=True
        )
        if not is_key:
            self._check_sizes()
        # (1,), not 0-d: FullyShardedDataParallel and fully_shard split the first dimension.
        self.prior_mean = nn.Parameter(torch.empty(self.memory_size, self.code_size))
        self.log_prior_var = nn.Parameter(torch.empty(1))
        if learn_noise:
            self.log_noise_std = nn.Parameter(torch.empty(1))
        if sample_weights:
            self.log_weight_std = nn.Parameter(torch.empty(1))
        if is_key:
            self.address_matrix = nn.Parameter(torch.empty(self.memory_size, self.key_size))
        self._read_from: str | None = None  # another memory, see `compare_memories`
        self._together = None  # other processes, see `distributed.shared_writes`
        self.reset_parameters()

    def _check_sizes(self) -> None:
        if self._prior_mean_std == 0:
            raise ValueError(
                "FusedKanervaMemory: prior_mean_std must be positive with "
                'addressing="least_squares", which finds no address in a memory of zeros and '
                "writes nothing"
            )
        if self.memory_size >= self.code_size:
            warnings.warn(
                f"FusedKanervaMemory: memory_size = {self.memory_size} should be below code_size = "
                f"{self.code_size} with least-squares addressing: as many slots as columns span "
                "every code, so that at small noise any query is read back from the prior alone, "
                "written or not",
                stacklevel=3,
            )

    def reset_parameters(self) -> None:
        """Draw the prior mean and the address matrix anew; reset the variances."""
        nn.init.trunc_normal_(self.prior_mean)
        with torch.no_grad():
            self.prior_mean.mul_(self._prior_mean_std)
        nn.init.constant_(self.log_prior_var, math.log(self._prior_var))
        if self.learn_noise:
            nn.init.constant_(self.log_noise_std, math.log(self._noise_std))
        if self.sample_weights:
            nn.init.constant_(self.log_weight_std, math.log(INITIAL_WEIGHT_STD))
        if self.key_size is not None:
            nn.init.normal_(self.address_matrix)

    def settings(self) -> dict[str, float]:
        """noise_std (0: learned, a parameter), weight_std and retention (1: none)."""
        return {
            "noise_std": 0.0 if self.learn_noise else self._noise_std,
            "weight_std": self.weight_std,
            "retention": 1.0 if self.retention is None else self.retention,
        }

    def _differ(self, theirs: float, ours: float) -> bool:
        return bool(theirs and ours) and super()._differ(theirs, ours)

    def _as_given(self, name: str, value: float) -> str:
        return "None" if name == "retention" and value == 1 else super()._as_given(name, value)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        for name in ("log_prior_var", "log_noise_std", "log_weight_std"):  # 0-d in old checkpoints
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.dim() == 0:
                state_dict[prefix + name] = saved.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        noise_std = self._shown("log_noise_std", self._noise_std)
        prior_var = self._shown("log_prior_var", self._prior_var)
        parts = [
            f"{self.memory_size}, {self.code_size}",
            f"addressing={self.addressing!r}",
            f"noise_std={noise_std:.4g}",
            f"weight_std={self.weight_std:.4g}",
            f"prior_var={prior_var:.4g}",
        ]
        for name in ("key_size", "learn_noise", "sample_memory", "sample_weights"):
            if getattr(self, name):
                parts.append(f"{name}={getattr(self, name)}")
        if self.num_write_iters != 1:
            parts.append(f"num_write_iters={self.num_write_iters}")
        if self.retention is not None:
            parts.append(f"retention={self.retention:.4g}")
        if self.backend != "auto":
            parts.append(f"backend={self.backend!r}")
        return ", ".join(parts)

    def _shown(self, parameter: str, start: float) -> float:
        """What a logarithm stands at, or started at where it cannot be looked at."""
        log = getattr(self, parameter, None)
        plain = type(log) is nn.Parameter and log.device.type != "meta" and log.numel() == 1
        return math.exp(log.item()) if plain else start

    @property
    def noise_var(self) -> float | Tensor:
        """Observation noise variance: a float, or a 0-d tensor with ``learn_noise``."""
        if self.learn_noise:
            return (2 * wide(self.log_noise_std)).exp().squeeze(0)
        return self._noise_std**2

    @property
    def ridge(self) -> float | Tensor:
        """Noise variance over weight variance, the regulariser of an address."""
        return self.noise_var / self.weight_std**2

    def prior(self, batch_size: int | tuple[int, ...]) -> MemoryState:
        """The trainable prior, once per batch item.

        Args:
            batch_size: B, or a tuple of leading dimensions.

        Returns:
            `MemoryState` with mean (B, K, C) and cov (B, K, K), expanded without a copy
            (`MemoryState.clone` makes one).
        """
        sizes = batch_size if isinstance(batch_size, Sequence) else (batch_size,)
        batch = tuple(check_int("", "batch_size", size, least=0) for size in sizes)
        mean, var = wide(self.prior_mean), wide(self.log_prior_var).exp()
        cov = var * torch.eye(self.memory_size, dtype=mean.dtype, device=mean.device)
        return MemoryState(mean.expand(*batch, *mean.shape), cov.expand(*batch, *cov.shape))

    def address(self, keys: Tensor) -> Tensor:
        """Addresses (B, T, K) of keys (B, T, S), with ``addressing="key"``."""
        if self.key_size is None:
            raise ValueError('address(keys) needs a memory with addressing="key"')
        check_codes("keys", keys, self.key_size, "key_size")
        matrix = wide(self.address_matrix)
        return keys.to(matrix.dtype) @ nn.functional.normalize(matrix, dim=-1).mT
