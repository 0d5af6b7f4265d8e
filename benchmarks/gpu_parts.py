"""The parts of gpu_check.py that run in an interpreter of their own, on one device.

Each function returns what goes into the report, or raises. With a CPU as the device, what needs
CUDA graphs is left out: that is how the tests run them. Times are of `timers`: on a GPU its own
events, the L2 cache cleared before every call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import timers
import torch
from torch import Tensor

from kanerva_ext import ops

# B, T, K, C
WRITES = (
    (16, 32, 32, 100),
    (4096, 32, 32, 100),
    (64, 16, 16, 64),
    (32, 64, 64, 200),
    (8, 128, 128, 256),
    (1, 65_536, 512, 768),
)
SOLVES = tuple((batch, 32, slots, 100) for slots in (32, 64, 128) for batch in (16, 256, 4096))
SCANS = ((128, 4096, 128, 128), (32, 2048, 64, 64), (1, 65_536, 64, 64))
ADAPTIVE = ((16, 32, 32, 100), (32, 64, 64, 200))
MAX_ERROR = 1e-3  # relative, against float64: no time is reported beyond it
Shape = tuple[int, int, int, int]


def write_inputs(shape: Shape, device: str) -> list[Tensor]:
    """mean, cov, weights, values and noise_var, in float32, the same on every device."""
    b, t, k, c = shape
    generator = torch.Generator().manual_seed(0)
    randn = functools.partial(torch.randn, generator=generator)
    root = randn(b, k, k) / k**0.5
    cov = root @ root.mT / 2 + 0.5 * torch.eye(k)
    noise = 0.5 + torch.rand(b, t, generator=generator)
    tensors = (randn(b, k, c), cov, randn(b, t, k) / k**0.5, randn(b, t, c), noise)
    return [x.to(device) for x in tensors]


def solve_inputs(shape: Shape, device: str) -> list[Tensor]:
    """mean, queries and ridge."""
    b, t, k, c = shape
    generator = torch.Generator().manual_seed(0)
    mean, queries = (torch.randn(b, n, c, generator=generator) for n in (k, t))
    return [x.to(device) for x in (mean, queries, torch.ones(b))]


def relative_error(results: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    worst = 0.0
    for x, y in zip(results, truth, strict=True):
        error = ((x.double().cpu() - y.cpu()).norm() / y.cpu().norm()).item()
        worst = max(worst, error if error == error else float("inf"))
    return worst


def gradients(call: Callable, inputs: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of ``call`` with the same incoming gradients at every call."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    grads = [torch.ones_like(r) for r in as_tuple(call(*inputs))]
    return lambda: torch.autograd.grad(as_tuple(call(*leaves)), leaves, grads)


def as_tuple(results) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def captured(call: Callable) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """The replay of a CUDA graph of ``call``, and the tensors that it writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = as_tuple(call())
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, results


def measured(call: Callable, device: str, seconds: float) -> dict[str, float]:
    timer = timers.of(device)
    row = {"eager_us": 1e6 * timers.median_seconds(call, timer, seconds)}
    if timer.cuda is not None:
        replay, _ = captured(call)
        row["graph_us"] = 1e6 * timers.median_seconds(replay, timer, seconds)
    return row


def bench(
    name: str,
    function: Callable,
    shape: Shape,
    inputs: Sequence[Tensor],
    device: str,
    seconds: float,
) -> list[dict]:
    """An operator forward and forward with backward; the truth is the CPU's in float64."""
    few = [x[:2].cpu().double() for x in inputs]
    rows = []
    for direction in ("forward", "forward+backward"):
        if direction == "forward":
            call, truth = functools.partial(function, *inputs), function(*few)
        else:
            call, truth = gradients(function, inputs), gradients(function, few)()
        row = {"operator": name, "shape": shape, "direction": direction}
        row["error"] = relative_error([x[:2] for x in call()], truth)
        if row["error"] <= MAX_ERROR:
            row.update(measured(call, device, seconds))
        rows.append(row)
    return rows


def bench_write(device: str, shapes: Sequence[Shape], seconds: float = 0.5) -> list[dict]:
    rows = []
    for shape in shapes:
        inputs = write_inputs(shape, device)
        rows += bench("bayes_write", ops.bayes_write, shape, inputs, device, seconds)
    return rows


def bench_scan(device: str, shapes: Sequence[Shape], seconds: float = 0.5) -> list[dict]:
    rows = []
    for shape in shapes:
        mean, cov, weights, values, noise = write_inputs(shape, device)
        inputs = (mean, cov, weights, values, weights.flip(1), noise)
        rows += bench("causal_scan", ops.causal_scan, shape, inputs, device, seconds)
    return rows


def bench_adaptive(device: str, shapes: Sequence[Shape], seconds: float = 0.5) -> list[dict]:
    rows = []
    for shape in shapes:
        mean, cov, _, values, noise = write_inputs(shape, device)
        inputs = (mean, cov, values, noise, torch.full((shape[0],), 0.5, device=device))
        rows += bench("adaptive_write", ops.adaptive_write, shape, inputs, device, seconds)
    return rows


