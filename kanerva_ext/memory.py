"""The memory as a module: a trainable prior, addressing, exact writes and reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor

from . import _beliefs, ops
from ._beliefs import log_normal, sample_memory, standard_normal, wide
from ._checks import check_int, check_number
from ._memory_checks import as_mask, check_codes, check_state, without_masked
from ._memory_parameters import ADDRESSINGS, INITIAL_WEIGHT_STD, MemoryParameters
from ._state import AttractorOutput, MemoryState, ReadOutput, WriteOutput

__all__ = [
    "ADDRESSINGS",
    "INITIAL_WEIGHT_STD",
    "AttractorOutput",
    "FusedKanervaMemory",
    "MemoryState",
    "ReadOutput",
    "WriteOutput",
    "standard_normal",
]


class FusedKanervaMemory(MemoryParameters):
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
        memory_size: K, number of slots. With least-squares addressing K < C, because the K rows of
            the mean must not span every code: where they do, ``R'w`` is the query itself up to the
            ridge, in an empty memory too, and a read says nothing of what was written. It warns.
        code_size: C, size of a code.
        addressing: ``"least_squares"`` or ``"key"``.
        noise_std: standard deviation of the observation noise of a code.
        learn_noise: make it trainable.
        weight_std: standard deviation of the normal prior of an address.
        prior_var: initial variance of the prior, per slot.
        prior_mean_std: standard deviation of the prior mean's start, a normal truncated at two of
            them; 0 (with keys alone): an empty memory reads zero at first, where 1 makes an
            unknown key read noise larger than the values.
        num_write_iters: rounds of addressing per code written (least squares only).
        sample_memory: address and read one sample ``R + chol(U) eps`` per memory, not the mean R.
        sample_weights: read at a sample of ``N(address, s^2 I)`` with trainable s (least squares
            only; the write uses the mean address).
        key_size: S, size of a key (needed by, and only for, ``addressing="key"``).
        retention: in (0, 1], of a memory that drifts back to its prior: before each code that is
            written, what it holds beyond the prior shrinks by it, and its variance returns to the
            prior's (`ops.bayes_write`). After n codes ``retention ** n`` is left: 0.99 halves it in
            69. None: it keeps everything.
        backend: of all its operators, see `ops.bayes_write`.

    The state is float32 (float64 after ``.double()``); values may be half precision. What is read
    comes in the state's dtype. A module cast to half precision keeps its beliefs in float32.
    ``noise_std`` (unless it is learned), ``weight_std`` and ``retention`` are saved in the
    ``state_dict``, as its extra state, and a module of other values refuses to load it.

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

    def write(
        self,
        values: Tensor,
        state: MemoryState | None = None,
        weights: Tensor | None = None,
        mask: Tensor | None = None,
        keys: Tensor | None = None,
        noise_var: float | Tensor | None = None,
        decay: float | Tensor | None = None,
        retention: float | Tensor | None = None,
    ) -> WriteOutput:
        """Write an episode by exact Bayesian updates of ``state``.

        Args:
            values: (B, T, C) codes, in the order in which they are written.
            state: belief before the write; the prior if None.
            weights: (B, T, K) addresses; found by the addressing if None.
            mask: (B, T) bool or integer; False steps are skipped, for episodes of different
                lengths.
            keys: (B, T, S), with ``addressing="key"`` and no ``weights``.
            noise_var: noise variance of each code, > 0: a float, 0-d, or (B, T); the module's if
                None. What is noisier is written more weakly; addresses keep the module's `ridge`.
            decay: in (0, 1]: the covariance is divided by it before each code (exponential
                forgetting); a float, 0-d, or (B, T). Not in a memory with ``retention``. What was
                written with decay or retention can no longer be taken out by `forget` or joined by
                `merge`, which cannot see that it has faded.
            retention: in (0, 1]: how much of the memory remains before each code, while it drifts
                back to the module's prior; a float, 0-d, or (B, T); the module's if None. A write
                at addresses that have to be found goes code by code in Python then.

        Returns:
            `WriteOutput`. ``kl_weights`` is the KL of N(address, s^2 I) from N(0, weight_std^2 I)
            with ``sample_weights``; without, ``|address|^2 / (2 weight_std^2)``, the address's
            negative log prior up to its constant; 0 with ``addressing="key"``.
        """
        check_codes("values", values, self.code_size, "code_size")
        if keys is not None and self.key_size is None:
            raise ValueError('keys must be None without addressing="key"')
        state = self.prior(values.shape[:-2]) if state is None else self._checked(state)
        mask = as_mask(mask)
        values, keys = without_masked(values, mask), without_masked(keys, mask)
        noise_var = self.noise_var if noise_var is None else noise_var
        retention = self._kept(retention, decay)
        options = {"mask": mask, "backend": self.backend}
        together = self._together
        if weights is None and self.key_size is None:
            options["num_iters"] = self.num_write_iters
            if together is not None:
                mean, cov, weights, evidence = together.adaptive_write(
                    *state, values, noise_var, self.ridge, decay, retention, **options
                )
            elif retention is not None:
                mean, cov, weights, evidence = _beliefs.write_drifting_adaptive(
                    *(state, self.prior(()), values, noise_var, self.ridge, retention), **options
                )
            elif decay is None:
                mean, cov, weights, _, evidence = ops.adaptive_write(
                    *state, values, noise_var, self.ridge, return_evidence=True, **options
                )
            else:
                mean, cov, weights, evidence = _beliefs.write_decaying(
                    state, values, noise_var, self.ridge, decay, **options
                )
        else:
            weights = without_masked(self._given(weights, keys), mask)
            if together is not None:
                mean, cov, evidence = together.bayes_write(
                    *state, weights, values, noise_var, decay, retention, **options
                )
            elif retention is not None:
                mean, cov, evidence = _beliefs.write_drifting(
                    *(state, self.prior(()), weights, values, noise_var, retention), **options
                )
            else:
                mean, cov, evidence = ops.bayes_write(
                    *state, weights, values, noise_var, decay=decay, **options
                )
        posterior = MemoryState(mean, cov)
        kl_memory = ops.memory_kl(*posterior, *state, backend=self.backend)
        return WriteOutput(posterior, weights, self._kl_weights(weights, mask), kl_memory, evidence)

    def _kept(self, retention, decay):
        """The retention of a write; None where there is no need for one."""
        given = retention is not None
        if not given:
            retention = self.retention
        if retention is not None and decay is not None:
            more = "" if given else f" (this memory was made with retention={retention:g})"
            raise ValueError(
                f"write: decay and retention are two kinds of forgetting{more}; one of them must "
                "be None"
            )
        if given:
            check_number("write", "retention", retention, decay=True)
        return None if isinstance(retention, Real) and retention == 1 else retention

    def _check_unmoved(self, what: str) -> None:
        if self.retention is not None and self.retention < 1:
            raise ValueError(
                f"{what}: what a memory with retention = {self.retention:g} holds has faded since "
                "it was written, so that it cannot be told apart exactly"
            )

    def _checked(self, state: MemoryState, name: str = "state") -> MemoryState:
        return check_state(state, self.memory_size, self.code_size, name)

    def _given(self, weights: Tensor | None, keys: Tensor | None) -> Tensor:
        """Addresses as they were given, or of keys."""
        if weights is not None:
            return weights
        if keys is None:
            raise ValueError('keys must be given with addressing="key" unless weights are')
        return self.address(keys)

    def forget(
        self,
        state: MemoryState,
        weights: Tensor | None,
        values: Tensor,
        mask: Tensor | None = None,
        check: bool = False,
        keys: Tensor | None = None,
        noise_var: float | Tensor | None = None,
    ) -> MemoryState:
        """Remove codes that were written at known addresses, exactly (`ops.forget`).

        Not with ``retention`` (a ValueError where the module has it): what was written has faded.
        With given addresses or keys the result is as if the codes had never been written. With
        least-squares addressing it is so **at these addresses**: what was written since keeps the
        addresses that were found while the codes were in the memory, and without them it would
        have been written at others.

        Args:
            state: belief that holds them, with what was written before and since, without decay
                or retention.
            weights: (B, T, K), the addresses they were written at (`WriteOutput.weights`); None
                with ``keys``.
            values: (B, T, C), the codes.
            mask: (B, T) bool or integer; False steps are skipped.
            check: raise ValueError for batch items where less was written at an address than is
                to be taken out, ``w'Uw >= noise_var``. Not noticed: an address that was never
                written at whose w'Uw is smaller, and a wrong value at a right address, on which
                the covariance does not depend; the result is wrong then.
            keys: (B, T, S) they were written by, with ``addressing="key"`` and no ``weights``.
            noise_var: their noise variance as they were written, as in `write`; None: the module's.

        Returns:
            `MemoryState` without them; NaN in an item where `check` would raise.
        """
        self._check_unmoved("forget")
        check_codes("values", values, self.code_size, "code_size")
        mean, cov = self._checked(state)
        if keys is not None and self.key_size is None:
            raise ValueError('keys must be None without addressing="key"')
        if weights is None and self.key_size is None:
            raise ValueError("weights must be given: WriteOutput.weights of the write")
        mask = as_mask(mask)
        weights = self._given(weights, without_masked(keys, mask))
        noise_var = self.noise_var if noise_var is None else noise_var
        options = {"mask": mask, "check": check, "backend": self.backend}
        return MemoryState(*ops.forget(mean, cov, weights, values, noise_var, **options))

    def merge(self, states: Sequence[MemoryState], prior: MemoryState | None = None) -> MemoryState:
        """One belief that holds what each of several holds that were written from one prior.

        Exact for writes at given addresses or keys, in any order, without decay or retention (a
        ValueError where the module has it); with least-squares addressing,
        at the addresses that each write found. Computed in float64 by `ops.to_statistics`.

        Args:
            states: beliefs whose shapes broadcast, at least one.
            prior: the belief that each of them was written from; the module's prior if None.

        Returns:
            `MemoryState`.
        """
        self._check_unmoved("merge")
        if isinstance(states, MemoryState) or not isinstance(states, Sequence) or not states:
            raise TypeError("states must be a sequence of MemoryState, at least one")
        states = [self._checked(state, f"states[{i}]") for i, state in enumerate(states)]
        prior = self.prior(()) if prior is None else self._checked(prior, "prior")
        return _beliefs.merge(states, prior, self.backend)

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
            mask: (B, T) bool or integer; at False steps the read-out and its KL are 0.
            generator: of the samples that ``sample_memory`` and ``sample_weights`` take, on the
                state's device; None: PyTorch's own.

        Returns:
            `ReadOutput` in the state's dtype. ``kl_weights`` as in `write`. ``var`` is w'Uw at the
            address read from, also with ``sample_memory``; at least ``eps sum_k w_k^2 U_kk`` with
            the eps of the state's dtype, below which it would be rounding. It grows with |w|^2, and
            so with the query: `score` compares queries of different sizes.
        """
        mask = as_mask(mask)
        queries = without_masked(queries, mask)
        mean, cov = state = self._to_read(state)
        if self.sample_memory:
            mean = sample_memory(state, generator)
        if self.key_size is not None:
            weights = self.address(queries)
            kl = self._kl_weights(weights, mask)
        else:
            check_codes("queries", queries, self.code_size, "code_size")
            if not self.sample_weights:
                values, var, weights = ops.recall(
                    mean, cov, queries, self.ridge, backend=self.backend
                )
                var = torch.maximum(var, _beliefs.smallest_var(cov, weights))
                return ReadOutput(values, var, weights, self._kl_weights(weights, mask))
            weights = self._solve(mean, queries)
            kl = self._kl_weights(weights, mask)
            noise = standard_normal(weights, generator) * wide(self.log_weight_std).exp()
            weights = weights + without_masked(noise, mask)
        values, var = ops.read(mean, cov, weights, backend=self.backend)
        var = torch.maximum(var, _beliefs.smallest_var(cov, weights))
        return ReadOutput(values, var, weights, kl)

    def score(
        self,
        queries: Tensor,
        state: MemoryState,
        mask: Tensor | None = None,
        keys: Tensor | None = None,
        normalize: bool = True,
    ) -> Tensor:
        """How well the memory explains each query: ln p(z | M), nats. High: it was written.

        With least-squares addressing the address is integrated out, ``w ~ N(0, weight_std^2 I)``,
        with the memory at its mean R: ``p(z | M) = N(z; 0, weight_std^2 R'R + noise_var I)``. With
        keys the memory is integrated out: ``p(z | key) = N(z; R'w, (w'Uw + noise_var) I)``.

        A small query has a high density whatever the memory holds. ``normalize`` takes away what a
        source without a memory explains, ``N(z; 0, s^2 I)`` at the s^2 >= noise_var that suits z
        best, and divides by C: nats per dimension that the memory adds, comparable between
        queries, sizes and code sizes. A blank query scores below 0.

        Args:
            queries: (B, T, C) codes.
            state: belief to compare them with.
            mask: (B, T) bool or integer; the score is 0 at False steps.
            keys: (B, T, S) of the codes, with ``addressing="key"``.
            normalize: False: ln p(z | M) itself.

        Returns:
            (B, T) in the state's dtype.
        """
        check_codes("queries", queries, self.code_size, "code_size")
        if (keys is None) != (self.key_size is None):
            raise ValueError('keys must be given with addressing="key" and only then')
        mask = as_mask(mask)
        mean, cov = self._checked(state)
        queries, keys = without_masked(queries, mask), without_masked(keys, mask)
        noise_var = self.noise_var
        if keys is not None:
            reads, var = ops.read(mean, cov, self.address(keys), backend=self.backend)
            queries = queries.to(reads.dtype)
            score = log_normal(queries - reads, var + noise_var)
        else:
            reads, _, weights = ops.recall(mean, cov, queries, self.ridge, backend=self.backend)
            queries = queries.to(reads.dtype)
            score = _beliefs.log_marginal(mean, queries, reads, weights, noise_var, self.weight_std)
        if normalize:
            score = (score - _beliefs.log_memoryless(queries, noise_var)) / self.code_size
        return score if mask is None else torch.where(mask, score, 0)

    def _to_read(self, state: MemoryState) -> MemoryState:
        """The belief to read from: the one that was given, unless `compare_memories` swaps it."""
        state = self._checked(state)
        if self._read_from is None:
            return state
        return _beliefs.other_than(state, self._read_from, self.prior)

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
        num_steps = check_int("", "num_steps", num_steps)
        if project is not None and not callable(project):
            raise TypeError(f"project must be callable or None, got {type(project).__name__}")
        check_codes("queries", queries, self.code_size, "code_size")
        mean, cov = self._to_read(state)
        lead = torch.broadcast_shapes(queries.shape[:-2], mean.shape[:-2])
        z = queries.to(mean.dtype).expand(*lead, *queries.shape[-2:])
        trajectory, bound = [z], []
        for _ in range(num_steps):
            values, var, weights = ops.recall(mean, cov, z, self.ridge, backend=self.backend)
            fit = log_normal(z - values, self.noise_var)
            bound.append(fit + log_normal(weights, self.weight_std**2))
            if project is not None:
                values = project(values)
                check_codes("the result of project", values, self.code_size, "code_size")
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
            `ReadOutput` with every field set, the read of each step being from the memory after the
            whole episode, and state, ``kl_memory`` and ``log_evidence`` those of the write.
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
        num_samples = check_int("", "num_samples", num_samples, least=0)
        mean, cov = state = self._to_read(state)
        if self.sample_memory:
            mean = sample_memory(state, generator)
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
            log_ratio = 2 * (wide(self.log_weight_std) - math.log(self.weight_std))
            kl = kl + self.memory_size / 2 * (log_ratio.exp() - 1 - log_ratio)
        return kl if mask is None else torch.where(mask, kl, 0)
