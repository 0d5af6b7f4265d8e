"""What the CUDA kernels take of a multiprocessor: registers, spills, stack, static shared memory.

Compiles csrc/cuda/*.cu with nvcc and ptxas (no GPU needed) and writes docs/kernels.md. With --check
it writes nothing and fails when that file is out of date, has a kernel that spills and may not, or
a fast kernel with more registers than it may have or with accesses whose space of memory is not
known. The estimates of times on the page are those of docs/kernel_times.json: see kernel_times.py.

ptxas takes most of the time, and gives the same for the same PTX: so the page has digests of the
PTX, --check compiles no further than that, and files of the same digests keep their rows.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(1, str(ROOT / "scripts"))

import compile_ptx  # noqa: E402
import ptx_text  # noqa: E402

from build_backend import arch, probe  # noqa: E402

PAGE = ROOT / "docs/kernels.md"
PAGE_WIDTH = 98  # columns of its prose
ARCHS = tuple(f"sm_{a.base}{a.suffix}" for a in arch.parse(arch.DEFAULT_ARCHS))
# Patterns of kernel names that may spill.
# The scan of memories that move and its segments: up to 50 bytes, of 255 registers; and 8 in the
# sums over what segments leave, whatever ptxas may have against a 49th register.
MOVING_SCAN = r"^(write|segment|backward|hard_moving)_kernel<CausalScan"
MAY_SPILL: tuple[str, ...] = (r"^small_recall_kernel", MOVING_SCAN, r"^gather_kernel<")

# The kernels of small memories, but for those that have the general path inside; long sums.
FAST = r"^small_|^episode_sums_kernel"
GENERAL_INSIDE = (r"^small_write_kernel<.*\btrue\b",)
#: Of few registers too many: their factor of 32 x 32 is loaded ahead as far as there are any.
NOT_YET_FAST = MAY_SPILL[:1]
MOST_REGISTERS = 128  # of a fast kernel
REGISTERS = 65536  # of a multiprocessor


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel on one architecture; memory in bytes."""

    name: str
    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0

    @property
    def spills(self) -> bool:
        return self.spill_stores + self.spill_loads > 0

    def text(self) -> str:
        parts = [str(self.registers)]
        if self.stack:
            parts.append(f"stack {self.stack}")
        if self.spills:
            parts.append(f"spills {self.spill_stores}/{self.spill_loads}")
        if self.shared:
            parts.append(f"shared {self.shared}")
        return ", ".join(parts)


