"""A child: one question, answered by a line in the file that ``KANERVA_RESULT`` names."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from . import rows, tools, visit
from .processes import RESULT_VARIABLE, kill_session

LOCK_VARIABLE = "KANERVA_GPU_LOCK"
PR_SET_PDEATHSIG = 1

#: What PyTorch and CUDA say where there is no GPU.
WITHOUT_GPU = (
    "Found no NVIDIA driver",
    "No CUDA GPUs are available",
    "no CUDA-capable device is detected",
    "CUDA driver version is insufficient",
    "Torch not compiled with CUDA enabled",
    "driver on your system is too old",
)
#: After these the context is lost, and with it every later call of the process.
LOST_CONTEXT = (
    "illegal memory access",
    "misaligned address",
    "illegal instruction",
    "invalid program counter",
    "device-side assert",
    "hardware stack error",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable ECC error",
    "illegal address space",
)


def classify(error: BaseException) -> tuple[str, str]:
    """State and note of a row for what was raised."""
    texts, seen = [], error
    while seen is not None:
        texts.append(str(seen))
        if isinstance(seen, OSError) and seen.errno == errno.ENOSPC:
            return rows.DISK_FULL, str(seen)
        seen = seen.__cause__ or seen.__context__
    text = "\n".join(texts)
    first = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]
    for phrases, state in ((WITHOUT_GPU, rows.NO_GPU), (LOST_CONTEXT, rows.CUDA_ERROR)):
        for phrase in phrases:
            if phrase in text:
                return state, phrase if state == rows.NO_GPU else first
    if "out of memory" in text:
        return rows.OUT_OF_MEMORY, first
    return rows.FAILED, first


def say(line: dict) -> None:
    """Appends a line of result. OSError where the disk is full."""
    with open(os.environ[RESULT_VARIABLE], "a", encoding="utf-8") as file:
        file.write(rows.dumps(line) + "\n")


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """One process at a time, of those whose times must not disturb each other. The lock of one that
    dies goes to the next."""
    path = os.environ.get(LOCK_VARIABLE)
    if path is None:
        yield
        return
    with open(path, "a") as file:
        say({"waiting": True})
        fcntl.flock(file, fcntl.LOCK_EX)
        say({"waiting": False})
        yield


def die_with_parent(with_session: bool = False) -> None:
    """So that no child goes on when gpu_check is killed (Linux), nor what it has started: a build
    would be in the way of the next one. The session is this process's own (`processes.run`)."""
    number, own = signal.SIGKILL, os.getpid()
    if with_session and os.getsid(0) == own:
        number = signal.SIGTERM
        signal.signal(number, lambda *_: kill_session(own))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def require_installed(backend: str, device: str = "cuda") -> None:
    """RuntimeError unless the installed package is imported, and has the backend. On a CPU, where
    this module is tested, whatever package is tested will do."""
    import kanerva_ext

    if device == "cpu":
        return
    place = Path(kanerva_ext.__file__).resolve()
    if visit.ROOT in place.parents:
        raise RuntimeError(f"the checkout is imported, not the installed package: {place}")
    status = kanerva_ext.backends()[backend]
    if status != "available":
        raise RuntimeError(f"backend {backend}: {status}")


def build(arch: str, source: str) -> dict:
    """Builds and installs the package; the note has the compiler's error first."""
    env = {"KANERVA_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch}
    status, text, _ = tools.run_tool(["env", *(f"{k}={v}" for k, v in env.items()),
                                      *visit.build_command()])  # fmt: skip
    if status != 0:
        error = visit.compiler_error(text)
        return {"state": rows.FAILED, "note": error.splitlines()[0][:300], "error": error}
    importlib.invalidate_caches()
    visit.record_build(source, arch)
    return {"state": rows.OK, "arch": arch}


def installed(backend: str) -> dict:
    """What is imported, and how it was built."""
    import torch

    import kanerva_ext

    require_installed(backend)
    from kanerva_ext import _core

    return {
        "place": str(Path(kanerva_ext.__file__).parent),
        "torch": torch.__version__,
        "build": {k: str(v) for k, v in dict(_core.build_info()).items()},
    }


def device() -> dict:
    """The GPU as PyTorch sees it."""
    import torch

    torch.zeros(1, device="cuda")
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "processors": found.multi_processor_count,
        "memory": found.total_memory,
        "l2": found.L2_cache_size,
    }


def sanitize(tool: str, **question: str) -> dict:
    return tools.sanitized(tool, child_command("sanitized", **question))


def profile(**question: str) -> dict:
    return tools.profiled(child_command("profiled", **question))


def child_command(kind: str, **question: object) -> list[str]:
    """The command line of a child."""
    return [sys.executable, str(visit.CHECK), "child", kind, json.dumps(question)]


#: The questions of other modules, which import torch.
MODULES = {
    "checks": (
        "smoke", "graphs", "capture_sizes", "streams", "host_threads", "determinism", "sanitized",
        "precompile",
    ),
    "timing": ("rates", "compare", "compiled", "duel", "profiled"),
    "suite": ("tests",),
}  # fmt: skip


#: Questions that are other programs' and their children's.
TOOLS = ("build", "sanitize", "profile")


def find(kind: str):
    for name, kinds in MODULES.items():
        if kind in kinds:
            return getattr(importlib.import_module(f"{__package__}.{name}"), kind)
    own = {f.__name__: f for f in (build, installed, device, sanitize, profile)}
    return own[kind]


def main(arguments: list[str]) -> int:
    """``gpu_check.py child KIND QUESTION``: writes the result; 0 if all is well."""
    kind, question = arguments[0], json.loads(arguments[1])
    os.environ.setdefault(RESULT_VARIABLE, os.devnull)
    die_with_parent(with_session=kind in TOOLS)
    try:
        result = find(kind)(**question) or {}
    except BaseException as error:
        traceback.print_exc()
        state, note = classify(error)
        result = {"state": state, "note": note}
    result.setdefault("state", rows.OK)
    if os.environ[RESULT_VARIABLE] == os.devnull:
        print(rows.dumps(result))
    else:
        say(result)
    return 0 if result["state"] == rows.OK else 1
