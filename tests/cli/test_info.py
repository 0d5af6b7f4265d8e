"""``python -m kanerva_ext.info`` with and without compiled libraries."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy
import pytest
import torch

import kanerva_ext
from kanerva_ext import info

BUILD = {
    "version": kanerva_ext.__version__,
    "platform": "linux-x86_64",
    "torch": "2.13.0+cpu",
    "torch_target": "2.11",
    "compiler": "g++ 12.2",
    "flags": "-O3",
    "isas": ["baseline", "avx2", "avx512"],
    "cuda": False,
    "cuda_reason": "nvcc was not found",
    "cuda_archs": [],
    "nvcc": None,
}


class FakeCore:
    def __init__(self, **changes):
        self._build = {**BUILD, **changes}

    def build_info(self):
        return self._build

    def simd_level(self):
        return "avx2"


@pytest.fixture
def with_core(monkeypatch):
    def use(core, error=""):
        monkeypatch.setattr(info, "_core", lambda: (core, error))
        return info.collect()

    return use


def test_command_reports_this_installation(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "kanerva_ext.info", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["version"] == kanerva_ext.__version__
    assert report["torch"] == torch.__version__
    assert report["numpy"] == numpy.__version__
    assert report["backends"] == kanerva_ext.backends()
    # The package under test is built: its libraries say so themselves.
    assert report["core_error"] == ""
    assert report["build"]["version"] == kanerva_ext.__version__
    assert report["build"]["torch_target"] == "2.11"
    assert report["simd"] in report["build"]["isas"]


def test_text_names_everything(with_core):
    text = info.render(with_core(FakeCore()))
    for expected in (
        f"kanerva_ext {kanerva_ext.__version__}",
        torch.__version__,
        "avx2 in use (built: baseline, avx2, avx512)",
        "none (nvcc was not found)",
        "g++ 12.2",
        *kanerva_ext.backends(),
    ):
        assert expected in text


def test_main_prints_text(capsys):
    assert info.main([]) == 0
    assert capsys.readouterr().out.startswith(f"kanerva_ext {kanerva_ext.__version__}\n")


def test_without_compiled_libraries(with_core):
    report = with_core(None, "No module named 'kanerva_ext._core'")
    assert report["build"] is None
    assert report["simd"] is None
    text = info.render(report)
    assert "not usable: No module named 'kanerva_ext._core'" in text
    assert "pip install --force-reinstall --no-deps ." in text


def test_import_error_is_kept(monkeypatch):
    def fail(name):
        raise ImportError(f"{name}: undefined symbol")

    monkeypatch.setattr(info.importlib, "import_module", fail)
    assert info._core() == (None, "kanerva_ext._core: undefined symbol")


@pytest.mark.parametrize(
    ("build", "torch_cuda", "expected"),
    [
        ({}, None, None),
        ({"version": "0.0.1"}, None, "of version 0.0.1"),
        ({"isas": ["baseline"]}, None, "could not build for AVX2"),
        ({"isas": ["baseline"], "platform": "linux-aarch64"}, None, None),
        ({}, "13.0", "was built without it (nvcc was not found)"),
        ({}, "13.0", "nvcc on PATH, run `KANERVA_CUDA=1 pip install"),
        ({"cuda": True}, "13.0", None),
    ],
)
def test_advice(with_core, build, torch_cuda, expected):
    report = {**with_core(FakeCore(**build)), "torch_cuda": torch_cuda}
    found = info.advice(report)
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1
        assert expected in found[0]


@pytest.mark.parametrize(
    ("triton", "expected"),
    [("available", "served by the Triton kernels"), ("missing", "served by plain PyTorch")],
)
def test_advice_says_what_serves_gpus_without_cuda_kernels(with_core, triton, expected):
    report = {**with_core(FakeCore()), "torch_cuda": "13.0"}
    report["backends"] = {**report["backends"], "triton": triton}
    (found,) = info.advice(report)
    assert expected in found


def test_advice_for_a_gpu_that_no_code_was_built_for(with_core):
    why = "cuda:0 (T4) has compute capability 7.5, but the CUDA kernels were built for 8.0"
    report = {**with_core(FakeCore(cuda=True)), "torch_cuda": "13.0", "unserved_gpus": [why]}
    (found,) = info.advice(report)
    assert why in found and "TORCH_CUDA_ARCH_LIST" in found and "KANERVA_CUDA=1" in found


def test_environment_variables_that_are_set(with_core, monkeypatch):
    monkeypatch.setenv("KANERVA_BACKEND", "reference")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    report = with_core(FakeCore())
    assert report["environment"]["KANERVA_BACKEND"] == "reference"
    assert "OMP_NUM_THREADS" not in report["environment"]
