"""The training loop: resumable at every step, on one device or, by torchrun, on several.

Nothing random is carried from step to step: a step draws from generators that are seeded by the
run's seed and the step's number. A run that was killed and goes on from its last checkpoint makes
the steps after it again; on one CPU, with the same number of threads, they come out bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed

from ..data import (
    EpisodeSampler,
    ImageSet,
    has_new_classes,
    hold_out,
    load_images,
    salt_and_pepper,
)
from ..models import evaluate
from ..models.linear_path import LinearPath
from ..models.training import Trainer
from . import _checkpoint
from ._config import Config, ConfigError
from ._device import choose_device, choose_precision
from ._logs import CsvLog, TensorBoardLog

_DATA, _MODEL = 0, 1  # streams of random numbers


class Process(NamedTuple):
    """This process among those of torchrun; alone without it."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def agree(self, number: int) -> int:
        """The largest of all processes' numbers: they must all stop after the same step."""
        if self.count == 1:
            return number
        numbers = torch.tensor(number, device=self.device)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        return int(numbers.item())


@contextmanager
def processes(device: str | None):
    """Joins torchrun's processes, if there are any, and leaves them at the end."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    local = os.environ.get("LOCAL_RANK")
    chosen = choose_device(device, None if local is None else int(local))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if count == 1:
        yield Process(0, 1, chosen)
        return
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Process(distributed.get_rank(), count, chosen)
    finally:
        distributed.destroy_process_group()


def derive_seed(seed: int, stream: int, step: int, rank: int = 0) -> int:
    """A seed of its own for every step, stream and process."""
    sequence = np.random.SeedSequence([seed, stream, step, rank])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


class _Batches:
    """The episodes of a step, as a function of its number alone; of this process its share."""

    def __init__(self, config: Config, process: Process) -> None:
        self.config, self.process = config, process
        data = config.data
        if data.batch_size % process.count:
            raise ConfigError(
                f"[data] batch_size must be a multiple of the {process.count} processes, "
                f"got {data.batch_size}"
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
        self.generator.manual_seed(derive_seed(training.seed, _DATA, step))
        images, queries = self.sampler.sample(), None
        if num_corrupted := round(training.corrupted * images.shape[1]):
            queries = salt_and_pepper(images[:, :num_corrupted], training.noise, self.generator)
        share = len(images) // self.process.count
        own = slice(self.process.rank * share, (self.process.rank + 1) * share)
        device = self.process.device
        return images[own].to(device), None if queries is None else queries[own].to(device)


class _Means:
    """Means of the terms of the bound since the last row of the log."""

    def __init__(self, saved: dict[str, float]) -> None:
        self.sums = dict(saved)

    def add(self, terms: NamedTuple) -> None:
        length = terms.bound.shape[1]
        values = {"count": 1.0}
        for name, term in terms._asdict().items():
            if term is not None:  # the memory's KL is an episode's
                values[name] = term.mean().item() / (length if term.ndim == 1 else 1)
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        count = self.sums.pop("count")
        means = {name: value / count for name, value in self.sums.items()}
        self.sums = {}
        return means


class _Stop:
    """Becomes true at the first SIGINT or SIGTERM, so that a step can be finished first."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> _Stop:
        self.before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if self.signal is not None:  # the second time: at once
            self.before[number](number, frame) if callable(self.before[number]) else sys.exit(1)
        self.signal = number


