"""A checkout in which nothing was compiled never stands in for the package that is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkout import ROOT

import kanerva_ext


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A checkout, as git has it."""
    root = tmp_path_factory.mktemp("tree")
    compiled = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "kanerva_ext", root / "kanerva_ext", ignore=compiled)
    shutil.copytree(ROOT / "benchmarks", root / "benchmarks", ignore=compiled)
    (root / "csrc").mkdir()
    return root


def python(tree, *words, **variables):
    """Python started in the tree, with the kanerva_ext under test further back on its path."""
    path = str(Path(kanerva_ext.__file__).parents[1])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KANERVA_")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=tree,
        env=environment | {"PYTHONPATH": path} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_it_says_what_to_do(tree):
    done = python(tree, "-c", "import kanerva_ext")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {tree / 'kanerva_ext'} is a source tree without")
    assert (
        "another folder" in last and "make develop" in last and "KANERVA_BACKEND=reference" in last
    )


def test_pythonpath_is_named_where_it_led_there(tree, tmp_path):
    done = python(tmp_path, "-c", "import kanerva_ext", PYTHONPATH=f"{tmp_path}{os.pathsep}{tree}")
    assert f"take {tree} out of PYTHONPATH" in done.stderr and "another folder" not in done.stderr


@pytest.mark.parametrize("zipped", [False, True])
def test_a_copy_of_the_package_says_what_to_do(tree, tmp_path, zipped):
    """Without csrc/ beside it; it ran as plain PyTorch, with one warning."""
    shutil.copytree(tree / "kanerva_ext", tmp_path / "copy/kanerva_ext")
    copy = tmp_path / "copy"
    if zipped:
        copy = Path(shutil.make_archive(str(tmp_path / "copy"), "zip", copy))
    done = python(tmp_path, "-c", "import kanerva_ext", PYTHONPATH=str(copy))
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(f"ImportError: {copy / 'kanerva_ext'} is a copy of the Python files")
    assert f"take {copy} out of PYTHONPATH" in last and "pip install ." in last
    code = "import kanerva_ext; print(kanerva_ext.backends()['cpu'])"
    done = python(tmp_path, "-c", code, PYTHONPATH=str(copy), KANERVA_BACKEND="reference")
    assert done.returncode == 0 and "does not exist" in done.stdout, done.stderr


def test_the_command_says_so_in_one_line(tree, tmp_path):
    path = os.pathsep.join([str(tree), str(ROOT)])
    done = python(tmp_path, "-m", "kanerva_command", "info", PYTHONPATH=path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"kanerva: {tree / 'kanerva_ext'} is a source tree without")


@pytest.mark.parametrize("module", ["info", "cli"])
def test_modules_say_so_in_one_line(tree, module):
    done = python(tree, "-m", f"kanerva_ext.{module}")
    assert done.returncode == 1
    assert "is a source tree without its compiled library" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_reference_can_be_asked_for(tree):
    words = ("-c", "import kanerva_ext; print(kanerva_ext.__file__, kanerva_ext.backends()['cpu'])")
    done = python(tree, *words, KANERVA_BACKEND="reference")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tree / "kanerva_ext"))
    assert "does not exist" in done.stdout


def test_benchmarks_started_in_it_measure_the_installed_package(tree):
    code = "import benchmarks, kanerva_ext; print(kanerva_ext.__file__)"
    done = python(tree, "-c", code)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == Path(kanerva_ext.__file__)


def test_every_backend_that_this_environment_has_is_available():
    backends = kanerva_ext.backends()
    assert backends["cpu"] == "available"
    gpu_torch = bool(torch.version.cuda or torch.version.hip)
    interpreted = "TRITON_INTERPRET" in os.environ
    triton = importlib.util.find_spec("triton") is not None and (gpu_torch or interpreted)
    assert (backends["triton"] == "available") == triton, backends["triton"]
    built = (Path(kanerva_ext.__file__).parent / "_C_cuda.abi3.so").exists()
    assert (backends["cuda"] == "available") == (built and bool(torch.version.cuda))
    if shutil.which("nvcc") and torch.version.cuda:
        assert built, "nvcc is here, and the CUDA kernels were not built"


def test_import_brings_no_compiler_along(tmp_path):
    """torch._dynamo and sympy cost more than a second and 70 MB."""
    code = (
        "import sys, torch; before = set(sys.modules); import kanerva_ext; "
        "print(*(set(sys.modules) - before))"
    )
    done = python(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    new = set(done.stdout.split())
    assert "kanerva_ext" in new
    heavy = {"torch._dynamo", "torch._inductor", "sympy", "triton", "numpy.testing", "matplotlib"}
    assert not new & heavy
    assert not {name for name in new if not name.startswith("kanerva_ext")}, new


def test_the_mark_of_a_constant_is_what_torch_sets():
    from kanerva_ext import _backend

    def marked():
        """What torch marks itself."""

    torch.compiler.assume_constant_result(marked)
    assert vars(marked).items() <= vars(_backend._why_unserved).items()
    assert vars(marked)


def test_the_citation_is_of_this_version():
    citation, changes = ((ROOT / n).read_text() for n in ("CITATION.cff", "CHANGELOG.md"))
    assert f"\nversion: {kanerva_ext.__version__}\n" in citation
    assert f"\n## {kanerva_ext.__version__}" in changes
