"""The operators as functions. Each has a file of its name here and in ``reference``.

``OPERATORS`` has the declaration of every raw operator by its name.
"""

from ._library import OPERATORS
from .adaptive_write import adaptive_write
from .bayes_write import bayes_write
from .causal_scan import causal_scan
from .causal_step import causal_step
from .forget import forget
from .memory_kl import memory_kl
from .read import read
from .recall import recall
from .solve_addresses import solve_addresses
from .statistics import from_statistics, to_statistics

__all__ = [
    "OPERATORS",
    "adaptive_write",
    "bayes_write",
    "causal_scan",
    "causal_step",
    "forget",
    "from_statistics",
    "memory_kl",
    "read",
    "recall",
    "solve_addresses",
    "to_statistics",
]
