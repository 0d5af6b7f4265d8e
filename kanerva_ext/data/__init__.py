"""Omniglot, as it ships with the package."""

from .augment import random_affine, salt_and_pepper
from .omniglot import EpisodeSampler, OmniglotInfo, load_omniglot, omniglot_info, split_episodes

__all__ = [
    "EpisodeSampler",
    "OmniglotInfo",
    "load_omniglot",
    "omniglot_info",
    "random_affine",
    "salt_and_pepper",
    "split_episodes",
]
