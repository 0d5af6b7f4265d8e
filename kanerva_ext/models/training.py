"""Training and evaluation by the bound, for all models alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import salt_and_pepper, split_episodes
from .dynamic_kanerva_machine import DynamicKanervaBound, DynamicKanervaMachine
from .kanerva_machine import KanervaBound, KanervaMachine
from .likelihoods import GaussianPixels, bits_per_dim
from .linear_path import LinearPath
from .matched_vae import MatchedVAE, VAEBound

__all__ = ["Schedule", "Trainer", "TrainingStep", "evaluate", "train"]

Model = KanervaMachine | DynamicKanervaMachine | MatchedVAE
Bound = KanervaBound | DynamicKanervaBound | VAEBound


class Schedule(NamedTuple):
    """How a training goes with its progress in [0, 1]. The defaults are what works in minutes:
    first nearly an autoencoder, then the bound itself.

    Attributes:
        learning_rate: Adam's, at its highest.
        warm_up_steps: steps over which the learning rate rises to it.
        decay: "cosine", the learning rate falls to 0; or "constant", it stays.
        initial_kl_weight: what the KL terms count at the start.
        kl_warm_up: share of the training until they count in full; 0: from the start.
        max_gradient_norm: longer gradients are scaled down to it.
        memory_kl_weight: what the memory's KL counts in the objective of the Dynamic Kanerva
            Machine, times the other terms' weight.
        fixed_linear_path: share of the training in which a model's linear path stays as it was
            started.
    """

    learning_rate: float = 3e-3
    warm_up_steps: int = 50
    decay: str = "cosine"
    initial_kl_weight: float = 0.02
    kl_warm_up: float = 0.5
    max_gradient_norm: float = 50.0
    memory_kl_weight: float = 1.0
    fixed_linear_path: float = 1.0

    def rate(self, step: int, progress: float) -> float:
        """The learning rate of a step."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(self.warm_up_steps, 1))
        return rate * (1 + math.cos(math.pi * progress)) / 2 if self.decay == "cosine" else rate

    def kl_weight(self, progress: float) -> float:
        """What the KL terms count."""
        share = min(1.0, progress / self.kl_warm_up) if self.kl_warm_up else 1.0
        return self.initial_kl_weight + (1 - self.initial_kl_weight) * share


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


def objective(
    terms: Bound, kl_weight: float, memory_kl_weight: float = 1.0, parts: int = 1
) -> Tensor:
    """What training minimises: the bound, its KL terms by ``kl_weight``, and for the Dynamic
    Kanerva Machine, as in its paper, the autoencoder's likelihood and the memory's KL. ``parts``:
    how many processes have a part each of the episodes."""
    bound, reconstruction = terms.bound.mean(), terms.reconstruction.mean()
    loss = reconstruction + kl_weight * (bound - reconstruction)
    if isinstance(terms, DynamicKanervaBound):
        loss = loss + terms.autoencoding.mean()
        if terms.kl_memory is not None and memory_kl_weight:
            weight = kl_weight * memory_kl_weight
            loss = loss + weight * terms.kl_memory.mean() / (terms.bound.shape[1] * parts)
    return loss


class DivergedError(RuntimeError):
    """The bound of a step is no finite number; nothing was changed by that step."""


