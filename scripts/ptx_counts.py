"""What the kernels of an operator do, counted in the PTX interpreter (tools/ptx).

    python scripts/ptx_counts.py --library build/ptx/library.so --shape 16x32x32x100

runs ``bayes_write`` once for each shape (B, T, K, C) on the library that
``scripts/kernels_on_ptx.py --library`` makes and prints a table: instructions of warps by kind,
divergent branches, 32-byte sectors and bytes of global memory, conflicts of the banks of shared
memory, barriers, bytes in flight, the longest chain of dependent instructions, and clocks (see
kernel_times.py). With
``--memories N`` only N of the B memories are run, on a device with N / B of the processors, so that
they are laid out as all of them would be, and counts that grow with B are multiplied by B / N.
With ``--steps T`` three or more shapes that differ in T alone give the counts of so many steps: the
line through the last two is followed, and what the others miss it by is said. A launch with a
thread for each step has as many times the counts as blocks.
Counts are of PTX: ptxas may merge or drop instructions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from kernel_report import demangle  # noqa: E402

PROCESSORS = 132  # of an H100
#: Counts that grow with the number of memories.
TOTALS = (
    "instructions",
    "divergent_branches",
    "generic",
    "global_requests",
    "sectors",
    "global_bytes",
    "shared_requests",
    "wavefronts",
    "bank_conflicts",
    "distinct_sectors",
    "issue_clocks",
    "access_clocks",
)
#: The others: of a block or of a warp.
LIMITS = (
    "most_bytes_in_flight",
    "mean_bytes_in_flight",
    "longest_chain",
    "longest_chain_of_loads",
    "block_clocks",
    "moved_block_clocks",
)
#: Those of them that grow with the number of steps.
CHAINS = LIMITS[2:]


def only_count() -> None:
    """Leaves out the interpreter's checks, whose memory of a long episode is gigabytes; the tests
    have them, and the counts are the same."""
    os.environ.setdefault("KANERVA_PTX_RACES", "0")
    os.environ.setdefault("KANERVA_PTX_WEAK_MEMORY", "0")


def parse_shape(text: str) -> tuple[int, int, int, int]:
    try:
        B, T, K, C = (int(n) for n in text.split("x"))
    except ValueError:
        raise SystemExit(f"ptx_counts: --shape must be BxTxKxC, got {text!r}") from None
    if min(B, T, K, C) < 1:
        raise SystemExit(f"ptx_counts: sizes of --shape must be at least 1, got {text!r}")
    return B, T, K, C


def count(shape: tuple[int, int, int, int]) -> list[dict]:
    """The counts of every launch of one write of B memories."""
    import torch

    B, T, K, C = shape
    torch.manual_seed(0)
    arguments = (
        torch.randn(B, K, C),
        torch.eye(K).repeat(B, 1, 1),
        torch.randn(B, T, K) / K**0.5,
        torch.randn(B, T, C),
        torch.ones(B, T),
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts.jsonl"
        os.environ["KANERVA_PTX_COUNTS"] = str(file)
        torch.ops.kanerva.bayes_write(*arguments, None, None, None, None, "auto")
        del os.environ["KANERVA_PTX_COUNTS"]
        return [json.loads(line) for line in file.read_text().splitlines()]


def flat(launch: dict) -> dict[str, int]:
    """The counts of a launch that grow with the number of steps, by name; of a kind, NAME/KIND."""
    grows = {key: launch[key] for key in (*TOTALS, *CHAINS)}
    for name in ("kinds", "issue"):
        grows |= {f"{name}/{kind}": n for kind, n in launch[name].items()}
    return grows


def extrapolate(
    points: list[tuple[int, list[dict]]], steps: int, checked: Sequence[str] = ()
) -> tuple[list[dict], float]:
    """Launches at ``steps`` from those at the points (T, launches): on the line through the last
    two; or, where a launch has a thread for each step, as many times as many blocks. And the
    largest part of any count, or of those that are named, by which the points before miss it."""
    (first, early), (last, late) = points[-2:]
    if {tuple(x["kernel"] for x in found) for _, found in points} != {
        tuple(x["kernel"] for x in late)
    }:
        raise SystemExit("ptx_counts: --steps: the kernels are not the same at all T")
    result, missed = [], 0.0
    for index, launch in enumerate(late):
        threads = math.prod(launch["block"])
        all_alike = all(found[index]["grid"] == launch["grid"] for _, found in points)
        grid = launch["grid"]
        if not all_alike:
            grid = [blocks_at(steps, threads, size, last) for size in grid]
            for T, found in points:
                blocks = [blocks_at(T, threads, size, last) for size in launch["grid"]]
                if blocks != found[index]["grid"] or last % threads:
                    raise SystemExit(
                        f"ptx_counts: --steps: {launch['kernel']} has another grid at each T, and "
                        f"not a thread of whole blocks for each step at the last"
                    )

        def at(key: str, T: int, index: int = index, is_line: bool = all_alike) -> float:
            a, b = flat(early[index]).get(key, 0), flat(late[index])[key]
            if is_line:
                return b + (b - a) * (T - last) / (last - first)
            return b if key in CHAINS else b * T / last

        for T, found in points[:-1]:
            for key, n in flat(found[index]).items():
                if not checked or key in checked:
                    missed = max(missed, abs(at(key, T) - n) / max(n, 1))
        new = dict(launch, grid=grid, kinds={}, issue={})
        for key in flat(launch):
            value = round(at(key, steps))
            name, _, kind = key.partition("/")
            if kind:
                new[name][kind] = value
            else:
                new[name] = value
        result.append(new)
    return result, missed


def blocks_at(T: int, threads: int, size: int, last: int) -> int:
    """A size of the grid at T, which is ``size`` at ``last``: of so many threads for each step."""
    return -(-T // threads) if size == -(-last // threads) else size


def render(launches: list[dict], scale: int) -> str:
    """A table with a column for each launch."""
    names = demangle(launch["kernel"] for launch in launches)

    def size(launch: dict, key: str) -> str:
        return " x ".join(map(str, launch[key]))

    rows = [("", [f"`{names[launch['kernel']]}`" for launch in launches])]
    rows.append(("grid", [size(launch, "grid") for launch in launches]))
    rows.append(("threads", [size(launch, "block") for launch in launches]))
    rows.append(("shared bytes", [f"{launch['shared_bytes']:,}" for launch in launches]))
    for key in TOTALS:
        rows.append((key.replace("_", " "), [f"{launch[key] * scale:,}" for launch in launches]))
    kinds = sorted({kind for launch in launches for kind in launch["kinds"]})
    for kind in kinds:
        cells = [f"{launch['kinds'].get(kind, 0) * scale:,}" for launch in launches]
        rows.append((f"- {kind}", cells))
    for key in LIMITS:
        rows.append((key.replace("_", " "), [f"{launch[key]:,}" for launch in launches]))
    lines = [f"| {name} | {' | '.join(cells)} |" for name, cells in rows]
    lines.insert(1, "|---|" + "---|" * len(launches))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--shape", action="append", required=True, help="BxTxKxC")
    parser.add_argument("--steps", type=int, metavar="T", help="counts of so many steps, by a line")
    parser.add_argument("--memories", type=int, help="run this many of the B memories")
    options = parser.parse_args()
    if not options.library.is_file():
        raise SystemExit(f"ptx_counts: --library: there is no file {options.library}")
    shapes = [parse_shape(text) for text in options.shape]
    if options.steps is not None:
        alike = len({(B, K, C) for B, _, K, C in shapes}) == 1
        if len(shapes) < 3 or not alike or len({T for _, T, _, _ in shapes}) < len(shapes):
            parser.error("--steps needs three or more of --shape, which differ in T alone")
        if options.memories:
            parser.error("--steps goes without --memories")
    try:
        import torch

        import kanerva_ext  # noqa: F401 - defines the operators
    except ModuleNotFoundError as error:
        raise SystemExit(f"ptx_counts: {error}; pip install torch, and kanerva_ext") from None

    only_count()
    torch.ops.load_library(str(options.library.resolve()))
    points = []
    for B, T, K, C in sorted(shapes) if options.steps else shapes:
        run = min(B, options.memories or B)
        if B % run:
            raise SystemExit(f"ptx_counts: --memories must divide B = {B}, got {run}")
        print(f"bayes_write (B {B}, T {T}, K {K}, C {C}), float32", end="")
        print(f", counted over {run} memories\n" if run < B else "\n")
        if run < B:
            os.environ["KANERVA_PTX_PROCESSORS"] = str(max(1, PROCESSORS * run // B))
        points.append((T, count((run, T, K, C))))
        print(render(points[-1][1], B // run), end="\n\n", flush=True)
        os.environ.pop("KANERVA_PTX_PROCESSORS", None)
    if options.steps is not None:
        found, missed = extrapolate(points, options.steps)
        print(f"T {options.steps}, on a line that the others miss by at most {missed:.2%}\n")
        print(render(found, 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
