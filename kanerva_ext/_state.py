"""The memory's belief as a value."""

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
