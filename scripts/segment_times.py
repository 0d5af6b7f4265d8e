"""How long sequences with retention would take on a GPU: an estimate, as kernel_times.py makes
those of writes.

    python scripts/segment_times.py --library build/ptx/library.so

counts ``causal_scan`` with retention and its gradient of one long sequence, cut into as many
segments as the launcher cuts it into, and ``causal_scan`` of 8 and 64 heads, on the library that
``scripts/kernels_on_ptx.py --library`` makes, in some two minutes. With ``--as before``, and a
library of sources without csrc/cuda/small_moving.cuh, it counts the long sequence by one block, and
the heads as they were. What was counted is kept in docs/kernel_times.json, from which
scripts/kernel_report.py writes the page. Counts of the long sequence follow a line: by one block
through three numbers of steps, in segments through three numbers of segments of that length.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import kernel_times  # noqa: E402
import ptx_counts  # noqa: E402

SHAPE = (1, 65536, 64, 64)
WHAT = ("causal_scan with retention", "causal_scan with retention, gradient")
#: Heads of a layer, of which one is run, on its share of the processors.
HEADS = ((8, 2048, 64, 64), (64, 2048, 64, 64))
#: kernel_times.key_of(), which imports this
KEYS = (*(f"{SHAPE}, {what}" for what in WHAT), *(f"{shape}, {WHAT[0]}" for shape in HEADS))
#: What count_segments() of csrc/cuda/segment_plan.cuh chooses on 132 processors; the tests of
#: launchers ask it (tests/kernels_on_ptx/launching.cu).
SEGMENTS = {False: 53, True: 115}
WHOLE = 16  # steps that segments are cut into
#: Squares of numbers of chunks of 16, as T is: what of a gradient's states is kept.
CHAIN_STEPS = (1024, 2304, 4096)
FEW_SEGMENTS = (6, 9, 12)
MOST_MISSED = 0.04  # a gradient goes again through the chunks between the states that are kept


def bound(
    device: kernel_times.Device, gradient: bool, shape: tuple[int, int, int, int] = SHAPE
) -> float:
    """What nothing can avoid: addresses, queries, values and reads once, or a write's products with
    the covariance and the mean, and a read's; of a gradient three times as much."""
    B, T, K, C = shape
    moved = 4.0 * B * T * (2 * K + 2 * C + 4)
    work = B * T * K * (2.5 * K + 3 * C)
    times = 3 if gradient else 1
    seconds = max(moved / device.bandwidth, work / device.multiply_adds(False))
    return kernel_times.FIRST_LAUNCH + times * seconds


def launches_of(steps: int, gradient: bool, segments: int | None) -> list[dict]:
    """What the interpreter counts of so many steps in so many segments; None: as it chooses."""
    import torch

    _, _, K, C = SHAPE
    torch.manual_seed(0)
    mean, cov = torch.randn(1, K, C), torch.eye(K)[None]
    weights, queries = torch.randn(2, 1, steps, K) / K**0.5
    values, noise = torch.randn(1, steps, C), torch.ones(1, steps)
    retention = 1 - 0.1 * torch.rand(1, steps)
    inputs = [mean, cov, weights, values, queries, noise, retention]
    scan = torch.ops.kanerva.causal_scan
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts.jsonl"
        os.environ["KANERVA_SEGMENTS"] = "" if segments is None else str(segments)
        if not gradient:
            os.environ["KANERVA_PTX_COUNTS"] = str(file)
        for x in inputs:
            x.requires_grad_(gradient)
        results = scan(*inputs[:-1], None, None, retention, None, None, 0)
        if gradient:
            os.environ["KANERVA_PTX_COUNTS"] = str(file)
            torch.autograd.grad(results, inputs, [torch.randn_like(x) for x in results])
        for name in ("KANERVA_SEGMENTS", "KANERVA_PTX_COUNTS"):
            del os.environ[name]
        launches = [json.loads(line) for line in file.read_text().splitlines()]
    return [launch | {"scale": 1} for launch in launches]


