"""What the tests of the build share. The source tree that this file is in must be complete."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from checkout import ROOT


def _build_backend(name: str):
    """Imports a module of build_backend/ without putting the source tree on ``sys.path``."""
    if "build_backend" not in sys.modules:
        folder = ROOT / "build_backend"
        spec = importlib.util.spec_from_file_location(
            "build_backend", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules["build_backend"] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"build_backend.{name}")


arch, backend, build_ext, ninja_build, plan, probe, targets = map(
    _build_backend, ("arch", "backend", "build_ext", "ninja_build", "plan", "probe", "targets")
)
BuildError = _build_backend("errors").BuildError

INCLUDE = Path("/site/torch/include")
TORCH_CPU = plan.Torch("2.13.0+cpu", INCLUDE)
TORCH_CUDA = plan.Torch("2.13.0", INCLUDE, cuda="13.0")
TORCH_ROCM = plan.Torch("2.13.0", INCLUDE, hip="7.1")
NVCC = plan.Nvcc(
    "/cuda/bin/nvcc",
    "13.0",
    ("75", "80", "86", "90", "100", "103", "120", "121"),
    Path("/cuda/include"),
)
NVCC_OLD = plan.Nvcc("/cuda/bin/nvcc", "12.4", ("50", "80", "90"))
NVCC_ANCIENT = plan.Nvcc("/cuda/bin/nvcc", "10.2", ("30", "70"))


def fake_torch(site: Path, version: str = "2.13.0+cpu", cuda: str | None = None) -> Path:
    (site / "torch/include/torch").mkdir(parents=True)
    (site / "torch/__init__.py").write_text("raise RuntimeError('torch was imported')\n")
    (site / "torch/version.py").write_text(
        "from typing import Optional\n\n"
        f"__version__ = '{version}'\ndebug = False\n"
        f"cuda: Optional[str] = {cuda!r}\nhip: Optional[str] = None\n"
    )
    return site


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def run_setup(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
