"""The runs of the reproduction, in the order in which they are worth making."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RUNS = Path(os.environ.get("KANERVA_RUNS", ROOT / "runs" / "reproduction"))
DATA = os.environ.get("KANERVA_DATA", "data")  # folder of cifar10_jpeg_25k.zip
COMPARED = {
    "dnc": "benchmarks/baselines/cpu-omniglot-dnc.toml",
    "lru": "benchmarks/baselines/cpu-omniglot-lru.toml",
    "short-kanerva": "cpu-omniglot-kanerva",
}
SEEDS = (0, 1, 2)
FOUR = (0, 1, 2, 3)


class Experiment(NamedTuple):
    """Runs that differ by their seed alone.

    Attributes:
        name: of the folders, ``NAME-sSEED``.
        config: a preset or a file.
        settings: ``section.key=value`` in its place.
        seeds: one run each.
        own: settings of one seed alone.
    """

    name: str
    config: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS
    own: Mapping[int, tuple[str, ...]] = MappingProxyType({})

    def folders(self) -> list[Path]:
        return [RUNS / f"{self.name}-s{seed}" for seed in self.seeds]

    def commands(self) -> list[list[str]]:
        """Words after ``python -m kanerva_ext.cli``, one command a seed."""
        return [
            ["train", self.config, "--out", str(folder), "--resume", "--quiet"]
            + [word for s in self.settings_of(seed) for word in ("--set", s)]
            for seed, folder in zip(self.seeds, self.folders(), strict=True)
        ]

    def settings_of(self, seed: int) -> tuple[str, ...]:
        return (*self.own.get(seed, ()), *self.settings, f"training.seed={seed}")

    def queue(self) -> list[tuple[Path, list[str]]]:
        """Folder and command of every run."""
        return list(zip(self.folders(), self.commands(), strict=True))


def shown(words: str) -> str:
    """A command as the page shows it: data and runs where the page says they are."""
    return words.replace(f"{RUNS}/", "runs/reproduction/").replace(f"root={DATA}", "root=data")


def cifar(model: str, size: int, suffix: str = "", more: tuple[str, ...] = ()) -> Experiment:
    settings = [f"data.root={DATA}"] + [f"model.code_size={size}"] * (size != 200)
    name = f"cifar{size}-{model}{suffix}"
    return Experiment(name, f"cpu-cifar10-{model}", (*settings, *more), (0, 1))


def of_convolutions(model: str, *own: str) -> Experiment:
    """Coders without a linear path, for its pictures: what they blend looks like a picture."""
    more = ("model.linear_path=false", "model.num_filters=32", "model.likelihood=gaussian", *own)
    more += ("training.initial_kl_weight=0.02", "training.kl_warm_up=0.5", "training.steps=8_000")
    return cifar(model, 200, "-conv", more)._replace(seeds=(0,))


LONG, STEPS, SHORT, SHORTEST = (f"training.steps={n}" for n in (40_000, 20_000, 6000, 4000))
# Episodes of 8 to 192 images, into three times the slots, along three times the directions. Each
# seed goes on from the same one of the longer runs; that of seed 0 ships.
STARTS = ("pretrained:omniglot-kanerva", *(f"{RUNS}/omniglot-kanerva-s{seed}" for seed in (1, 2)))
STARTS = {seed: (f"training.start={start}",) for seed, start in enumerate(STARTS)}
MIXED = ("training.steps=8_000",)
MIXED += ("data.episode_length=192", "data.shortest_episode=8", "data.batch_size=1")
MIXED += ("model.memory_size=192", "model.key_size=160")
FULL = ("model.sample_weights=true", "model.weight_cov=full")
RATES = ("1e-2", "3e-3", "1e-3")
_CIFAR = (("kanerva", 200), ("vae", 200), ("kanerva", 800), ("vae", 800), ("dynamic", 200))
CODES_OF_UNIT_SIZE = ("model.latent_size=20", "model.code_std=1", "model.encoder_noise_std=0.2")
SHORT_STEPS = (1500, 800, 250, 200, 400)
CIFAR_SHORT = tuple(
    cifar(*each, "-short", (f"training.steps={steps}",))
    for each, steps in zip(_CIFAR, SHORT_STEPS, strict=True)
)
CIFAR = (*CIFAR_SHORT, *(cifar(*each) for each in _CIFAR))
CONVOLUTIONS = (
    of_convolutions("kanerva", *CODES_OF_UNIT_SIZE),
    of_convolutions("vae"),
)
#: Runs whose generations are in one picture.
COLOUR_PICTURES = {
    f"cifar{size}": [e for e in CIFAR if e.name.startswith(f"cifar{size}-")] for size in (200, 800)
} | {"cifar200-conv": CONVOLUTIONS}
EXPERIMENTS = (
    *CIFAR,
    *CONVOLUTIONS,
    Experiment("omniglot-kanerva", "cpu-omniglot-kanerva", (LONG,)),
    Experiment("omniglot-vae", "cpu-omniglot-vae", (LONG,)),
    Experiment("mixed-kanerva", "cpu-omniglot-kanerva", MIXED, own=STARTS),
    Experiment("kanerva", "cpu-omniglot-kanerva", (STEPS,)),
    Experiment("vae", "cpu-omniglot-vae", (STEPS,)),
    Experiment("dynamic", "cpu-omniglot-dynamic", (SHORT,)),
    Experiment(
        "dynamic-sampled", "cpu-omniglot-dynamic", (SHORT, "model.sample_weights=true"), (0,)
    ),
    Experiment("dynamic-full", "cpu-omniglot-dynamic", (STEPS, *FULL)),
    Experiment("dynamic-started", "cpu-omniglot-dynamic", (STEPS, *FULL), own=STARTS),
    *(
        Experiment(f"{name}-lr{rate}", config, (SHORTEST, f"training.learning_rate={rate}"), FOUR)
        for rate in RATES
        for name, config in COMPARED.items()
    ),
)


def queue(only: list[str]) -> list[tuple[Path, list[str]]]:
    """Folder and command of every run, the first seeds of all experiments first."""
    chosen = [e for e in EXPERIMENTS if not only or e.name in only]
    rounds = range(max(len(e.seeds) for e in chosen))
    return [e.queue()[i] for i in rounds for e in chosen if i < len(e.seeds)]
