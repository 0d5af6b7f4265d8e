"""Builds the PTX interpreter."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from build_backend import plan, probe  # noqa: E402

HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build/ptx"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
#: The interpreted program's arithmetic is what its instructions say: nothing is fused or reordered.
FLAGS += ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing")
FLAGS += ("-Wno-unknown-pragmas",)
X86 = ("-mavx2", "-mfma") if platform.machine().lower() in plan.X86_64 else ()


def compiler() -> list[str]:
    return list(probe.find_compiler(os.environ).command)


def compile_all(
    sources: list[Path], folder: Path, flags: tuple[str, ...] = (), headers: Path = HERE
) -> list[Path]:
    """Object files of ``sources`` in ``folder``; only what changed, or a header of the folder
    ``headers``, is compiled."""
    newest = max(header.stat().st_mtime for header in headers.rglob("*.h"))
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> Path:
        output = folder / (source.name + ".o")
        fresh = max(newest, source.stat().st_mtime)
        if not output.exists() or output.stat().st_mtime < fresh:
            command = [*compiler(), *FLAGS, *X86, *flags, "-c", str(source), "-o", str(output)]
            subprocess.run(command, check=True)
        return output

    with ThreadPoolExecutor(probe.cores()) as pool:
        return list(pool.map(compile_one, sources))


def engine() -> list[Path]:
    """The interpreter's object files, without what binds it to Python, CUDA's runtime or torch."""
    sources = sorted(HERE.glob("*.cpp"))
    apart = {"api.cpp", "runtime.cpp", "register_on_cpu.cpp"}
    return compile_all([s for s in sources if s.name not in apart], BUILD / "engine")


def library() -> Path:
    """The interpreter as a library for tools/ptx/interpreter.py."""
    objects = engine() + compile_all(
        [HERE / "api.cpp"], BUILD / "engine", ("-fvisibility=default",)
    )
    target = BUILD / "libptx.so"
    if not target.exists() or target.stat().st_mtime < max(o.stat().st_mtime for o in objects):
        command = [*compiler(), "-shared", "-o", str(target), *map(str, objects)]
        subprocess.run(command, check=True)
    return target


if __name__ == "__main__":
    print(library())
