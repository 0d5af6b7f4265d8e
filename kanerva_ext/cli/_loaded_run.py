"""Trained runs for the commands that use them: model, data, and what all models have in common."""

from __future__ import annotations

import argparse
import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import pretrained
from ..data import EpisodeSampler, ImageSet, load_images
from ..memory import MemoryState
from ..models.likelihoods import BernoulliPixels
from . import _checkpoint
from ._config import MAX_INTEGER, MAX_SEED, MAX_THREADS, Config, ConfigError
from ._device import choose_device
from ._folders import make_folder


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with its data. Images go in and come out on the CPU.

    A model has a memory if it has a method ``write``. Then its ``elbo(images, state)``,
    ``reconstruct(images, state)`` and ``denoise(images, state, num_steps, noise)`` take the
    memory's state as those of `KanervaMachine` do; else they have no such argument, as those of
    `MatchedVAE`.

    Attributes:
        name: the name of the folder, or of a checkpoint file that has another name than usual.
        folder: of the checkpoint; ``runs/pretrained-NAME`` of a model that ships, as nothing is
            written beside that.
        config: of the training.
        model: in evaluation mode.
        step: steps trained.
        device: of the model.
        root: of the data.
    """

    name: str
    folder: Path
    config: Config
    model: nn.Module
    step: int
    device: torch.device
    root: str | None

    @property
    def title(self) -> str:
        """Of its pictures."""
        return f"{self.name}, step {self.step:,}"

    @property
    def has_memory(self) -> bool:
        return hasattr(self.model, "write")

    @property
    def is_bernoulli(self) -> bool:
        return isinstance(getattr(self.model, "likelihood", None), BernoulliPixels)

    @property
    def error_name(self) -> str:
        """What `pixel_error` is."""
        return "share of wrong pixels" if self.is_bernoulli else "root mean square error"

    def images(self, split: str = "test") -> ImageSet:
        """The run's data.

        Raises:
            ConfigError: it cannot be loaded, or is not what the model was made for.
        """
        data = self.config.data
        try:
            images = _load_images(data.name, split, self.root)
        except (ValueError, RuntimeError, FileNotFoundError) as error:
            raise ConfigError(f"data {data.name!r} of {self.name}: {error}; see --root") from error
        shape = tuple(images.images.shape[1:])
        expected = getattr(self.model, "image_shape", None)
        if expected and (1, *shape)[-3:] != tuple(expected):
            raise ConfigError(f"{self.name} takes images {tuple(expected)}, the data's are {shape}")
        count, length = len(images.images), self.config.data.episode_length
        if count < length:
            raise ConfigError(f"{self.name} takes episodes of {length}, the data's are {count}")
        return images

    def episodes(
        self, count: int, length: int, num_classes: int | None, generator: torch.Generator
    ) -> Tensor:
        """(count, length, C, H, W), random test images of ``num_classes`` classes; None: of any."""
        images = self.images()
        try:
            return EpisodeSampler(
                images.images,
                images.labels,
                episode_length=length,
                batch_size=count,
                num_classes=num_classes,
                pixels=self.config.data.pixels,
                generator=generator,
            ).sample()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"test episodes of {self.name}: {error}") from error

    def episode(self, seed: int) -> Tensor:
        """One test episode as in training, (1, T, C, H, W)."""
        data = self.config.data
        generator = torch.Generator().manual_seed(seed)
        return self.episodes(1, data.episode_length, data.num_classes, generator)

    def generator(self, seed: int) -> torch.Generator:
        """A generator for the model's samples."""
        return torch.Generator(self.device).manual_seed(seed)

    @torch.no_grad()
    def write(self, images: Tensor, generator: torch.Generator) -> MemoryState | None:
        """The memory after an episode; None of a model without."""
        if not self.has_memory:
            return None
        return self.model.write(images.to(self.device), generator=generator).state

    @torch.no_grad()
    def elbo(
        self, images: Tensor, state: MemoryState | None, generator: torch.Generator
    ) -> NamedTuple:
        """The terms of the bound, read from ``state``."""
        return self.model.elbo(images.to(self.device), *_given(state), generator=generator)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, state: MemoryState | None) -> Tensor:
        return self.model.reconstruct(images.to(self.device), *_given(state)).cpu()

    @torch.no_grad()
    def denoise(
        self, images: Tensor, state: MemoryState | None, num_steps: int, noise: float = 0.0
    ) -> Tensor:
        """(num_steps, B, T, C, H, W), after each read."""
        options = {"num_steps": num_steps} | ({"noise": noise} if noise else {})
        return self.model.denoise(images.to(self.device), *_given(state), **options).cpu()

    @torch.no_grad()
    def addresses(self, images: Tensor, state: MemoryState) -> Tensor | None:
        """Mean addresses (B, T, K), on the model's device.

        None of a model that has none: no method ``addresses``, or one that is not implemented.
        """
        if not hasattr(self.model, "addresses"):
            return None
        try:
            return self.model.addresses(images.to(self.device), state)
        except NotImplementedError:
            return None

    def pixel_error(self, pictures: Tensor, images: Tensor) -> Tensor:
        """How far pictures (..., B, T, C, H, W) are from the images, for each episode (..., B).

        Bernoulli pixels: share of the pixels that are on the wrong side of 0.5. Others: root of the
        mean square difference.
        """
        if self.is_bernoulli:
            return ((pictures > 0.5) != (images > 0.5)).float().flatten(-4).mean(-1)
        return (pictures - images).square().flatten(-4).mean(-1).sqrt()

    def format_error(self, error: float) -> str:
        return f"{error:.2%}" if self.is_bernoulli else f"{error:.4f}"


