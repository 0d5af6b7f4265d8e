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


def describe() -> dict[str, object]:
    """What a result file states about its origin."""
    return {
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
        "gemm_gflops": round(gemm_rate() / 1e9, 1),
    }


def headline(machine: dict[str, object]) -> str:
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['simd']}; torch "
        f"{machine['torch']} ({machine['torch_blas']}, {machine['gemm_gflops']} GFLOP/s in a "
        f"float32 matrix product); kanerva_ext {machine['kanerva_ext']} at "
        f"{str(machine['commit'])[:10]}{' + changes' if machine['uncommitted_changes'] else ''}"
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
    """Context that measures how many cores other processes kept busy; None without /proc/stat."""

    cores: float | None = None

    def __enter__(self) -> OtherLoad:
        self._start = time.perf_counter(), time.process_time(), _busy_seconds()
        return self

    def __exit__(self, *_) -> None:
        wall, own, busy = self._start
        now = _busy_seconds()
        if busy is not None and now is not None:
            others = now - busy - (time.process_time() - own)
            self.cores = round(max(0.0, others / (time.perf_counter() - wall)), 2)


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