def follow(points: list[tuple[int, list[dict]]], to: int) -> tuple[list[dict], float]:
    """`ptx_counts.extrapolate`, with the grids on the line, too."""
    flat = [(at, [launch | {"grid": [1, 1, 1]} for launch in found]) for at, found in points]
    launches, missed = ptx_counts.extrapolate(flat, to, kernel_times.MEASURED)
    (first, early), (last, late) = points[-2:]
    for launch, a, b in zip(launches, early, late, strict=True):
        launch["grid"] = [
            y + (y - x) * (to - last) // (last - first)
            for x, y in zip(a["grid"], b["grid"], strict=True)
        ]
    return launches, missed


def count_heads(shape: tuple[int, int, int, int]) -> list[dict]:
    """The launches of heads."""
    heads, steps, *_ = shape
    os.environ["KANERVA_PTX_PROCESSORS"] = str(ptx_counts.PROCESSORS // heads)
    launches = launches_of(steps, False, None)
    del os.environ["KANERVA_PTX_PROCESSORS"]
    return [launch | {"scale": heads} for launch in launches]


def count(gradient: bool, when: str) -> list[dict]:
    """The launches at SHAPE, "before" by one block or "now" in segments."""
    T = SHAPE[1]
    if when == "before":
        to = T
        points = [(steps, launches_of(steps, gradient, 1)) for steps in CHAIN_STEPS]
    else:
        to = SEGMENTS[gradient]
        steps = -(-T // (to * WHOLE)) * WHOLE
        points = [(n, launches_of(n * steps, gradient, n)) for n in FEW_SEGMENTS]
    launches, missed = follow(points, to)
    if missed > MOST_MISSED:
        raise SystemExit(f"segment_times: {when}: the counts are on no line ({missed:.2%})")
    return launches


def rows(counted: dict) -> list[str]:
    """Those of the table of docs/kernels.md."""
    lines = []
    shapes = (SHAPE, SHAPE, *HEADS)
    for i, (key, shape) in enumerate(zip(KEYS, shapes, strict=True)):
        for device in (kernel_times.H100, kernel_times.H200):
            lowest = bound(device, i == 1, shape)
            cells = []
            for when in ("before", "now"):
                launches = counted.get(when, {}).get(key)
                if not launches:
                    cells += ["not counted", "-"]
                    continue
                moved, written = (
                    kernel_times.estimate(device, launches, clocks)
                    for clocks in ("moved_block_clocks", "block_clocks")
                )
                cells.append(" to ".join(map(kernel_times.microseconds, (moved, written))))
                cells.append(f"{moved / lowest:.1f}")
            shown = kernel_times.microseconds(lowest)
            lines.append(f"| {key} | {device.name} | {shown} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--key", choices=KEYS, help="this one, beside what is kept")
    parser.add_argument("--as", dest="when", choices=("before", "now"), default="now")
    options = parser.parse_args()
    if not options.library.is_file():
        raise SystemExit(f"segment_times: --library: there is no file {options.library}")
    library = options.library.resolve()
    try:
        import torch

        import kanerva_ext  # noqa: F401 - defines the operators
    except ModuleNotFoundError as error:
        raise SystemExit(f"segment_times: {error}; pip install torch, and kanerva_ext") from None
    ptx_counts.only_count()
    torch.ops.load_library(str(library))
    counted = kernel_times.read_counts()
    registers: dict[str, int] = {}
    for i, (key, shape) in enumerate(zip(KEYS, (SHAPE, SHAPE, *HEADS), strict=True)):
        if options.key not in (None, key):
            continue
        launches = count_heads(shape) if shape in HEADS else count(i == 1, options.when)
        for launch in launches:
            name = launch["kernel"]
            if name not in registers:
                registers[name] = kernel_times.registers_of(
                    name, library.parent / options.arch, options.arch
                )
            launch["registers"] = registers[name]
        found = [kernel_times.kept(launch) for launch in launches]
        counted.setdefault(options.when, {})[key] = found
        seconds = [
            kernel_times.estimate(kernel_times.H100, found, clocks)
            for clocks in ("moved_block_clocks", "block_clocks")
        ]
        kernel_times.COUNTS.write_text(json.dumps(counted, indent=1) + "\n")
        print(
            f"{key}, {options.when}: {' to '.join(map(kernel_times.microseconds, seconds))} us on "
            "an H100, bound "
            f"{kernel_times.microseconds(bound(kernel_times.H100, i == 1, shape))}; "
            "estimate, no GPU has run this",
            flush=True,
        )
    print(f"{kernel_times.COUNTS}; python scripts/kernel_report.py writes the page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
