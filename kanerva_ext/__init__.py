"""Bayesian associative memory for PyTorch: the Kanerva Machine's exact write, and its reads."""

from . import ops
from ._backend import backends, from_environment, load, triton_serves_gpus, use_backend
from ._version import __version__
from .block import KanervaBlock
from .layer import KanervaCache, KanervaLayer, KanervaOutput
from .memory import AttractorOutput, FusedKanervaMemory, MemoryState, ReadOutput, WriteOutput
from .usage import MemoryComparison, compare_memories

load()
if triton_serves_gpus():
    ops._library.serve_gpus_by_triton()
from_environment()

__all__ = [
    "AttractorOutput",
    "FusedKanervaMemory",
    "KanervaBlock",
    "KanervaCache",
    "KanervaLayer",
    "KanervaOutput",
    "MemoryComparison",
    "MemoryState",
    "ReadOutput",
    "WriteOutput",
    "__version__",
    "backends",
    "compare_memories",
    "ops",
    "use_backend",
]
