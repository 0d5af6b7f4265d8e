"""Arguments of a memory that moves between writes, checked."""

from __future__ import annotations


def check_dynamics(op: str, decay, retention, stationary_cov) -> None:
    """Raise unless one of decay and retention is given at most, and stationary_cov with the latter.

    Raises:
        ValueError: naming ``op`` and the argument.
    """
    if retention is None and stationary_cov is not None:
        raise ValueError(
            f"{op}: stationary_cov is what the memory drifts back to with retention, which must be "
            "given with it, got retention=None"
        )
    if retention is not None and decay is not None:
        raise ValueError(
            f"{op}: decay and retention are two kinds of dynamics; one of them must be None"
        )


def is_raw_dynamics(retention, stationary_cov, mean, per_step, of_state) -> bool:
    """Whether neither has to be cast or expanded to these shapes."""
    return all(
        x is None or (x.shape == shape and x.dtype == mean.dtype and x.device == mean.device)
        for x, shape in ((retention, per_step), (stationary_cov, of_state))
    )
