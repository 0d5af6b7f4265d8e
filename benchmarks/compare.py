"""How much faster than the fastest PyTorch composition: ``python -m benchmarks.compare``.

Every provider is verified against float64, then timed briefly; the fastest rivals (and of the
recursions the fastest) and ours are timed in turns in this process, in many short rounds. A ratio
is the rival's median over ours. Forward runs in inference mode; forward+backward is the public
function on leaves that all require gradients, then torch.autograd.grad with fixed output gradients.

On a GPU (``--device``, the default where there is one) times are those of its events, the L2 cache
is cleared before every call, and each compiled backend is compared: CUDA C++ and Triton.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from kanerva_ext import backends
from kanerva_ext._backend import AVAILABLE, NAMES

from . import ceilings, costs, counters, machine, timers
from .measure import (
    KANERVA,
    Problem,
    WrongResult,
    backends_on,
    interleaved,
    mode,
    on_backend,
    providers,
)
from .rivals import DIRECTIONS, OPERATORS, Rival, Shape
from .timers import HOST, Timer, quick_time

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RESULTS = Path(__file__).parent / "results"
#: By the word of --floors.
FLOORS = {
    "goals": Path(__file__).parent / "goals.toml",
    "ci": Path(__file__).parent / "floors.toml",
}
SMALL = 3  # shapes of --shapes small
NAME = 22  # width of an operator and its backend in a line
MAX_THREADS = 1024
QUIET = 0.1  # load of other processes, in cores, above which a row is measured again


@dataclass
class Row:
    """One comparison; times in milliseconds per call."""

    operator: str
    shape: str
    direction: str
    against: str  # "all" rivals or the "steps" alone
    rival: str
    ours_ms: float
    rival_ms: float
    ratio: float
    ratio_low: float  # quartiles of the ratio over the rounds
    ratio_high: float
    ours_error: float
    rival_error: float
    floor: float | None
    rounds: int
    other_load: float | None
    screened_ms: dict[str, float]  # every provider's least time in the first brief look
    backend: str  # of ours; "auto": what a user gets who names none
    ours_launches: int  # kernels on a GPU, calls of PyTorch operators on a CPU
    rival_launches: int
    ours_peak_bytes: int  # of tensors alive at once, beyond those from before
    rival_peak_bytes: int
    of_ceiling: float  # least time by the machine's ceilings over ours
    ceiling_floor: float | None = None  # how much of it is wanted

    @property
    def met(self) -> bool:
        return self.ratio >= (self.floor or 0) and self.of_ceiling >= (self.ceiling_floor or 0)

    def line(self) -> str:
        floors = [f"{x:g}" for x in (self.floor, self.ceiling_floor) if x is not None]
        floor = f"{' '.join(floors)} {'ok' if self.met else 'BELOW'}" if floors else ""
        name = self.operator + ("" if self.backend == "auto" else f"[{self.backend}]")
        spread = f"{self.ratio_low:.2f}-{self.ratio_high:.2f}"
        return (
            f"{name:{NAME}} {self.shape:14} {self.direction:16} {self.ours_ms:9.3f} "
            f"{self.rival_ms:9.3f} {self.ratio:6.2f} {spread:>11} {self.of_ceiling:5.2f} "
            f"{floor:>12} {self.ours_error:8.0e} {self.rival_error:8.0e}  {self.rival}"
        )


HEADER = (
    f"{'operator':{NAME}} {'B x T x K x C':14} {'direction':16} {'ours ms':>9} {'rival ms':>9} "
    f"{'ratio':>6} {'quartiles':>11} {'limit':>5} {'floors':>12} {'error':>8} {'its err':>8}  "
    "fastest rival"
)


def compare(
    operator: str,
    shape: Shape,
    direction: str,
    *,
    rounds: int,
    seconds: float,
    with_compile: bool,
    floors: dict,
    patience: float,
    backends: Sequence[str] = ("auto",),
    timer: Timer = HOST,
    problem: Problem | None = None,
    keep: Callable[[Rival], bool] = lambda rival: True,
) -> list[Row]:
    """The rows of one operator, shape and direction: against all rivals, and against recursions.

    ``problem`` is that of the three, where it has been made before; ``keep`` says which rivals
    are timed.
    """
    if with_compile:
        torch.compiler.reset()  # dynamo keeps at most eight compilations of a function
    if problem is None:
        problem = Problem(operator, shape, direction, device=timer.device)
    wanted = floors.get(operator, {}).get(str(shape), {})
    everywhere, of_ceiling = floors.get("everywhere"), floors.get("of_ceiling", {})
    calls, errors, screened, rivals = {}, {}, {}, {}
    auto, *found = providers(operator, shape, direction)
    ours = {b: auto if b == "auto" else on_backend(operator, b) for b in backends}
    for rival in [*ours.values(), *found]:
        if rival.family == "compile" and not with_compile:
            continue
        if rival.family != KANERVA and not keep(rival):
            continue
        call = problem.bind(rival)
        try:
            errors[rival.name] = problem.verify(rival, call)
        except WrongResult as error:
            if rival.family == KANERVA:
                raise
            print(f"left out: {error}", file=sys.stderr)
            continue
        calls[rival.name], rivals[rival.name] = call, rival
        with mode(direction):
            screened[rival.name] = quick_time(call, timer=timer)
    chosen = finalists(rivals, screened, "steps" in wanted)
    timed = [*(provider.name for provider in ours.values()), *chosen]
    with mode(direction):
        times, load = quietest({n: calls[n] for n in timed}, rounds, seconds, patience, timer)

    medians = {name: statistics.median(t) for name, t in times.items()}
    rows, counts = [], {}
    for backend, against in itertools.product(ours, ("all", "steps")):
        own = ours[backend].name
        names = [n for n in chosen if against == "all" or rivals[n].family == against]
        floor = (wanted if against == "all" else wanted.get("steps", {})).get(direction)
        share = of_ceiling.get(str(shape)) if operator in of_ceiling.get("operators", ()) else None
        if against == "all" and floor is None:
            floor = everywhere
        if not names or (against == "steps" and floor is None):
            continue
        best = min(names, key=medians.__getitem__)
        for name in {own, best} - counts.keys():
            with mode(direction):
                counts[name] = counters.count(calls[name], timer)
        flops = costs.flops(operator, shape, direction)
        ratios = sorted(b / a for a, b in zip(times[own], times[best], strict=True))
        rows.append(
            Row(
                operator,
                str(shape),
                direction,
                against,
                best,
                medians[own] * 1e3,
                medians[best] * 1e3,
                medians[best] / medians[own],
                ratios[len(ratios) // 4],
                ratios[3 * len(ratios) // 4],
                errors[own],
                errors[best],
                floor,
                len(ratios),
                load,
                {name: t * 1e3 for name, t in sorted(screened.items(), key=lambda x: x[1])},
                backend,
                counts[own].launches,
                counts[best].launches,
                counts[own].peak_bytes,
                counts[best].peak_bytes,
                ceilings.share(medians[own], problem.nbytes, flops, timer).share,
                share if against == "all" else None,
            )
        )
    return rows


def finalists(rivals: dict[str, Rival], screened: dict[str, float], steps: bool) -> list[str]:
    """The four fastest rivals of the brief look; with ``steps`` the two fastest recursions too."""
    order = sorted((n for n, r in rivals.items() if r.family != KANERVA), key=screened.__getitem__)
    chosen = order[:4]
    if steps:
        recursions = [n for n in order if rivals[n].family == "steps"][:2]
        chosen += [n for n in recursions if n not in chosen]
    return chosen


def quietest(
    calls, rounds, seconds, patience, timer=HOST
) -> tuple[dict[str, list[float]], float | None]:
    """Times, taken again for up to ``patience`` seconds while others use the cores; their load.

    On a busy machine every parallel region of PyTorch waits for a time slice, which flatters the
    provider with the fewest of them.
    """
    deadline, kept, least = time.monotonic() + patience, {}, float("inf")
    while True:
        with machine.OtherLoad() as load:
            times = interleaved(calls, rounds, seconds, timer=timer)
        if load.cores is None:
            return times, None
        if load.cores < least:
            kept, least = times, load.cores
        if least <= QUIET or time.monotonic() > deadline:
            return kept, least


def compiled_backends(timer: Timer) -> list[str]:
    """Those of the device; "auto" where there are none, which is then the reference."""
    return [n for n in backends_on(timer.device) if n != "reference"] or ["auto"]


def shapes_of(operator: str, wanted: str | list[Shape]) -> Sequence[Shape]:
    """Those asked for, of which "small" and "all" are the operator's own."""
    if isinstance(wanted, list):
        return wanted
    own = OPERATORS[operator].shapes
    return own[:SMALL] if wanted == "small" else own


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--op", action="append", choices=list(OPERATORS), help="default: all")
    parser.add_argument(
        "--shapes",
        default="all",
        help='"small" (the first three), "all", or names such as 16x32x32x100,8x128x128x256',
    )
    parser.add_argument("--direction", choices=DIRECTIONS, help="default: both")
    parser.add_argument("--repeats", type=int, default=40, help="rounds at most (default 40)")
    parser.add_argument("--seconds", type=float, default=4.0, help="per comparison (default 4)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=timers.default_device())
    parser.add_argument(
        "--backend",
        action="append",
        choices=NAMES,
        help='default: "auto" on a CPU, every compiled backend that is here on a GPU',
    )
    parser.add_argument("--compile", "--full", action="store_true", help="torch.compile rivals too")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds a busy row may take")
    parser.add_argument("--check", action="store_true", help="exit 1 when below a floor")
    parser.add_argument(
        "--floors",
        choices=list(FLOORS),
        default="goals",
        help="what we aim for (default: goals.toml), or what holds on any machine (floors.toml)",
    )
    parser.add_argument(
        "--json", type=Path, nargs="?", const=RESULTS, help="file, or directory to name it in"
    )
    options = parser.parse_args(arguments)
    if options.shapes not in ("small", "all"):
        try:
            options.shapes = parse_shapes(options.shapes)
        except argparse.ArgumentTypeError as error:
            parser.error(f'--shapes must be "small", "all" or {error}')
    for name, high in (("repeats", 10**6), ("threads", MAX_THREADS)):
        value = getattr(options, name)
        if not 1 <= value <= high:
            parser.error(f"--{name} must be from 1 to {high}, got {value}")
    for name in ("seconds", "patience"):
        value = getattr(options, name)
        if not 0 <= value < float("inf"):
            parser.error(f"--{name} must be at least 0 and finite, got {value}")
    if options.device == "cuda" and not timers.finds_gpu():
        parser.error("--device cuda: this PyTorch finds no GPU")
    there = backends()
    for name in options.backend or ():
        if there.get(name, AVAILABLE) != AVAILABLE:
            parser.error(f"--backend {name} is not available: {there[name]}")
        if name in ("cpu", "cuda") and name != options.device:
            parser.error(f"--backend {name} serves no tensors of --device {options.device}")
    if options.json is not None and options.json.suffix == ".json" and options.json.is_dir():
        parser.error(f"--json must be a file or a directory without .json, got {options.json}")
    return options


def parse_shapes(text: str) -> list[Shape]:
    """Of "16x32x32x100,8x128x128x256"; an ArgumentTypeError where it is none."""
    shapes = []
    for name in text.split(","):
        sizes = [int(part) if part.isdecimal() else 0 for part in name.split("x")]
        if len(sizes) != len(Shape._fields) or not all(1 <= size < 2**31 for size in sizes):
            raise argparse.ArgumentTypeError(f"BxTxKxC,... of sizes from 1 on, got {name!r}")
        shapes.append(Shape(*sizes))
    return shapes


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    floors = tomllib.loads(FLOORS[options.floors].read_text())
    timer = timers.of(options.device)
    backends = options.backend or ["auto"]
    if timer.cuda is not None:
        floors = {}  # they are a CPU's
        backends = options.backend or compiled_backends(timer)
    about = machine.describe(timer)
    print(machine.headline(about))
    print(HEADER)
    rows: list[Row] = []
    for operator in options.op or OPERATORS:
        for shape in shapes_of(operator, options.shapes):
            for direction in [options.direction] if options.direction else DIRECTIONS:
                found = compare(
                    operator,
                    shape,
                    direction,
                    rounds=options.repeats,
                    seconds=options.seconds,
                    with_compile=options.compile,
                    floors=floors,
                    patience=options.patience,
                    backends=backends,
                    timer=timer,
                )
                rows += found
                for row in found:
                    print(row.line(), flush=True)
    loads = [r.other_load for r in rows if r.other_load is not None]
    if loads and max(loads) > QUIET:
        print(f"other processes kept up to {max(loads):.1f} cores busy: take the times as rough")
    if options.json:
        print(f"written to {write_json(options.json, 'compare', about, rows)}")
    below = [r for r in rows if not r.met]
    if below:
        floors_given = sum((r.floor or r.ceiling_floor) is not None for r in rows)
        print(f"{len(below)} of {floors_given} floors are not met")
    return 1 if options.check and below else 0


def write_json(target: Path, name: str, about: dict, rows: list) -> Path:
    """``{"benchmark", "machine", "rows"}``; in a directory, named by date and commit."""
    if target.suffix != ".json":
        stamp = str(about["date"])[:19].replace(":", "").replace("-", "")
        commit = str(about["commit"])[:10] or "unknown"
        target = target / f"{name}-{stamp}-{commit}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, "machine": about, "rows": [asdict(r) for r in rows]}
    target.write_text(json.dumps(content, indent=1) + "\n")
    return target


if __name__ == "__main__":
    sys.exit(main())
