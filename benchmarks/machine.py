"""The machine and the software a number was measured with."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

import kanerva_ext

from . import ceilings
from .timers import HOST, Timer


def describe(timer: Timer = HOST) -> dict[str, object]:
    """What a result file states about its origin; with the rates of the device that was timed."""
    about = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": _simd_level(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "kanerva_ext": kanerva_ext.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if timer.cuda is None:
        return about | {"gemm_gflops": round(gemm_rate() / 1e9, 1)}
    return about | _describe_gpu(timer)


def _describe_gpu(timer: Timer) -> dict[str, object]:
    properties = timer.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "torch_cuda": torch.version.cuda or torch.version.hip,
        "backends": ", ".join(f"{n}: {status}" for n, status in kanerva_ext.backends().items()),
        "gemm_gflops": round(ceilings.product_rate(timer) / 1e9, 1),
        "tf32_gflops": round(ceilings.product_rate(timer, tf32=True) / 1e9, 1),
        "copy_gb_per_s": round(ceilings.copy_rate(2**29, timer) / 1e9, 1),
    }


def headline(machine: dict[str, object]) -> str:
    changes = " + changes" if machine["uncommitted_changes"] else ""
    return (
        f"{machine.get('gpu') or machine['cpu']}, {setting(machine)}; kanerva_ext "
        f"{machine['kanerva_ext']} at {str(machine['commit'])[:10]}{changes}"
    )


def setting(machine: dict[str, object]) -> str:
    """The software, and the device's rates as measured in the same run."""
    product = f"{machine['gemm_gflops']} GFLOP/s in a float32 matrix product"
    if not machine.get("gpu"):
        return (
            f"torch {machine['torch']}, {machine['threads']} threads, {machine['simd']}, {product}"
        )
    return (
        f"torch {machine['torch']} (CUDA {machine['torch_cuda']}), {product}, "
        f"{machine['tf32_gflops']} in TensorFloat-32, {machine['copy_gb_per_s']} GB/s in a copy"
    )


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gemm_rate(size: int = 1024) -> float:
    """FLOP/s of PyTorch's float32 matrix product, the ceiling of its compositions."""
    a = torch.randn(size, size)
    least = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, a)
        least = min(least, time.perf_counter() - start)
    return 2 * size**3 / least


class OtherLoad:
    """Context that measures how many cores others kept busy, children that have ended not among
    them; None without /proc/stat."""

    cores: float | None = None

    def __enter__(self) -> OtherLoad:
        self._start = time.perf_counter(), _own_seconds(), _busy_seconds()
        return self

    def __exit__(self, *_) -> None:
        wall, own, busy = self._start
        now = _busy_seconds()
        if busy is not None and now is not None:
            others = now - busy - (_own_seconds() - own)
            self.cores = round(max(0.0, others / (time.perf_counter() - wall)), 2)


def _own_seconds() -> float:
    return sum(os.times()[:4])


def _busy_seconds() -> float | None:
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _simd_level() -> str:
    try:
        from kanerva_ext import _core
    except ImportError:
        return "no C++ library"
    return _core.simd_level()


def _git(*arguments: str) -> str:
    root = Path(__file__).parents[1]
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
