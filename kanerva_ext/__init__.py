"""Bayesian associative memory for PyTorch: the Kanerva Machine's exact write, and its reads."""

from . import ops
from ._backend import backends, from_environment, load, use_backend
from .memory import FusedKanervaMemory, MemoryState, ReadOutput, WriteOutput

load()
from_environment()

__all__ = [
    "FusedKanervaMemory",
    "MemoryState",
    "ReadOutput",
    "WriteOutput",
    "backends",
    "ops",
    "use_backend",
]
