"""Models on top of the memory."""

from .coders import ConvDecoder, ConvEncoder
from .dynamic_kanerva_machine import DynamicKanervaBound, DynamicKanervaMachine
from .kanerva_machine import KanervaBound, KanervaMachine
from .matched_vae import MatchedVAE, VAEBound
from .training import evaluate, train

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "DynamicKanervaBound",
    "DynamicKanervaMachine",
    "KanervaBound",
    "KanervaMachine",
    "MatchedVAE",
    "VAEBound",
    "evaluate",
    "train",
]
