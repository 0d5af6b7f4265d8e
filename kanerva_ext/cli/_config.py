"""What a run is: model, data and training, checked."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import typing
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..data import DATASETS, default_pixels
from ..models import MODELS
from ..models.training import Schedule

PRECISIONS = ("auto", "float32", "bfloat16")  # float16 would need its gradients scaled
DECAYS = ("cosine", "constant")
MAX_INTEGER = 2**31 - 1  # of whatever is no seed
MAX_SEED = 2**63 - 1
MAX_THREADS = 1024


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file and the key."""


@dataclass(frozen=True)
class DataConfig:
    """Section ``[data]``.

    Attributes:
        name: one of `kanerva_ext.data.DATASETS`.
        root: folder or file of the data set; not for the part that ships with the package.
        pixels: as `kanerva_ext.data.EpisodeSampler` has it; None: the data set's usual.
        episode_length: T.
        shortest_episode: in training, the episodes of a step are cut into as many equal parts as a
            draw says, 1 or another divisor of T, none shorter than this: a step sees the same
            number of images, whatever the length. None: all have T. Tests are made with T.
        batch_size: episodes of T in a step, over all processes.
        num_classes: classes in an episode; None: any.
        validation: share of the training images that is held out and takes the place of the test
            images, to choose settings by; see `kanerva_ext.data.hold_out`.
        augment: strength of `kanerva_ext.data.random_affine` in training.
    """

    name: str = "omniglot"
    root: str | None = None
    pixels: str | None = None
    episode_length: int = 32
    shortest_episode: int | None = None
    batch_size: int = 16
    num_classes: int | None = None
    augment: float = 0.0
    validation: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ConfigError(f"[data] validation must be in [0, 1), got {self.validation}")
        _check_choice("data", "name", self.name, DATASETS)
        _check_at_least("data", self, episode_length=1, batch_size=1)
        shortest = self.shortest_episode
        if shortest is not None and not 1 <= shortest <= self.episode_length:
            raise ConfigError(
                f"[data] shortest_episode must be from 1 to episode_length, "
                f"{self.episode_length}, got {shortest}"
            )
        if shortest not in (None, self.episode_length) and len(self.episode_lengths()) == 1:
            raise ConfigError(
                f"[data] episode_length must be divisible into parts of at least shortest_episode, "
                f"{shortest}, got {self.episode_length}"
            )
        if self.pixels is None:
            object.__setattr__(self, "pixels", default_pixels(self.name))

    def episode_lengths(self) -> list[int]:
        """T and, where episodes are cut, the lengths of their parts, the longest first."""
        longest = self.episode_length
        shortest = longest if self.shortest_episode is None else self.shortest_episode
        low = [count for count in range(1, math.isqrt(longest) + 1) if longest % count == 0]
        lengths = {*low, *(longest // count for count in low)}
        return sorted((length for length in lengths if length >= shortest), reverse=True)


@dataclass(frozen=True)
class TrainingConfig:
    """Section ``[training]``. The learning rate and the weights: `models.training.Schedule`.

    Attributes:
        steps: in all.
        seed: of everything random: the same seed, machine and number of threads repeat a run.
        start: folder of a run, a checkpoint, or ``pretrained:NAME`` of a model that ships, whose
            parameters of the same name and shape this one starts with; the others are drawn.
            None: all are.
        corrupted: share of an episode's images that are read by corrupted queries.
        noise: share of the pixels of those queries that are replaced by 0 or 1.
        precision: "float32" or "bfloat16", by autocast; "auto": bfloat16 where the processor has
            instructions for its products, else float32.
        shared_memory: (torchrun) every process has a part of each episode's images, and one
            memory is written by those of all. False: each has some of the episodes.
        compile: `torch.compile` the coders.
        threads: of PyTorch on the CPU; None: as they are.
        log_every: steps between rows of train.csv, the means since the last.
        evaluate_every: steps between rows of test.csv; 0: at the end alone.
        evaluate_images: of the test images, that many at most; 0: all. The end sees all.
        checkpoint_every: steps between checkpoints.
    """

    steps: int = 10_000
    seed: int = 0
    learning_rate: float = Schedule().learning_rate
    warm_up_steps: int = Schedule().warm_up_steps
    decay: str = Schedule().decay
    initial_kl_weight: float = Schedule().initial_kl_weight
    kl_warm_up: float = Schedule().kl_warm_up
    max_gradient_norm: float = Schedule().max_gradient_norm
    memory_kl_weight: float = Schedule().memory_kl_weight
    fixed_linear_path: float = Schedule().fixed_linear_path
    start: str | None = None
    corrupted: float = 0.0
    noise: float = 0.15
    precision: str = "float32"
    shared_memory: bool = False
    compile: bool = False
    threads: int | None = None
    log_every: int = 100
    evaluate_every: int = 0
    evaluate_images: int = 0
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        _check_choice("training", "precision", self.precision, PRECISIONS)
        _check_choice("training", "decay", self.decay, DECAYS)
        counts = {"steps": 1, "log_every": 1, "checkpoint_every": 1, "evaluate_every": 0}
        counts |= {"evaluate_images": 0, "warm_up_steps": 0, "seed": 0}
        _check_at_least("training", self, **counts)
        for name in ("corrupted", "noise", "initial_kl_weight", "kl_warm_up", "fixed_linear_path"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"[training] {name} must be in [0, 1], got {value}")
        for name in ("learning_rate", "max_gradient_norm"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"[training] {name} must be positive, got {value}")
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise ConfigError(
                f"[training] threads must be from 1 to {MAX_THREADS}, got {self.threads}"
            )

    def schedule(self) -> Schedule:
        return Schedule(*(getattr(self, name) for name in Schedule._fields))


@dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
        model: ``type``, one of `MODELS` or ``"module:Class"``, and the arguments of its class.
    """

    model: dict[str, Any]
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def make_model(self):
        """A new model; its parameters are drawn from PyTorch's global generator.

        Raises:
            ConfigError: an unknown type, or arguments that its class does not take.
        """
        options = dict(self.model)
        kind = options.pop("type", None)
        make = _model_class(kind)
        for name, value in options.items():
            _check_number("model", name, value)
        parameters = inspect.signature(make).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            for name in options:
                _check_known("model", name, list(parameters))
        try:
            return make(**options)
        except (TypeError, ValueError, OverflowError) as error:
            said = str(error).removeprefix("FusedKanervaMemory: ")  # which it is a part of
            raise ConfigError(f"[model] {said}") from error


def from_dict(values: dict[str, Any]) -> Config:
    """`Config` of nested dicts, as `Config.as_dict` makes them."""
    for section in values:
        _check_known(None, section, ["model", "data", "training"])
    model = values.get("model", {})
    if not isinstance(model, dict) or "type" not in model:
        raise ConfigError(f"[model] type must be given: one of {tuple(MODELS)}")
    sections = {}
    for name, kind in (("data", DataConfig), ("training", TrainingConfig)):
        sections[name] = _section(name, kind, values.get(name, {}))
    return Config(dict(model), **sections)


def _model_class(kind: Any) -> Any:
    if isinstance(kind, str) and kind in MODELS:
        return MODELS[kind]
    if not isinstance(kind, str) or ":" not in kind:
        expected = f'one of {tuple(MODELS)} or "module:Class"'
        raise ConfigError(f"[model] type must be {expected}, got {kind!r}")
    module, _, name = kind.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"[model] type {kind!r} cannot be loaded: {error}") from error
    # A checkpoint of someone else's names it too: no function may be called that makes no model.
    if not (isinstance(made, type) and issubclass(made, nn.Module)):
        raise ConfigError(f"[model] type must be a class of torch.nn.Module, {kind!r} is none")
    return made


def _section(section: str, kind: type, values: Any) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"[{section}] must be a section, got {values!r}")
    expected = typing.get_type_hints(kind)
    for name, value in values.items():
        _check_known(section, name, list(expected))
        allowed = expected[name]
        options = typing.get_args(allowed) or (allowed,)
        if type(value) not in options and not (type(value) is int and float in options):
            names = " or ".join(option.__name__ for option in options if option is not type(None))
            raise ConfigError(f"[{section}] {name} must be {names}, got {value!r}")
        _check_number(section, name, value)
    return kind(**values)


def _check_number(section: str, name: str, value: Any) -> None:
    """Nothing that no training can mean: an integer too large, a number that is none."""
    limit = MAX_SEED if name == "seed" else MAX_INTEGER
    if isinstance(value, int) and abs(value) > limit:
        raise ConfigError(f"[{section}] {name} must be at most {limit}, got {value}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"[{section}] {name} must be finite, got {value}")


def _check_known(section: str | None, name: str, known: list[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        where = f"[{section}] has no key" if section else "there is no section"
        raise ConfigError(f"{where} {name!r}; {hint}")


def _check_choice(section: str, name: str, value: Any, choices: Any) -> None:
    if value not in choices:
        raise ConfigError(f"[{section}] {name} must be one of {tuple(choices)}, got {value!r}")


def _check_at_least(section: str, config: Any, **bounds: int) -> None:
    for name, bound in bounds.items():
        value = getattr(config, name)
        if value < bound:
            raise ConfigError(f"[{section}] {name} must be at least {bound}, got {value}")
