"""The operators as functions. Each has a file of its name here and in ``reference``."""

from . import _library  # noqa: F401 - defines torch.ops.kanerva
from .bayes_write import bayes_write
from .memory_kl import memory_kl
from .read import read
from .recall import recall
from .solve_addresses import solve_addresses
from .statistics import from_statistics, to_statistics

__all__ = [
    "bayes_write",
    "from_statistics",
    "memory_kl",
    "read",
    "recall",
    "solve_addresses",
    "to_statistics",
]
