"""The operators' Autograd kernels in C++, where they serve the PyTorch that runs.

They stand in a library of their own, ``_autograd``, which needs PyTorch's unstable headers and so
serves the very version that it was compiled against. Where it does not, `._autograd` records
gradients by a Python Function: the same gradients, some 35 us later. The library calls operators
for the public functions, too, which saves some 4 us of a call (`direct`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

import torch

from .. import _backend
from ._declaration import Declaration


def _load():
    """The library, or None, and why it does not serve; that is empty where it does."""
    setting = os.environ.get("KANERVA_AUTOGRAD") or "auto"
    if setting not in ("auto", "python"):
        raise ValueError(f"KANERVA_AUTOGRAD must be 'auto' or 'python', got {setting!r}")
    if setting == "python":
        return None, "KANERVA_AUTOGRAD=python"
    try:
        built = importlib.import_module("kanerva_ext._core").build_info()["torch"]
    except ImportError:
        return None, "the compiled libraries are missing"
    if built != torch.__version__:
        return None, f"the library was compiled against torch {built}"
    try:
        library = importlib.import_module("kanerva_ext._autograd")
    except ImportError as error:
        return None, f"the library is missing or does not load: {error}"
    if not hasattr(library, "direct_call"):
        return None, "the library is older than the Python files: build it again"
    return library, ""


_library, why_not = _load()


def register(namespace: str, operator: Declaration, gradient: Callable) -> bool:
    """Register the Autograd kernel of an operator; False where Python has to.

    ``gradient`` is the raw gradient as a function with tangents, for forward mode in a backward.
    """
    if _library is None:
        return False
    _library.register(
        namespace,
        operator.name,
        list(operator.differentiable),
        list(operator.saved_results),
        gradient,
    )
    return True


def direct(namespace: str, operator: Declaration) -> Callable:
    """A function of a backend's name, ``check`` and the arguments of the operator, which calls it
    or gives None: where an argument is not raw (but for a number as noise variance or ridge), and
    wherever the call asks for more than PyTorch's dispatcher."""
    if _library is None:
        return lambda *args: None
    arguments = [(arg.dims, arg.kind, arg.optional) for arg in operator.args]
    return _library.direct_call(namespace, operator.name, arguments, vars(_backend))
