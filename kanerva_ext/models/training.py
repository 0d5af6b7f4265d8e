"""Training and evaluation by the bound, for all models alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import salt_and_pepper, split_episodes
from .dynamic_kanerva_machine import DynamicKanervaBound, DynamicKanervaMachine
from .kanerva_machine import KanervaBound, KanervaMachine
from .matched_vae import MatchedVAE, VAEBound

__all__ = ["TrainingStep", "evaluate", "train"]

# What works in minutes: first nearly an autoencoder, then the bound itself.
WARM_UP_STEPS = 50  # of the learning rate
INITIAL_KL_WEIGHT = 0.02
KL_WARM_UP = 0.5  # share of the training until the KL terms count in full
MAX_GRADIENT_NORM = 50.0

Model = KanervaMachine | DynamicKanervaMachine | MatchedVAE
Bound = KanervaBound | DynamicKanervaBound | VAEBound


class TrainingStep(NamedTuple):
    """What `train` reports after each step.

    Attributes:
        step: steps made so far.
        progress: share of the budget used, in [0, 1].
        seconds: wall time since the start of the training.
        bounds: the training batch's bound under each model, every KL term in full, nats per image.
    """

    step: int
    progress: float
    seconds: float
    bounds: tuple[float, ...]


def objective(terms: Bound, kl_weight: float) -> Tensor:
    """What training minimises: the bound, its KL terms by ``kl_weight``, and for the Dynamic
    Kanerva Machine, as in its paper, the autoencoder's likelihood and the memory's KL."""
    bound, reconstruction = terms.bound.mean(), terms.reconstruction.mean()
    loss = reconstruction + kl_weight * (bound - reconstruction)
    if isinstance(terms, DynamicKanervaBound):
        loss = loss + terms.autoencoding.mean()
        if terms.kl_memory is not None:
            loss = loss + kl_weight * terms.kl_memory.mean() / terms.bound.shape[1]
    return loss


class _Trainer:
    """One model, its optimiser and its random numbers."""

    def __init__(self, model: Model, learning_rate: float, warm_up: bool, seed: int) -> None:
        self.model = model.train()
        self.learning_rate = learning_rate
        self.warm_up = warm_up
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)

    def step(self, images: Tensor, queries: Tensor | None, step: int, progress: float) -> float:
        rate = self.learning_rate * min(1, (step + 1) / WARM_UP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * progress)) / 2
        share = min(1.0, progress / KL_WARM_UP) if self.warm_up else 1.0
        kl_weight = INITIAL_KL_WEIGHT + (1 - INITIAL_KL_WEIGHT) * share

        terms = self.model(images, queries=queries, generator=self.generator)
        loss = objective(terms, kl_weight)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        if not math.isfinite(value := terms.bound.mean().item()):
            raise RuntimeError(
                f"the bound of {type(self.model).__name__} is {value} at step {step + 1}; try a "
                "lower learning rate"
            )
        return value


def train(
    models: Sequence[Model],
    batches: Iterator[Tensor],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    learning_rate: float = 3e-3,
    warm_up: bool = True,
    corrupted: float = 0.125,
    noise: float = 0.15,
    seed: int = 0,
    threads: int = 1,
    on_step: Callable[[TrainingStep], None] | None = None,
) -> int:
    """Minimise the bound of each model with Adam, all in step, on the same batches.

    The learning rate falls to 0 over the budget as a cosine, and the KL terms count from 2 % to
    100 % over its first half: both follow the larger of the shares of steps and seconds used, so
    that with ``steps`` alone a training repeats exactly, and with ``seconds`` it does not.

    Args:
        models: on the CPU; left in evaluation mode.
        batches: (B, T, 1, H, W) tensors.
        steps: number of steps; None: no limit.
        seconds: wall time, ``on_step`` and the drawing of batches in it; None: no limit.
        learning_rate: Adam's, at its highest.
        warm_up: False: the KL terms count in full from the start, to go on with a trained model.
        corrupted: share of the images of each episode that are read by corrupted queries, see
            `KanervaMachine.elbo`: what an address is to be robust to, it must have seen.
        noise: share of the pixels of those queries that `salt_and_pepper` replaces.
        seed: of the corruption and of the models' samples.
        threads: with 2 or more, the models' steps run side by side, one Python thread each. On
            these small convolutions that gains more than PyTorch's threads do, which also stall
            where other programs use the cores: set those to 1.
        on_step: called after every step.

    Returns:
        Number of steps made.

    Raises:
        ValueError: no limit, or one that is not positive.
        RuntimeError: a bound is not finite.
    """
    if steps is None and seconds is None:
        raise ValueError("steps or seconds must be given")
    for name, limit in (("steps", steps), ("seconds", seconds)):
        if limit is not None and not limit > 0:
            raise ValueError(f"{name} must be positive, got {limit}")
    trainers = [_Trainer(model, learning_rate, warm_up, seed) for model in models]
    generator = torch.Generator().manual_seed(seed)
    intra_op = torch.get_num_threads()
    side_by_side = ThreadPoolExecutor(
        min(threads, len(trainers)), initializer=torch.set_num_threads, initargs=(intra_op,)
    )
    step, progress, start = 0, 0.0, time.perf_counter()
    with side_by_side:
        while progress < 1:
            images = next(batches)
            queries = None
            if num_corrupted := round(corrupted * images.shape[1]):
                queries = salt_and_pepper(images[:, :num_corrupted], noise, generator)
            run = partial(
                _Trainer.step, images=images, queries=queries, step=step, progress=progress
            )
            if threads > 1 and len(trainers) > 1:
                bounds = tuple(side_by_side.map(run, trainers))
            else:
                bounds = tuple(map(run, trainers))
            step += 1
            used = time.perf_counter() - start
            progress = max(step / steps if steps else 0.0, used / seconds if seconds else 0.0)
            progress = min(progress, 1.0)
            if on_step is not None:
                on_step(TrainingStep(step, progress, used, bounds))
    for model in models:
        model.eval()
    return step


@torch.no_grad()
def evaluate(
    model: Model,
    images: Tensor,
    *,
    episode_length: int = 32,
    rounds: int = 4,
    other_memory: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Means of the terms of the bound over images, each once a round in a random episode.

    Leaves the global random state and the model's mode as they were.

    Args:
        model: in evaluation mode for the time of the call.
        images: (N, H, W), nonzero is ink.
        episode_length: T.
        rounds: random partitions into episodes, one sample of the bound each.
        other_memory: (models with a memory) read every episode from the memory of another one.
        seed: of the partitions and samples.

    Returns:
        Each term by name, nats per image, and ``standard_error``, of ``bound``, over images drawn
        independently. ``kl_memory`` is per image too: the episode's over its length.

    Raises:
        ValueError: fewer images than an episode (than two, with ``other_memory``).
    """
    if other_memory and len(images) < 2 * episode_length:
        raise ValueError(
            f"images must make two episodes of {episode_length} with other_memory=True, "
            f"got {len(images)}"
        )
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, float] = {}
    per_round = []
    was_training = model.training
    model.eval()
    for _ in range(rounds):
        episodes = split_episodes(images, episode_length=episode_length, generator=generator)
        if other_memory:
            state = model.write(episodes.roll(1, dims=0), generator=generator).state
            terms = model.elbo(episodes, state, generator=generator)
        else:
            terms = model.elbo(episodes, generator=generator)
        for name, value in terms._asdict().items():
            if value is not None:
                each = value.mean().item() / (episode_length if value.ndim == 1 else 1)
                sums[name] = sums.get(name, 0.0) + each / rounds
        per_round.append(terms.bound.flatten())
    model.train(was_training)
    # The rounds repeat the same images, so they do not count as more of them.
    sums["standard_error"] = torch.stack(per_round).std().item() / math.sqrt(per_round[0].numel())
    return sums
