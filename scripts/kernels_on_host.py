"""Builds the CUDA kernels for the host, where a block's threads are fibers, to test them.

    python scripts/kernels_on_host.py --library build/kernels_on_host/library.so
    KANERVA_TEST_LIBRARY=build/kernels_on_host/library.so pytest tests/test_bayes_write.py

makes a library that serves CPU tensors with the CUDA kernels and tests the operators on it, and

    python scripts/kernels_on_host.py --run [--sanitize thread|address] [--operator bayes_write]

runs every kernel over a few shapes (tests/kernels_on_host/operators.cpp), under ThreadSanitizer
or AddressSanitizer if asked for. With --mutate --operator NAME it runs again and again under
ThreadSanitizer, each time without one of a block's barriers, and says which ones nothing misses.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from barriers_left_out import needless_barriers  # noqa: E402

from build_backend import plan, probe  # noqa: E402

BUILD = ROOT / "build/kernels_on_host"
FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas")
OPTIMISED = "-O1"  # with a sanitizer
#: Kernels contract to fused multiply-adds on a GPU, so they do here; GCC's -O1 needs to be told.
FUSED = ("-mfma", "-fexpensive-optimizations") if platform.machine().lower() in plan.X86_64 else ()


def compiler() -> list[str]:
    return list(probe.find_compiler(os.environ).command)


def compile_all(kind: str, flags: tuple[str, ...], sources: list[Path]) -> list[Path]:
    """Object files of ``sources`` under the folder ``kind``; only what changed is compiled."""
    headers = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cuh")]
    newest = max(header.stat().st_mtime for header in headers)
    folder = BUILD / kind
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> Path:
        output = folder / (source.name + ".o")
        fresh = max(newest, source.stat().st_mtime)
        if not output.exists() or output.stat().st_mtime < fresh:
            command = [*compiler(), *FLAGS, *FUSED, *flags, "-x", "c++", "-c", str(source)]
            subprocess.run([*command, "-o", str(output)], check=True)
        return output

    with ThreadPoolExecutor(probe.cores()) as pool:
        return list(pool.map(compile_one, sources))


def kernels() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


def build_library(target: Path) -> None:
    """A library that registers the kernels for torch's CPU key, over the CPU's own."""
    torch = plan.require_torch(probe.find_torch())
    include = (f"-I{ROOT / 'csrc'}", "-isystem", str(torch.include))
    include += ("-isystem", str(torch.include / "torch/csrc/api/include"))
    registration = ("-O1", "-DKANERVA_ON_HOST", f"-DTORCH_TARGET_VERSION={plan.TORCH_TARGET}")
    objects = compile_all("library", ("-O2",), kernels())
    objects += compile_all("library", (*registration, *include), [ROOT / "csrc/cuda/register.cpp"])
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [*compiler(), "-shared", "-pthread", "-o", str(target), *map(str, objects)]
    command += [f"-L{torch.lib}", "-Wl,--no-as-needed", "-ltorch_cpu", "-Wl,--as-needed"]
    subprocess.run(command, check=True)


def build_program(sanitize: str | None, name: str = "operators") -> Path:
    """The program that runs every kernel; or "fixtures", small kernels that test the fibers."""
    flags: tuple[str, ...] = (OPTIMISED, "-g")
    if sanitize:
        flags += (f"-fsanitize={sanitize}", "-fno-omit-frame-pointer")
    kind = sanitize or "plain"
    sources = [ROOT / f"tests/kernels_on_host/{name}.cpp"]
    if name == "operators":
        sources += kernels()
    objects = compile_all(kind, flags, sources)
    program = BUILD / kind / name
    subprocess.run(
        [*compiler(), *flags, "-pthread", "-o", str(program), *map(str, objects)], check=True
    )
    return program


@functools.cache
def fixed_addresses() -> tuple[str, ...]:
    """What runs a program in an address space not laid out at random: ThreadSanitizer needs it on
    some kernels. Empty where that is not allowed."""
    command = ("setarch", "-R")
    if shutil.which("setarch") is None:
        return ()
    allowed = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    return command if allowed else ()


def run_program(program: Path, what: str | None = None, **variables: str):
    """Runs it for one operator or fixture, or for all operators. A sanitizer's report is an exit
    status of 66. Returns the completed process."""
    environment = {
        **os.environ,
        "TSAN_OPTIONS": "exitcode=66 halt_on_error=1",
        "ASAN_OPTIONS": "exitcode=66 detect_leaks=0",
        **variables,
    }
    command = [*fixed_addresses(), str(program), *([what] if what else [])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", type=Path, help="build the library for the tests there")
    parser.add_argument("--run", action="store_true", help="run every kernel")
    parser.add_argument("--sanitize", choices=("thread", "address"))
    parser.add_argument("--operator", help="run this one only, such as bayes_write_backward")
    parser.add_argument("--mutate", action="store_true", help="leave out barriers of --operator")
    options = parser.parse_args()
    if options.mutate and not options.operator:
        parser.error("--mutate needs --operator")
    if options.library:
        build_library(options.library.resolve())
    if options.run:
        done = run_program(build_program(options.sanitize), options.operator)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode
    if options.mutate:
        run = functools.partial(run_program, build_program("thread"), options.operator)
        needless, count = needless_barriers(run, "KANERVA_HOST_SKIP_BARRIER", options.operator)
        print(f"{options.operator}: {count} barriers, {len(needless)} not missed: {needless}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
