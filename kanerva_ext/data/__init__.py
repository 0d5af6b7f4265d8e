"""Omniglot, as it ships with the package."""

from .omniglot import EpisodeSampler, OmniglotInfo, load_omniglot, omniglot_info, split_episodes

__all__ = ["EpisodeSampler", "OmniglotInfo", "load_omniglot", "omniglot_info", "split_episodes"]
