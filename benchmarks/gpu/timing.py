"""How long it takes: each function is one process's question, and gives its row.

Whoever times has the GPU for itself (`child.turn`): other processes wait before they touch it.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from datetime import datetime, timezone

import torch

from benchmarks import ceilings, machine, measure, timers
from benchmarks.compare import compare as compare_row
from benchmarks.measure import KANERVA, interleaved, mode, on_backend
from benchmarks.rivals import DIRECTIONS, OPERATORS, Rival, Shape
from benchmarks.rivals.spec import compiled as compiled_rival

from .checks import calls, captured, ready
from .child import require_installed, turn

ROUNDS, SECONDS = 40, 1.0
#: Recursions of more steps than this launch kernels for longer than a row may take.
MOST_RECURSION = 64


def shape_of(text: str) -> Shape:
    return Shape(*map(int, text.split("x")))


def rates(device: str = "cuda") -> dict:
    """The machine with its copy and product rates, and copies by size."""
    require_installed("cuda", device)
    with turn():
        timer = timers.of(device)
        about = machine.describe(timer)
        copies = {
            str(2**n): ceilings.copy_rate(2**n, timer) / 1e9 for n in range(20, 30, 3)
        }  # bytes -> GB/s
    return {"machine": about, "copy_gb_per_s": copies}


def compare(
    operator: str, shape: str, direction: str, device: str = "cuda", backend: str = "cuda"
) -> dict:
    """Our kernels against the fastest of PyTorch's compositions; and by a CUDA graph."""
    require_installed(backend, device)
    problem = measure.Problem(operator, shape_of(shape), direction, by_operator=True)
    with turn():
        problem.move(device)
        timer = timers.of(device)
        found = compare_row(
            operator,
            problem.shape,
            direction,
            rounds=ROUNDS,
            seconds=SECONDS,
            with_compile=False,
            floors={},
            patience=0.0,
            backends=["auto" if device == "cpu" else backend],
            timer=timer,
            problem=problem,
            keep=lambda rival: rival.family != "steps" or problem.shape.steps <= MOST_RECURSION,
        )
        row = asdict(found[0])
        graph_ms = graph_time(problem.bind(on_backend(operator, backend)), direction, timer)
    return {"row": row, "graph_ms": graph_ms}


def graph_time(call, direction: str, timer) -> float | None:
    """Milliseconds of a replayed CUDA graph of ``call``; None on a CPU."""
    if timer.cuda is None:
        return None
    with mode(direction):
        graph, _ = captured(call)
        return 1e3 * timers.median_seconds(graph.replay, timer, 0.3)


def compiled(
    operator: str,
    shape: str,
    direction: str,
    rival: str,
    device: str = "cuda",
    backend: str = "cuda",
) -> dict:
    """torch.compile of one composition (by name; "": the first), and our kernels, in turns."""
    require_installed(backend, device)
    problem = measure.Problem(operator, shape_of(shape), direction, by_operator=True)
    serving = (r for r in OPERATORS[operator].rivals if r.serves(problem.shape, direction))
    plain = next(r for r in serving if rival in ("", r.name))
    chosen = compiled_rival(plain, max_steps=problem.shape.steps)
    # Compiling takes a core half a minute and the GPU next to nothing, so it does not wait.
    problem.move(device)
    call = problem.bind(chosen)
    with mode(direction):
        call()
    own = Rival(KANERVA, OPERATORS[operator].kanerva, family=KANERVA)
    own = own if device == "cpu" else on_backend(operator, backend)
    with turn():
        return {"row": _pair(problem, own, chosen, timers.of(device))}


def _pair(problem: measure.Problem, own: Rival, other: Rival, timer) -> dict:
    """Two providers in turns: their medians in milliseconds, errors, and the ratio's quartiles."""
    bound = {"ours": problem.bind(own), "rival": problem.bind(other)}
    errors = {
        name: problem.verify(rival, bound[name])
        for name, rival in (("ours", own), ("rival", other))
    }
    with mode(problem.direction):
        times = interleaved(bound, ROUNDS, SECONDS, timer=timer)
    ratios = sorted(b / a for a, b in zip(times["ours"], times["rival"], strict=True))
    medians = {name: 1e3 * statistics.median(t) for name, t in times.items()}
    return {
        "operator": problem.operator,
        "shape": str(problem.shape),
        "direction": problem.direction,
        "rival": other.name,
        "ours_ms": medians["ours"],
        "rival_ms": medians["rival"],
        "ratio": medians["rival"] / medians["ours"],
        "ratio_low": ratios[len(ratios) // 4],
        "ratio_high": ratios[3 * len(ratios) // 4],
        "ours_error": errors["ours"],
        "rival_error": errors["rival"],
        "rounds": len(ratios),
    }


def duel(
    operator: str,
    shape: str,
    backends: tuple[str, str] = ("cuda", "triton"),
    device: str = "cuda",
) -> dict:
    """The CUDA C++ and the Triton kernels in turns, forward and with the gradient."""
    found = {}
    for backend in backends:
        require_installed(backend, device)
    made = {d: measure.Problem(operator, shape_of(shape), d, by_operator=True) for d in DIRECTIONS}
    first, second = (on_backend(operator, backend) for backend in backends)
    with turn():
        for direction, problem in made.items():
            problem.move(device)
            found[direction] = _pair(problem, first, second, timers.of(device))
            for name, rival in zip(backends, (first, second), strict=True):
                call = problem.bind(rival)
                found[direction][f"{name}_graph_ms"] = graph_time(
                    call, direction, timers.of(device)
                )
    return {"backends": list(backends), "directions": found, "date": now()}


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def profiled(
    operator: str, shape: str, direction: str, backend: str = "cuda", device: str = "cuda"
) -> dict:
    """What runs under Nsight Compute: two calls, the first of which does what only a first does."""
    found = calls(ready(operator, shape_of(shape), backend, device))
    for _ in range(2):
        found["forward" if direction == "forward" else "backward"]()
    if device == "cuda":
        torch.cuda.synchronize()
    return {}