class Mean(NamedTuple):
    """Mean over episodes and its standard error, None of a single one."""

    mean: float
    standard_error: float | None

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        count, values = len(values), values.double()
        error = values.std().item() / math.sqrt(count) if count > 1 else None
        return cls(values.mean().item(), error)


def add_run_arguments(parser: argparse.ArgumentParser, out: str, several: bool = False) -> None:
    """RUN, --out, --seed, --root and --device."""
    add = parser.add_argument
    what = "folder of a run, a checkpoint, or pretrained:NAME of a model that ships, whose folder "
    what += "is runs/pretrained-NAME"
    add("runs", nargs="+" if several else 1, type=_run, metavar="RUN", help=what)
    add("--out", type=Path, metavar="FOLDER", help=out)
    add("--seed", type=int, default=0, help="of everything random (default 0)")
    add("--root", help="where the data is (default: where it was in training)")
    add("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")


def _run(text: str) -> Path:
    if not text:  # Path("") is the current folder
        raise argparse.ArgumentTypeError(f"must be a folder, a file or {pretrained.PREFIX}NAME")
    return Path(text)


def load_run(path: str | Path, device: str | None = None, root: str | None = None) -> LoadedRun:
    """The run of a folder or a checkpoint file, or a model that ships.

    Args:
        path: of either, or ``pretrained:NAME``.
        device: for the model; None: a GPU if there is one.
        root: of the data, in place of the configuration's.

    Raises:
        ConfigError: there is no such run, or its checkpoint does not fit its configuration.
    """
    file = _checkpoint.locate(path)
    if not file.exists() and not Path(path).is_dir():
        hint = _checkpoint.hint(path)
        raise ConfigError(
            f"RUN must be the folder of a run, a checkpoint or {pretrained.PREFIX}NAME, "
            f"got no file {path}{hint}"
        )
    checkpoint = _checkpoint.load(file)
    chosen = choose_device(device)
    try:
        model = checkpoint.config.make_model()
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}{checkpoint.of_another_version}") from error
    try:
        checkpoint.restore_model(model)
    except RuntimeError as error:
        raise ConfigError(
            f"{file} does not fit its own configuration: {error}{checkpoint.of_another_version}"
        ) from error
    for parameter_name, parameter in model.named_parameters():
        if not parameter.isfinite().all():  # a training that diverged
            raise ConfigError(f"{file} has numbers in {parameter_name} that are not finite")
    folder = file.resolve().parent
    name = folder.name if file.name == _checkpoint.FILE else file.stem
    if folder == pretrained.FOLDER:
        folder = Path("runs") / f"pretrained-{name}"
    root = checkpoint.config.data.root if root is None else root
    model = model.to(chosen).eval()
    return LoadedRun(name, folder, checkpoint.config, model, checkpoint.step, chosen, root)


def load_runs(args: argparse.Namespace) -> list[LoadedRun]:
    """The runs of `add_run_arguments`; if two have one name, all are named by their paths."""
    check_at_least(args, seed=0)
    runs = [load_run(path, args.device, args.root) for path in args.runs]
    if len({each.name for each in runs}) < len(runs):
        runs = [replace(each, name=str(path)) for each, path in zip(runs, args.runs, strict=True)]
    return runs


def output_folder(out: Path | None, runs: list[LoadedRun]) -> Path:
    """``out``, made if need be; None: the `LoadedRun.folder` of a single run, the current one of
    several."""
    if out is None:
        out = runs[0].folder if len(runs) == 1 else Path()
    make_folder(out)
    return out


def fewest_images(labels: Tensor, num_classes: int) -> int:
    """How many images any ``num_classes`` classes have together, at least."""
    return int(labels.unique(return_counts=True)[1].sort().values[:num_classes].sum())


MAX_SHOWN = 100  # images in a row of a picture
_LIMITS = {"seed": MAX_SEED, "threads": MAX_THREADS}


def check_at_least(args: argparse.Namespace, **bounds: int | tuple[int, int]) -> None:
    """Raises ConfigError for an option, or one value of its list, that is below its bound, or above
    the second one; without a second one, above anything that can be meant."""
    for name, bound in bounds.items():
        value, limit = getattr(args, name), _LIMITS.get(name, MAX_INTEGER)
        low, high = bound if isinstance(bound, tuple) else (bound, limit)
        for each in value if isinstance(value, list) else [value]:
            if not low <= each <= high:
                option = name.replace("_", "-")
                which = f"at least {low}" if each < low else f"at most {high}"
                raise ConfigError(f"--{option} must be {which}, got {each}")


def choose_count(args: argparse.Namespace, name: str, default: int, limit: int, what: str) -> int:
    """The option ``name``, from 1 to ``limit``; where it is not given, ``default`` or the limit."""
    value = getattr(args, name)
    if value is None:
        value = min(default, limit)
    if not 1 <= value <= limit:
        raise ConfigError(f"--{name} must be from 1 to {limit}, {what}, got {value}")
    return value


def check_share(args: argparse.Namespace) -> None:
    if not 0 <= args.share <= 1:
        raise ConfigError(f"--share must be in [0, 1], got {args.share}")


def table(head: list[str], rows: list[list[str]]) -> str:
    """Aligned columns, the first one to the left."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in (head, *rows):
        cells = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


def _given(state: MemoryState | None) -> tuple[MemoryState, ...]:
    return () if state is None else (state,)


@functools.lru_cache(maxsize=4)
def _load_images(name: str, split: str, root: str | None) -> ImageSet:
    return load_images(name, split, root)
