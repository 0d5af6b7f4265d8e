"""CUDA architecture lists, in the notation of ``TORCH_CUDA_ARCH_LIST``."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from .errors import BuildError

# Tensor-core kernels for Hopper need the architecture-specific target 9.0a.
DEFAULT_ARCHS = "8.0;9.0a;10.0;12.0"
# Asynchronous copies into shared memory, which the kernels use, start here.
MINIMUM = (8, 0)

_ENTRY = re.compile(r"(?P<major>\d+)\.(?P<minor>\d)(?P<suffix>[af]?)(?P<ptx>\+PTX)?", re.IGNORECASE)


@dataclass(frozen=True)
class Arch:
    """One target of nvcc: a cubin (and, with ``ptx``, also code for later GPUs)."""

    major: int
    minor: int
    suffix: str = ""
    ptx: bool = False

    @property
    def base(self) -> str:
        """Number without suffix, as in ``nvcc --list-gpu-arch``: "80", "120"."""
        return f"{self.major}{self.minor}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.suffix}{'+PTX' if self.ptx else ''}"

    def gencode(self) -> list[str]:
        """The options that make nvcc compile for this target."""
        number = self.base + self.suffix
        flags = ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if self.ptx:
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
        return flags


def parse(text: str) -> tuple[Arch, ...]:
    """Reads "8.0;9.0a;12.0+PTX" (also with spaces or commas), without duplicates.

    Raises:
        BuildError: an entry is not a number such as 8.0, 9.0a or 12.0+PTX, or the list is empty.
    """
    found: dict[tuple[int, int, str], Arch] = {}
    for word in re.split(r"[;,\s]+", text.strip()):
        if not word:
            continue
        match = _ENTRY.fullmatch(word)
        if match is None:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: {word!r} is not understood; write numbers such as "
                '"8.0;9.0a;12.0+PTX" (names such as "Hopper" are not accepted).'
            )
        major, minor = int(match["major"]), int(match["minor"])
        suffix, ptx = match["suffix"].lower(), match["ptx"] is not None
        key = (major, minor, suffix)
        ptx = ptx or (key in found and found[key].ptx)
        found[key] = Arch(major, minor, suffix, ptx)
    if not found:
        raise BuildError(
            f"TORCH_CUDA_ARCH_LIST is {text!r}, which names no architecture; "
            f'unset it for the default ({DEFAULT_ARCHS}) or write e.g. "8.0;9.0a".'
        )
    return tuple(found[key] for key in sorted(found))


def default(supported: Collection[str]) -> tuple[Arch, ...]:
    """The default list as far as this nvcc knows it, with PTX of the newest for later GPUs.

    Args:
        supported: numbers from ``nvcc --list-gpu-arch``, such as "80" and "120".
    """
    archs = [arch for arch in parse(DEFAULT_ARCHS) if arch.base in supported]
    if archs:
        newest = archs[-1]
        if newest.suffix:
            # PTX of an architecture-specific target runs nowhere else: add the plain one.
            archs.append(Arch(newest.major, newest.minor, "", True))
        else:
            archs[-1] = Arch(newest.major, newest.minor, "", True)
    return tuple(archs)


def describe(archs: Collection[Arch]) -> str:
    return ";".join(str(arch) for arch in archs)
