"""Builds and tries kanerva_ext under the ordinary PyTorch of each version.

    python scripts/check_torch.py 2.11.0 2.12.0 2.14.0

For each version: a fresh virtual environment with the PyTorch that pip takes (the CUDA build, some
5 GB; it needs no GPU), `pip install` of this tree with CUDA kernels for one architecture, both
libraries loaded, every operator looked up in the dispatcher, a short set of tests. Then the wheel
that was built against the newest version runs under the oldest, and the other way round. Without
nvcc the CUDA library is left out, and that is said.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from build_backend import plan, probe  # noqa: E402
from build_backend.errors import BuildError  # noqa: E402

PROBE = ROOT / "scripts/torch_probe.py"
# Every operator, forward and with gradients, on hard data; transforms and compilation.
TESTS = ("read", "recall", "solve_addresses", "statistics", "causal_step", "cpp_autograd")
# Of benchmarks/gpu_check.py, each phase's: an operator alone and by teams, under a sanitizer, its
# tests, its time, by Triton.
QUESTIONS = ("smoke/read/small", "memcheck/read/plain", "test/causal_step/", "rates/first")
QUESTIONS += ("compare/read/16x32x32x100/forward", "duel/read/16x32x32x100")
RECORD = """
import runpy, sys
runpy.run_path(sys.argv[1])["load_benchmarks"]()
from benchmarks.gpu import visit
visit.record_build(visit.source_hash(), sys.argv[2])
"""
TEST_PACKAGES = ("pytest>=8", "hypothesis>=6.80", "scipy>=1.10", "pytest-xdist>=3.6")


@dataclass
class Environment:
    """A virtual environment with one PyTorch."""

    version: str
    folder: Path
    interpreter: str = sys.executable

    @property
    def python(self) -> str:
        return str(self.folder / "bin/python")

    def run(self, *words: str, **variables: str) -> str:
        """What the command prints. Ends the program with all of it where it fails."""
        command = [self.python, *words]
        done = subprocess.run(
            command,
            cwd=self.folder,  # away from the tree, whose kanerva_ext/ would hide the installed one
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            told = [line for line in done.stdout.splitlines() if line.startswith("ERROR:")]
            if told and f"torch=={self.version}" in words:  # there is no such version, say
                raise SystemExit(f"check_torch: PyTorch {self.version}: {' '.join(told)}")
            raise SystemExit(
                f"check_torch: PyTorch {self.version}: {' '.join(command)} failed with "
                f"{done.returncode}:\n{done.stdout[-20_000:]}"
            )
        return done.stdout

    def pip(self, *words: str, **variables: str) -> str:
        return self.run("-m", "pip", *words, **variables)

    def create(self, *options: str) -> None:
        subprocess.run([self.interpreter, "-m", "venv", str(self.folder)], check=True)
        self.pip("install", "--quiet", *options, f"torch=={self.version}")

    def add_packages(self) -> None:
        self.pip("install", "--quiet", "numpy", *TEST_PACKAGES, *_build_requirements())

    def build(self, tree: Path, arch: str, cuda: bool) -> Path:
        """The wheel of that tree, built against this PyTorch, and installed."""
        variables = {"KANERVA_CUDA": "1" if cuda else "0", "TORCH_CUDA_ARCH_LIST": arch}
        wheels = self.folder / "wheels"
        shutil.rmtree(wheels, ignore_errors=True)
        words = ("wheel", "--verbose", "--no-build-isolation", "--no-deps", "-w", str(wheels))
        printed = self.pip(*words, str(tree), **variables)
        print(*(line for line in printed.splitlines() if "kanerva_ext: building" in line), sep="\n")
        (wheel,) = wheels.glob("*.whl")
        self.install(wheel)
        return wheel

    def install(self, wheel: Path) -> None:
        self.pip("install", "--quiet", "--no-deps", "--force-reinstall", str(wheel))

    def try_out(self, cuda: bool) -> None:
        """What the library says of itself, every operator's registrations, and the short tests."""
        words = ("--cuda",) if cuda else ()
        print(self.run(str(PROBE), *words), end="")
        files = [str(ROOT / f"tests/operators/test_{name}.py") for name in TESTS]
        options = (
            "-q",
            "-m",
            "not slow",
            "-p",
            "no:cacheprovider",
            "-c",
            str(ROOT / "pyproject.toml"),
        )
        printed = self.run("-m", "pytest", *options, *files)
        print(f"  tests: {printed.strip().splitlines()[-1]}")

    def rehearse(self, arch: str) -> None:
        """A few questions of benchmarks/gpu_check.py, each of which must end in "no GPU"."""
        started = time.monotonic()
        check = str(ROOT / "benchmarks/gpu_check.py")
        self.run("-c", RECORD, check, arch)  # what is installed was built from this source
        only = [word for question in QUESTIONS for word in ("--only", question)]
        out = str(self.folder / "rehearsal")
        printed = self.run(check, "rehearse", "--out", out, "--seconds", "300", *only)
        said = printed.strip().splitlines()[-1]
        print(f"  {said} ({time.monotonic() - started:.0f} s)", flush=True)


