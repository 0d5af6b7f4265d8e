"""Runs the CUDA kernels as the PTX that nvcc makes of them, in the interpreter of tools/ptx.

    python scripts/kernels_on_ptx.py --library build/ptx/library.so --arch sm_90a
    KANERVA_TEST_LIBRARY=build/ptx/library.so pytest tests/test_bayes_write.py

makes a library that serves CPU tensors with the interpreted kernels and tests the operators on it;
KANERVA_PTX names a folder with the PTX of another architecture for the same library. And

    python scripts/kernels_on_ptx.py --run --arch sm_90a [--operator bayes_write]

runs every kernel over a few shapes (tests/kernels_on_host/operators.cpp) with all checks. With
--mutate --operator NAME it runs again and again, each time without one of a block's barriers, and
says which ones nothing misses. Needs nvcc; no GPU.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path[1:1] = [str(ROOT / "tools/ptx"), str(ROOT / "scripts")]

import build_interpreter as interpreter  # noqa: E402
from barriers_left_out import needless_barriers  # noqa: E402

from build_backend import plan, probe, targets  # noqa: E402

BUILD = ROOT / "build/ptx"
ARCHS = ("sm_80", "sm_90a", "sm_120")


def find_nvcc() -> str:
    nvcc = probe.find_nvcc()
    if nvcc is None:
        raise SystemExit("kernels_on_ptx: nvcc was not found; set CUDA_HOME to a CUDA toolkit")
    return nvcc.path


def toolkit() -> Path:
    """The folder with cuda_runtime_api.h."""
    nvcc = probe.find_nvcc()
    if nvcc is None or not nvcc.include:
        raise SystemExit("kernels_on_ptx: the headers of the CUDA toolkit were not found")
    return Path(nvcc.include)


def kernels() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


def newest_header() -> float:
    headers = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cuh")]
    return max(header.stat().st_mtime for header in headers)


def nvcc_all(sources: list[Path], arch: str, objects: bool) -> list[Path]:
    """PTX of ``sources`` for ``arch``, in a folder of its name; only what changed is compiled.

    With ``objects`` their host code too, as object files, which are given back.
    """
    folder = BUILD / arch
    folder.mkdir(parents=True, exist_ok=True)
    nvcc, newest = find_nvcc(), newest_header()
    number = arch.removeprefix("sm_")
    common = [nvcc, *targets.NVCC_FLAGS, "-lineinfo", f"-I{ROOT / 'csrc'}"]

    def compile_one(source: Path) -> Path:
        text, output = folder / f"{source.stem}.ptx", folder / f"{source.name}.o"
        made = [text, output] if objects else [text]
        fresh = max(newest, source.stat().st_mtime)
        if all(file.exists() and file.stat().st_mtime >= fresh for file in made):
            return output
        commands = [[*common, f"-arch={arch}", "-ptx", str(source), "-o", str(text)]]
        if objects:  # with PTX inside that nobody reads
            code = f"-gencode=arch=compute_{number},code=compute_{number}"
            kept = folder / source.stem
            kept.mkdir(exist_ok=True)
            command = [*common, code, "--keep", "--keep-dir", str(kept), "-c", str(source)]
            commands = [[*command, "-o", str(output)]]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"kernels_on_ptx: {source.name} for {arch}:\n{done.stderr}")
        if objects:
            (kept / f"{source.stem}.ptx").replace(text)
            for file in kept.iterdir():
                file.unlink()
            kept.rmdir()
        return output

    with ThreadPoolExecutor(probe.cores()) as pool:
        return list(pool.map(compile_one, sources))


def runtime(arch: str) -> list[Path]:
    """Object files of the interpreter and of what takes the place of the CUDA runtime."""
    flags = (f'-DKANERVA_PTX_FOLDER="{BUILD / arch}"', "-isystem", str(toolkit()))
    made = interpreter.compile_all(
        [ROOT / "tools/ptx/runtime.cpp"], BUILD / f"runtime_{arch}", flags
    )
    return interpreter.engine() + made


def build_library(target: Path, arch: str) -> None:
    """A library that registers the kernels for torch's CPU key, over the CPU's own."""
    objects = nvcc_all(kernels(), arch, True) + runtime(arch)
    torch = plan.require_torch(probe.find_torch())
    registration = ("-O1", "-DKANERVA_ON_HOST", f"-DTORCH_TARGET_VERSION={plan.TORCH_TARGET}")
    include = (f"-I{ROOT / 'csrc'}", "-isystem", str(torch.include))
    include += ("-isystem", str(torch.include / "torch/csrc/api/include"))
    objects += interpreter.compile_all(
        [ROOT / "csrc/cuda/register.cpp"],
        BUILD / "registration",
        (*registration, *include),
        ROOT / "csrc/cuda",
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [*interpreter.compiler(), "-shared", "-pthread", "-o", str(target)]
    command += [*map(str, objects), f"-L{torch.lib}", "-Wl,--no-as-needed", "-ltorch_cpu"]
    subprocess.run([*command, "-Wl,--as-needed"], check=True)


def build_program(arch: str, sanitize: bool = True, host_arch: str | None = None) -> Path:
    """The program that runs every kernel. Its buffers are AddressSanitizer's: the interpreter asks
    it whether an address lies in one. The host's code is that compiled with ``host_arch``."""
    flags = ("-fsanitize=address",) if sanitize else ()
    host_arch = host_arch or arch
    objects = nvcc_all(kernels(), host_arch, True) + runtime(host_arch)
    if host_arch != arch:
        nvcc_all(kernels(), arch, False)
    objects += interpreter.compile_all(
        [ROOT / "tests/kernels_on_host/operators.cpp"],
        BUILD / ("program" + "_asan" * sanitize),
        ("-O1", *flags),
        ROOT / "csrc/cuda",
    )
    program = BUILD / ("operators" + "_asan" * sanitize)
    command = [*interpreter.compiler(), *flags, "-pthread", "-o", str(program)]
    subprocess.run([*command, *map(str, objects)], check=True)
    return program


def run_program(program: Path, arch: str, operator: str | None = None, **variables: str):
    """Runs it for one operator or for all. Returns the completed process."""
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0",
        "KANERVA_PTX": str(BUILD / arch),
        "KANERVA_PTX_STATISTICS": "1",
        **variables,
    }
    command = [str(program), *([operator] if operator else [])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=ARCHS, default="sm_90a")
    parser.add_argument("--host-arch", choices=ARCHS, help="of host code that is compiled already")
    parser.add_argument("--library", type=Path, help="build the library for the tests there")
    parser.add_argument("--ptx", action="store_true", help="only compile to PTX")
    parser.add_argument("--run", action="store_true", help="run every kernel")
    parser.add_argument("--operator", help="run this one only, such as bayes_write_backward")
    parser.add_argument("--mutate", action="store_true", help="leave out barriers of --operator")
    options = parser.parse_args()
    if options.mutate and not options.operator:
        parser.error("--mutate needs --operator")
    if options.ptx:
        nvcc_all(kernels(), options.arch, False)
    if options.library:
        build_library(options.library.resolve(), options.arch)
    if options.run:
        program = build_program(options.arch, host_arch=options.host_arch)
        done = run_program(program, options.arch, options.operator)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode
    if options.mutate:
        program = build_program(options.arch, False, options.host_arch)
        run = functools.partial(run_program, program, options.arch, options.operator)
        needless, count = needless_barriers(run, "KANERVA_PTX_SKIP_BARRIER", options.operator)
        print(f"{options.operator}: {count} barriers, {len(needless)} not missed: {needless}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
