"""Models on top of the memory."""

from .coders import ConvDecoder, ConvEncoder
from .dynamic_kanerva_machine import DynamicKanervaBound, DynamicKanervaMachine
from .kanerva_machine import KanervaBound, KanervaMachine
from .matched_vae import MatchedVAE, VAEBound
from .training import evaluate, train

#: The classes by what ``[model] type`` in a configuration calls them.
MODELS = {each.TYPE: each for each in (KanervaMachine, DynamicKanervaMachine, MatchedVAE)}

__all__ = [
    "MODELS",
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
