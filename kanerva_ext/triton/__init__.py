"""Every operator as Triton kernels, on raw arguments like those of `reference`: for NVIDIA GPUs
without the CUDA library, for AMD GPUs and, with ``TRITON_INTERPRET=1``, for CPU tensors in Triton's
interpreter.
"""

from .adaptive_write import adaptive_write
from .adaptive_write_backward import adaptive_write_backward
from .bayes_write import bayes_write
from .bayes_write_backward import bayes_write_backward
from .causal_scan import causal_scan
from .causal_scan_backward import causal_scan_backward
from .causal_step import causal_step
from .forget import forget, forget_backward
from .memory_kl import memory_kl, memory_kl_backward
from .read import read, read_backward
from .recall import recall, recall_backward
from .solve_addresses import solve_addresses, solve_addresses_backward
from .statistics import statistics, statistics_backward

__all__ = [
    "adaptive_write",
    "adaptive_write_backward",
    "bayes_write",
    "bayes_write_backward",
    "causal_scan",
    "causal_scan_backward",
    "causal_step",
    "forget",
    "forget_backward",
    "memory_kl",
    "memory_kl_backward",
    "read",
    "read_backward",
    "recall",
    "recall_backward",
    "solve_addresses",
    "solve_addresses_backward",
    "statistics",
    "statistics_backward",
]
