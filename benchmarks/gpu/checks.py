"""Whether results are right: each function is one process's question, and gives its row.

``device`` is "cuda"; the tests of this module pass "cpu", where there is no graph and no stream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import phases, rows
from .child import require_installed
from .problems import Problem, problem, relative_error

#: Relative to the truth in float64, in the Frobenius norm; the operators' tests ask for more.
MOST_ERROR = {torch.float32: 1e-4, torch.float64: 1e-9}
#: Steps up to which the truth is the reference's recursion; it takes minutes for hundreds.
MOST_STEPS = 20
SANITIZED = ((2, 5, 3, 2), (2, 37, 33, 65))  # shapes that leave partial tiles
ROUNDS = 20


class Mismatch(RuntimeError):
    """Results that should be equal bit by bit are not."""


def ready(operator: str, shape: Sequence[int], backend: str, device: str, seed: int = 0) -> Problem:
    """A problem in float32 on the device."""
    require_installed(backend, device)
    found = problem(operator, tuple(shape), seed).to(device, torch.float32)
    return found.on("auto" if device == "cpu" else backend)


def calls(found: Problem) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Direction -> a call without arguments that has its results."""
    directions: dict[str, Callable] = {"forward": found.forward}
    if found.name not in phases.WITHOUT_GRADIENT:
        cotangents = found.cotangents()
        directions["backward"] = lambda: found.backward(cotangents)
    return directions


def require_equal(got: Sequence[Tensor], want: Sequence[Tensor], what: str) -> None:
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        if not torch.equal(x, y):
            count = int((x != y).sum())
            most = (x.double() - y.double()).abs().max().item()
            raise Mismatch(
                f"{what}: result {i} differs in {count} of {x.numel()} numbers, by up to {most:.1e}"
            )


def smoke(operator: str, shape: Sequence[int], backend: str = "cuda", device: str = "cuda") -> dict:
    """Results and gradients in float32 and float64 against float64: of the reference or, of many
    steps, of the C++ operators, which the tests hold against it."""
    require_installed(backend, device)
    truth = problem(operator, tuple(shape)).on("reference" if shape[1] <= MOST_STEPS else "cpu")
    want = {"forward": truth.forward()}
    if operator not in phases.WITHOUT_GRADIENT:
        cotangents = truth.cotangents()
        want["backward"] = truth.backward(cotangents)
    errors, worst = {}, []
    for dtype, most in MOST_ERROR.items():
        found = problem(operator, tuple(shape)).to(device, dtype)
        found = found.on("auto" if device == "cpu" else backend)
        for direction, expected in want.items():
            if direction == "forward":
                got = found.forward()
            else:
                got = found.backward([x.to(device, dtype) for x in cotangents])
            name = f"{str(dtype).removeprefix('torch.')} {direction}"
            errors[name] = relative_error(got, expected)
            if not errors[name] <= most:
                worst.append(f"{name}: error {errors[name]:.1e}, at most {most:.0e}")
    state = rows.FAILED if worst else rows.OK
    return {"state": state, "note": "; ".join(worst), "errors": errors}


def captured(call: Callable, warm: int = 2) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """A CUDA graph of ``call``, and the tensors that its replay writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


def graphs(operator: str, shape: Sequence[int], backend: str = "cuda") -> dict:
    """Three replays of a captured call give the eager results, bit by bit."""
    for direction, call in calls(ready(operator, shape, backend, "cuda")).items():
        eager = [x.clone() for x in call()]
        graph, results = captured(call)
        for i in range(3):
            for x in results:
                x.fill_(torch.nan)
            graph.replay()
            torch.cuda.synchronize()
            require_equal(results, eager, f"{direction}, replay {i}")
    return {}


def capture_sizes(operator: str, shapes: Sequence[Sequence[int]], backend: str = "cuda") -> dict:
    """One capture of calls of several sizes, the largest in the middle."""
    for direction in ("forward", "backward"):
        every = [calls(ready(operator, shape, backend, "cuda")) for shape in shapes]
        if direction not in every[0]:
            continue
        eager = [[x.clone() for x in one[direction]()] for one in every]

        def call(every=every, direction=direction):
            return tuple(x for one in every for x in one[direction]())

        graph, results = captured(call)
        graph.replay()
        torch.cuda.synchronize()
        require_equal(results, [x for one in eager for x in one], f"{direction}, one capture")
    return {}


def streams(operator: str, shapes: Sequence[Sequence[int]], backend: str = "cuda") -> dict:
    """Calls on two streams at once give what they give one after the other."""
    pair = [calls(ready(operator, shape, backend, "cuda", i)) for i, shape in enumerate(shapes)]
    for direction in pair[0]:
        want = [[x.clone() for x in one[direction]()] for one in pair]
        torch.cuda.synchronize()
        used = [torch.cuda.Stream() for _ in pair]
        results: list = []
        for _ in range(ROUNDS):
            for one, stream in zip(pair, used, strict=True):
                with torch.cuda.stream(stream):
                    results.append(one[direction]())
        torch.cuda.synchronize()
        for i, got in enumerate(results):
            require_equal(got, want[i % len(pair)], f"{direction}, call {i}")
    return {}


def host_threads(
    operator: str, shapes: Sequence[Sequence[int]], backend: str = "cuda", device: str = "cuda"
) -> dict:
    """Host threads that call one operator with different sizes at once."""
    each = [calls(ready(operator, shape, backend, device, i)) for i, shape in enumerate(shapes)]
    want = [{d: [x.clone() for x in call()] for d, call in one.items()} for one in each]
    errors: list[BaseException] = []
    start = threading.Barrier(len(each))

    def work(one, expected) -> None:
        try:
            start.wait()
            for i in range(ROUNDS):
                for direction, call in one.items():
                    require_equal(call(), expected[direction], f"{direction}, call {i}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(each, want, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return {}


def determinism(
    operator: str, shape: Sequence[int], backend: str = "cuda", device: str = "cuda"
) -> dict:
    """Runs agree bit by bit, whatever the memory held before."""
    for direction, call in calls(ready(operator, shape, backend, device)).items():
        first = [x.clone() for x in call()]
        for i in range(3):
            junk = [torch.full((1 << 20,), float(i), device=device) for _ in range(4)]
            del junk
            require_equal(call(), first, f"{direction}, run {i + 2}")
    return {}


def sanitized(operator: str, backend: str = "cuda", device: str = "cuda") -> dict:
    """What runs under compute-sanitizer; cotangents come from the CPU, like all inputs."""
    for shape in SANITIZED:
        for call in calls(ready(operator, shape, backend, device)).values():
            call()
    if device == "cuda":
        torch.cuda.synchronize()
    return {}


def precompile(operator: str, shape: Sequence[int], dtype: str, backend: str = "triton") -> dict:
    """Runs an operator and its gradient once, so that their kernels are in Triton's cache."""
    require_installed(backend)
    found = problem(operator, tuple(shape)).to("cuda", getattr(torch, dtype)).on(backend)
    for call in calls(found).values():
        call()
    torch.cuda.synchronize()
    return {}