def cholesky_addresses(mean: Tensor, queries: Tensor, ridge: Tensor) -> Tensor:
    """solve_addresses by torch.linalg: the K x K normal equations."""
    eye = torch.eye(mean.shape[1], device=mean.device, dtype=mean.dtype)
    factor, _ = torch.linalg.cholesky_ex(mean @ mean.mT + ridge[:, None, None] * eye)
    return torch.cholesky_solve(mean @ queries.mT, factor).mT


def bench_solve(device: str, shapes: Sequence[Shape], seconds: float = 0.3) -> list[dict]:
    """solve_addresses against torch.linalg."""
    rows = []
    for shape in shapes:
        inputs = solve_inputs(shape, device)
        truth = [cholesky_addresses(*(x[:4].cpu().double() for x in inputs))]
        for name, function in (
            ("solve_addresses", ops.solve_addresses),
            ("cholesky_ex + cholesky_solve", cholesky_addresses),
        ):
            call = functools.partial(function, *inputs)
            row = {"operator": name, "shape": shape, "direction": "forward"}
            row["error"] = relative_error([call()[:4]], truth)
            if row["error"] <= MAX_ERROR:
                try:
                    row.update(measured(call, device, seconds))
                except RuntimeError as error:  # torch.linalg may refuse to be captured
                    row["note"] = str(error).splitlines()[0]
            rows.append(row)
    return rows


def ceilings(device: str, size: int = 8192) -> dict[str, float]:
    """Bandwidth of a copy (bytes read and written) and rates of a float32 matrix product."""
    timer = timers.of(device)
    return {
        "copy_gb_per_s": timers.copy_rate(timer, 32 * size * size) / 1e9,
        "float32_tflops": timers.product_rate(timer, size) / 1e12,
        "tf32_tflops": timers.product_rate(timer, size, tf32=True) / 1e12,
    }


def every_operator(device: str, shape: Shape = (3, 20, 17, 33)) -> dict[str, Callable]:
    """A call of each operator, forward and backward."""
    mean, cov, weights, values, noise = write_inputs(shape, device)
    ridge = torch.full((shape[0],), 0.5, device=device)
    problems = {
        "bayes_write": (ops.bayes_write, (mean, cov, weights, values, noise)),
        "solve_addresses": (ops.solve_addresses, (mean, values, ridge)),
        "read": (ops.read, (mean, cov, weights)),
        "recall": (ops.recall, (mean, cov, values, ridge)),
        "memory_kl": (ops.memory_kl, (mean, cov, 0.9 * mean, 1.1 * cov)),
        "to_statistics": (ops.to_statistics, (mean, cov)),
        "adaptive_write": (ops.adaptive_write, (mean, cov, values, noise, ridge)),
        "forget": (ops.forget, (mean, cov, 0.01 * weights, values, noise)),
        "causal_scan": (ops.causal_scan, (mean, cov, weights, values, weights.flip(1), noise)),
    }
    step = [x[:, 0] for x in (weights, values, weights, noise)]
    calls: dict[str, Callable] = {
        "causal_step": lambda: ops.causal_step(mean.clone(), cov.clone(), *step)
    }
    for name, (function, inputs) in problems.items():
        calls[name] = functools.partial(function, *inputs)
        calls[f"{name} backward"] = gradients(function, inputs)
    return calls


def graphs(device: str) -> list[str]:
    """Capture and replay of every operator give the eager results, bit by bit."""
    done = []
    for name, call in every_operator(device).items():
        eager = as_tuple(call())
        _, replayed = captured(call)
        if not all(torch.equal(a, b) for a, b in zip(eager, replayed, strict=True)):
            raise RuntimeError(f"{name}: the replay of a CUDA graph differs from the eager result")
        done.append(name)
    return done


def determinism(device: str) -> list[str]:
    """Two runs of every operator agree bit by bit."""
    done = []
    for shape in ((3, 20, 17, 33), (2, 700, 130, 70)):
        for name, call in every_operator(device, shape).items():
            pairs = zip(as_tuple(call()), as_tuple(call()), strict=True)
            if not all(torch.equal(a, b) for a, b in pairs):
                raise RuntimeError(f"{name} {shape}: two runs differ")
            done.append(f"{name} {shape}")
    return done


def sanitized(device: str) -> list[str]:
    """What runs under compute-sanitizer: every operator, at shapes that leave partial tiles."""
    for shape in ((2, 5, 3, 2), (2, 37, 33, 65)):
        calls = every_operator(device, shape)
        for call in calls.values():
            call()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return list(calls)


def run(name: str, device: str, quick: bool) -> object:
    seconds = 0.15 if quick else 0.5
    parts: dict[str, Callable[[], object]] = {
        "ceilings": lambda: ceilings(device),
        "graphs": lambda: graphs(device),
        "determinism": lambda: determinism(device),
        "sanitized": lambda: sanitized(device),
        "write": lambda: bench_write(device, WRITES[:-1] if quick else WRITES, seconds),
        "scan": lambda: bench_scan(device, SCANS[:-1] if quick else SCANS, seconds),
        "adaptive": lambda: bench_adaptive(device, ADAPTIVE[:1] if quick else ADAPTIVE, seconds),
        "solve": lambda: bench_solve(device, SOLVES[::2] if quick else SOLVES, seconds),
    }
    return parts[name]()
