"""The memory's belief, and what its module returns, as values."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class MemoryState(NamedTuple):
    """Belief about a memory matrix, ``M ~ MN(mean, cov, I)``: a tuple, hence a pytree.

    Attributes:
        mean: (..., K, C), K slots of code size C.
        cov: (..., K, K), row covariance shared by all columns, symmetric positive definite.
    """

    mean: Tensor
    cov: Tensor


class WriteOutput(NamedTuple):
    """What a write returns.

    Attributes:
        state: the posterior.
        weights: (B, T, K), the addresses written to.
        kl_weights: (B, T), nats; 0 at masked steps.
        kl_memory: (B,), KL of the posterior from the state before the write, nats.
        log_evidence: (B,), ln p(values | weights) under the state before the write, nats.
    """

    state: MemoryState
    weights: Tensor
    kl_weights: Tensor
    kl_memory: Tensor
    log_evidence: Tensor


class ReadOutput(NamedTuple):
    """What a read returns; the last three are set by `FusedKanervaMemory.forward` alone.

    Attributes:
        values: (B, T, C), the read-out, in the state's dtype.
        var: (B, T), its predictive variance, without observation noise.
        weights: (B, T, K), the addresses read from.
        kl_weights: (B, T), nats; 0 at masked steps.
        state: the posterior after the write.
        kl_memory: (B,), nats.
        log_evidence: (B,), nats.
    """

    values: Tensor
    var: Tensor
    weights: Tensor
    kl_weights: Tensor
    state: MemoryState | None = None
    kl_memory: Tensor | None = None
    log_evidence: Tensor | None = None


class AttractorOutput(NamedTuple):
    """What iterative reading returns.

    Attributes:
        values: (B, T, C), the last read-out, in the state's dtype.
        var: (B, T), its predictive variance before ``project``, without observation noise.
        weights: (B, T, K), the addresses of the last step.
        bound: (num_steps, B, T), ln p(query, address | memory) of each step, nats.
        trajectory: (num_steps + 1, B, T, C), the queries and what followed, if asked for.
    """

    values: Tensor
    var: Tensor
    weights: Tensor
    bound: Tensor
    trajectory: Tensor | None = None
