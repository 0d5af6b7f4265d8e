"""The runs of the reproduction, in the order in which they are worth making."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RUNS = Path(os.environ.get("KANERVA_RUNS", ROOT / "runs" / "reproduction"))
DATA = os.environ.get("KANERVA_DATA", "data")  # folder of cifar10_jpeg_25k.zip
DNC = "benchmarks/baselines/cpu-omniglot-dnc.toml"
SEEDS = (0, 1, 2)


class Experiment(NamedTuple):
    """Runs that differ by their seed alone.

    Attributes:
        name: of the folders, ``NAME-sSEED``.
        config: a preset or a file.
        settings: ``section.key=value`` in its place.
        seeds: one run each.
    """

    name: str
    config: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS

    def folders(self) -> list[Path]:
        return [RUNS / f"{self.name}-s{seed}" for seed in self.seeds]

    def commands(self) -> list[list[str]]:
        """Words after ``python -m kanerva_ext.cli``, one command a seed."""
        return [
            ["train", self.config, "--out", str(folder), "--resume", "--quiet"]
            + [word for s in (*self.settings, f"training.seed={seed}") for word in ("--set", s)]
            for seed, folder in zip(self.seeds, self.folders(), strict=True)
        ]

    def queue(self) -> list[tuple[Path, list[str]]]:
        """Folder and command of every run."""
        return list(zip(self.folders(), self.commands(), strict=True))


def shown(words: str) -> str:
    """A command as the page shows it: data and runs where the page says they are."""
    return words.replace(f"{RUNS}/", "runs/reproduction/").replace(f"root={DATA}", "root=data")


def cifar(model: str, size: int) -> Experiment:
    settings = [f"data.root={DATA}"] + [f"model.code_size={size}"] * (size != 200)
    return Experiment(f"cifar{size}-{model}", f"cpu-cifar10-{model}", tuple(settings), (0, 1))


STEPS, SHORT, SHORTEST = (f"training.steps={n}" for n in (20_000, 6000, 4000))
RATES = ("3e-3", "1e-3")
CIFAR = tuple(
    cifar(model, size)
    for size, models in ((200, ("kanerva", "vae")), (800, ("kanerva", "vae")), (200, ("dynamic",)))
    for model in models
)
EXPERIMENTS = (
    *CIFAR,
    Experiment("kanerva", "cpu-omniglot-kanerva", (STEPS,)),
    Experiment("vae", "cpu-omniglot-vae", (STEPS,)),
    Experiment("dynamic", "cpu-omniglot-dynamic", (SHORT,)),
    Experiment(
        "dynamic-sampled", "cpu-omniglot-dynamic", (SHORT, "model.sample_weights=true"), (0,)
    ),
    *(
        Experiment(f"{name}-lr{rate}", config, (SHORTEST, f"training.learning_rate={rate}"), (0, 1))
        for rate in RATES
        for name, config in (("dnc", DNC), ("short-kanerva", "cpu-omniglot-kanerva"))
    ),
)
