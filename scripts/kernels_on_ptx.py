"""Runs the CUDA kernels as the PTX that nvcc makes of them, in the interpreter of tools/ptx.

    python scripts/kernels_on_ptx.py --library build/ptx/library.so
    KANERVA_TEST_LIBRARY=build/ptx/library.so pytest tests/operators/test_bayes_write.py

makes a library that serves CPU tensors with the interpreted kernels and tests the operators on it;
KANERVA_PTX names a folder with the PTX of another architecture for the same library: --ptx makes
it. And

    python scripts/kernels_on_ptx.py --run --arch sm_90a [--operator bayes_write]

runs every kernel over a few shapes (tests/kernels_on_ptx/operators.cpp) with all checks. With
--mutate --operator NAME it runs again and again, each time without one of a block's barriers (with
--step N every N-th of them), and says which ones nothing misses. Needs nvcc; no GPU.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path[1:1] = [str(ROOT / "tools/ptx"), str(ROOT / "scripts")]

import build_interpreter as interpreter  # noqa: E402
from compile_ptx import BUILD, HOST_ARCH, compile_all, host_object, kernels, toolkit  # noqa: E402

from build_backend import plan, probe  # noqa: E402

ARCHS = ("sm_80", "sm_90a", "sm_120")
PROGRAMS = ROOT / "tests/kernels_on_ptx"
FIXTURES = BUILD / "fixtures_ptx"  # the folder with their PTX


def headers() -> tuple[str, ...]:
    """Of the library and of the CUDA runtime."""
    return (f"-I{ROOT / 'csrc'}", "-isystem", str(toolkit()))


def runtime() -> list[Path]:
    """Object files of the interpreter and of what takes the place of the CUDA runtime."""
    flags = (f'-DKANERVA_PTX_FOLDER="{BUILD / HOST_ARCH}"', *headers())
    made = interpreter.compile_all([ROOT / "tools/ptx/runtime.cpp"], BUILD / "runtime", flags)
    return interpreter.engine() + made


def host_objects() -> list[Path]:
    return [host_object(ptx) for ptx in compile_all(kernels(), HOST_ARCH)]


def build_library(target: Path) -> None:
    """A library that registers the kernels for torch's CPU key, over the CPU's own."""
    torch = plan.require_torch(probe.find_torch())
    flags = ("-O1", "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={plan.TORCH_TARGET}", *headers())
    flags += ("-isystem", str(torch.include))
    flags += ("-isystem", str(torch.include / "torch/csrc/api/include"))
    objects = host_objects() + runtime()
    objects += interpreter.compile_all(
        [ROOT / "tools/ptx/register_on_cpu.cpp"], BUILD / "registration", flags, ROOT / "csrc"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [*interpreter.compiler(), "-shared", "-pthread", "-o", str(target)]
    command += [*map(str, objects), f"-L{torch.lib}", "-Wl,--no-as-needed", "-ltorch_cpu"]
    subprocess.run([*command, "-Wl,--as-needed"], check=True)


def build_program(sanitize: bool = True) -> Path:
    """The program that runs every kernel. Its buffers are AddressSanitizer's: the interpreter asks
    it whether an address lies in one."""
    flags = ("-fsanitize=address",) if sanitize else ()
    objects = host_objects() + runtime()
    objects += interpreter.compile_all(
        [PROGRAMS / "operators.cpp"],
        BUILD / ("program" + "_asan" * sanitize),
        ("-O1", *flags, *headers()),
        ROOT / "csrc",
    )
    return _link(BUILD / ("operators" + "_asan" * sanitize), objects, flags)


def build_fixtures() -> Path:
    """The small kernels, right ones and faulty ones, of tests/kernels_on_ptx/fixtures.cu."""
    return _build_small("fixtures")


def build_launching() -> Path:
    """The test of what launchers decide, tests/kernels_on_ptx/launching.cu."""
    return _build_small("launching")


def _build_small(name: str) -> Path:
    (ptx,) = compile_all([PROGRAMS / f"{name}.cu"], HOST_ARCH, FIXTURES)
    return _link(BUILD / name, [host_object(ptx), *runtime()])


def _link(program: Path, objects: list[Path], flags: tuple[str, ...] = ()) -> Path:
    command = [*interpreter.compiler(), *flags, "-pthread", "-o", str(program)]
    subprocess.run([*command, *map(str, objects)], check=True)
    return program


def run_program(program: Path, folder: Path, what: str | None = None, **variables: str):
    """Runs it with the PTX in a folder, for one operator or fixture, or for all operators. Returns
    the completed process."""
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0",
        "KANERVA_PTX": str(folder),
        "KANERVA_PTX_STATISTICS": "1",
        **variables,
    }
    command = [str(program), *([what] if what else [])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def leave_out_barriers(run: Callable[..., subprocess.CompletedProcess], step: int) -> str:
    """Says which of a kernel's barriers nothing misses, of every ``step``-th of a block.

    ``run(**environment)`` runs the operator.
    """
    done = run()
    if done.returncode != 0:
        raise SystemExit(f"it fails with all barriers:\n{done.stdout}{done.stderr}")
    count = int(done.stdout.rsplit(":", 1)[1])

    def noticed(barrier: int) -> str:
        done = run(KANERVA_PTX_SKIP_BARRIER=str(barrier))
        if done.returncode == 0:
            return ""
        return "race" if "race in " in done.stdout + done.stderr else "otherwise"

    tried = range(0, count, step)
    with ThreadPoolExecutor(probe.cores()) as pool:
        found = list(pool.map(noticed, tried))
    missed = [barrier for barrier, how in zip(tried, found, strict=True) if not how]
    return (
        f"{count} barriers, {len(tried)} left out: {found.count('race')} noticed by a race, "
        f"{found.count('otherwise')} otherwise, {len(missed)} not: {missed}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=ARCHS, default=HOST_ARCH)
    parser.add_argument("--library", type=Path, help="build the library for the tests there")
    parser.add_argument("--ptx", action="store_true", help="only compile to PTX")
    parser.add_argument("--run", action="store_true", help="run every kernel")
    parser.add_argument("--operator", help="run this one only, such as bayes_write_backward")
    parser.add_argument("--mutate", action="store_true", help="leave out barriers of --operator")
    parser.add_argument("--kernel", help="leave out those of kernels with this in their name only")
    parser.add_argument("--step", type=int, default=1, help="leave out every so many-th barrier")
    options = parser.parse_args()
    if options.mutate and not options.operator:
        parser.error("--mutate needs --operator")
    if options.step < 1:
        parser.error(f"--step must be at least 1, got {options.step}")
    if options.library:
        build_library(options.library.resolve())
    if options.ptx or options.run or options.mutate:
        compile_all(kernels(), options.arch)
    folder = BUILD / options.arch
    if options.run:
        done = run_program(build_program(), folder, options.operator)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode
    if options.mutate:
        run = functools.partial(run_program, build_program(False), folder, options.operator)
        if options.kernel:
            run = functools.partial(run, KANERVA_PTX_SKIP_IN=options.kernel)
        print(f"{options.operator}: {leave_out_barriers(run, options.step)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
