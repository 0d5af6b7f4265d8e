"""How long writes would take on a GPU, from what the PTX interpreter counts: an estimate.

    python scripts/kernel_times.py --library build/ptx/library.so

counts the launches of bayes_write, of its gradient and of adaptive_write, on the library that
``scripts/kernels_on_ptx.py --library`` makes, and puts the estimates into docs/kernels.md, beside
those of the general kernels before (--as before, with a library of older sources). --long
counts the write of a long episode, at three numbers of steps that are followed by a line. What was
counted is kept in docs/kernel_times.json, from which scripts/kernel_report.py writes the page.

A launch takes the longest of
- its waves of blocks times the longest block's clocks, by tools/ptx/costs.h;
- the clocks that its blocks keep a multiprocessor's four schedulers busy, or its path to memory;
- its bytes of device memory at full bandwidth;
and before the first launch come 3 microseconds, before each that follows 1, and before a launch of
teams that are no clusters one more, for the memory that is cleared where their blocks wait. The
bound is the bytes or the multiply-adds that nothing can avoid, whichever takes longer, and one
launch. It does not know that the steps of adaptive_write wait for each other.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import ptx_counts  # noqa: E402
import ptx_text  # noqa: E402
import segment_times  # noqa: E402

COUNTS = ROOT / "docs/kernel_times.json"
COSTS = ROOT / "tools/ptx/costs.h"
Shape = tuple[int, int, int, int]
#: Of more than 64 slots: see `is_counted`.
MIDDLE = ((4, 128, 128, 256), (64, 128, 128, 200), (4, 256, 256, 512), (8, 256, 256, 512))
#: (B, T, K, C) -> memories that are run of B.
SHAPES: dict[Shape, int] = {
    (16, 32, 32, 100): 16,
    (4096, 32, 32, 100): 16,
    (32, 64, 64, 200): 32,
    **dict.fromkeys(MIDDLE, 1),
    (64, 128, 128, 200): 2,  # so that a cluster of four has processors
}
WHAT = ("", "gradient", "adaptive_write")  # of bayes_write, but for the last
#: Counted at a few T and followed by a line.
LONG: Shape = (1, 65536, 512, 768)
#: Of 32, 64 and 128 depths of 16 steps for the longest block (episode_sums.cuh), which takes its
#: sums to the workspace after every 16: so does each block as often as at LONG, depth for depth.
LONG_STEPS = (1984, 3968, 7936)
MOST_MISSED = 0.01  # of any count below
MEASURED = (
    "instructions",
    "distinct_sectors",
    "issue_clocks",
    "access_clocks",
    "block_clocks",
    "moved_block_clocks",
)
WIDTH = 98  # columns of the page's prose
FIRST_LAUNCH, NEXT_LAUNCH = 3e-6, 1e-6  # seconds, assumed


@dataclass(frozen=True)
class Device:
    """The numbers of NVIDIA's data sheets and of its tuning guide for Hopper."""

    name: str
    bandwidth: float  # bytes a second
    processors: int = 132
    clock: float = 1.755e9
    registers: int = 65536
    shared: int = 228 * 1024  # of a multiprocessor; each block takes 1 KiB more than it asks for
    threads: int = 2048
    blocks: int = 32

    def resident(self, registers: int, shared: int, threads: int) -> int:
        """Blocks that a multiprocessor has at a time; registers are given out by warps, 256 at a
        time, from the quarter of them that each scheduler has."""
        warps = -(-threads // 32)
        of_warp = -(-32 * registers // 256) * 256
        by_registers = self.registers // 4 // of_warp * 4 // warps
        by_shared = self.shared // (-(-(shared + 1024) // 128) * 128)
        return min(by_registers, by_shared, self.threads // (32 * warps), self.blocks)

    def multiply_adds(self, tensor_cores: bool) -> float:
        """A second: float32, or in tensor cores with three products of tf32 for one."""
        return self.processors * self.clock * (1024 / 3 if tensor_cores else 128)


H100 = Device("H100 SXM", 3.35e12)
H200 = Device("H200", 4.8e12)


def costs(text: str | None = None) -> list[tuple[str, int | None, int, str]]:
    """(kind, clocks of issue, clocks of latency, source), the table of the interpreter."""
    text = COSTS.read_text() if text is None else text
    rows = re.findall(r'^KANERVA_COST\((\w+), (\d+), (\d+), "(.*)"\)$', text, re.M)
    single = re.findall(r'^KANERVA_CLOCKS\((\w+), (\d+), "(.*)"\)$', text, re.M)
    return [(k, int(i), int(n), s) for k, i, n, s in rows] + [
        (k, None, int(n), s) for k, n, s in single
    ]


def needs(shape: Shape, gradient: bool, adaptive: bool = False) -> tuple[float, float]:
    """Bytes that a write or its gradient must move, and multiply-adds: of the information form or
    of one chunk of all steps, whichever is cheaper. A gradient reads one state, prior or posterior,
    and its multiply-adds are assumed to be three times a write's. Of adaptive_write those of the
    recursion: three products of the mean and four of a slots' matrix with a vector, for each
    step."""
    B, T, K, C = shape
    state, episode = K * C + K * K, T * K + T * C + T
    if adaptive:
        return 4.0 * B * (2 * state + episode + T + 2), B * T * K * (3.0 * C + 4 * K)
    numbers = 3 * state + 2 * episode + 1 if gradient else 2 * state + episode + 1
    information = T * K * (K / 2 + C) + K**3 + K * K * C
    chunk = T * K * (1.5 * K + 2 * C) + T * T * (K + C / 2) + T**3 / 6
    return 4.0 * B * numbers, B * min(information, chunk) * (3 if gradient else 1)


def bound(
    device: Device,
    shape: Shape,
    gradient: bool,
    tensor_cores: bool = True,
    adaptive: bool = False,
) -> float:
    moved, work = needs(shape, gradient, adaptive)
    return FIRST_LAUNCH + max(moved / device.bandwidth, work / device.multiply_adds(tensor_cores))


def launch_time(device: Device, launch: dict, clocks: str = "moved_block_clocks") -> float:
    """Seconds of one launch, without what comes before it."""
    blocks = math.prod(launch["grid"]) * launch["scale"]
    fits = device.resident(launch["registers"], launch["shared_bytes"], math.prod(launch["block"]))
    if fits < 1:
        raise ValueError(f"no multiprocessor has room for a block of {launch['kernel']}")
    resident = min(fits, -(-blocks // device.processors))
    waves = -(-blocks // (device.processors * resident))
    counted = math.prod(launch["grid"])
    busy = max(launch["issue_clocks"] / 4, launch["access_clocks"]) / counted * resident
    seconds = waves * max(launch[clocks], busy) / device.clock
    return max(seconds, 32 * launch["distinct_sectors"] * launch["scale"] / device.bandwidth)


def estimate(device: Device, launches: list[dict], clocks: str = "moved_block_clocks") -> float:
    teams = sum(launch["grid"][2] > 1 and not launch.get("clusters") for launch in launches)
    before = FIRST_LAUNCH + NEXT_LAUNCH * (len(launches) - 1 + teams)
    return before + sum(launch_time(device, launch, clocks) for launch in launches)


def registers_of(name: str, folder: Path, target: str) -> int:
    """What ptxas gives the kernel, in a second or two."""
    import kernel_report

    for file in sorted(folder.glob("*.ptx")):
        text = file.read_text()
        if f".entry {name}(" not in text:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            alone = Path(scratch) / file.name
            alone.write_text(ptx_text.one_kernel(text, name))
            (usage,) = kernel_report.assemble(alone, target)
        return usage.registers
    raise SystemExit(f"kernel_times: no PTX in {folder} has the kernel {name}")


def count(shape: Shape, memories: int, what: str) -> list[dict]:
    """The launches of ``what``, one of WHAT, with ``memories`` of the B memories."""
    import torch

    B, T, K, C = shape
    torch.manual_seed(0)
    arguments = [
        torch.randn(memories, K, C),
        torch.eye(K).repeat(memories, 1, 1),
        torch.randn(memories, T, K) / K**0.5,
        torch.randn(memories, T, C),
        torch.ones(memories, T),
    ]
    if memories < B:  # as all of them would be laid out
        few = max(1, ptx_counts.PROCESSORS * memories // B)
        os.environ["KANERVA_PTX_PROCESSORS"] = str(few)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts.jsonl"

        def run(call, counted: bool):
            if counted:
                os.environ["KANERVA_PTX_COUNTS"] = str(file)
            try:
                return call()
            finally:
                os.environ.pop("KANERVA_PTX_COUNTS", None)

        if what == "adaptive_write":
            mean, cov, _, values, noise = arguments
            ridge = torch.ones(memories)
            adaptive = torch.ops.kanerva.adaptive_write
            run(lambda: adaptive(mean, cov, values, noise, ridge, None, 1), True)
        else:
            gradient = what == "gradient"
            for x in arguments:
                x.requires_grad_(gradient)
            write = torch.ops.kanerva.bayes_write
            results = run(lambda: write(*arguments, None, None, None, None, "auto"), not gradient)
        if what == "gradient":
            grads = [torch.randn_like(x) for x in results]
            run(lambda: torch.autograd.grad(results, arguments, grads), True)
        launches = [json.loads(line) for line in file.read_text().splitlines()]
    os.environ.pop("KANERVA_PTX_PROCESSORS", None)
    for launch in launches:
        alike = math.prod(launch["grid"]) % memories == 0
        launch["scale"] = B // memories if alike else 1
    return launches


def count_long() -> list[dict]:
    """The launches of the long write, on the line through those of fewer steps."""
    B, T, K, C = LONG
    points = [(steps, count((B, steps, K, C), B, "")) for steps in LONG_STEPS]
    launches, missed = ptx_counts.extrapolate(points, T, MEASURED)
    print(f"{LONG}: the lines miss what was counted at {LONG_STEPS} by at most {missed:.2%}")
    if missed > MOST_MISSED:
        raise SystemExit(f"kernel_times: {LONG}: the counts are on no line")
    return launches


KEPT = ("kernel", "grid", "block", "shared_bytes", "registers", "scale", *MEASURED)


def kept(launch: dict) -> dict:
    """What the estimate and the page need of a launch."""
    work = launch["issue"]
    useful = work.get("matrix", 0) + work.get("float32", 0)
    busiest = max(units(launch).items(), key=lambda item: item[1])
    short = {key: launch[key] for key in KEPT}
    if launch.get("clusters"):
        short["clusters"] = launch["clusters"]
    return short | {"useful_issue": useful / max(1, launch["issue_clocks"]), "busiest": busiest}


def units(launch: dict) -> dict[str, float]:
    """Clocks for which the warps keep each unit of their schedulers busy: units work side by side,
    so less than the clocks of issue. An instruction takes a clock of the scheduler itself."""
    work, kinds = launch["issue"], launch["kinds"]

    def clocks(*names: str) -> int:
        return sum(work.get(name, 0) for name in names)

    # ptxas makes two instructions of these, and about nine of a division.
    several = {"integer 64": 2, "division": 9, "move": 0, "parameter": 0}
    return {
        "scheduler": sum(several.get(name, 1) * n for name, n in kinds.items()),
        "integers": clocks("integer 32", "integer 64", "logic", "compare", "convert"),
        "float32": clocks("float32"),
        "float64": clocks("float64"),
        "special": clocks("special") + clocks("division") / 2,
        "tensor cores": clocks("matrix"),
    }


def microseconds(seconds: float) -> str:
    value = 1e6 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def section(counted: dict) -> str:
    """The part of docs/kernels.md with the estimates."""
    lines = [
        "## Times: estimate, no GPU has run this",
        "",
        textwrap.fill(
            "Made by `python scripts/kernel_times.py`, whose text says how. Microseconds. `before` "
            "are the general kernels alone, `now` what runs today. The first number is with a "
            "basic block's instructions moved as early as their sources allow, the second with "
            "them in the order of the PTX: ptxas is in between, near the first where registers "
            "suffice. The factor is the first over the bound, which takes products in tensor cores "
            "as 3xTF32. Device memory is cold; a gradient is the backward launches alone. Rows "
            "that name no operator are bayes_write; adaptive_write, of one iteration, is a chain "
            "of steps, which the bound does not know. Those of causal_scan with retention are by "
            "`python scripts/segment_times.py`: a long one was done by one block before.",
            WIDTH,
        ),
        "",
        "| (B, T, K, C) | GPU | bound | before | factor | now | factor |",
        "|---|---|---|---|---|---|---|",
    ]
    for what in WHAT:
        gradient, adaptive = what == "gradient", what == "adaptive_write"
        shown = (s for s in (*SHAPES, LONG) if is_counted(s, what) or (s == LONG and gradient))
        for shape in shown:
            for device in (H100, H200):
                lowest = bound(device, shape, gradient, adaptive=adaptive)
                cells = []
                for when in ("before", "now"):
                    launches = counted.get(when, {}).get(key_of(shape, what))
                    if not launches:
                        cells += ["not counted", "-"]
                        continue
                    moved = estimate(device, launches)
                    written = estimate(device, launches, "block_clocks")
                    cells += [
                        f"{microseconds(moved)} to {microseconds(written)}",
                        f"{moved / lowest:.1f}",
                    ]
                least = microseconds(lowest)
                in_float32 = bound(device, shape, gradient, False, adaptive)
                if in_float32 > 1.01 * lowest:
                    least += f" (float32: {microseconds(in_float32)})"
                key = key_of(shape, what)
                lines.append(f"| {key} | {device.name} | {least} | {' | '.join(cells)} |")
    lines += segment_times.rows(counted)
    lines += ["", *launch_table(counted.get("now", {})), "", *cost_table()]
    return "\n".join(lines) + "\n"


def launch_table(counted: dict) -> list[str]:
    """What the estimates of today are made of, launch by launch, on an H100."""
    import kernel_report

    columns = (
        "(B, T, K, C)",
        "kernel",
        "us",
        "blocks",
        "resident",
        "block",
        "issue",
        "access",
        "busiest unit",
        "FFMA, HMMA",
        "MB",
    )
    lines = [
        textwrap.fill(
            "What they are made of, on an H100: blocks and how many a multiprocessor has at a "
            "time; thousands of clocks of the longest block, of its schedulers, of its path to "
            "shared memory and the caches if it is alone there, and of the busiest unit if units "
            "work side by side; the part of the issued clocks that is FFMA and HMMA; megabytes.",
            WIDTH,
        ),
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
    ]
    names = kernel_report.demangle(x["kernel"] for found in counted.values() for x in found)
    for key, launches in counted.items():
        for x in launches:
            threads, blocks = math.prod(x["block"]), math.prod(x["grid"])
            fits = H100.resident(x["registers"], x["shared_bytes"], threads)
            issue, access = (
                f"{x[k] / blocks / by / 1000:.1f}"
                for k, by in (("issue_clocks", 4), ("access_clocks", 1))
            )
            unit, busy = x["busiest"]
            cells = [
                key,
                f"`{names[x['kernel']]}`",
                microseconds(launch_time(H100, x)),
                f"{blocks * x['scale']} x {threads}",
                str(fits),
                f"{x['moved_block_clocks'] / 1000:.1f}",
                issue,
                access,
                f"{unit} {busy / blocks / 4000:.1f}",
                f"{100 * x['useful_issue']:.0f} %",
                f"{32e-6 * x['distinct_sectors'] * x['scale']:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def cost_table() -> list[str]:
    lines = [
        "The clocks of a warp's instruction (`tools/ptx/costs.h` says what the sources are):",
        "",
        "| kind | issue | latency | from |",
        "|---|---|---|---|",
    ]
    for kind, issue, latency, source in costs():
        shown = "-" if issue is None else issue
        lines.append(f"| {kind.replace('_', ' ')} | {shown} | {latency} | {source} |")
    assumed = (
        "Besides, as assumed: 132 multiprocessors at 1.755 GHz; 3.35 TB/s (H100) and 4.8 TB/s "
        "(H200); 3 us before the first launch and 1 us before each that follows; nothing of "
        "another block delays a block but busy schedulers; ptxas makes one instruction of each of "
        "the PTX's. A barrier between blocks (teams) takes the way of an atomic operation and of "
        "the load that sees it, 260 clocks each, two fences of as many, and three barriers of a "
        "block: some 1,200 clocks after the last block has come. That of a cluster takes 440; "
        "a load from the shared memory of another block as long as one from the second-level cache."
    )
    lines += ["", textwrap.fill(assumed, WIDTH)]
    return lines


def is_counted(shape: Shape, what: str) -> bool:
    """What would take the interpreter many minutes is not."""
    if shape == LONG:
        return what == ""
    return shape not in MIDDLE or what == "" or (what == "gradient" and shape[2] <= 128)


def key_of(shape: Shape, what: str) -> str:
    return f"{shape}, {what}" if what else f"{shape}"


def read_counts() -> dict:
    return json.loads(COUNTS.read_text()) if COUNTS.is_file() else {}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--as", dest="when", choices=("before", "now"), default="now")
    parser.add_argument("--shape", action="append", help="BxTxKxC: this one, printed and not kept")
    parser.add_argument("--operator", help="adaptive_write or bayes_write: keep the other's counts")
    parser.add_argument("--long", action="store_true", help=f"{LONG} alone, beside what is kept")
    parser.add_argument("--arch", default="sm_90a")
    options = parser.parse_args()
    chosen = {
        None: WHAT,
        "bayes_write": WHAT[:2],
        "adaptive_write": WHAT[2:],
    }.get(options.operator)
    if chosen is None:
        raise SystemExit(
            "kernel_times: --operator must be adaptive_write or bayes_write, got "
            f"{options.operator!r}"
        )
    if not options.library.is_file():
        raise SystemExit(f"kernel_times: --library: there is no file {options.library}")
    library = options.library.resolve()
    shapes = dict(SHAPES)
    if options.shape:
        shapes = {shape: shape[0] for shape in map(ptx_counts.parse_shape, options.shape)}
    try:
        import torch

        import kanerva_ext  # noqa: F401 - defines the operators
    except ModuleNotFoundError as error:
        raise SystemExit(f"kernel_times: {error}; pip install torch, and kanerva_ext") from None
    ptx_counts.only_count()
    torch.ops.load_library(str(library))
    registers: dict[str, int] = {}
    found = {}
    if options.long:
        shapes = {LONG: LONG[0]}
    for shape, memories in shapes.items():
        for what in chosen:
            if not is_counted(shape, what):
                continue
            launches = count_long() if shape == LONG else count(shape, memories, what)
            for launch in launches:
                name = launch["kernel"]
                if name not in registers:
                    registers[name] = registers_of(
                        name, library.parent / options.arch, options.arch
                    )
                launch["registers"] = registers[name]
            key = key_of(shape, what)
            found[key] = [kept(launch) for launch in launches]
            moved, written = (
                estimate(H100, found[key], clocks)
                for clocks in ("moved_block_clocks", "block_clocks")
            )
            lowest = bound(H100, shape, what == "gradient", adaptive=what == "adaptive_write")
            print(
                f"{key}: {microseconds(moved)} to {microseconds(written)} us on an H100, bound "
                f"{microseconds(lowest)}; estimate, no GPU has run this"
            )
            for launch in launches:
                steps = launch["moved_barrier_clocks"]
                clocks = launch["moved_block_clocks"]
                print(f"  {launch['kernel']}: {clocks} clocks, barriers at {steps}")
    if not options.shape:
        counted = read_counts()
        before = counted.get(options.when, {})
        if options.operator or options.long:
            found = before | found
        else:  # what is counted apart
            apart = (key_of(LONG, ""), *segment_times.KEYS)
            found |= {key: before[key] for key in apart if key in before}
        COUNTS.write_text(json.dumps(counted | {options.when: found}, indent=1) + "\n")
        print(f"{COUNTS}: {options.when}; python scripts/kernel_report.py writes the page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
