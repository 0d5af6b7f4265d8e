"""Peak memory of bayes_write, forward+backward: ``python -m benchmarks.memory``.

Each provider runs in a process of its own (Linux). Counted are the inputs (all five, with the fed
gradients of mean and cov) and the growth of the resident set from just before the call to its peak
(VmHWM), which holds the outputs, all gradients, and everything kept or used in between. Before that
a small call loads the libraries and starts the threads. glibc is told to return freed memory at
once (MALLOC_*), else the growth would depend on what was freed before. The ratio is that sum over
the bytes of inputs, outputs and gradients; the strict one leaves the gradients out of the
denominator.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from . import machine
from .compare import FLOORS, RESULTS, tomllib, write_json
from .measure import KANERVA
from .rivals import OPERATORS, Rival, Shape

SHAPE = Shape(4, 4096, 64, 200)
RIVALS = ("closed(gain_chunk64)", "closed(information_products)", "gain_chunk64")
SMALL = Shape(2, 8, 4, 4)


@dataclass
class Row:
    provider: str
    shape: str
    input_bytes: int
    output_bytes: int
    gradient_bytes: int
    growth_bytes: int  # of the resident set, to its peak
    ratio: float  # (inputs + growth) / (inputs + outputs + gradients)
    strict_ratio: float  # (inputs + growth) / (inputs + outputs)

    def line(self) -> str:
        mib = (self.input_bytes, self.output_bytes, self.gradient_bytes, self.growth_bytes)
        sizes = " ".join(f"{x / 2**20:9.1f}" for x in mib)
        return f"{self.provider:30} {sizes} {self.ratio:7.2f} {self.strict_ratio:7.2f}"


HEADER = (
    f"{'MiB':30} {'inputs':>9} {'outputs':>9} {'gradients':>9} {'growth':>9} {'ratio':>7} strict"
)


def worker(name: str, shape: Shape) -> dict[str, object]:
    """Measure one provider in this process."""
    spec = OPERATORS["bayes_write"]
    rival = find(name)

    def problem(at: Shape):
        generator = torch.Generator().manual_seed(0)
        leaves = [x.float().requires_grad_() for x in spec.inputs(at, generator)]
        mean, cov = leaves[:2]
        return leaves, [torch.randn_like(mean), torch.randn_like(cov)]

    def run(leaves, grads):
        outputs = rival.function(*leaves)
        return outputs, torch.autograd.grad(outputs, leaves, grads)

    run(*problem(SMALL))
    leaves, grads = problem(shape)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from the present
    before = status("VmRSS")
    outputs, gradients = run(leaves, grads)
    growth = status("VmHWM") - before
    if not all(torch.isfinite(g).all() for g in gradients):
        raise SystemExit(f"{name}: a gradient is not finite")
    inputs, outputs, gradients = (size(x) for x in ([*leaves, *grads], outputs, gradients))
    row = Row(
        name,
        str(shape),
        inputs,
        outputs,
        gradients,
        growth,
        (inputs + growth) / (inputs + outputs + gradients),
        (inputs + growth) / (inputs + outputs),
    )
    return vars(row)


def find(name: str) -> Rival:
    spec = OPERATORS["bayes_write"]
    for rival in (Rival(KANERVA, spec.kanerva), *spec.rivals):
        if rival.name == name and "forward_backward" in rival.directions:
            return rival
    raise SystemExit(f"no provider {name!r} of bayes_write")


def status(key: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}: this measurement needs Linux")


def size(tensors) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def measure(name: str, shape: Shape, threads: int) -> Row:
    """Run `worker` in a fresh process."""
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": str(threads),
    }
    command = [sys.executable, "-m", "benchmarks.memory", "--worker", name, "--shape", str(shape)]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return Row(**json.loads(done.stdout))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--shape", type=lambda s: Shape(*map(int, s.split("x"))), default=SHAPE)
    parser.add_argument("--provider", action="append", help="default: ours and the leanest rivals")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="exit 1 when above the bound")
    parser.add_argument("--json", type=Path, nargs="?", const=RESULTS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(worker(options.worker, options.shape)))
        return 0
    torch.set_num_threads(options.threads)
    about = machine.describe()
    print(machine.headline(about))
    print(f"bayes_write forward+backward, (B, T, K, C) = {tuple(options.shape)}, float32")
    print(HEADER)
    rows = []
    for name in options.provider or (KANERVA, *RIVALS):
        rows.append(measure(name, options.shape, options.threads))
        print(rows[-1].line(), flush=True)
    if options.json:
        print(f"written to {write_json(options.json, 'memory', about, rows)}")
    bound = tomllib.loads(FLOORS["goals"].read_text())["memory"].get(str(options.shape))
    ours = [r for r in rows if r.provider == KANERVA]
    if bound is None or not ours:
        return 0
    met = ours[0].strict_ratio < bound
    print(f"bound {bound:g} on the strict ratio: {'ok' if met else 'ABOVE'}")
    return 1 if options.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
