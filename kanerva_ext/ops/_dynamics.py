"""Arguments of a memory that moves between writes, checked; and which backends have them."""

from __future__ import annotations

import torch

from .. import _backend

#: Backends whose kernels keep a memory still between writes.
WITHOUT_RETENTION = frozenset({"triton"})


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


def serve(op: str, choice: str, device: torch.device) -> str:
    """Who serves a call with ``retention``, where `_backend.choose` says ``choice``.

    Raises:
        NotImplementedError: no kernels have it on this device.
    """
    name = choice
    if choice == "native":
        name = device.type
        if name == "cuda" and _backend.triton_serves_gpus():
            name = "triton"
    if name in WITHOUT_RETENTION:
        _backend.refuse_retention(op, name)
    return choice


def is_raw_dynamics(retention, stationary_cov, mean, per_step, of_state) -> bool:
    """Whether neither has to be cast or expanded to these shapes."""
    return all(
        x is None or (x.shape == shape and x.dtype == mean.dtype and x.device == mean.device)
        for x, shape in ((retention, per_step), (stationary_cov, of_state))
    )
