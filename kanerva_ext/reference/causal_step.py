"""One step of `causal_scan`, in place."""

from __future__ import annotations

from torch import Tensor

from .causal_scan import causal_scan


def causal_step(
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    queries: Tensor,
    noise_var: Tensor,
    mask: Tensor | None = None,
    decay: Tensor | None = None,
    retention: Tensor | None = None,
    stationary_cov: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``kanerva::causal_step``: mean and cov become those after the step."""
    steps = (weights, values, queries, noise_var, mask, decay, retention)
    reads, read_var, mean_after, cov_after, log_evidence = causal_scan(
        mean, cov, *(None if x is None else x[:, None] for x in steps), stationary_cov
    )
    mean.copy_(mean_after)
    cov.copy_(cov_after)
    return reads[:, 0], read_var[:, 0], log_evidence
