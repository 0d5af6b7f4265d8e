"""Which implementation serves a call, and why another one does not."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import TracebackType

import torch

NAMES = ("auto", "cpu", "cuda", "triton", "reference")
AVAILABLE = "available"
_LATER = (
    'the {name} backend is not part of this release yet; use backend="auto" (which runs the '
    "PyTorch reference on GPU tensors) or move the tensors to the CPU"
)

#: What ``backend="auto"`` means in every public function; set by `use_backend`.
default = "auto"
#: Name of each backend -> "available" or why it is missing.
_status: dict[str, str] = {
    "cpu": "the C++ library has not been loaded",
    "cuda": _LATER.format(name="cuda"),
    "triton": _LATER.format(name="triton"),
    "reference": AVAILABLE,
}
_warned: set[str] = set()


def check_name(name: object, where: str = "backend") -> str:
    """``name`` if it names a backend, else a ValueError or TypeError that says what does."""
    if not isinstance(name, str):
        raise TypeError(f"{where} must be a str, one of {NAMES}, got {type(name).__name__}")
    if name not in NAMES:
        raise ValueError(f"{where} must be one of {NAMES}, got {name!r}")
    return name


def load() -> None:
    """Load the compiled operators, or record why they cannot be."""
    library = Path(__file__).parent / "_C.abi3.so"
    if not library.exists():
        _status["cpu"] = (
            f"{library} does not exist: the package was installed or imported without its C++ "
            "library; reinstall it with a C++17 compiler at hand (pip install --force-reinstall "
            "--no-deps .) and read the build's last lines"
        )
        return
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        _status["cpu"] = (
            f"{library} could not be loaded under torch {torch.__version__} (torch >= 2.11 is "
            f"needed): {error}"
        )
    else:
        _status["cpu"] = AVAILABLE


def backends() -> dict[str, str]:
    """Each backend's name with ``"available"`` or the reason why it is missing.

    >>> import kanerva_ext
    >>> kanerva_ext.backends()["reference"]
    'available'
    """
    return dict(_status)


class use_backend:
    """Set what ``backend="auto"`` means everywhere, for good or inside a ``with`` block.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``.

    Raises:
        TypeError, ValueError: ``name`` is not the name of a backend.
        RuntimeError: the backend is missing here; the message says why and what to do.

    The environment variable ``KANERVA_BACKEND`` sets it for the whole process.

    >>> import kanerva_ext
    >>> with kanerva_ext.use_backend("reference"):
    ...     pass  # every operator runs as plain PyTorch here
    """

    def __init__(self, name: str) -> None:
        global default
        check_name(name, "name")
        _require(name)
        self._previous, default = default, name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global default
        default = self._previous


def wants_reference(backend: str, device: torch.device) -> bool:
    """Whether the PyTorch reference was asked for; a RuntimeError if ``backend`` cannot serve."""
    check_name(backend)
    if backend == "auto":
        backend = default
    if backend == "auto" or backend == "reference":
        return backend == "reference"
    _require(backend)
    if device.type != backend:
        raise RuntimeError(
            f'backend="{backend}" serves {backend} tensors, got tensors on {device}; move them '
            'or use backend="auto"'
        )
    return False


def warn_reference(operator: str, device: torch.device) -> None:
    """Say once per cause that the slow reference serves an automatic choice."""
    if device.type == "cpu":
        cause, key = _status["cpu"], "cpu"
        if cause == AVAILABLE:
            return
    else:
        cause, key = f"no compiled kernels for {device.type} tensors yet", device.type
    if key not in _warned:
        _warned.add(key)
        warnings.warn(
            f"kanerva_ext: {operator} runs as plain PyTorch, which is much slower than the "
            f'compiled operators ({cause}). backend="reference" asks for it without this warning.',
            RuntimeWarning,
            stacklevel=2,
        )


def _require(name: str) -> None:
    if name != "auto" and _status[name] != AVAILABLE:
        raise RuntimeError(f'backend="{name}" is not available: {_status[name]}')


def from_environment() -> None:
    """Take the default from ``KANERVA_BACKEND``; a missing backend fails at the first call."""
    global default
    default = check_name(os.environ.get("KANERVA_BACKEND", "auto"), "KANERVA_BACKEND")
