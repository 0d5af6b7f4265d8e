"""What docs/performance.md says of GPUs beside the comparison with PyTorch, from the rows."""

from __future__ import annotations

import math

from ..pages import markdown
from . import rows

DIRECTIONS = {"forward": "forward", "forward_backward": "with gradient"}
NO_GPU = """## GPUs

No GPU has been measured yet: no CUDA C++ or Triton kernel has run on one, and there is no figure
here for any. [gpu_status.md](gpu_status.md) says how to run the measurements; `gpu_check.py take`
puts them on this page.
"""


def origin(content: dict) -> str:
    about = content["machine"]
    commit = str(about["commit"])[:10] or f"source {about['source']}"
    return (
        f"{about['date'][:10]}, commit {commit}, torch {about['torch']}, Triton {about['triton']}, "
        f"driver {about['driver']}."
    )


def _good(content: dict, question: str) -> dict[tuple[str, ...], dict]:
    """The rest of the key -> result."""
    found = {}
    for row in content["rows"]:
        first, *rest = row["key"].split("/")
        if first == question and row["state"] == rows.OK:
            found[tuple(rest)] = row["result"]
    return found


def benchmarks_section(contents: list[dict], device: str) -> str:
    """Rates, times by CUDA graphs, and the counters of the kernels."""
    (content,) = contents
    parts = ["### The device's rates, CUDA graphs and counters", origin(content)]
    rates = _good(content, "rates")
    if rates:
        lines = [["", "copy", "float32 product", "TensorFloat-32 product"]]
        for (when,), result in rates.items():
            about = result["machine"]
            lines.append(
                [
                    when,
                    f"{about['copy_gb_per_s']} GB/s",
                    f"{about['gemm_gflops']} GFLOP/s",
                    f"{about['tf32_gflops']} GFLOP/s",
                ]
            )
        parts.append(markdown(lines))
    graphs = _good(content, "compare")
    if graphs:
        lines = [["(B, T, K, C)", "", "a call", "in a CUDA graph"]]
        for (operator, shape, direction), result in graphs.items():
            graph = result.get("graph_ms")
            lines.append(
                [
                    f"`{operator}` ({shape.replace('x', ', ')})",
                    DIRECTIONS[direction],
                    f"{result['row']['ours_ms']:.4f} ms",
                    "-" if graph is None else f"{graph:.4f} ms",
                ]
            )
        parts.append(markdown(lines))
    parts += _counters(_good(content, "counters"))
    return "\n\n".join(parts)


def _counters(found: dict[tuple[str, ...], dict]) -> list[str]:
    """A line for every kernel; empty without any."""
    head = ["kernel", "grid x block", "time", "registers", "occupancy", "memory", "arithmetic"]
    lines = [["", *head, "stalls, cycles an instruction"]]
    for (operator, shape, direction), result in found.items():
        for kernel in result["kernels"]:
            stalls = (f"{name} {value:.1f}" for name, value in kernel["stalls"].items())
            lines.append(
                [
                    f"`{operator}` {shape}, {DIRECTIONS[direction]}",
                    f"`{kernel['kernel']}`",
                    f"{kernel['grid']} x {kernel['block']}",
                    _with_unit(kernel, "time_ns", 1e-3, " us"),
                    _with_unit(kernel, "registers", 1.0, ""),
                    _with_unit(kernel, "occupancy_percent", 1.0, "%"),
                    _with_unit(kernel, "memory_percent", 1.0, "%"),
                    _with_unit(kernel, "arithmetic_percent", 1.0, "%"),
                    ", ".join(stalls),
                ]
            )
    text = "Nsight Compute, with the caches cleared before every kernel; shares are of the peak."
    return [text, markdown(lines)] if len(lines) > 1 else []


def _with_unit(kernel: dict, name: str, factor: float, unit: str) -> str:
    return f"{kernel[name] * factor:.1f}{unit}" if name in kernel else "-"


def _ratio(duel: dict) -> float:
    """Triton's time over CUDA C++'s: the geometric mean over the directions, so that neither
    counts for more because it takes longer."""
    ratios = [float(row["ratio"]) for row in duel["directions"].values()]
    return math.prod(ratios) ** (1 / len(ratios))


def triton_section(contents: list[dict], device: str) -> str:
    """CUDA C++ and Triton at each shape."""
    (content,) = contents
    head = ["(B, T, K, C)"]
    for title in DIRECTIONS.values():
        head += [f"{title}: CUDA C++", "Triton"]
    lines = [[*head, "Triton's time over CUDA C++'s"]]
    for (operator, shape), result in _good(content, "duel").items():
        line = [f"`{operator}` ({shape.replace('x', ', ')})"]
        for direction in DIRECTIONS:
            row = result["directions"][direction]
            line += [f"{row['ours_ms']:.4f} ms", f"{row['rival_ms']:.4f} ms"]
        lines.append([*line, f"{_ratio(result):.2f}"])
    text = "Both in turns in one process; the ratio is the geometric mean over the directions."
    return "\n\n".join(["### CUDA C++ against Triton", text, origin(content), markdown(lines)])
