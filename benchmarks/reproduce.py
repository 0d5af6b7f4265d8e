"""The papers' figures and tables on the data at hand: docs/reproduction.md and its pictures.

    python -m benchmarks.reproduce train [--jobs 2] [--only kanerva ...]
    python -m benchmarks.reproduce figures
    python -m benchmarks.reproduce page

``train`` makes the runs under ``runs/reproduction`` with the command line, as many at a time as
there are jobs, and goes on where it was stopped; the archive with CIFAR-10 is looked for in the
folder that KANERVA_DATA names. ``figures`` runs the other commands on them and collects every
number in ``benchmarks/results/reproduction.json``; ``page`` writes the tables of
docs/reproduction.md from that file alone. All in a checkout with the library built in place.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from kanerva_ext.cli._logs import read_csv

from .machine import describe
from .reproduction_page import write_page

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "reproduction"
RESULTS = ROOT / "benchmarks" / "results" / "reproduction.json"
PICTURES = ROOT / "docs" / "images" / "reproduction"
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
            ["train", self.config, "--out", str(folder.relative_to(ROOT)), "--resume", "--quiet"]
            + [word for s in (*self.settings, f"training.seed={seed}") for word in ("--set", s)]
            for seed, folder in zip(self.seeds, self.folders(), strict=True)
        ]


def cifar(name: str, preset: str) -> Experiment:
    return Experiment(name, preset, (f"data.root={DATA}", "training.steps=4000"), (0,))


STEPS, SHORT, SHORTEST = (f"training.steps={n}" for n in (20_000, 6000, 4000))
RATES = ("3e-3", "1e-3")
EXPERIMENTS = (
    Experiment("kanerva", "cpu-omniglot-kanerva", (STEPS,)),
    Experiment("vae", "cpu-omniglot-vae", (STEPS,)),
    Experiment("dynamic", "cpu-omniglot-dynamic", (SHORT,)),
    Experiment(
        "dynamic-sampled", "cpu-omniglot-dynamic", (SHORT, "model.sample_weights=true"), (0,)
    ),
    cifar("cifar-kanerva", "cpu-cifar10-kanerva"),
    cifar("cifar-vae", "cpu-cifar10-vae"),
    cifar("cifar-dynamic", "cpu-cifar10-dynamic"),
    *(
        Experiment(f"{name}-lr{rate}", config, (SHORTEST, f"training.learning_rate={rate}"), (0, 1))
        for rate in RATES
        for name, config in (("dnc", DNC), ("short-kanerva", "cpu-omniglot-kanerva"))
    ),
)


def run_cli(words: list[str]) -> str:
    """Output of one command of the command line; raises on failure."""
    command = [sys.executable, "-m", "kanerva_ext.cli", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: {done.stderr.strip()}")
    return done.stdout


def train(only: list[str], jobs: int) -> None:
    chosen = [e for e in EXPERIMENTS if not only or e.name in only]
    queue = [words for experiment in chosen for words in experiment.commands()]

    def one(words: list[str]) -> None:
        print("kanerva", shlex.join(words), flush=True)
        try:
            run_cli(words)
        except RuntimeError as error:  # the others go on
            print(error, file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, queue))


def done(experiment: Experiment) -> list[Path]:
    """Folders of its runs that came to their end."""
    return [folder for folder in experiment.folders() if (folder / "metrics.json").is_file()]


def collect() -> dict:
    """Every number of the page."""
    experiments = {}
    for experiment in EXPERIMENTS:
        folders = done(experiment)
        if not folders:
            continue
        metrics = [json.loads((f / "metrics.json").read_text()) for f in folders]
        runs = {}
        for folder, metric in zip(folders, metrics, strict=True):
            run = metric | {"train": read_csv(folder / "train.csv")[-1]}
            for key, path in (("denoise", folder), ("aware", folder / "aware")):
                if (path / "denoise.json").is_file():
                    run[key] = json.loads((path / "denoise.json").read_text())
            runs[folder.name] = run
        experiments[experiment.name] = {
            "command": shlex.join(["kanerva", *experiment.commands()[0]]).replace(DATA, "data"),
            "runs": runs,
        }
    result = {"machine": describe(), "experiments": experiments}
    capacity = RUNS / "capacity" / "capacity.csv"
    if capacity.is_file():
        result["capacity"] = capacity.read_text()
    commands = RUNS / "commands.json"
    if commands.is_file():
        result["figures"] = json.loads(commands.read_text())
    return result


def figures() -> None:
    by_name = {e.name: [str(f.relative_to(ROOT)) for f in done(e)] for e in EXPERIMENTS}
    omniglot = [n for n in ("kanerva", "dynamic", "vae") if by_name[n]]
    first = {name: folders[0] for name, folders in by_name.items() if folders}
    out = str(RUNS.relative_to(ROOT))
    commands: dict[str, list[str]] = {}
    commands["curves"] = ["curves", *(first[n] for n in omniglot), "--out", f"{out}/curves"]
    for name in omniglot:
        for folder in by_name[name]:
            commands[f"denoise {folder}"] = ["denoise", folder]
            commands[f"aware {folder}"] = ["denoise", folder, "--aware", "--out", f"{folder}/aware"]
        commands[f"reconstruct {name}"] = ["reconstruct", first[name]]
        if name != "vae":
            target = f"{out}/occlusion-{name}"
            words = ["denoise", first[name], "--corruption", "occlusion", "--out", target]
            commands[f"occlusion {name}"] = words
            commands[f"generate {name}"] = ["generate", first[name]]
            commands[f"interpolate {name}"] = ["interpolate", first[name]]
    colour = [n for n in ("cifar-kanerva", "cifar-dynamic", "cifar-vae") if n in first]
    if colour:
        commands["cifar"] = ["generate", *(first[n] for n in colour), "--classes", "10"]
        commands["cifar"] += ["--reads", "0", "2", "--out", f"{out}/cifar"]
        for name in colour:
            commands[f"reconstruct {name}"] = ["reconstruct", first[name]]
    stored = [*omniglot, *filter(None, map(best_rate, ("short-kanerva", "dnc")))]
    folders = [(folder, name) for name in stored for folder in by_name[name]]
    commands["capacity"] = ["capacity", *(f for f, _ in folders), "--out", f"{out}/capacity"]
    for _, name in folders:
        commands["capacity"] += ["--label", name]
    for words in commands.values():
        print("kanerva", shlex.join(words), flush=True)
        run_cli(words)
    (RUNS / "commands.json").write_text(
        json.dumps({name: shlex.join(["kanerva", *w]) for name, w in commands.items()}, indent=1)
    )
    RESULTS.write_text(json.dumps(collect(), indent=1) + "\n")
    copy_pictures(first)


def best_rate(kind: str) -> str | None:
    """The experiment at the learning rate whose worst seed is best."""
    worst = {
        e.name: max(json.loads((f / "metrics.json").read_text())["test"]["bound"] for f in done(e))
        for e in EXPERIMENTS
        if e.name.startswith(f"{kind}-lr") and done(e)
    }
    return min(worst, key=worst.get) if worst else None


def copy_pictures(first: dict[str, str]) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    sources = {"curves": RUNS / "curves" / "curves.png"}
    sources["capacity"] = RUNS / "capacity" / "capacity.png"
    sources["cifar-generate"] = RUNS / "cifar" / "generate.png"
    for name, folder in first.items():
        for picture in ("reconstruct", "denoise", "generate", "interpolate"):
            sources[f"{name}-{picture}"] = ROOT / folder / f"{picture}.png"
        sources[f"{name}-aware"] = ROOT / folder / "aware" / "denoise.png"
        sources[f"{name}-occlusion"] = RUNS / f"occlusion-{name}" / "denoise.png"
    for name, source in sources.items():
        if source.is_file():
            shutil.copy(source, PICTURES / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "figures", "page"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--only", nargs="+", default=[], choices=[e.name for e in EXPERIMENTS])
    args = parser.parse_args()
    if args.what == "train":
        train(args.only, args.jobs)
    elif args.what == "figures":
        figures()
    else:
        write_page(json.loads(RESULTS.read_text()), ROOT / "docs" / "reproduction.md")


if __name__ == "__main__":
    main()
