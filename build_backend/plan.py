"""Decides what is built. Pure functions of what was found: see ``probe`` for the finding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import arch
from .errors import BuildError

MIN_TORCH = (2, 11)
MIN_TORCH_TEXT = "2.11"
# Oldest libtorch stable ABI that the libraries may run on: major, minor in the two top bytes.
TORCH_TARGET = f"0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000"

# Compiler flags per instruction set; csrc/cpu/kernels*.cpp are compiled once for each.
ISA_FLAGS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        "-mavx512f",
        "-mavx512dq",
        "-mavx512bw",
        "-mavx512vl",
        "-mfma",
        "-mf16c",
        "-mprefer-vector-width=512",
    ),
}
X86_64 = ("x86_64", "amd64")


@dataclass(frozen=True)
class Torch:
    """A PyTorch on disk, described without importing it."""

    version: str
    include: Path
    cuda: str | None = None
    hip: str | None = None

    @property
    def lib(self) -> Path:
        return self.include.parent / "lib"

    @property
    def release(self) -> tuple[int, int]:
        major, minor = self.version.split(".")[:2]
        return int(major), int("".join(c for c in minor if c.isdigit()) or 0)

    @property
    def recent_enough(self) -> bool:
        return self.release >= MIN_TORCH


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its command line, how it names itself, the ISAs it can compile."""

    command: tuple[str, ...]
    version: str
    isas: tuple[str, ...] = ("baseline",)

    @property
    def program(self) -> str:
        """The compiler itself, without a launcher such as ccache before it or options after it."""
        launched = len(self.command) > 1 and Path(self.command[0]).name in ("ccache", "sccache")
        return self.command[1 if launched else 0]


@dataclass(frozen=True)
class Nvcc:
    """An nvcc: its path, its version ("13.0"), what ``--list-gpu-arch`` names ("80", ...).

    ``include`` is the toolkit's folder with cuda_runtime.h, where it is known.
    """

    path: str
    version: str
    archs: tuple[str, ...]
    include: Path | None = None


@dataclass(frozen=True)
class Cuda:
    """Whether ``_C_cuda`` is built, for what, and if not, why not."""

    build: bool
    reason: str = ""
    archs: tuple[arch.Arch, ...] = ()
    nvcc: Nvcc | None = None


@dataclass(frozen=True)
class Plan:
    """All that is decided before anything is compiled."""

    torch: Torch
    compiler: Compiler
    isas: tuple[str, ...]
    cuda: Cuda
    jobs: int
    cxxflags: tuple[str, ...] = ()
    ldflags: tuple[str, ...] = ()

    def summary(self) -> str:
        """The one line that is printed."""
        parts = [
            f"CPU ({', '.join(self.isas)}) with {self.compiler.version}",
            f"headers of torch {self.torch.version}",
        ]
        if self.cuda.build and self.cuda.nvcc is not None:
            parts.append(
                f"CUDA ({arch.describe(self.cuda.archs)}) with nvcc {self.cuda.nvcc.version}"
            )
        else:
            parts.append(f"no CUDA ({self.cuda.reason})")
        return f"kanerva_ext: building {'; '.join(parts)}; {self.jobs} job(s)"


def cuda_setting(value: str | None) -> str:
    """Checks ``KANERVA_CUDA``; unset or empty means "auto"."""
    setting = (value or "auto").strip().lower()
    if setting not in ("0", "1", "auto"):
        raise BuildError(f"KANERVA_CUDA is {value!r}; expected 0, 1 or auto.")
    return setting