def parse(text: str) -> list[Usage]:
    """The kernels in the messages of ``ptxas -v``, by mangled name.

    Stack and spills of a function that a kernel calls without inlining are counted with the kernel.
    """
    found: list[Usage] = []
    name, values = "", {}
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            name, values = match[1], dict.fromkeys(("stack", "spill_stores", "spill_loads"), 0)
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            for key, value in zip(
                ("stack", "spill_stores", "spill_loads"), match.groups(), strict=True
            ):
                values[key] = values.get(key, 0) + int(value)
        elif name and (match := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", line)
            size = int(shared[1]) if shared else 0
            found.append(Usage(name, registers=int(match[1]), shared=size, **values))
            name, values = "", {}
    return found


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Mangled name -> name without namespaces and parameters; itself where no tool is found."""
    names = sorted(set(names))
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None or not names:
        return {name: name for name in names}
    done = subprocess.run(
        [tool], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return {n: shorten(d) for n, d in zip(names, done.stdout.splitlines(), strict=True)}


def shorten(signature: str) -> str:
    """ "void a::b::f<int, 2>(int*)" -> "f<int, 2>"."""
    text = signature.replace("(anonymous namespace)::", "")
    text = re.sub(r"\((?:int|bool|unsigned int|long)\)(?=\d)", "", text)
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            text = text[:i]
            break
    text = re.sub(r"^void ", "", text)
    return re.sub(r"\b(?:\w+::)+", "", text)


def assemble(ptx: Path, target: str) -> list[Usage]:
    """What ptxas says of the kernels in a PTX file."""
    ptxas = Path(compile_ptx.find_nvcc().path).resolve().with_name("ptxas")
    command = [str(ptxas), f"-arch={target}", "-v", "--generate-line-info", str(ptx)]
    done = subprocess.run([*command, "-o", "/dev/null"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"kernel_report: ptxas: {ptx.name} for {target}:\n{done.stderr}")
    return parse(done.stderr)


def compile_kernels() -> dict[str, dict[str, Path]]:
    """File -> architecture -> its PTX."""
    sources = compile_ptx.kernels()
    if not sources:
        raise SystemExit("kernel_report: there are no kernels in csrc/cuda")
    found: dict[str, dict[str, Path]] = {source.name: {} for source in sources}
    for target in ARCHS:
        for source, ptx in zip(sources, compile_ptx.compile_all(sources, target), strict=True):
            found[source.name][target] = ptx
    return found


def collect(
    ptx: dict[str, dict[str, Path]], files: Iterable[str]
) -> dict[tuple[str, str], dict[str, Usage]]:
    """(file, kernel) -> architecture -> usage."""
    jobs = [(file, target) for file in files for target in ARCHS]
    with ThreadPoolExecutor(max(1, probe.cores())) as pool:
        found = list(pool.map(lambda job: assemble(ptx[job[0]][job[1]], job[1]), jobs))
    names = demangle(usage.name for usages in found for usage in usages)
    table: dict[tuple[str, str], dict[str, Usage]] = {}
    for (file, target), usages in zip(jobs, found, strict=True):
        for usage in usages:
            table.setdefault((file, names[usage.name]), {})[target] = usage
    return dict(sorted(table.items()))


def digests(ptx: dict[str, dict[str, Path]], nvcc_version: str) -> str:
    """The part of the page that tells whether the rest is of these sources and this compiler."""
    lines = [
        "## Digests of the PTX",
        "",
        f"Of the instructions that nvcc {nvcc_version} makes; ptxas gives the same for the same.",
        "",
        f"| file | {' | '.join(ARCHS)} |",
        f"|---|{'---|' * len(ARCHS)}",
    ]
    for file, targets in ptx.items():
        cells = [compile_ptx.digest(targets[target].read_text()) for target in ARCHS]
        lines.append(f"| {file} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def is_fast(kernel: str) -> bool:
    return re.search(FAST, kernel) is not None and not any(
        re.search(p, kernel) for p in (*GENERAL_INSIDE, *NOT_YET_FAST)
    )


def fast_kernels(ptx: dict[str, dict[str, Path]]) -> dict[tuple[str, str], ptx_text.Kernel]:
    """(short name, architecture) -> what the PTX says of a fast kernel."""
    found = {}
    for files in ptx.values():
        for target, file in files.items():
            for kernel in ptx_text.kernels(file.read_text()):
                found[kernel.name, target] = kernel
    names = demangle(name for name, _ in found)
    return {
        (names[name], target): kernel
        for (name, target), kernel in sorted(found.items())
        if is_fast(names[name])
    }


def fast_section(fast: dict[tuple[str, str], ptx_text.Kernel]) -> str:
    lines = [
        "## Fast kernels",
        "",
        textwrap.fill(
            "Of memories of at most 64 slots, without those that have the general path inside, "
            "and without `small_recall_kernel`, whose factor takes 168 registers and still spills "
            "a few bytes; and the sums over the steps of long episodes. CI "
            f"checks: no spills, no stack, at most {MOST_REGISTERS} registers a thread on every "
            "architecture, so that as many blocks as stated fit the registers; no load or store "
            "whose space of memory nvcc does not know, but in functions that are called.",
            PAGE_WIDTH,
        ),
        "",
        textwrap.fill(
            f"Why {MOST_REGISTERS} and not 96: a block of `small_write_kernel` at (T, K, C) = "
            "(32, 32, 100) has 128 threads and 46 KB of shared memory, of which a multiprocessor "
            "has room for four. So have its registers, at 128 a thread; with fewer no fifth block "
            "would fit. A lane that factors or solves has a column of 32 numbers in registers, "
            "beside as many that are on their way.",
            PAGE_WIDTH,
        ),
        "",
        "| kernel | threads | blocks | accesses of unknown space | calls |",
        "|---|---|---|---|---|",
    ]
    for kernel in dict.fromkeys(name for name, _ in fast):
        every = [k for (name, _), k in fast.items() if name == kernel]
        most = [max(k.generic for k in every), max(k.calls for k in every)]
        blocks = min(k.blocks for k in every)
        lines.append(f"| `{kernel}` | {every[0].threads} | {blocks} | {most[0]} | {most[1]} |")
    return "\n".join(lines) + "\n"


def slow_in_fast(
    fast: dict[tuple[str, str], ptx_text.Kernel], page: str, targets: Sequence[str]
) -> list[str]:
    """What the fast kernels may not have, by their PTX and by the page's table of registers."""
    rows = {}
    for row in page.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) == 2 + len(targets) and cells[1].startswith("`"):
            rows[cells[1].strip("`")] = dict(zip(targets, cells[2:], strict=True))
    problems = [] if fast else ["there are no fast kernels"]
    for (name, target), kernel in fast.items():
        where = f"{name} on {target}"
        if kernel.generic:
            problems.append(f"{where}: {kernel.generic} accesses whose space of memory is unknown")
        cell = rows.get(name, {}).get(target, "-")
        if not cell.split(",")[0].isdigit():
            problems.append(f"{where}: {PAGE} does not say its registers")
            continue
        registers = int(cell.split(",")[0])
        if registers > MOST_REGISTERS:
            problems.append(f"{where}: {registers} registers, of at most {MOST_REGISTERS}")
        if "stack" in cell or "spills" in cell:
            problems.append(f"{where}: {cell}")
        if kernel.blocks < 1 or -(-registers // 8) * 8 * kernel.threads * kernel.blocks > REGISTERS:
            problems.append(
                f"{where}: {kernel.blocks} blocks of {kernel.threads} threads with {registers} "
                "registers do not fit a multiprocessor"
            )
    return problems


def rows_of(table: dict[tuple[str, str], dict[str, Usage]]) -> list[str]:
    rows = []
    for (file, kernel), usages in table.items():
        cells = [usages[c].text() if c in usages else "-" for c in ARCHS]
        rows.append(f"| {file} | `{kernel}` | {' | '.join(cells)} |")
    return rows


def rows_kept(page: str, end: str) -> dict[str, list[str]]:
    """File -> its rows of the page, of the files whose digests are the same on the page, and made
    by the same nvcc, as at its new end."""

    def parts(text: str) -> tuple[str, set[str]]:
        before, _, after = text.partition("## Digests of the PTX")
        return before, set(after.splitlines())

    (table, old), (_, new) = parts(page), parts(end)
    if not any(line.startswith("Of the instructions") for line in old & new):
        return {}
    same = {line.split("|")[1].strip() for line in old & new if line.startswith("| ")}
    kept: dict[str, list[str]] = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 2 + len(ARCHS) and cells[0] in same and cells[1].startswith("`"):
            kept.setdefault(cells[0], []).append(line)
    return kept


def render(rows: Iterable[str], nvcc_version: str) -> str:
    lines = [
        "# CUDA kernels: registers and memory",
        "",
        f"Made by `python scripts/kernel_report.py` from what ptxas (nvcc {nvcc_version}) reports.",
        "Registers per thread; then, where there are any, bytes of stack, of spill stores/loads,",
        "and of static shared memory. Dynamic shared memory is chosen by the launchers.",
        "",
        f"| file | kernel | {' | '.join(ARCHS)} |",
        f"|---|---|{'---|' * len(ARCHS)}",
    ]
    return "\n".join([*lines, *rows]) + "\n"


def spills_in_page(text: str) -> list[str]:
    """Rows of kernels that spill and may not."""
    rows = [line for line in text.splitlines() if line.startswith("| ") and "spills" in line]
    kernels = [(row, row.split("`")[1]) for row in rows]
    return [
        f"a kernel spills: {r}" for r, k in kernels if not any(re.search(p, k) for p in MAY_SPILL)
    ]


def check(expected: str) -> list[str]:
    """What is wrong with the page, given its last part as it should be."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    problems = spills_in_page(text)
    if not text.endswith("\n" + expected):
        changed = [line for line in expected.splitlines() if line not in text.splitlines()]
        problems.append(f"{PAGE} is out of date: run python scripts/kernel_report.py; it lacks")
        problems += changed
    return problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with docs/kernels.md")
    options = parser.parse_args(arguments)
    version = compile_ptx.find_nvcc().version
    ptx = compile_kernels()
    fast = fast_kernels(ptx)
    end = fast_section(fast) + "\n" + digests(ptx, version)
    if options.check:
        text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
        problems = check(end) + slow_in_fast(fast, text, ARCHS)
        print("\n".join(problems or [f"{PAGE} is up to date"]))
        return 1 if problems else 0
    kept = rows_kept(PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "", end)
    changed = [file for file in ptx if file not in kept]
    rows = rows_of(collect(ptx, changed)) + [row for rows in kept.values() for row in rows]
    rows.sort(key=lambda row: row.split("|")[1:3])
    import kernel_times  # it imports this

    times = kernel_times.section(kernel_times.read_counts())
    text = "\n".join([render(rows, version), times, end])
    PAGE.write_text(text, encoding="utf-8")
    problems = spills_in_page(text) + slow_in_fast(fast, text, ARCHS)
    print(f"{PAGE}: {len(rows)} kernels, {len(changed)} of {len(ptx)} files assembled")
    print("\n".join(problems), end="")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
