"""Image sets, the episodes made of them, and random changes to images."""

from .augment import occlude, random_affine, salt_and_pepper
from .datasets import (
    DATASETS,
    ImageSet,
    default_pixels,
    describe_root,
    has_new_classes,
    hold_out,
    load_images,
)
from .episodes import PIXELS, EpisodeSampler, split_episodes
from .omniglot import OmniglotInfo, load_omniglot, omniglot_info

__all__ = [
    "DATASETS",
    "PIXELS",
    "EpisodeSampler",
    "ImageSet",
    "OmniglotInfo",
    "default_pixels",
    "describe_root",
    "has_new_classes",
    "hold_out",
    "load_images",
    "load_omniglot",
    "occlude",
    "omniglot_info",
    "random_affine",
    "salt_and_pepper",
    "split_episodes",
]
