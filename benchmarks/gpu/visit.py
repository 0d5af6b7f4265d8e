"""The machine, the source and the installed package, without importing torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "benchmarks/gpu_check.py"
RESULTS = ROOT / "benchmarks/results"
PREFIX = "gpu_"  # of the benchmark's name there: gpu_contact, gpu_tests, ...
STAMP = ROOT / "build/gpu_check.json"  # what was built from which source, for this interpreter
#: What the package is made of: a row counts as long as none of it changes.
SOURCES = ("build_backend", "csrc", "kanerva_ext", "pyproject.toml", "setup.py")
SUFFIXES = {".py", ".toml", ".cpp", ".h", ".cu", ".cuh"}
PACKAGES = ("torch", "triton", "numpy", "setuptools", "pytest")
MEMORY_OF_A_PROCESS = 4096  # MiB on the GPU: a context, PyTorch's kernels, a test's tensors


def source_hash() -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        place = ROOT / name
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                digest.update(f"{path.relative_to(ROOT)}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def query_gpu(*fields: str) -> list[str]:
    """What nvidia-smi says of the first GPU; empty without one."""
    listed = output(
        "nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"
    )
    first = listed.splitlines()[:1]
    values = [x.strip() for x in first[0].split(",")] if first else []
    return values if len(values) == len(fields) else []


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def describe() -> dict:
    """The row of this visit."""
    now = datetime.now(timezone.utc)
    gpu = query_gpu("name", "compute_cap", "driver_version", "memory.total", "clocks.max.sm")
    name, capability, driver, memory, clock = gpu or [""] * 5
    return {
        "key": "visit",
        "visit": now.strftime("%Y%m%dT%H%M%S"),
        "date": now.isoformat(timespec="seconds"),
        "device": name,
        "capability": capability,
        "driver": driver,
        "memory_mib": memory,
        "clock_mhz": clock,
        "commit": output("git", "rev-parse", "HEAD"),
        "changes": bool(output("git", "status", "--porcelain", "--untracked-files=no")),
        "source": source_hash(),
        "python": sys.version.split()[0],
        "cores": cores(),
        **{package: version(package) for package in PACKAGES},
    }


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_at_once(most: int = 64) -> int:
    """As many as the cores and the GPU's free memory allow."""
    free = query_gpu("memory.free")
    by_memory = int(free[0]) // MEMORY_OF_A_PROCESS if free and free[0].isdigit() else most
    return max(1, min(most, cores(), by_memory))


def arch_of(capability: str) -> str:
    """The one architecture to build for; Hopper has its own. An H100's where there is no GPU."""
    return {"9.0": "9.0a", "": "9.0a"}.get(capability, capability)


def installed_library() -> Path | None:
    """The CUDA library of the installed package, which is not the checkout's."""
    try:
        distribution = importlib.metadata.distribution("kanerva_ext")
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file("kanerva_ext/_C_cuda.abi3.so")))
    return path if path.is_file() and ROOT not in path.resolve().parents else None


def _stamp(source: str, arch: str) -> dict | None:
    library = installed_library()
    if library is None:
        return None
    stat = library.stat()
    torch = version("torch")
    return {
        "source": source,
        "arch": arch,
        "torch": torch,
        "library": str(library),
        "size": stat.st_size,
        "modified": stat.st_mtime_ns,
    }


def is_built(source: str, arch: str) -> bool:
    """Whether what is installed was built by `build` from this source, for this device."""
    try:
        found = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    return found is not None and found == _stamp(source, arch)


def record_build(source: str, arch: str) -> None:
    STAMP.parent.mkdir(exist_ok=True)
    STAMP.write_text(json.dumps(_stamp(source, arch)))


def build_command() -> tuple[str, ...]:
    install = ("-m", "pip", "install", "--no-index", "--disable-pip-version-check", "-v")
    return (sys.executable, *install, "--no-build-isolation", "--no-deps", str(ROOT))


def compiler_error(text: str, most: int = 12) -> str:
    """The lines from the first error that a compiler, or else the build, names."""
    lines = text.splitlines()
    for pattern in (r"\b(fatal )?error\s*(:|#|C\d)|undefined reference", r"(?i)\berror\b"):
        for i, line in enumerate(lines):
            if re.search(pattern, line) and "subprocess-exited-with-error" not in line:
                return "\n".join(lines[i : i + most])
    return "\n".join(lines[-most:])