def decide_cuda(
    setting: str,
    *,
    has_sources: bool,
    nvcc: Nvcc | None,
    torch: Torch | None,
    arch_list: str | None = None,
) -> Cuda:
    """Decides whether to build the CUDA library.

    "auto" never fails an install for something that the machine lacks: it builds without CUDA and
    keeps the reason. "1" fails where it cannot be done, and also builds against a PyTorch
    without CUDA (stable ABI headers suffice), which is how machines without a GPU check kernels.

    Args:
        setting: "0", "1" or "auto" (see ``cuda_setting``).
        has_sources: whether csrc/cuda has kernels.
        nvcc: the compiler found, or None.
        torch: the PyTorch found, or None.
        arch_list: ``TORCH_CUDA_ARCH_LIST``, or None.

    Raises:
        BuildError: with "1" and something missing; with a malformed list of architectures.
    """
    if setting == "0":
        return Cuda(False, "KANERVA_CUDA=0")

    def refuse(reason: str, cure: str) -> Cuda:
        if setting == "1":
            raise BuildError(f"KANERVA_CUDA=1, but {reason}; {cure}.")
        return Cuda(False, reason, nvcc=nvcc)

    if nvcc is None:
        return refuse(
            "nvcc was not found",
            "install the CUDA toolkit, set CUDA_HOME to it, or use KANERVA_CUDA=auto",
        )
    if not has_sources:
        return refuse("this version has no CUDA kernels", "use KANERVA_CUDA=auto")
    if setting == "auto":
        if torch is None:
            return Cuda(False, "PyTorch was not found", nvcc=nvcc)
        if torch.hip is not None:
            return Cuda(False, f"torch {torch.version} is built for ROCm", nvcc=nvcc)
        if torch.cuda is None:
            return Cuda(False, f"torch {torch.version} is built without CUDA", nvcc=nvcc)

    if not arch_list:
        archs = arch.default(nvcc.archs)
        if not archs:
            return refuse(
                f"nvcc {nvcc.version} knows none of {arch.DEFAULT_ARCHS}", "update the CUDA toolkit"
            )
        return Cuda(True, archs=archs, nvcc=nvcc)

    wanted = arch.parse(arch_list)
    archs = tuple(a for a in wanted if (a.major, a.minor) >= arch.MINIMUM)
    if not archs:
        minimum = ".".join(map(str, arch.MINIMUM))
        return refuse(
            f"TORCH_CUDA_ARCH_LIST={arch.describe(wanted)} has nothing from {minimum} on",
            f"the kernels need compute capability {minimum}",
        )
    unknown = [a for a in archs if a.base not in nvcc.archs]
    if unknown:
        return refuse(
            f"nvcc {nvcc.version} cannot compile for {arch.describe(unknown)}",
            "update the CUDA toolkit or shorten TORCH_CUDA_ARCH_LIST",
        )
    return Cuda(True, archs=archs, nvcc=nvcc)


def decide_isas(machine: str, compiler: Compiler) -> tuple[str, ...]:
    """Instruction sets of the CPU library, in rising order; other CPUs than x86-64: baseline."""
    if machine.lower() not in X86_64:
        return ("baseline",)
    return tuple(isa for isa in ISA_FLAGS if isa == "baseline" or isa in compiler.isas)


def decide_jobs(max_jobs: str | None, cores: int, free_bytes: int | None, *, cuda: bool) -> int:
    """Compilers to run at once: ``MAX_JOBS``, or one per core as far as memory goes.

    Raises:
        BuildError: ``MAX_JOBS`` is not a positive whole number.
    """
    if max_jobs:
        if not max_jobs.strip().isdigit() or int(max_jobs) < 1:
            raise BuildError(f"MAX_JOBS is {max_jobs!r}; expected a whole number from 1 on.")
        return int(max_jobs)
    need = (3 if cuda else 1) * 1024**3
    by_memory = cores if free_bytes is None else free_bytes // need
    return max(1, min(cores, by_memory))


def require_torch(torch: Torch | None) -> Torch:
    """Returns ``torch`` if the libraries can be compiled against it.

    Raises:
        BuildError: it is missing or too old.
    """
    if torch is None:
        raise BuildError(
            f"the headers of PyTorch >= {MIN_TORCH_TEXT} are needed to build; install PyTorch "
            "first, or run pip without --no-build-isolation, which fetches it."
        )
    if not torch.recent_enough:
        raise BuildError(
            f"PyTorch {torch.version} is too old (its headers lie in {torch.include}); "
            f"install torch >= {MIN_TORCH_TEXT}."
        )
    return torch
