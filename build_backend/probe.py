"""Looks at the machine: PyTorch's files, compilers, cores, memory. Never imports torch."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

from .errors import BuildError
from .plan import ISA_FLAGS, Compiler, Nvcc, Torch

CXX_CANDIDATES = ("c++", "g++", "clang++")


def site_dirs() -> list[str]:
    """Where the interpreter's own packages lie, also from inside pip's isolated build.

    pip hides these directories from ``sys.path`` during an isolated build but still runs the
    interpreter of the environment that it installs into, so ``sysconfig`` names them.
    """
    dirs = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    in_venv = sys.prefix != sys.base_prefix
    if not in_venv or _sees_system_site(Path(sys.prefix)):
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        for scheme in (sysconfig.get_default_scheme(), "posix_prefix", "deb_system"):
            if scheme in sysconfig.get_scheme_names() and scheme != "venv":
                dirs += [sysconfig.get_path(name, scheme, base) for name in ("purelib", "platlib")]
        dirs.append(site.getusersitepackages())
    return list(dict.fromkeys(dirs))


def _sees_system_site(prefix: Path) -> bool:
    try:
        text = (prefix / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"(?im)^include-system-site-packages\s*=\s*true\s*$", text) is not None


def find_torch(dirs: Iterable[str] | None = None) -> Torch | None:
    """The first PyTorch with headers: on ``sys.path``, then in ``site_dirs()``."""
    if dirs is None:
        spec = PathFinder.find_spec("torch", sys.path)
        visible = [str(Path(spec.origin).parent.parent)] if spec and spec.origin else []
        dirs = [*visible, *site_dirs()]
    for folder in dirs:
        torch = read_torch(Path(folder) / "torch")
        if torch is not None:
            return torch
    return None


def read_torch(root: Path) -> Torch | None:
    """Describes the PyTorch in ``root`` by its files; None if it is absent or has no headers."""
    include = root / "include"
    if not (include / "torch").is_dir():
        return None
    try:
        text = (root / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    values = dict(re.findall(r"(?m)^(\w+)\s*(?::[^=]+)?=\s*['\"]([^'\"]*)['\"]", text))
    if not re.match(r"\d+\.\d+", values.get("__version__", "")):
        return None
    return Torch(values["__version__"], include, values.get("cuda"), values.get("hip"))


def _output(command: list[str], text: str | None = None) -> str | None:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def find_compiler(env: Mapping[str, str] = os.environ) -> Compiler:
    """The C++ compiler: ``CXX``, else the first of c++, g++, clang++ on ``PATH``.

    Raises:
        BuildError: there is none, or it cannot compile C++17.
    """
    chosen = env.get("CXX", "").strip()
    if chosen:
        command, name = shlex.split(chosen), f"CXX={chosen}"
    else:
        found = next((c for c in CXX_CANDIDATES if shutil.which(c, path=env.get("PATH"))), None)
        if found is None:
            raise BuildError(
                f"no C++ compiler was found (looked for {', '.join(CXX_CANDIDATES)} on PATH); "
                "install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install) "
                "or set CXX to one."
            )
        command, name = [found], found
    version = _output([*command, "--version"])
    if version is None:
        raise BuildError(
            f"the C++ compiler {name} was not found or does not run; "
            "set CXX to a C++17 compiler or unset it."
        )
    if not _compiles(command, ()):
        raise BuildError(f"the C++ compiler {name} cannot compile C++17; set CXX to one that can.")
    isas = tuple(isa for isa, flags in ISA_FLAGS.items() if not flags or _compiles(command, flags))
    return Compiler(tuple(command), version.strip().splitlines()[0], isas)


def _compiles(command: list[str], flags: tuple[str, ...]) -> bool:
    program = "template <class T> inline constexpr T zero{};\nint f() { return zero<int>; }\n"
    options = ["-std=c++17", "-Werror", *flags, "-x", "c++", "-fsyntax-only", "-"]
    return _output([*command, *options], program) is not None


def find_nvcc(env: Mapping[str, str] = os.environ) -> Nvcc | None:
    """The CUDA compiler, under ``CUDA_HOME`` or ``CUDA_PATH``, on ``PATH``, in /usr/local/cuda."""
    places = [
        Path(env[name], "bin", "nvcc") for name in ("CUDA_HOME", "CUDA_PATH") if env.get(name)
    ]
    on_path = shutil.which("nvcc", path=env.get("PATH"))
    places += [Path(on_path)] if on_path else []
    places.append(Path("/usr/local/cuda/bin/nvcc"))
    for place in places:
        release = re.search(r"release (\d+\.\d+)", _output([str(place), "--version"]) or "")
        if release is not None:
            listed = _output([str(place), "--list-gpu-arch"]) or ""
            archs = tuple(dict.fromkeys(re.findall(r"compute_(\d+)\b", listed)))
            return Nvcc(str(place), release[1], archs, _cuda_include(place))
    return None


def _cuda_include(nvcc: Path) -> Path | None:
    """The folder of cuda_runtime.h, as nvcc itself says it: it may be a wrapper or a link."""
    try:
        done = subprocess.run(
            [str(nvcc), "--dryrun", "-c", "-x", "cu", "-o", os.devnull, os.devnull],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    line = re.search(r"(?m)^#\$ INCLUDES=(.*)$", done.stderr)
    places = [Path(p) for p in re.findall(r'-I"?([^"\s]+)', line[1])] if line else []
    places.append(nvcc.resolve().parent.parent / "include")
    found = next((p for p in places if (p / "cuda_runtime.h").is_file()), None)
    return found.resolve() if found else None


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes of memory that compilers may take, the control group's limit included."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        free = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", text)[1])  # type: ignore[index]
    except (OSError, TypeError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or "max"
        return free
    return min(free, max(0, limit - used))
