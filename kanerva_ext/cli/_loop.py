"""The training loop: resumable at every step, on one device or, by torchrun, on several.

Nothing random is carried from step to step: a step draws from generators that are seeded by the
run's seed and the step's number. A run that was killed and goes on from its last checkpoint makes
the steps after it again; on one CPU, with the same number of threads, they come out bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shlex
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .._files import append_text, write_text
from ..models import evaluate
from ..models.linear_path import LinearPath
from ..models.training import DivergedError, Trainer
from . import _checkpoint
from ._batches import MODEL, Batches, derive_seed, spread
from ._config import Config, ConfigError
from ._device import check_backend, choose_precision
from ._folders import make_folder
from ._logs import CsvLog, TensorBoardLog
from ._processes import Process, Stop


class _Means:
    """Means of the terms of the bound since the last row of the log."""

    def __init__(self, saved: dict[str, float], parts: int) -> None:
        self.sums, self.parts = dict(saved), parts

    def add(self, terms: NamedTuple) -> None:
        length = terms.bound.shape[1] * self.parts
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


class Run:
    """A training in a folder.

    Args:
        config: the run's.
        folder: where everything is written; made if need be.
        process: this one.
        resume: go on from the folder's checkpoint if it has one.
        tensorboard: log to TensorBoard too.

    Raises:
        ConfigError: the folder cannot be written to, or has a checkpoint and ``resume`` is False,
            or its configuration is another one in more than where the data is, how often to report
            and how many steps to make in all, which are no fewer than it has made.
    """

    def __init__(
        self, config: Config, folder: Path, process: Process, resume: bool, tensorboard: bool
    ) -> None:
        self.config, self.folder, self.process = config, folder, process
        training = config.training
        if training.threads is not None:
            torch.set_num_threads(training.threads)
        if process.is_first:
            make_folder(folder)
        path = folder / _checkpoint.FILE
        checkpoint = None
        if path.exists():
            if not resume:
                raise ConfigError(f"{path} exists; --resume goes on from it, or name another --out")
            checkpoint = _checkpoint.load(path)
            _check_same(checkpoint, config)
        self.step = checkpoint.step if checkpoint else 0
        self.seconds = checkpoint.seconds if checkpoint else 0.0
        self.batches = Batches(config, process)
        self.test = self.batches.test.images
        torch.manual_seed(training.seed)
        self.model = config.make_model().to(process.device)
        memory = getattr(self.model, "memory", None)
        if (backend := getattr(memory, "backend", None)) is not None:
            check_backend(process.device, backend)
        expected = getattr(self.model, "image_shape", None)
        shape = tuple(self.batches.sampler.images.shape[1:])
        if expected and (1, *shape)[-3:] != tuple(expected):
            raise ConfigError(
                f"[model] takes images {tuple(expected)}, those of [data] are {shape}"
            )
        if checkpoint:
            checkpoint.restore_model(self.model)
        elif isinstance(getattr(self.model, "linear", None), LinearPath):
            self.model.start_linear_path(self.batches.sampler.images)
        self.begun_with = ""
        if training.start is not None and not checkpoint:
            self.begun_with = _start_from(self.model, training.start)
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
        parts = process.count if training.shared_memory else 1
        self.trainer = Trainer(self.model, training.schedule(), forward, half, parts)
        self.writes = contextlib.nullcontext
        if parts > 1:
            self.writes = _writes_of_all(self.model)
        if checkpoint:
            checkpoint.restore_optimizer(self.model, self.trainer.optimizer)
        self.means = _Means(checkpoint.extra["means"] if checkpoint else {}, parts)
        self.generator = torch.Generator(process.device)
        if process.is_first:
            numbers = sum(parameter.nbytes for parameter in self.model.parameters())
            make_folder(folder, size=3 * numbers)  # the optimiser has two for each
            if self.step < training.steps:  # of a run that was at its end and goes on
                (folder / "metrics.json").unlink(missing_ok=True)
            self.logs = {name: CsvLog(folder / f"{name}.csv", self.step) for name in _SPLITS}
            self.board = TensorBoardLog(folder, self.step, tensorboard)
            write_text(folder / "config.json", json.dumps(config.as_dict(), indent=2) + "\n")

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
        with bar, Stop() as stop:
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
                terms = self._finish()
                print(self._last_line("done"), file=sys.stderr)
                self._say_what_now(terms)
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
        line += f", from step {self.step} of {training.steps}{self.begun_with}"
        append_text(self.folder / "log.txt", line + "\n")
        if not quiet:
            print(line, file=sys.stderr)

    def _last_line(self, what: str) -> str:
        data = self.config.data
        images = self.step * data.batch_size * data.episode_length
        seen = f"{images:,} images in {self.seconds / 60:.1f} minutes"
        return f"{seen}; {what} after step {self.step}"

    def _say_what_now(self, terms: dict[str, float]) -> None:
        print(f"test bound {terms['bound']:.2f} nats per image, in {self.folder}")
        memory = hasattr(self.model, "write")
        command = "generate" if hasattr(self.model, "generate") and memory else "reconstruct"
        print(f"next: kanerva {command} {shlex.quote(str(self.folder))}")

    def _make_step(self) -> None:
        training, process = self.config.training, self.process
        images, queries = self.batches.at(self.step)
        self.generator.manual_seed(derive_seed(training.seed, MODEL, self.step, process.rank))
        progress = self.step / training.steps
        try:
            with self.writes():
                terms = self.trainer.step(images, queries, self.step, progress, self.generator)
        except DivergedError as error:
            raise ConfigError(f"{self.folder}: {error}") from error
        self.means.add(terms)
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
            self._log("test", row | self._evaluate(self.test[spread(len(self.test), few)], 1))

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

    def _finish(self) -> dict[str, float]:
        terms = self._evaluate(self.test, rounds=4)
        # Made again by a run that is resumed at its end: once in the log.
        self.logs["test"] = CsvLog(self.folder / "test.csv", self.step - 1)
        self._log("test", {"step": self.step, "seconds": self.seconds} | terms)
        metrics = {"steps": self.step, "seconds": self.seconds, "test": terms}
        write_text(self.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        return terms


_SPLITS = ("train", "test")
# What may differ from the checkpoint's: how often to report, where the data is, and the steps in
# all. With other steps the schedule is that of a run of so many, from here on.
_FREE = {"log_every", "evaluate_every", "evaluate_images", "checkpoint_every", "root", "steps"}


def _check_same(checkpoint: _checkpoint.Checkpoint, config: Config) -> None:
    for section in ("model", "data", "training"):
        old, new = checkpoint.config.as_dict()[section], config.as_dict()[section]
        for name in old | new:
            if name not in _FREE and old.get(name) != new.get(name):
                raise ConfigError(
                    f"[{section}] {name} must be the checkpoint's, {old.get(name)!r}, to go on "
                    f"from it, got {new.get(name)!r}"
                )
    if config.training.steps < checkpoint.step:
        raise ConfigError(
            f"[training] steps must be at least the {checkpoint.step} that the checkpoint has "
            f"made, got {config.training.steps}"
        )


def _writes_of_all(model: torch.nn.Module):
    """The context in which the model's memory is written by all processes."""
    from ..distributed import shared_writes

    if not hasattr(model, "memory"):
        raise ConfigError("[training] shared_memory needs a [model] with a memory")
    # A group of its own: the gradients' reductions go on meanwhile.
    return functools.partial(shared_writes, model, torch.distributed.new_group())


def _start_from(model: torch.nn.Module, start: str) -> str:
    """How many of the parameters are now those of ``start``, in words."""
    if not start:
        raise ConfigError("[training] start must name a run's folder or a checkpoint, got ''")
    try:
        saved = _checkpoint.load(_checkpoint.locate(start))
    except ConfigError as error:
        hint = _checkpoint.hint(start)
        raise ConfigError(f"[training] start: {error}{hint}") from error
    kept = len(saved.restore_matching(model))
    if not kept:
        raise ConfigError(f"[training] start {start} has no parameter of this model")
    own = sum(not name.endswith("_extra_state") for name in model.state_dict())
    new = f", {own - kept} new" if own > kept else ""
    return f", with {kept} of the {own} tensors from {start}{new}"
