"""The papers' figures and tables on the data at hand: docs/reproduction.md and its pictures.

    python -m benchmarks.reproduce train --budget HOURS [--only cifar200-kanerva ...]
    python -m benchmarks.reproduce train [--jobs 2]
    python -m benchmarks.reproduce ppca
    python -m benchmarks.reproduce reading
    python -m benchmarks.reproduce figures
    python -m benchmarks.reproduce page

``train`` makes the runs with the command line and goes on where it was stopped, by whatever. With
a budget: one after the other on one core at the lowest priority, until the hours are over, to be
started again; without: as many at a time as there are jobs. Runs are under ``runs/reproduction``,
or in the folder that KANERVA_RUNS names; the archive with CIFAR-10 is looked for in the folder
that KANERVA_DATA names. ``ppca`` has the exact likelihood of probabilistic PCA on it, ``reading``
the errors of reads from corrupted queries. ``figures`` runs the other commands on the runs, also on
those that are not at their end, and collects every number in
``benchmarks/results/reproduction.json``, where what it finds no run of stays; ``page`` writes the
tables of docs/reproduction.md from that file alone. All in a checkout with the library built in
place.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kanerva_ext.cli import _checkpoint
from kanerva_ext.cli._logs import read_csv
from kanerva_ext.data import load_images

from . import (
    reproduce_capacity,
    reproduce_experiments,
    reproduce_ppca,
    reproduce_queue,
    reproduce_reading,
)
from .machine import describe
from .reproduce_experiments import (
    COLOUR_PICTURES,
    COMPARED,
    DATA,
    EXPERIMENTS,
    ROOT,
    RUNS,
    Experiment,
    shown,
)
from .reproduction_page import write_page

RESULTS = ROOT / "benchmarks" / "results" / "reproduction.json"
LENGTH = 32  # of the episodes whose bounds are compared
PICTURES = ROOT / "docs" / "images" / "reproduction"


def run_cli(words: list[str]) -> str:
    """Output of one command of the command line; raises on failure."""
    # The script, for `-m` would find the checkout's package before the installed one.
    command = [str(Path(sys.executable).with_name("kanerva")), *words]
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


def begun(experiment: Experiment) -> list[Path]:
    """Folders of its runs that have a checkpoint."""
    return [folder for folder in experiment.folders() if (folder / _checkpoint.FILE).is_file()]


def measure(folder: Path) -> dict:
    """Steps, seconds, images seen and the terms of the bound of a run, of what it has come to."""
    checkpoint = _checkpoint.load(folder / _checkpoint.FILE)
    data, planned = checkpoint.config.data, checkpoint.config.training.steps
    run = {"steps": checkpoint.step, "planned_steps": planned, "seconds": checkpoint.seconds}
    # Where episodes are cut, their parts are as many images.
    run["images"] = checkpoint.step * data.batch_size * data.episode_length
    metrics, path = folder / "metrics.json", folder / "evaluate.json"
    mixed = data.shortest_episode is not None  # trained at many lengths, compared at one
    if metrics.is_file() and not mixed:
        run["test"] = json.loads(metrics.read_text())["test"]
    else:
        length = ["--episode-length", str(LENGTH)] if mixed else []
        run_cli(["evaluate", str(folder), "--json", str(path), *length])
        (terms,) = json.loads(path.read_text())["runs"]
        run["test"] = {k: v for k, v in terms.items() if k not in ("run", "step", "episode_length")}
    # A covariance beyond float32 has no KL; JSON has no word for that.
    run["test"] = {name: value for name, value in run["test"].items() if math.isfinite(value)}
    if (folder / "train.csv").is_file():
        last = (read_csv(folder / "train.csv") or [{}])[-1]
        run["train"] = {name: value for name, value in last.items() if math.isfinite(value)}
    for key, path in (("denoise", folder), ("aware", folder / "aware")):
        if (path / "denoise.json").is_file():
            run[key] = json.loads((path / "denoise.json").read_text())
    return run


def collect(commands: dict[str, list[str]], only: list[str]) -> dict:
    """Every number of the page; of runs not here or not asked for, what the results had."""
    result = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    known, experiments = result.get("experiments", {}), {}
    machine = describe()
    for experiment in EXPERIMENTS:
        folders = begun(experiment) if not only or experiment.name in only else []
        measured = {folder.name: measure(folder) | {"machine": machine} for folder in folders}
        runs = known.get(experiment.name, {}).get("runs", {}) | measured
        if runs:
            experiments[experiment.name] = {
                "command": shown(shlex.join(["kanerva", *experiment.commands()[0]])),
                "runs": {f.name: runs[f.name] for f in experiment.folders() if f.name in runs},
            }
    result["experiments"] = experiments
    for table in sorted(RUNS.glob("capacity*/capacity.csv")):
        result["capacity"] = reproduce_capacity.merge(result.get("capacity", ""), table.read_text())
    made = {name: shown(shlex.join(["kanerva", *words])) for name, words in commands.items()}
    result["figures"] = result.get("figures", {}) | made
    return result


def figures(only: list[str]) -> None:
    by_name = {e.name: begun(e) for e in EXPERIMENTS if not only or e.name in only}
    by_name = {name: [str(f) for f in folders] for name, folders in by_name.items() if folders}
    omniglot = [n for n in ("kanerva", "dynamic", "vae") if n in by_name]
    first = {name: folders[0] for name, folders in by_name.items()}
    commands: dict[str, list[str]] = {}
    if omniglot:
        commands["curves"] = ["curves", *(first[n] for n in omniglot), "--out", f"{RUNS}/curves"]
    for name in omniglot:
        for folder in by_name[name]:
            commands[f"denoise {folder}"] = ["denoise", folder]
            commands[f"aware {folder}"] = ["denoise", folder, "--aware", "--out", f"{folder}/aware"]
        commands[f"reconstruct {name}"] = ["reconstruct", first[name]]
        if name != "vae":
            target = f"{RUNS}/occlusion-{name}"
            words = ["denoise", first[name], "--corruption", "occlusion", "--out", target]
            commands[f"occlusion {name}"] = words
            commands[f"generate {name}"] = ["generate", first[name]]
            commands[f"interpolate {name}"] = ["interpolate", first[name]]
    for kind, experiments in COLOUR_PICTURES.items():
        colour = [e.name for e in experiments if e.name in first]
        if colour:
            name, out = f"{kind}-generate", f"{RUNS}/{kind}"
            commands[name] = ["generate", *(first[n] for n in colour), "--classes", "10"]
            commands[name] += ["--reads", "0", "2", "4", "6", "8", "--out", out]
        for each in colour:
            commands[f"reconstruct {each}"] = ["reconstruct", first[each]]
    stored = [*omniglot, *filter(None, (best_rate(k, by_name) for k in COMPARED))]
    stored = {"capacity": [(folder, name) for name in stored for folder in by_name[name]]}
    if "mixed-kanerva" in by_name:  # beside those that it started from and that have no memory
        shipped = [(f"pretrained:omniglot-{m}", f"omniglot-{m}") for m in ("kanerva", "vae")]
        mixed = [(folder, "mixed-kanerva") for folder in by_name["mixed-kanerva"]]
        stored["capacity-mixed"] = mixed + shipped
    for key, runs in stored.items():
        if runs:
            folders, labels = zip(*runs, strict=True)
            commands[key] = ["capacity", *folders, "--out", f"{RUNS}/{key}"]
            commands[key] += [word for label in labels for word in ("--label", label)]
    for words in commands.values():
        print("kanerva", shlex.join(words), flush=True)
        run_cli(words)
    results = collect(commands, only)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    copy_pictures(first)
    if "capacity" in results:
        reproduce_capacity.draw(results["capacity"], PICTURES / "capacity.png")


def ppca() -> None:
    """Measures probabilistic PCA into the results."""
    rows = reproduce_ppca.measure(
        *(load_images("cifar10-jpeg", s, DATA) for s in ("train", "test"))
    )
    for row in rows:
        print({name: round(value, 4) for name, value in row.items()})
    result = json.loads(RESULTS.read_text())
    RESULTS.write_text(json.dumps(result | {"ppca": rows}, indent=1) + "\n")


def reading(only: list[str]) -> None:
    """Measures reads from corrupted queries into the results, of the Kanerva Machines that came to
    their end."""
    rows = {}
    for experiment in (e for e in EXPERIMENTS if "kanerva" in e.name):
        if only and experiment.name not in only:
            continue
        ends = [f for f in begun(experiment) if (f / "metrics.json").is_file()]
        if not ends:
            continue
        folder = ends[0]
        root = DATA if experiment.name.startswith("cifar") else None
        rows[experiment.name] = reproduce_reading.measure(folder, root)
        print(experiment.name, json.dumps(rows[experiment.name], indent=1))
    result = json.loads(RESULTS.read_text())
    result["reading"] = result.get("reading", {}) | rows
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def best_rate(kind: str, by_name: dict[str, list[str]]) -> str | None:
    """The experiment at the learning rate whose worst seed is best."""
    worst = {
        name: max(measure(Path(f))["test"]["bound"] for f in folders)
        for name, folders in by_name.items()
        if name.startswith(f"{kind}-lr")
    }
    return min(worst, key=worst.get) if worst else None


def copy_pictures(first: dict[str, str]) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    sources = {"curves": RUNS / "curves" / "curves.png"}
    for kind in COLOUR_PICTURES:
        sources[f"{kind}-generate"] = RUNS / kind / "generate.png"
    for name, folder in first.items():
        for picture in ("reconstruct", "denoise", "generate", "interpolate"):
            sources[f"{name}-{picture}"] = Path(folder) / f"{picture}.png"
        sources[f"{name}-aware"] = Path(folder) / "aware" / "denoise.png"
        sources[f"{name}-occlusion"] = RUNS / f"occlusion-{name}" / "denoise.png"
    for name, source in sources.items():
        if source.is_file():
            shutil.copy(source, PICTURES / f"{name}.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("what", choices=("train", "ppca", "reading", "figures", "page"))
    add("--jobs", type=int, help="runs at a time (default: one for each core)")
    add("--budget", type=float, metavar="HOURS", help="one run at a time, lowest priority")
    add("--only", nargs="+", default=[], choices=[e.name for e in EXPERIMENTS])
    args = parser.parse_args()
    if args.budget is not None and (args.what != "train" or args.jobs is not None):
        parser.error("--budget is for train, without --jobs")
    if args.budget is not None and not args.budget > 0:
        parser.error(f"--budget must be positive, got {args.budget:g}")
    if args.what == "train" and args.budget is not None:
        queue = reproduce_experiments.queue(args.only)
        os.chdir(ROOT)  # where the baselines' modules are found
        return reproduce_queue.work(queue, RUNS, args.budget, lambda line: print(line, flush=True))
    if args.what == "train":
        train(args.only, args.jobs or os.cpu_count())
    elif args.what == "ppca":
        ppca()
    elif args.what == "reading":
        reading(args.only)
    elif args.what == "figures":
        figures(args.only)
    else:
        write_page(json.loads(RESULTS.read_text()), ROOT / "docs" / "reproduction.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
