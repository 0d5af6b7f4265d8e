"""Episodic memory: facts written in one shot, read with a certainty, edited, forgotten exactly."""

from ._reads import EpisodicRead, Nearest
from ._regression import IllConditioned
from .features import NoFeatures, RandomFourier, RandomReLU
from .memory import EpisodicMemory
from .sqlite import SQLiteStore
from .stores import Facts, InMemoryStore, Store

__all__ = [
    "EpisodicMemory",
    "EpisodicRead",
    "Facts",
    "IllConditioned",
    "InMemoryStore",
    "Nearest",
    "NoFeatures",
    "RandomFourier",
    "RandomReLU",
    "SQLiteStore",
    "Store",
]
