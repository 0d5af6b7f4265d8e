"""Sequence layers beside each other on small tasks.

    python -m benchmarks.sequence regression --model attention --seed 0    one run
    python -m benchmarks.sequence all [--seeds 3] [--minutes 60]           every run not yet made
    python -m benchmarks.sequence page                                     tables and pictures

Runs go into a result file as they end; `all` goes on where it was stopped, a seed of every task and
model after the other. A run takes a minute or a few, on one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from .mixers import MIXERS
from .page import write_page
from .results import RESULTS, key, read, store
from .tasks import SCORES, TASKS
from .training import train


def one(
    task: str,
    model: str,
    seed: int,
    steps: int | None,
    results: Path,
    norm_eps: float | None = None,
) -> None:
    """Make a run, store it and say what came out."""
    run = train(task, model, seed, steps, norm_eps)
    store(results, key(task, model, seed, norm_eps, steps), run)
    score = run["held_out"][str(SCORES[task])]
    each = 1e3 * run["seconds"] / max(1, run["steps"])
    print(
        f"{task} {model} seed {seed}: {score:.4f} {TASKS[task].unit}; {run['steps']:,} steps, "
        f"{each:.0f} ms each, {run['parameters'] / 1e3:.1f}k parameters",
        flush=True,
    )


def every(options) -> None:
    """All runs that the file lacks, until the minutes are over."""
    end = time.monotonic() + 60 * options.minutes
    for seed in range(options.seeds):
        for task in options.tasks:
            for model in options.models:
                name = key(task, model, seed, options.norm_eps, options.steps)
                if name in read(options.results)["runs"]:
                    continue
                if time.monotonic() > end:
                    print(f"{options.minutes:g} minutes are over; to go on, run the same again")
                    return
                one(task, model, seed, options.steps, options.results, options.norm_eps)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sequence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=[*TASKS, "all", "page"], metavar="TASK | all | page")
    parser.add_argument("--model", choices=list(MIXERS), help="of one run")
    parser.add_argument("--seed", type=int, default=0, help="of one run")
    parser.add_argument("--steps", type=int, help="of training (default: the task's)")
    parser.add_argument("--norm-eps", type=float, help="of the norm of reads (default: 1e-5)")
    parser.add_argument("--seeds", type=int, default=3, help="of all (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--models", nargs="+", choices=list(MIXERS), default=list(MIXERS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="to begin runs in")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args(argv)
    for name, least in (("steps", 1), ("seeds", 1), ("threads", 1), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}, got {value}")
    if options.norm_eps is not None and not options.norm_eps > 0:
        parser.error(f"--norm-eps must be above 0, got {options.norm_eps}")
    torch.set_num_threads(options.threads)
    if options.what == "page":
        for path in write_page(read(options.results)):
            print(f"wrote {path}")
    elif options.what == "all":
        every(options)
    elif options.model is None:
        parser.error(f"a run needs --model, one of {', '.join(MIXERS)}")
    else:
        one(
            *(options.what, options.model, options.seed, options.steps, options.results),
            options.norm_eps,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
