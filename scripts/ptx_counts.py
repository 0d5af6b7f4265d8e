"""What the kernels of an operator do, counted in the PTX interpreter (tools/ptx).

    python scripts/ptx_counts.py --library build/ptx/library.so --shape 16x32x32x100

runs ``bayes_write`` once for each shape (B, T, K, C) on the library that
``scripts/kernels_on_ptx.py --library`` makes and prints a table: instructions of warps by kind,
divergent branches, 32-byte sectors and bytes of global memory, conflicts of the banks of shared
memory, barriers, bytes in flight, and the longest chain of dependent instructions. With
``--memories N`` only N of the B memories are run, on a device with N / B of the processors, so that
they are laid out as all of them would be, and counts that grow with B are multiplied by B / N.
Counts are of PTX: ptxas may merge or drop instructions.
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
)
#: The others: of a block or of a warp.
LIMITS = (
    "most_bytes_in_flight",
    "mean_bytes_in_flight",
    "longest_chain",
    "longest_chain_of_loads",
)


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
        torch.ops.kanerva.bayes_write(*arguments, None, None, "auto")
        del os.environ["KANERVA_PTX_COUNTS"]
        return [json.loads(line) for line in file.read_text().splitlines()]


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
    parser.add_argument("--memories", type=int, help="run this many of the B memories")
    options = parser.parse_args()
    if not options.library.is_file():
        raise SystemExit(f"ptx_counts: --library: there is no file {options.library}")
    shapes = [parse_shape(text) for text in options.shape]
    try:
        import torch

        import kanerva_ext  # noqa: F401 - defines the operators
    except ModuleNotFoundError as error:
        raise SystemExit(f"ptx_counts: {error}; pip install torch, and kanerva_ext") from None

    torch.ops.load_library(str(options.library.resolve()))
    for B, T, K, C in shapes:
        run = min(B, options.memories or B)
        if B % run:
            raise SystemExit(f"ptx_counts: --memories must divide B = {B}, got {run}")
        print(f"bayes_write (B {B}, T {T}, K {K}, C {C}), float32", end="")
        print(f", counted over {run} memories\n" if run < B else "\n")
        if run < B:
            os.environ["KANERVA_HOST_PROCESSORS"] = str(max(1, PROCESSORS * run // B))
        print(render(count((run, T, K, C)), B // run), end="\n\n")
        os.environ.pop("KANERVA_HOST_PROCESSORS", None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
