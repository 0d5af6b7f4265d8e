"""Which implementation serves a call, and why another one does not."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import warnings
from pathlib import Path
from types import TracebackType

import torch

NAMES = ("auto", "cpu", "cuda", "triton", "reference")
AVAILABLE = "available"
#: What ``backend="auto"`` means in every public function; set by `use_backend`.
default = "auto"
#: Whether a call with ``backend="auto"`` has to ask `choose`.
must_choose = False
#: Name of each backend -> "available" or why it is missing.
_status: dict[str, str] = {
    "cpu": "the C++ library has not been loaded",
    "cuda": "",  # found out when it is asked for, see _reason
    "triton": "it has not been looked for",
    "reference": AVAILABLE,
}
_warned: set[str] = set()
#: Index of each GPU that the CUDA library has no code for -> why; None: not looked at yet.
_unserved: dict[int, str] | None = None
#: Whether Triton's interpreter stands in for a GPU, so that CPU tensors are taken.
interpreted = False


def check_name(name: object, where: str = "backend") -> str:
    """``name`` if it names a backend, else a ValueError or TypeError that says what does."""
    if not isinstance(name, str):
        raise TypeError(f"{where} must be a str, one of {NAMES}, got {type(name).__name__}")
    if name not in NAMES:
        raise ValueError(f"{where} must be one of {NAMES}, got {name!r}")
    return name


def load() -> None:
    """Load the compiled operators, or record why they cannot be.

    Raises:
        ImportError: nothing was compiled here: a source tree, or a copy of its Python files.
    """
    folder = Path(__file__).parent
    library = folder / "_C.abi3.so"
    if library.exists():
        _load_library("cpu", library)
    elif os.environ.get("KANERVA_BACKEND") == "reference":
        _status["cpu"] = (
            f"{library} does not exist: the package was installed or imported without its C++ "
            "library; reinstall it with a C++17 compiler at hand (pip install --force-reinstall "
            "--no-deps .) and read the build's last lines"
        )
    else:
        raise ImportError(_why_not_compiled(folder), name="kanerva_ext")
    library = folder / "_C_cuda.abi3.so"
    if not library.exists():
        _status["cuda"] = ""
    elif torch.version.cuda is None:
        _status["cuda"] = (
            f"it was built, but torch {torch.__version__} has no CUDA; install a PyTorch with CUDA "
            "(kanerva_ext need not be built again)"
        )
    else:
        _load_library("cuda", library)
    _find_triton()
    _see_whether_to_choose()


def triton_serves_gpus() -> bool:
    """Whether Triton's kernels are to serve GPUs, because no CUDA library does."""
    gpus = torch.version.cuda or torch.version.hip
    return bool(gpus) and _status["triton"] == AVAILABLE and _status["cuda"] != AVAILABLE


def _why_not_compiled(folder: Path) -> str:
    """Why a package without its library is not imported, and what to do."""
    searched = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if any(Path(each).resolve() == folder.parent.resolve() for each in searched):
        way_out = f"take {folder.parent} out of PYTHONPATH"
    else:
        way_out = "start Python in another folder (or with -P)"
    if (folder.parent / "csrc").is_dir():
        what, build = "a source tree", "run `make develop` to build it here"
    else:
        what, build = "a copy of the Python files", "run `pip install .` in the source tree"
    return (
        f"{folder} is {what} without its compiled library, and hides the kanerva_ext that may be "
        f"installed: {way_out}, or {build}; KANERVA_BACKEND=reference uses it as it is, slowly"
    )


def _find_triton() -> None:
    """Whether Triton is there; it is imported with the first call that it serves."""
    global interpreted
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
    if importlib.util.find_spec("triton") is None:
        _status["triton"] = (
            "Triton is not installed; it comes with PyTorch for GPUs on Linux, and otherwise with "
            'pip install "triton>=3.6"'
        )
    elif not (interpreted or torch.version.cuda or torch.version.hip):
        _status["triton"] = (
            f"torch {torch.__version__} has no GPU support; install a PyTorch with CUDA or ROCm, "
            "or set TRITON_INTERPRET=1 before Python starts to run the kernels in Triton's "
            "interpreter, on the CPU and slowly"
        )
    else:
        _status["triton"] = AVAILABLE


def _load_library(name: str, library: Path) -> None:
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        _status[name] = (
            f"{library} could not be loaded under torch {torch.__version__} (torch >= 2.11 is "
            f"needed): {error.__cause__ or error}"
        )
    else:
        _status[name] = AVAILABLE


def _build_info() -> dict:
    """What the build recorded; empty without the NumPy module."""
    try:
        return dict(importlib.import_module("kanerva_ext._core").build_info())
    except ImportError:
        return {}


def _reason(name: str) -> str:
    """The status of a backend."""
    if not _status[name]:
        why = _build_info().get("cuda_reason") or "the library is missing"
        _status[name] = (
            f"the CUDA kernels were not built ({why}); with nvcc at hand, "
            "KANERVA_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps . in the "
            'source tree builds them; or use backend="auto"'
        )
    return _status[name]


def _see_whether_to_choose() -> None:
    global must_choose
    may_be_unserved = _unserved is None or bool(_unserved)
    must_choose = default != "auto" or (_status["cuda"] == AVAILABLE and may_be_unserved)


