"""Episodic memory: facts written in one shot, read with a certainty, edited, forgotten exactly."""

from ._reads import EpisodicRead, Nearest, Sources
from ._regression import IllConditioned
from .augmented import MemoryAugmented, Retrieved
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
    "MemoryAugmented",
    "Nearest",
    "NoFeatures",
    "RandomFourier",
    "RandomReLU",
    "Retrieved",
    "SQLiteStore",
    "Sources",
    "Store",
]
