"""``kanerva info`` or ``python -m kanerva_ext.info``: what is there, what is missing and why."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy
import torch

import kanerva_ext

from . import _backend, pretrained
from ._terminal import run_command
from ._version import __version__
from .ops import _cpp_autograd

VARIABLES = (
    "KANERVA_BACKEND",
    "KANERVA_AUTOGRAD",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "TRITON_INTERPRET",
)
REBUILD = "pip install --force-reinstall --no-deps ."
REBUILD_CUDA = f"KANERVA_CUDA=1 {REBUILD}"


def _core() -> tuple[Any, str]:
    """The NumPy module with the build information, or None and why it cannot be imported."""
    try:
        return importlib.import_module("kanerva_ext._core"), ""
    except ImportError as error:
        return None, str(error)


def _gpu(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)} (compute capability {major}.{minor})"


def _unserved() -> list[str]:
    available = kanerva_ext.backends()["cuda"] == _backend.AVAILABLE
    return list(_backend.unserved_devices().values()) if available else []


def collect() -> dict[str, Any]:
    """Everything that ``kanerva info`` prints.

    Returns:
        A dict that ``json.dumps`` takes, with ``version``, ``location``, ``python``, ``platform``,
        ``numpy``, ``torch``, ``torch_cuda``, ``gpus`` (list of names),
        ``unserved_gpus`` (why the CUDA kernels do not run on some), ``threads`` (of PyTorch),
        ``backends`` (name -> "available" or why not), ``simd`` (in use; None without ``_core``),
        ``gradients`` (what records them: "C++", or "Python" and why),
        ``build`` (dict of the compiled libraries, or None), ``core_error`` (why ``build`` is
        None), ``pretrained`` (name of each model that ships -> what it is), ``environment``
        (variables that are set) and ``advice`` (list of sentences).

    >>> from kanerva_ext.info import collect
    >>> collect()["backends"]["reference"]
    'available'
    """
    core, core_error = _core()
    cuda = torch.cuda.is_available()
    info: dict[str, Any] = {
        "version": __version__,
        "location": str(Path(kanerva_ext.__file__).parent),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "unserved_gpus": _unserved() if cuda else [],
        "threads": torch.get_num_threads(),
        "backends": kanerva_ext.backends(),
        "simd": core.simd_level() if core else None,
        "gradients": f"Python ({_cpp_autograd.why_not})" if _cpp_autograd.why_not else "C++",
        "build": dict(core.build_info()) if core else None,
        "core_error": core_error,
        "pretrained": pretrained.describe(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    info["advice"] = advice(info)
    return info


def advice(info: dict[str, Any]) -> list[str]:
    """How to get what is missing, for a dict from ``collect``."""
    build, found = info["build"], []
    triton = info["backends"]["triton"] == _backend.AVAILABLE
    substitute = "the Triton kernels" if triton else "plain PyTorch"
    if build is None:
        found.append(
            "The compiled libraries are missing or do not load, so everything runs as plain "
            f"PyTorch. Run `{REBUILD}` in the source tree with a C++17 compiler and read its last "
            "lines."
        )
        return found
    if build["version"] != info["version"]:
        found.append(
            f"The compiled libraries are of version {build['version']}, the Python files of "
            f"{info['version']}: rebuild with `{REBUILD}`."
        )
    if "avx2" not in build["isas"] and build["platform"].endswith("x86_64"):
        found.append(
            f"The compiler ({build['compiler']}) could not build for AVX2 or AVX-512: rebuild "
            "with a newer one."
        )
    if build["torch"] != info["torch"]:
        found.append(
            f"Gradients are recorded by {info['gradients']}, which costs some 35 us a call: "
            f"`{REBUILD}` under this PyTorch has them recorded by C++."
        )
    if info["torch_cuda"] and not build["cuda"]:
        found.append(
            f"This PyTorch has CUDA {info['torch_cuda']}, but kanerva_ext was built without it "
            f"({build['cuda_reason']}), so that tensors on a GPU are served by {substitute}. With "
            f"the CUDA toolkit's nvcc on PATH, run `{REBUILD_CUDA}` in the source tree."
        )
    found += [
        f"{why}: set TORCH_CUDA_ARCH_LIST to its capability (8.0 or later) and run "
        f"`{REBUILD_CUDA}` in the source tree; until then {substitute} serve it."
        for why in info["unserved_gpus"]
    ]
    return found


def render(info: dict[str, Any]) -> str:
    """The text for a dict from ``collect``."""
    build = info["build"]
    if build is None:
        library = [("libraries", f"not usable: {info['core_error']}")]
    else:
        archs = ", ".join(build["cuda_archs"]) or f"none ({build['cuda_reason']})"
        library = [
            ("built with", f"torch {build['torch']} (runs on {build['torch_target']} or later)"),
            ("compiler", build["compiler"]),
            ("flags", build["flags"]),
            ("nvcc", build["nvcc"] or "not found or not looked for when it was built"),
            ("SIMD", f"{info['simd']} in use (built: {', '.join(build['isas'])})"),
            ("CUDA archs", archs),
            ("gradients", f"recorded by {info['gradients']}"),
        ]
    device = f"CUDA {info['torch_cuda']}" if info["torch_cuda"] else "no CUDA"
    rows = [
        ("location", info["location"]),
        ("Python", f"{info['python']}, {info['platform']}"),
        ("PyTorch", f"{info['torch']} ({device}), {info['threads']} thread(s)"),
        ("NumPy", info["numpy"]),
        ("GPUs", ", ".join(info["gpus"]) or "none that PyTorch can use"),
        *library,
        *info["environment"].items(),
    ]
    lines = [f"kanerva_ext {info['version']}"]
    lines += [f"  {name:<12} {value}" for name, value in rows]
    lines.append("backends")
    lines += [f"  {name:<12} {status}" for name, status in info["backends"].items()]
    if info["pretrained"]:
        lines.append(f"trained models, as {pretrained.PREFIX}NAME")
        width = max(12, *map(len, info["pretrained"]))
        lines += [f"  {name:<{width}} {what}" for name, what in info["pretrained"].items()]
    if info["advice"]:
        lines += ["advice", *(f"  - {sentence}" for sentence in info["advice"])]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def show(args: argparse.Namespace) -> None:
    info = collect()
    with contextlib.suppress(BrokenPipeError):  # `head -3` has what it wants
        print(json.dumps(info, indent=2, sort_keys=True) if args.json else render(info))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kanerva_ext.info", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args(argv)
    return run_command("kanerva_ext.info", lambda: show(args))


if __name__ == "__main__":
    sys.exit(main())
