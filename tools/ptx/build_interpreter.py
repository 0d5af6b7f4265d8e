"""Builds the PTX interpreter."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
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


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes the folder. Another process that wants the same files waits, and then finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compile_all(
    sources: list[Path], folder: Path, flags: tuple[str, ...] = (), headers: Path = HERE
) -> list[Path]:
    """Object files of ``sources`` in ``folder``; only what changed, or a header beside it or in
    the folder ``headers``, is compiled."""
    beside = [header for source in sources for header in source.parent.glob("*.h")]
    newest = max(header.stat().st_mtime for header in [*headers.rglob("*.h"), *beside])

    def compile_one(source: Path) -> Path:
        output = folder / (source.name + ".o")
        fresh = max(newest, source.stat().st_mtime)
        if not output.exists() or output.stat().st_mtime < fresh:
            new = output.with_suffix(".new")  # whole or not there
            command = [*compiler(), *FLAGS, *X86, *flags, "-c", str(source), "-o", str(new)]
            subprocess.run(command, check=True)
            new.replace(output)
        return output

    with alone(folder), ThreadPoolExecutor(probe.cores()) as pool:
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
    with alone(BUILD):
        if not target.exists() or target.stat().st_mtime < max(o.stat().st_mtime for o in objects):
            new = target.with_suffix(".new")
            command = [*compiler(), "-shared", "-o", str(new), *map(str, objects)]
            subprocess.run(command, check=True)
            new.replace(target)
    return target


if __name__ == "__main__":
    print(library())
