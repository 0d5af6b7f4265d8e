"""Every operator as plain PyTorch, on raw arguments: any device, float64-capable, the truth of the
tests, and the implementation that serves devices without compiled kernels.

The functions take the arguments of ``torch.ops.kanerva.*``: exactly one batch dimension, equal
everywhere, and per-step tensors already of shape (B, T). They are differentiable by ordinary
autograd, in forward mode too. ``<operator>_backward`` are the closed-form gradients.
"""

from .adaptive_write import adaptive_write, adaptive_write_backward
from .bayes_write import bayes_write, bayes_write_backward
from .causal_scan import causal_scan, causal_scan_backward
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