class Trainer:
    """One model and its optimiser; every step's learning rate and weights follow a schedule.

    Args:
        model: put into training mode.
        schedule: see `Schedule`.
        forward: what is called in the model's place, such as the model wrapped for several
            processes; None: the model.
        precision: torch.bfloat16 for autocast; None: the parameters' own.
        parts: how many processes have a part each of the episodes.
    """

    def __init__(
        self,
        model: Model,
        schedule: Schedule,
        forward: Callable[..., Bound] | None = None,
        precision: torch.dtype | None = None,
        parts: int = 1,
    ) -> None:
        self.model = model.train()
        self.parts = parts
        self.schedule = schedule
        self.forward = model if forward is None else forward
        self.device = next(model.parameters()).device
        self.precision = precision
        self.optimizer = torch.optim.Adam(model.parameters(), lr=schedule.learning_rate, fused=True)

    def step(
        self,
        images: Tensor,
        queries: Tensor | None,
        step: int,
        progress: float,
        generator: torch.Generator | None = None,
    ) -> Bound:
        """One step on images (B, T, C, H, W); the terms of the bound before it, detached.

        Raises:
            RuntimeError: the bound is not finite; the parameters are as they were.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(step, progress)
        linear = getattr(self.model, "linear", None)
        fixed = isinstance(linear, LinearPath) and progress < self.schedule.fixed_linear_path
        if fixed and self.forward is self.model:  # a wrapper wants all gradients
            linear.requires_grad_(False)
        with torch.autocast(
            self.device.type, dtype=self.precision, enabled=self.precision is not None
        ):
            terms = self.forward(images, queries=queries, generator=generator)
        weight = self.schedule.kl_weight(progress)
        loss = objective(terms, weight, self.schedule.memory_kl_weight, self.parts)
        if not math.isfinite(value := terms.bound.mean().item()):
            raise DivergedError(
                f"the bound of {type(self.model).__name__} is {value} at step {step + 1}; try a "
                "lower learning rate, or other scales of noise"
            )
        self.optimizer.zero_grad()
        loss.backward()
        if fixed:
            linear.requires_grad_(True)
            linear.zero_grad()  # a wrapped model has made them nevertheless
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.max_gradient_norm)
        self.optimizer.step()
        return type(terms)(*(None if term is None else term.detach() for term in terms))


def train(
    models: Sequence[Model],
    batches: Iterator[Tensor],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    learning_rate: float = 3e-3,
    warm_up: bool = True,
    memory_kl_weight: float = 1.0,
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
        batches: (B, T, C, H, W) tensors.
        steps: number of steps; None: no limit.
        seconds: wall time, ``on_step`` and the drawing of batches in it; None: no limit.
        learning_rate: Adam's, at its highest.
        warm_up: False: the KL terms count in full from the start, to go on with a trained model.
        memory_kl_weight: see `Schedule`.
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
    schedule = Schedule(learning_rate=learning_rate, memory_kl_weight=memory_kl_weight)
    if not warm_up:
        schedule = schedule._replace(kl_warm_up=0.0)
    trainers = [Trainer(model, schedule) for model in models]
    generators = [torch.Generator().manual_seed(seed) for _ in models]
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

            def run(trainer: Trainer, own: torch.Generator) -> float:
                terms = trainer.step(images, queries, step, progress, own)  # noqa: B023
                return terms.bound.mean().item()

            each = side_by_side.map if threads > 1 and len(trainers) > 1 else map
            bounds = tuple(each(run, trainers, generators))
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
    pixels: str = "as_is",
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """Means of the terms of the bound over images, each once a round in a random episode.

    Leaves the global random state and the model's mode as they were.

    Args:
        model: in evaluation mode for the time of the call.
        images: (N, H, W) or (N, C, H, W), as `split_episodes` takes them.
        episode_length: T.
        rounds: random partitions into episodes, one sample of the bound each.
        other_memory: (models with a memory) read every episode from the memory of another one.
        pixels: as `split_episodes` has it.
        batch_size: episodes computed at a time.
        seed: of the partitions and samples.

    Returns:
        Each term by name, nats per image, and ``standard_error``, of ``bound``, over images drawn
        independently. ``kl_memory`` is per image too: the episode's over its length. With
        ``likelihood="gaussian"`` also ``bits_per_dim``, of the bound and 256 levels.

    Raises:
        ValueError: fewer images than an episode (than two, with ``other_memory``).
    """
    if other_memory and len(images) < 2 * episode_length:
        raise ValueError(
            f"images must make two episodes of {episode_length} with other_memory=True, "
            f"got {len(images)}"
        )
    device = next(model.parameters()).device
    cpu_generator = torch.Generator().manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    sums: dict[str, float] = {}
    per_round = []
    was_training = model.training
    model.eval()
    for _ in range(rounds):
        episodes = split_episodes(
            images, episode_length=episode_length, pixels=pixels, generator=cpu_generator
        )
        written = (episodes.roll(1, dims=0) if other_memory else episodes).split(batch_size)
        bounds = []
        for batch, others in zip(episodes.split(batch_size), written, strict=True):
            batch = batch.to(device)
            if other_memory:
                state = model.write(others.to(device), generator=generator).state
                terms = model.elbo(batch, state, generator=generator)
            else:
                terms = model.elbo(batch, generator=generator)
            for name, value in terms._asdict().items():
                if value is not None:
                    each = value.sum().item() / (episodes.shape[0] * episode_length * rounds)
                    sums[name] = sums.get(name, 0.0) + each
            bounds.append(terms.bound.flatten())
        per_round.append(torch.cat(bounds))
    model.train(was_training)
    # The rounds repeat the same images, so they do not count as more of them.
    sums["standard_error"] = torch.stack(per_round).std().item() / math.sqrt(per_round[0].numel())
    if isinstance(model.likelihood, GaussianPixels):
        sums["bits_per_dim"] = bits_per_dim(sums["bound"], math.prod(model.image_shape))
    return sums
