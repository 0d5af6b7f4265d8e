"""The episodes of a training, as a function of the step's number alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..data import (
    EpisodeSampler,
    ImageSet,
    describe_root,
    has_new_classes,
    hold_out,
    load_images,
    salt_and_pepper,
)
from ._config import Config, ConfigError, DataConfig
from ._processes import Process

DATA, MODEL = 0, 1  # streams of random numbers


def derive_seed(seed: int, stream: int, step: int, rank: int = 0) -> int:
    """A seed of its own for every step, stream and process."""
    sequence = np.random.SeedSequence([seed, stream, step, rank])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


class Batches:
    """The episodes of a step, as a function of its number alone; of this process its share."""

    def __init__(self, config: Config, process: Process) -> None:
        self.config, self.process = config, process
        data = config.data
        self.shared = config.training.shared_memory
        self.lengths = data.episode_lengths()
        split = {"batch_size": data.batch_size}
        if self.shared:
            split = {"episode_length": data.episode_length, "shortest_episode": min(self.lengths)}
        for name, size in split.items():
            if size % process.count:
                raise ConfigError(
                    f"[data] {name} must be a multiple of the {process.count} processes"
                    f"{' with shared_memory' if self.shared else ''}, got {size}"
                )
        train, self.test = _images(config)
        self.generator = torch.Generator()
        try:
            self.sampler = EpisodeSampler(
                train.images,
                train.labels,
                episode_length=data.episode_length,
                batch_size=data.batch_size,
                num_classes=data.num_classes,
                augment=data.augment,
                pixels=data.pixels,
                generator=self.generator,
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"[data] {error}") from error

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Images (B, T, C, H, W) and corrupted queries (B, Q, C, H, W) or None."""
        training = self.config.training
        self.generator.manual_seed(derive_seed(training.seed, DATA, step))
        images, queries = self.sampler.sample(), None
        if len(self.lengths) > 1:
            draw = torch.randint(len(self.lengths), (), generator=self.generator)
            images = images.unflatten(1, (-1, self.lengths[draw])).flatten(0, 1)
        if num_corrupted := round(training.corrupted * images.shape[1]):
            queries = salt_and_pepper(images[:, :num_corrupted], training.noise, self.generator)
        rank, count, device = self.process.rank, self.process.count, self.process.device
        share = images.shape[int(self.shared)] // count
        own = slice(rank * share, (rank + 1) * share)
        own = (slice(None), own) if self.shared else own  # of each episode, the queries too
        images = images[own].to(device)
        if queries is not None:
            queries = queries[own]
            queries = queries.to(device) if queries.shape[1] else None
        return images, queries


def _images(config: Config) -> tuple[ImageSet, ImageSet]:
    """The images to train with, and those to evaluate with."""
    data = config.data
    train = _load(data, "train")
    if data.validation:
        try:
            return hold_out(train, data.validation, whole_classes=has_new_classes(data.name))
        except ValueError as error:
            raise ConfigError(f"[data] validation: {error}") from error
    return train, _load(data, "test")


def _load(data: DataConfig, split: str) -> ImageSet:
    try:
        return load_images(data.name, split, data.root)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        raise ConfigError(
            f"[data] {error}; {data.name} {describe_root(data.name)} (--set data.root=FOLDER)"
        ) from error


def spread(count: int, wanted: int) -> Tensor:
    """Indices of about ``wanted`` of ``count`` images, evenly spread over them."""
    return torch.arange(0, count, max(1, count // max(wanted, 1)))[:wanted]
