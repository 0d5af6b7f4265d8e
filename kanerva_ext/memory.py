"""The memory as a module: a trainable prior, addressing, exact writes and reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor, nn

from . import _backend, ops
from ._state import AttractorOutput, MemoryState, ReadOutput, WriteOutput

__all__ = ["AttractorOutput", "FusedKanervaMemory", "MemoryState", "ReadOutput", "WriteOutput"]

ADDRESSINGS = ("least_squares", "key")
INITIAL_WEIGHT_STD = 0.3  # of a sampled address, before training


class FusedKanervaMemory(nn.Module):
    """A Bayesian associative memory of K slots and code size C with a trainable prior.

    The prior is ``M ~ MN(R0, U0, I)`` with a trainable mean and ``U0 = prior_var I``, the prior
    variance being trainable too. Writes are exact Bayesian updates (`ops.bayes_write`).

    ``addressing="least_squares"`` (Wu et al., Learning Attractor Dynamics for Generative Memory,
    NeurIPS 2018): the address of a code is the posterior mean given the memory's mean,
    ``(R R' + ridge I)^-1 R z`` with ridge = noise variance / weight variance. A write without
    given weights goes code by code (`ops.adaptive_write`): each address is solved against the
    memory as the codes before it left it. With ``num_write_iters > 1`` it is solved again against
    the mean of that tentative posterior, and the update is made again, always from the memory
    before that code: nothing is written twice.

    ``addressing="key"`` (Wu et al., The Kanerva Machine, ICLR 2018): the model supplies keys
    (B, T, S) and the address is ``A key`` with a trainable (K, S) matrix A of unit-norm rows.

    Args:
        memory_size: K, number of slots.
        code_size: C, size of a code.
        addressing: ``"least_squares"`` or ``"key"``.
        noise_std: standard deviation of the observation noise of a code.
        learn_noise: make it trainable.
        weight_std: standard deviation of the normal prior of an address.
        prior_var: initial variance of the prior, per slot.
        num_write_iters: rounds of addressing per code written (least squares only).
        sample_memory: address and read one sample ``R + chol(U) eps`` per memory, not the mean R.
        sample_weights: read at a sample of ``N(address, s^2 I)`` with trainable s (least squares
            only; the write uses the mean address).
        key_size: S, size of a key (needed by, and only for, ``addressing="key"``).
        backend: of all its operators, see `ops.bayes_write`.

    The state is float32 (float64 after ``.double()``); values may be half precision. What is read
    comes in the state's dtype. A module cast to half precision keeps its beliefs in float32.
    With the default flags every parameter gets a gradient from (values, kl_weights, kl_memory) of
    `forward`, as DistributedDataParallel wants.

    >>> import torch, kanerva_ext
    >>> memory = kanerva_ext.FusedKanervaMemory(memory_size=8, code_size=16, noise_std=0.1)
    >>> codes = torch.randn(4, 10, 16)  # 4 episodes of 10 codes
    >>> out = memory(codes)  # writes them and reads them back
    >>> out.values.shape, out.kl_weights.shape, out.kl_memory.shape
    (torch.Size([4, 10, 16]), torch.Size([4, 10]), torch.Size([4]))
    >>> later = memory.read(codes[:, :2], out.state)  # read again
    >>> later.values.shape
    torch.Size([4, 2, 16])
    """

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
        num_write_iters: int = 1,
        sample_memory: bool = False,
        sample_weights: bool = False,
        key_size: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if addressing not in ADDRESSINGS:
            raise ValueError(f"addressing must be one of {ADDRESSINGS}, got {addressing!r}")
        is_key = addressing == "key"
        if is_key != (key_size is not None):
            raise ValueError(
                f'key_size must be given with addressing="key" and only then, got {key_size} '
                f"with {addressing!r}"
            )
        if is_key and (sample_weights or num_write_iters != 1):
            raise ValueError(
                'sample_weights and num_write_iters are for addressing="least_squares"; with '
                '"key" the model samples its keys itself'
            )
        self.memory_size = _positive_int("memory_size", memory_size)
        self.code_size = _positive_int("code_size", code_size)
        self.num_write_iters = _positive_int("num_write_iters", num_write_iters)
        self.key_size = None if key_size is None else _positive_int("key_size", key_size)
        self.weight_std = _positive("weight_std", weight_std)
        self.addressing = addressing
        self.learn_noise = learn_noise
        self.sample_memory = sample_memory
        self.sample_weights = sample_weights
        self.backend = _backend.check_name(backend)

        self._noise_std = _positive("noise_std", noise_std)
        self._prior_var = _positive("prior_var", prior_var)
        self.prior_mean = nn.Parameter(torch.empty(memory_size, code_size))
        self.log_prior_var = nn.Parameter(torch.empty(()))
        if learn_noise:
            self.log_noise_std = nn.Parameter(torch.empty(()))
        if sample_weights:
            self.log_weight_std = nn.Parameter(torch.empty(()))
        if is_key:
            self.address_matrix = nn.Parameter(torch.empty(memory_size, key_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the prior mean and the address matrix anew; reset the variances."""
        nn.init.trunc_normal_(self.prior_mean)
        nn.init.constant_(self.log_prior_var, math.log(self._prior_var))
        if self.learn_noise:
            nn.init.constant_(self.log_noise_std, math.log(self._noise_std))
        if self.sample_weights:
            nn.init.constant_(self.log_weight_std, math.log(INITIAL_WEIGHT_STD))
        if self.key_size is not None:
            nn.init.normal_(self.address_matrix)

    def extra_repr(self) -> str:
        parts = [
            f"{self.memory_size}, {self.code_size}",
            f"addressing={self.addressing!r}",
            f"noise_std={self.log_noise_std.exp() if self.learn_noise else self._noise_std:.4g}",
            f"weight_std={self.weight_std:.4g}",
        ]
        for name in ("key_size", "learn_noise", "sample_memory", "sample_weights"):
            if getattr(self, name):
                parts.append(f"{name}={getattr(self, name)}")
        if self.num_write_iters != 1:
            parts.append(f"num_write_iters={self.num_write_iters}")
        if self.backend != "auto":
            parts.append(f"backend={self.backend!r}")
        return ", ".join(parts)

    @property
    def noise_var(self) -> float | Tensor:
        """Observation noise variance: a float, or a 0-d tensor with ``learn_noise``."""
        if self.learn_noise:
            return (2 * _wide(self.log_noise_std)).exp()
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
            `MemoryState` with mean (B, K, C) and cov (B, K, K), expanded without a copy.
        """
        batch = (batch_size,) if isinstance(batch_size, int) else tuple(batch_size)
        if any(size < 0 for size in batch):
            raise ValueError(f"batch_size must not be negative, got {batch_size}")
        mean, var = _wide(self.prior_mean), _wide(self.log_prior_var).exp()
        cov = var * torch.eye(self.memory_size, dtype=mean.dtype, device=mean.device)
        return MemoryState(mean.expand(*batch, *mean.shape), cov.expand(*batch, *cov.shape))

    def address(self, keys: Tensor) -> Tensor:
        """Addresses (B, T, K) of keys (B, T, S), with ``addressing="key"``."""
        if self.key_size is None:
            raise ValueError('address(keys) needs a memory with addressing="key"')
        _check_codes("keys", keys, self.key_size, "key_size")
        matrix = _wide(self.address_matrix)
        return keys.to(matrix.dtype) @ nn.functional.normalize(matrix, dim=-1).mT

    def write(
        self,
        values: Tensor,
        state: MemoryState | None = None,
        weights: Tensor | None = None,
        mask: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> WriteOutput:
        """Write an episode by exact Bayesian updates of ``state``.

        Args:
            values: (B, T, C) codes, in the order in which they are written.
            state: belief before the write; the prior if None.
            weights: (B, T, K) addresses; found by the addressing if None.
            mask: (B, T) bool; False steps are skipped, for episodes of different lengths.
            keys: (B, T, S), with ``addressing="key"`` and no ``weights``.

        Returns:
            `WriteOutput`. ``kl_weights`` is the KL of N(address, s^2 I) from N(0, weight_std^2 I)
            with ``sample_weights``; without, ``|address|^2 / (2 weight_std^2)``, the address's
            negative log prior up to its constant; 0 with ``addressing="key"``.
        """
        _check_codes("values", values, self.code_size, "code_size")
        if keys is not None and self.key_size is None:
            raise ValueError('keys must be None without addressing="key"')
        state = self.prior(values.shape[:-2]) if state is None else _check_state(state)
        values, keys = _without_masked(values, mask), _without_masked(keys, mask)
        if weights is None and self.key_size is None:
            options = {"mask": mask, "backend": self.backend, "num_iters": self.num_write_iters}
            mean, cov, weights, _, evidence = ops.adaptive_write(
                *state, values, self.noise_var, self.ridge, return_evidence=True, **options
            )
        else:
            if weights is None and keys is None:
                raise ValueError('keys must be given with addressing="key" unless weights are')
            weights = self.address(keys) if weights is None else weights
            mean, cov, evidence = ops.bayes_write(
                *state, weights, values, self.noise_var, mask=mask, backend=self.backend
            )
        posterior = MemoryState(mean, cov)
        kl_memory = ops.memory_kl(*posterior, *state, backend=self.backend)
        return WriteOutput(posterior, weights, self._kl_weights(weights, mask), kl_memory, evidence)

    def forget(
        self,
        state: MemoryState,
        weights: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        check: bool = False,
    ) -> MemoryState:
        """Remove codes that were written at known addresses, exactly (`ops.forget`).

        Args:
            state: belief that holds them, with what was written before and since.
            weights: (B, T, K), the addresses they were written at (`WriteOutput.weights`).
            values: (B, T, C), the codes. The noise variance is the module's, as it was then.
            mask: (B, T) bool; False steps are skipped.
            check: raise ValueError for batch items that hold a code which was never written.

        Returns:
            `MemoryState` as if they had never been written; NaN in an item that held one not.
        """
        _check_codes("values", values, self.code_size, "code_size")
        mean, cov = _check_state(state)
        options = {"mask": mask, "check": check, "backend": self.backend}
        return MemoryState(*ops.forget(mean, cov, weights, values, self.noise_var, **options))

    def read(
        self,
        queries: Tensor,
        state: MemoryState,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ReadOutput:
        """Read at the address of each query; nothing is written.

        Args:
            queries: (B, T, C) codes, or keys (B, T, S) with ``addressing="key"``.
            state: belief to read from.
            mask: (B, T) bool; at False steps the read-out and its KL are 0.
            generator: of the samples that ``sample_memory`` and ``sample_weights`` take, on the
                state's device; None: PyTorch's own.

        Returns:
            `ReadOutput` in the state's dtype. ``kl_weights`` as in `write`. ``var`` is w'Uw at the
            address read from, also with ``sample_memory``.
        """
        queries = _without_masked(queries, mask)
        mean, cov = _check_state(state)
        if self.sample_memory:
            mean = _sample(state, generator)
        if self.key_size is not None:
            weights = self.address(queries)
            kl = self._kl_weights(weights, mask)
        else:
            _check_codes("queries", queries, self.code_size, "code_size")
            if not self.sample_weights:
                values, var, weights = ops.recall(
                    mean, cov, queries, self.ridge, backend=self.backend
                )
                return ReadOutput(values, var, weights, self._kl_weights(weights, mask))
            weights = self._solve(mean, queries)
            kl = self._kl_weights(weights, mask)
            noise = standard_normal(weights, generator) * _wide(self.log_weight_std).exp()
            weights = weights + _without_masked(noise, mask)
        values, var = ops.read(mean, cov, weights, backend=self.backend)
        return ReadOutput(values, var, weights, kl)

    def attractor(
        self,
        queries: Tensor,
        state: MemoryState,
        num_steps: int,
        project: Callable[[Tensor], Tensor] | None = None,
        return_trajectory: bool = False,
    ) -> AttractorOutput:
        """Read again and again, each time at the address of what was read: stored codes attract.

        A step takes z to ``project(R'w)`` with ``w = (R R' + ridge I)^-1 R z`` (Wu et al., NeurIPS
        2018, section 3.4; Das et al., Larimar, ICML 2024). Memory and addresses are their means,
        whatever ``sample_memory`` and ``sample_weights`` say. Least-squares addressing only.

        The bound of a step is ``ln p(z | w, M) p(w)`` of its query z and address w at the mean of
        the memory. Both halves of a step maximise it, so that it never falls without ``project``;
        the steps are then linear, and shrink z where R is small against the ridge.

        Args:
            queries: (B, T, C) codes.
            state: belief to read from.
            num_steps: at least 1.
            project: takes read-outs (B, T, C) to codes of that shape, such as a decoder followed
                by its encoder.
            return_trajectory: also return every z.

        Returns:
            `AttractorOutput`.

        Raises:
            TypeError, ValueError: ``addressing="key"``, or an argument of the wrong kind.
        """
        if self.key_size is not None:
            raise ValueError(
                'attractor needs a memory with addressing="least_squares": with "key" a read-out '
                "is not a query"
            )
        num_steps = _positive_int("num_steps", num_steps)
        if project is not None and not callable(project):
            raise TypeError(f"project must be callable or None, got {type(project).__name__}")
        _check_codes("queries", queries, self.code_size, "code_size")
        mean, cov = _check_state(state)
        lead = torch.broadcast_shapes(queries.shape[:-2], mean.shape[:-2])
        z = queries.to(mean.dtype).expand(*lead, *queries.shape[-2:])
        trajectory, bound = [z], []
        for _ in range(num_steps):
            values, var, weights = ops.recall(mean, cov, z, self.ridge, backend=self.backend)
            fit = _log_normal(z - values, self.noise_var)
            bound.append(fit + _log_normal(weights, self.weight_std**2))
            if project is not None:
                values = project(values)
                _check_codes("the result of project", values, self.code_size, "code_size")
                if values.shape != z.shape:
                    raise ValueError(
                        f"project must keep the shape {tuple(z.shape)}, got {tuple(values.shape)}"
                    )
                values = values.to(z.dtype)
            z = values
            trajectory.append(z)
        path = torch.stack(trajectory) if return_trajectory else None
        return AttractorOutput(z, var, weights, torch.stack(bound), path)

    def forward(
        self,
        values: Tensor,
        state: MemoryState | None = None,
        mask: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> ReadOutput:
        """Write an episode and read it back.

        Args:
            values, state, mask, keys: as in `write`.

        Returns:
            `ReadOutput` with every field set: the read of each step from the memory after the
            whole episode, and the write's state, ``kl_memory`` and ``log_evidence``.
        """
        written = self.write(values, state, mask=mask, keys=keys)
        queries = values if self.key_size is None else keys
        out = self.read(queries, written.state, mask)
        return out._replace(
            state=written.state, kl_memory=written.kl_memory, log_evidence=written.log_evidence
        )

    def generate(
        self, state: MemoryState, num_samples: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Read at random addresses: codes that resemble what was written.

        Addresses are drawn from N(0, weight_std^2 I), or by keys from N(0, I) with
        ``addressing="key"``; the memory is its mean, or one sample with ``sample_memory``.

        Args:
            state: belief to generate from.
            num_samples: codes per memory.
            generator: of the samples, on the state's device; None: PyTorch's own.

        Returns:
            (B, num_samples, C) in the state's dtype.
        """
        if num_samples < 0:
            raise ValueError(f"num_samples must be at least 0, got {num_samples}")
        mean, cov = _check_state(state)
        if self.sample_memory:
            mean = _sample(state, generator)
        size = self.memory_size if self.key_size is None else self.key_size
        like = mean.new_empty(()).expand(*mean.shape[:-2], num_samples, size)
        weights = standard_normal(like, generator)
        weights = self.weight_std * weights if self.key_size is None else self.address(weights)
        return ops.read(mean, cov, weights, backend=self.backend)[0]

    def _solve(self, mean: Tensor, queries: Tensor) -> Tensor:
        return ops.solve_addresses(mean, queries, self.ridge, backend=self.backend)

    def _kl_weights(self, weights: Tensor, mask: Tensor | None) -> Tensor:
        if self.key_size is not None:
            return weights.new_zeros(weights.shape[:-1])
        kl = weights.square().sum(-1) / (2 * self.weight_std**2)
        if self.sample_weights:
            log_ratio = 2 * (_wide(self.log_weight_std) - math.log(self.weight_std))
            kl = kl + self.memory_size / 2 * (log_ratio.exp() - 1 - log_ratio)
        return kl if mask is None else torch.where(mask, kl, 0)


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Contiguous normal noise of the shape, dtype and device of ``like``."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _sample(state: MemoryState, generator: torch.Generator | None = None) -> Tensor:
    """One memory matrix from the belief; NaN where the covariance has no Cholesky factor."""
    factor, info = torch.linalg.cholesky_ex(state.cov)
    noise = standard_normal(state.mean, generator)
    return state.mean + (factor * torch.where(info == 0, 1.0, torch.nan)[..., None, None]) @ noise


def _log_normal(x: Tensor, var: float | Tensor) -> Tensor:
    """ln N(x; 0, var I) over the last dimension, nats."""
    log_var = var.log() if isinstance(var, Tensor) else math.log(var)
    return -(x.square().sum(-1) / var + x.shape[-1] * (math.log(2 * math.pi) + log_var)) / 2


def _wide(parameter: Tensor) -> Tensor:
    """At least float32: beliefs are never kept in half precision."""
    half = parameter.dtype in (torch.float16, torch.bfloat16)
    return parameter.float() if half else parameter


def _without_masked(tensor: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Zero at masked steps, so that what stands there (even NaN) has no effect or gradient."""
    if tensor is None or mask is None:
        return tensor
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor or None, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be torch.bool, got {mask.dtype}")
    if mask.shape[-1:] != tensor.shape[-2:-1]:
        raise ValueError(
            f"mask must have shape (..., T) with T = {tensor.shape[-2]}, got {tuple(mask.shape)}"
        )
    return torch.where(mask[..., None], tensor, 0)


def _check_state(state: MemoryState) -> MemoryState:
    if not isinstance(state, tuple) or len(state) != 2:
        raise TypeError(
            f"state must be a MemoryState (mean, cov), got {type(state).__name__}"
            + (f" of {len(state)}" if isinstance(state, tuple) else "")
        )
    return state if isinstance(state, MemoryState) else MemoryState(*state)


def _check_codes(name: str, tensor: Tensor, size: int, attribute: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")
    if tensor.dim() < 2 or tensor.shape[-1] != size:
        raise ValueError(
            f"{name} must have shape (..., T, {attribute}) with {attribute} = {size}, "
            f"got {tuple(tensor.shape)}"
        )


def _positive(name: str, value: float) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)


def _positive_int(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value
