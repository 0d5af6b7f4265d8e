"""Compiles csrc/cuda/*.cu to PTX, once for each architecture, for the scripts that read it.

The files are build/ptx/ARCH/NAME.ptx, where nothing else is said; only what changed is compiled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from build_backend import probe, targets  # noqa: E402

BUILD = ROOT / "build/ptx"
#: Whose host code is compiled too: it is the same for all.
HOST_ARCH = "sm_90a"


def find_nvcc() -> probe.Nvcc:
    nvcc = probe.find_nvcc()
    if nvcc is None:
        raise SystemExit("nvcc was not found; set CUDA_HOME to a CUDA toolkit")
    return nvcc


def toolkit() -> Path:
    """The folder with cuda_runtime_api.h."""
    include = find_nvcc().include
    if not include:
        raise SystemExit("the headers of the CUDA toolkit were not found beside nvcc")
    return Path(include)


def kernels() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


def compile_all(sources: list[Path], arch: str, folder: Path | None = None) -> list[Path]:
    """The PTX files of ``sources`` for ``arch``, such as "sm_80"; for `HOST_ARCH` object files of
    their host code lie beside them: see `host_object`."""
    folder = folder or BUILD / arch
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder), ThreadPoolExecutor(probe.cores()) as pool:
        return list(pool.map(lambda source: _compile_one(source, arch, folder), sources))


def host_object(ptx: Path) -> Path:
    return ptx.with_suffix(".cu.o")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Another process that wants the same files waits, and then finds them."""
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _newest(source: Path) -> float:
    headers = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cuh")]
    return max(file.stat().st_mtime for file in (source, *headers))


def _compile_one(source: Path, arch: str, folder: Path) -> Path:
    target = folder / f"{source.stem}.ptx"
    made = [target, host_object(target)] if arch == HOST_ARCH else [target]
    newest = _newest(source)
    if all(file.exists() and file.stat().st_mtime >= newest for file in made):
        return target
    number = arch.removeprefix("sm_")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        new = [Path(scratch, file.name) for file in made]
        command = [find_nvcc().path, *targets.NVCC_FLAGS, "-lineinfo", f"-I{ROOT / 'csrc'}"]
        if arch == HOST_ARCH:  # the object has PTX inside that nobody reads
            command += [f"-gencode=arch=compute_{number},code=compute_{number}"]
            command += ["--keep", "--keep-dir", scratch, "-c", "-o", str(new[1])]
        else:
            command += [f"-arch={arch}", "-ptx", "-o", str(new[0])]
        done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"nvcc: {source.name} for {arch}:\n{done.stderr}")
        for file, place in zip(new, made, strict=True):
            file.replace(place)
    return target


def digest(ptx: str) -> str:
    """Of the instructions: names of files, lines and comments are left out.

    nvcc names what lies in an anonymous namespace after the file, by a hash.
    """
    kept = [
        line.split("//")[0].rstrip()
        for line in ptx.splitlines()
        if not re.match(r"\s*\.(loc|file)\b|\s*//", line)
    ]
    text = "\n".join(line for line in kept if line).split("\t.section\t.debug")[0]
    names = re.compile(r"(?<![0-9a-f])[0-9a-f]{8}_\d+_\w+?_cu_[0-9a-f]{8}(?:_\d+)?")
    return hashlib.sha256(names.sub("file", text).encode()).hexdigest()[:12]