def _build_requirements() -> tuple[str, ...]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("requires = "))
    return tuple(word for word in line.split('"')[1::2])


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _program_problem(python: str) -> str:
    """Why environments cannot be made of this interpreter; empty where they can."""
    code = "import ensurepip, sys, venv; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{python}: {error.strerror}"
    try:
        version = tuple(map(int, done.stdout.split()))
    except ValueError:
        version = ()
    if done.returncode != 0 or len(version) != 2:
        said = done.stderr.strip().splitlines() or ["it prints no version"]
        return f"{python} is no Python with venv and ensurepip: {said[-1]}"
    return (
        "" if version >= (3, 10) else f"{python} is Python {done.stdout.strip()}, not 3.10 or later"
    )


def _arch_problem(text: str, nvcc: plan.Nvcc | None) -> str:
    """Why the CUDA kernels cannot be built for these; empty where they can."""
    try:
        plan.decide_cuda("1", has_sources=True, nvcc=nvcc, torch=None, arch_list=text)
    except BuildError as error:
        return str(error)
    return ""


def _folder_problem(folder: Path) -> str:
    """Why nothing can be made in this folder, which is made if need be; empty where it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder}: {error.strerror}"


def compile_only(environment: Environment) -> None:
    """Whether the sources that see PyTorch's headers compile against this version's."""
    started = time.monotonic()
    (site,) = environment.folder.glob("lib/python*/site-packages")
    torch = plan.require_torch(probe.read_torch(site / "torch"))
    compiler = probe.find_compiler(os.environ).command
    command = [
        *compiler,
        "-std=c++17",
        "-fsyntax-only",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
    ]
    command += [f"-DTORCH_TARGET_VERSION={plan.TORCH_TARGET}", f"-I{ROOT / 'csrc'}"]
    for folder in (torch.include, torch.include / "torch/csrc/api/include"):
        command += ["-isystem", str(folder)]
    sources = [ROOT / "csrc/torch/register_cpu.cpp"]
    nvcc = probe.find_nvcc()
    if nvcc is not None and nvcc.include:
        sources.append(ROOT / "csrc/torch/register_cuda.cpp")
        command += ["-DUSE_CUDA", "-isystem", str(nvcc.include)]
    for source in sources:
        if subprocess.run([*command, str(source)], check=False).returncode != 0:
            raise SystemExit(f"check_torch: PyTorch {environment.version}: {source} fails")
    print(
        f"PyTorch {environment.version}: {len(sources)} sources compile against its headers "
        f"({time.monotonic() - started:.0f} s)"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("versions", nargs="+", metavar="VERSION", help="of PyTorch, such as 2.11.0")
    add("--headers", nargs="*", default=[], metavar="VERSION", help="only compiled against")
    add("--python", default=sys.executable, help="of the environments (default: this one)")
    add("--arch", default="9.0a", help="of the CUDA kernels (default 9.0a)")
    add("--rehearse", action="store_true", help="the GPU check, under the oldest version")
    add("--keep", type=Path, metavar="FOLDER", help="environments are made, and stay, there")
    args = parser.parse_args(argv)
    try:
        versions = sorted(args.versions, key=_key)
        headers = sorted(args.headers, key=_key)
    except ValueError:
        parser.error(f"versions are numbers such as 2.11.0, got {args.versions + args.headers}")
    for version in versions + headers:
        if _key(version) < plan.MIN_TORCH:
            parser.error(f"kanerva_ext needs PyTorch {plan.MIN_TORCH_TEXT} or later, got {version}")
    if problem := _program_problem(args.python):
        parser.error(f"--python {problem}")
    try:
        nvcc = probe.find_nvcc()
    except BuildError as error:
        parser.error(str(error))
    if nvcc is not None and (problem := _arch_problem(args.arch, nvcc)):
        parser.error(f"--arch {args.arch}: {problem}")
    if args.keep is not None and (problem := _folder_problem(args.keep)):
        parser.error(f"--keep {problem}")
    if nvcc is None:
        print("no nvcc: the CUDA library is left out")
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.keep or Path(scratch)).resolve()
        # One tree for all: what does not see PyTorch's headers is compiled once.
        tree = Path(scratch) / "tree"
        made = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.so", "__pycache__")
        shutil.copytree(ROOT, tree, ignore=made)
        ends: dict[str, tuple[Environment, Path]] = {}
        for version in versions:
            started = time.monotonic()
            environment = Environment(version, folder / version, args.python)
            environment.create()
            environment.add_packages()
            print(f"PyTorch {version}: installed ({time.monotonic() - started:.0f} s)", flush=True)
            wheel = environment.build(tree, args.arch, nvcc is not None)
            environment.try_out(nvcc is not None)
            if args.rehearse and version == versions[0] and nvcc is not None:
                environment.rehearse(args.arch)
            print(f"  done ({time.monotonic() - started:.0f} s)", flush=True)
            ends[version] = (environment, wheel)
        if len(versions) > 1:
            for here, there in ((versions[0], versions[-1]), (versions[-1], versions[0])):
                environment, wheel = ends[here][0], ends[there][1]
                print(f"PyTorch {here} with the wheel built against {there}:")
                environment.install(wheel)
                environment.try_out(nvcc is not None)
        for version in headers:
            environment = Environment(version, folder / f"headers-{version}", args.python)
            environment.create("--no-deps")
            compile_only(environment)
    return 0


if __name__ == "__main__":
    sys.exit(main())
