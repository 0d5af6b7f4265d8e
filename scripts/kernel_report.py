"""What the CUDA kernels take of a multiprocessor: registers, spills, stack, static shared memory.

Compiles csrc/cuda/*.cu with nvcc (no GPU needed) and writes docs/kernels.md. With --check it writes
nothing and fails when that file is out of date or a kernel spills that may not.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from build_backend import arch, probe, targets  # noqa: E402

PAGE = ROOT / "docs/kernels.md"
ARCHS = arch.parse(arch.DEFAULT_ARCHS)
# Patterns of kernel names that may spill: those off the path of the float32 operators.
MAY_SPILL: tuple[str, ...] = ()


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


def compile_one(nvcc: str, source: Path, target: arch.Arch, folder: Path) -> list[Usage]:
    number = target.base + target.suffix
    output = folder / f"{source.stem}.sm_{number}.cubin"
    command = [nvcc, *targets.NVCC_FLAGS, f"-arch=sm_{number}", "-cubin", "-Xptxas", "-v"]
    command += [f"-I{ROOT / 'csrc'}", "-o", str(output), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"kernel_report: {source.name} for sm_{number}:\n{done.stderr}")
    return parse(done.stderr)


def collect(nvcc: str, sources: list[Path]) -> dict[tuple[str, str], dict[str, Usage]]:
    """(file, kernel) -> architecture -> usage."""
    jobs = [(source, target) for source in sources for target in ARCHS]
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(max(1, probe.cores())) as pool,
    ):
        found = list(pool.map(lambda job: compile_one(nvcc, *job, Path(folder)), jobs))
    names = demangle(usage.name for usages in found for usage in usages)
    table: dict[tuple[str, str], dict[str, Usage]] = {}
    for (source, target), usages in zip(jobs, found, strict=True):
        for usage in usages:
            row = table.setdefault((source.name, names[usage.name]), {})
            row[f"sm_{target.base}{target.suffix}"] = usage
    return dict(sorted(table.items()))


def render(table: dict[tuple[str, str], dict[str, Usage]], nvcc_version: str) -> str:
    columns = [f"sm_{a.base}{a.suffix}" for a in ARCHS]
    lines = [
        "# CUDA kernels: registers and memory",
        "",
        f"Made by `python scripts/kernel_report.py` from what ptxas (nvcc {nvcc_version}) reports.",
        "Registers per thread; then, where there are any, bytes of stack, of spill stores/loads,",
        "and of static shared memory. Dynamic shared memory is chosen by the launchers.",
        "",
        f"| file | kernel | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for (file, kernel), row in table.items():
        cells = [row[c].text() if c in row else "-" for c in columns]
        lines.append(f"| {file} | `{kernel}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def forbidden_spills(table: dict[tuple[str, str], dict[str, Usage]]) -> list[str]:
    return [
        f"{file}: {kernel} spills on {column}: {usage.text()}"
        for (file, kernel), row in table.items()
        for column, usage in row.items()
        if usage.spills and not any(re.search(p, kernel) for p in MAY_SPILL)
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with docs/kernels.md")
    options = parser.parse_args(arguments)
    nvcc = probe.find_nvcc()
    if nvcc is None:
        raise SystemExit("kernel_report: nvcc was not found; set CUDA_HOME to a CUDA toolkit")
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    if not sources:
        raise SystemExit("kernel_report: there are no kernels in csrc/cuda")
    table = collect(nvcc.path, sources)
    text = render(table, nvcc.version)
    problems = forbidden_spills(table)
    if not options.check:
        PAGE.write_text(text, encoding="utf-8")
        print(f"{PAGE}: {len(table)} kernels")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        problems.append(f"{PAGE} is out of date: run python scripts/kernel_report.py")
    print("\n".join(problems), file=sys.stderr)
    return 1 if options.check and problems else 0


if __name__ == "__main__":
    sys.exit(main())