def serves_capability(capability: tuple[int, int], archs: list[str]) -> bool:
    """Whether code built for ``archs`` ("8.0", "9.0a", "12.0+PTX") runs on such a GPU."""
    for text in archs:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", text)
        if match is None:
            continue
        arch, suffix, ptx = (int(match[1]), int(match[2])), match[3], match[4]
        # "a" runs on that capability alone; a cubin on later minor versions; PTX on all later ones.
        later = capability >= arch and (capability[0] == arch[0] or (ptx and not suffix))
        if capability == arch or (later and suffix != "a"):
            return True
    return False


def unserved_devices() -> dict[int, str]:
    """GPUs that the CUDA library has no code for: index -> why. Initialises CUDA."""
    global _unserved
    if _unserved is None:
        found = {}
        archs = _build_info().get("cuda_archs")
        for index in range(torch.cuda.device_count()) if archs else ():
            capability = torch.cuda.get_device_capability(index)
            if not serves_capability(capability, archs):
                found[index] = (
                    f"cuda:{index} ({torch.cuda.get_device_name(index)}) has compute capability "
                    f"{capability[0]}.{capability[1]}, but the CUDA kernels were built for "
                    f"{', '.join(archs)}"
                )
        _unserved = found
        _see_whether_to_choose()
    return _unserved


def _why_unserved(device: torch.device) -> str:
    """Why this GPU cannot run the CUDA kernels, or an empty text."""
    unserved = unserved_devices()
    if not unserved:
        return ""
    return unserved.get(torch.cuda.current_device() if device.index is None else device.index, "")


# What torch.compiler.assume_constant_result does, without its import of torch._dynamo and sympy:
# 1.5 s and 70 MB at `import kanerva_ext`.
_why_unserved._dynamo_marked_constant = True


def backends() -> dict[str, str]:
    """Each backend's name with ``"available"`` or the reason why it is missing.

    >>> import kanerva_ext
    >>> kanerva_ext.backends()["reference"]
    'available'
    """
    return {name: _reason(name) for name in _status}


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
        _see_whether_to_choose()

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
        _see_whether_to_choose()


def choose(backend: str, device: torch.device) -> str:
    """Who serves a call on this ``device``: "native" (compiled, registered for the device),
    "triton" or "reference". A RuntimeError if ``backend`` cannot.
    """
    check_name(backend)
    if backend == "auto":
        backend = default
    if backend == "auto":
        return _choose_for(device)
    if backend != "reference":
        _require(backend)
        _check_device(backend, device)
    return backend if backend in ("reference", "triton") else "native"


def _choose_for(device: torch.device) -> str:
    if device.type != "cuda" or _status["cuda"] != AVAILABLE:
        return "native"
    why = _why_unserved(device)
    if not why:
        return "native"
    if _status["triton"] == AVAILABLE:
        return "triton"
    _warn_once(f"cuda:{device.index}", "the call", why)
    return "reference"


def _check_device(backend: str, device: torch.device) -> None:
    serves = {"triton": "cuda"}.get(backend, backend)
    if device.type != serves and not (backend == "triton" and device.type == "cpu" and interpreted):
        more = ""
        if backend == "triton":
            more = " (and cpu tensors if TRITON_INTERPRET=1 was set before Python started)"
        raise RuntimeError(
            f'backend="{backend}" serves {serves} tensors{more}, got tensors on {device}; '
            'move them or use backend="auto"'
        )
    if backend == "cuda":
        why = _why_unserved(device)
        if why:
            raise RuntimeError(f'backend="cuda" cannot serve this GPU: {why}')


def warn_reference(operator: str, device: torch.device) -> None:
    """Say once per cause that the slow reference serves where compiled kernels were to."""
    key = kind = device.type
    if _status.get(kind) == AVAILABLE:
        key = f"{kind} {operator}"
        cause = (
            f"the compiled library for {kind} tensors was built without it: run `make develop` in "
            "a source tree, or install again"
        )
    elif kind == "cpu":
        cause = _status["cpu"]
    else:
        cause = f"no compiled kernels for {kind} tensors"
        if kind == "cuda":
            cause += f": {_reason('cuda')}; {_reason('triton')}"
    _warn_once(key, operator, cause)


def _warn_once(key: str, operator: str, cause: str) -> None:
    if key not in _warned:
        _warned.add(key)
        warnings.warn(
            f"kanerva_ext: {operator} runs as plain PyTorch, which is much slower than the "
            f'compiled operators ({cause}). backend="reference" asks for it without this warning.',
            RuntimeWarning,
            stacklevel=3,
        )


def _require(name: str) -> None:
    if name != "auto" and _status[name] != AVAILABLE:
        raise RuntimeError(f'backend="{name}" is not available: {_reason(name)}')


def from_environment() -> None:
    """Take the default from ``KANERVA_BACKEND``; a missing backend fails at the first call.

    Raises:
        ImportError: it names no backend. (It is read when the package is imported.)
    """
    global default
    name = os.environ.get("KANERVA_BACKEND") or "auto"
    try:
        default = check_name(name, "KANERVA_BACKEND")
    except ValueError as error:
        raise ImportError(str(error), name="kanerva_ext") from None
    _see_whether_to_choose()