class Run:
    """A training in a folder.

    Args:
        config: the run's.
        folder: where everything is written; made if need be.
        process: this one.
        resume: go on from the folder's checkpoint if it has one.
        tensorboard: log to TensorBoard too.

    Raises:
        ConfigError: the folder has a checkpoint and ``resume`` is False, or its configuration is
            another one in more than where the data is and how often to report.
    """

    def __init__(
        self, config: Config, folder: Path, process: Process, resume: bool, tensorboard: bool
    ) -> None:
        self.config, self.folder, self.process = config, folder, process
        training = config.training
        if training.threads is not None:
            torch.set_num_threads(training.threads)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _checkpoint.FILE
        checkpoint = None
        if path.exists():
            if not resume:
                raise ConfigError(f"{path} exists; --resume goes on from it, or name another --out")
            checkpoint = _checkpoint.load(path)
            _check_same(checkpoint.config, config)
        self.step = checkpoint.step if checkpoint else 0
        self.seconds = checkpoint.seconds if checkpoint else 0.0
        self.batches = _Batches(config, process)
        self.test = self.batches.test.images
        torch.manual_seed(training.seed)
        self.model = config.make_model().to(process.device)
        if checkpoint:
            checkpoint.restore_model(self.model)
        elif isinstance(getattr(self.model, "linear", None), LinearPath):
            self.model.start_linear_path(self.batches.sampler.images)
        if training.start is not None and not checkpoint:
            _start_from(self.model, training.start)
        if training.compile:  # in place: the names of the parameters stay
            for coder in (self.model.encoder, self.model.decoder):
                if coder is not None:
                    coder.compile()
        forward = self.model
        if process.count > 1:
            ids = [process.device.index] if process.device.type == "cuda" else None
            forward = torch.nn.parallel.DistributedDataParallel(self.model, device_ids=ids)
        # A run goes on in the precision that it began in, on whatever processor.
        begun = checkpoint.extra.get("precision") if checkpoint else None
        self.precision = begun or choose_precision(training.precision, process.device)
        half = None if self.precision == "float32" else getattr(torch, self.precision)
        self.trainer = Trainer(self.model, training.schedule(), forward, half)
        if checkpoint:
            checkpoint.restore_optimizer(self.model, self.trainer.optimizer)
        self.means = _Means(checkpoint.extra["means"] if checkpoint else {})
        self.generator = torch.Generator(process.device)
        if process.is_first:
            self.logs = {name: CsvLog(folder / f"{name}.csv", self.step) for name in _SPLITS}
            self.board = TensorBoardLog(folder, self.step, tensorboard)
            (folder / "config.json").write_text(json.dumps(config.as_dict(), indent=2) + "\n")

    def train(self, quiet: bool = False, minutes: float | None = None) -> int:
        """Trains to the end, or for so many minutes; the exit status: 0, or 128 and the signal's
        number."""
        from tqdm import tqdm

        training, first = self.config.training, self.process.is_first
        bar = tqdm(
            total=training.steps,
            initial=self.step,
            unit="step",
            disable=quiet or not first,
            mininterval=0.2 if sys.stderr.isatty() else 15,
        )
        now = time.perf_counter()
        self.started = now - self.seconds
        deadline = math.inf if minutes is None else now + 60 * minutes
        number, timed_out = 0, False
        if first:
            self._say_how(quiet)
        with bar, _Stop() as stop:
            while self.step < training.steps and not (number or timed_out):
                self._make_step()
                if first:
                    self._report(bar)
                late = time.perf_counter() >= deadline
                # One number for both, as all processes must agree: signals' are below 1000.
                agreed = self.process.agree((stop.signal or 0) + 1000 * late)
                number, timed_out = agreed % 1000, agreed >= 1000
                if first and (self._is_due("checkpoint") or number or timed_out):
                    self._save()
                bar.update()
        if first:
            if self.step == training.steps:
                self._finish()
                print(self._last_line("done"), file=sys.stderr)
            else:
                why = "" if number else f"{minutes:g} minutes are over; "
                print(f"{why}{self._last_line('stopped')}; --resume goes on", file=sys.stderr)
            self.board.close()
        return 128 + number if number else 0

    def _say_how(self, quiet: bool) -> None:
        """What was chosen for this machine."""
        training = self.config.training
        chosen = " (chosen by the processor)" if training.precision == "auto" else ""
        threads = torch.get_num_threads()
        line = f"precision {self.precision}{chosen}, {threads} thread{'s' * (threads > 1)}"
        line += f", from step {self.step} of {training.steps}"
        with (self.folder / "log.txt").open("a") as log:
            log.write(line + "\n")
        if not quiet:
            print(line, file=sys.stderr)

    def _last_line(self, what: str) -> str:
        data = self.config.data
        images = self.step * data.batch_size * data.episode_length
        seen = f"{images:,} images in {self.seconds / 60:.1f} minutes"
        return f"{seen}; {what} after step {self.step}"

    def _make_step(self) -> None:
        training, process = self.config.training, self.process
        images, queries = self.batches.at(self.step)
        self.generator.manual_seed(derive_seed(training.seed, _MODEL, self.step, process.rank))
        progress = self.step / training.steps
        self.means.add(self.trainer.step(images, queries, self.step, progress, self.generator))
        self.step += 1

    def _is_due(self, what: str) -> bool:
        every = getattr(self.config.training, f"{what}_every")
        last = self.step == self.config.training.steps
        return bool(every) and (last or self.step % every == 0)

    def _report(self, bar) -> None:
        self.seconds = time.perf_counter() - self.started
        row = {"step": self.step, "seconds": self.seconds}
        training = self.config.training
        if self._is_due("log"):
            schedule, progress = self.trainer.schedule, (self.step - 1) / training.steps
            row |= {"learning_rate": schedule.rate(self.step - 1, progress)}
            row |= {"kl_weight": schedule.kl_weight(progress)} | self.means.take()
            self._log("train", row)
            bar.set_postfix_str(f"{row['bound']:.2f} nats/image", refresh=False)
        last = self.step == training.steps
        if self._is_due("evaluate") and not last:
            few = training.evaluate_images or len(self.test)
            row = {"step": self.step, "seconds": self.seconds}
            self._log("test", row | self._evaluate(self.test[_spread(len(self.test), few)], 1))

    def _evaluate(self, images: Tensor, rounds: int) -> dict[str, float]:
        data = self.config.data
        length = data.episode_length
        seed = self.config.training.seed
        return evaluate(
            self.model, images, episode_length=length, rounds=rounds, pixels=data.pixels, seed=seed
        )

    def _log(self, split: str, row: dict[str, float]) -> None:
        self.logs[split].append(row)
        self.board.append(split, row)

    def _save(self) -> None:
        path = self.folder / _checkpoint.FILE
        extra = {"means": self.means.sums, "threads": torch.get_num_threads()}
        extra["precision"] = self.precision
        optimizer = self.trainer.optimizer
        _checkpoint.save(path, self.config, self.model, optimizer, self.step, self.seconds, extra)

    def _finish(self) -> None:
        terms = self._evaluate(self.test, rounds=4)
        # Made again by a run that is resumed at its end: once in the log.
        self.logs["test"] = CsvLog(self.folder / "test.csv", self.step - 1)
        self._log("test", {"step": self.step, "seconds": self.seconds} | terms)
        metrics = {"steps": self.step, "seconds": self.seconds, "test": terms}
        (self.folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


_SPLITS = ("train", "test")
# What may differ from the checkpoint's: nothing that the steps made so far depend on.
_FREE = {"log_every", "evaluate_every", "evaluate_images", "checkpoint_every"}


def _check_same(saved: Config, config: Config) -> None:
    for section in ("model", "data", "training"):
        old, new = saved.as_dict()[section], config.as_dict()[section]
        for name in old | new:
            if name not in _FREE and name != "root" and old.get(name) != new.get(name):
                raise ConfigError(
                    f"[{section}] {name} must be the checkpoint's, {old.get(name)!r}, to go on "
                    f"from it, got {new.get(name)!r}"
                )


def _images(config: Config) -> tuple[ImageSet, ImageSet]:
    """The images to train with, and those to evaluate with."""
    data = config.data
    train = load_images(data.name, "train", data.root)
    if data.validation:
        try:
            return hold_out(train, data.validation, whole_classes=has_new_classes(data.name))
        except ValueError as error:
            raise ConfigError(f"[data] validation: {error}") from error
    return train, load_images(data.name, "test", data.root)


def _start_from(model: torch.nn.Module, start: str) -> None:
    path = Path(start)
    saved = _checkpoint.load(path / _checkpoint.FILE if path.is_dir() else path)
    if not saved.restore_matching(model):
        raise ConfigError(f"[training] start {start} has no parameter of this model")


def _spread(count: int, wanted: int) -> Tensor:
    """Indices of about ``wanted`` of ``count`` images, evenly spread over them."""
    return torch.arange(0, count, max(1, count // max(wanted, 1)))[:wanted]
