"""Models on top of the memory."""

from .coders import ConvDecoder, ConvEncoder
from .kanerva_machine import KanervaBound, KanervaMachine
from .matched_vae import MatchedVAE, VAEBound
from .training import evaluate, train

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "KanervaBound",
    "KanervaMachine",
    "MatchedVAE",
    "VAEBound",
    "evaluate",
    "train",
]
