"""What the build decides, by what it finds on the machine."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig

import pytest
from build_helpers import (
    INCLUDE,
    NVCC,
    NVCC_ANCIENT,
    NVCC_OLD,
    ROOT,
    TORCH_CPU,
    TORCH_CUDA,
    TORCH_ROCM,
    BuildError,
    arch,
    backend,
    executable,
    fake_torch,
    plan,
    probe,
    run_setup,
)

# Architectures


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0", "8.0"),
        ("8.0;9.0a", "8.0;9.0a"),
        ("9.0A 8.0", "8.0;9.0a"),
        ("8.0;9.0+PTX", "8.0;9.0+PTX"),
        ("8.0, 8.6,12.0+ptx ", "8.0;8.6;12.0+PTX"),
        ("10.0f", "10.0f"),
        ("8.0;8.0+PTX;8.0", "8.0+PTX"),
        ("9.0;9.0a", "9.0;9.0a"),
    ],
)
def test_arch_list(text, expected):
    assert arch.describe(arch.parse(text)) == expected


@pytest.mark.parametrize(
    "text", ["Hopper", "8.0;Ampere", "sm_80", "80", "8.0b", "8", "8.0+", "8.0-PTX"]
)
def test_arch_list_names_what_it_does_not_understand(text):
    with pytest.raises(BuildError, match=r"TORCH_CUDA_ARCH_LIST: '.+' is not understood") as error:
        arch.parse(text)
    assert repr(text.split(";")[-1]) in str(error.value)


@pytest.mark.parametrize("text", [" ", ";", ",;"])
def test_arch_list_of_nothing(text):
    with pytest.raises(BuildError, match="names no architecture"):
        arch.parse(text)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("8.0", ["-gencode", "arch=compute_80,code=sm_80"]),
        ("9.0a", ["-gencode", "arch=compute_90a,code=sm_90a"]),
        (
            "12.0+PTX",
            [
                "-gencode",
                "arch=compute_120,code=sm_120",
                "-gencode",
                "arch=compute_120,code=compute_120",
            ],
        ),
    ],
)
def test_gencode(text, flags):
    assert arch.parse(text)[0].gencode() == flags


@pytest.mark.parametrize(
    ("nvcc", "expected"),
    [
        (NVCC, "8.0;9.0a;10.0;12.0+PTX"),
        # PTX of 9.0a runs on nothing else, so the plain one is added.
        (NVCC_OLD, "8.0;9.0a;9.0+PTX"),
        (NVCC_ANCIENT, ""),
    ],
)
def test_default_archs(nvcc, expected):
    assert arch.describe(arch.default(nvcc.archs)) == expected


# CUDA or not


@pytest.mark.parametrize("sources", [True, False])
@pytest.mark.parametrize("nvcc", [NVCC, None])
@pytest.mark.parametrize("torch", [TORCH_CPU, TORCH_CUDA, None])
@pytest.mark.parametrize("setting", ["0", "1", "auto"])
def test_cuda_decision(setting, torch, nvcc, sources):
    def decide():
        return plan.decide_cuda(setting, has_sources=sources, nvcc=nvcc, torch=torch)

    possible = nvcc is not None and sources
    if setting == "1" and not possible:
        with pytest.raises(BuildError, match=r"^kanerva_ext: KANERVA_CUDA=1, but "):
            decide()
        return
    decision = decide()
    expected = possible and (setting == "1" or (setting == "auto" and torch is TORCH_CUDA))
    assert decision.build is expected
    assert bool(decision.reason) is not expected
    assert bool(decision.archs) is expected


@pytest.mark.parametrize(
    ("setting", "sources", "nvcc", "torch", "archs", "reason"),
    [
        ("0", True, NVCC, TORCH_CUDA, None, r"^KANERVA_CUDA=0$"),
        ("auto", True, None, TORCH_CUDA, None, r"^nvcc was not found$"),
        ("auto", False, NVCC, TORCH_CUDA, None, r"no CUDA kernels"),
        ("auto", True, NVCC, TORCH_CPU, None, r"torch 2\.13\.0\+cpu is built without CUDA"),
        ("auto", True, NVCC, TORCH_ROCM, None, r"ROCm"),
        ("auto", True, NVCC, None, None, r"PyTorch was not found"),
        ("auto", True, NVCC_OLD, TORCH_CUDA, "12.0", r"nvcc 12\.4 cannot compile for 12\.0"),
        ("auto", True, NVCC_ANCIENT, TORCH_CUDA, None, r"nvcc 10\.2 knows none of"),
        ("auto", True, NVCC, TORCH_CUDA, "7.5", r"has nothing from 8\.0 on"),
    ],
)
def test_why_not_cuda(setting, sources, nvcc, torch, archs, reason):
    decision = plan.decide_cuda(
        setting, has_sources=sources, nvcc=nvcc, torch=torch, arch_list=archs
    )
    assert not decision.build
    assert re.search(reason, decision.reason)


@pytest.mark.parametrize(
    ("sources", "nvcc", "archs", "message"),
    [
        (True, None, None, "nvcc was not found; install the CUDA toolkit, set CUDA_HOME"),
        (False, NVCC, None, "this version has no CUDA kernels"),
        (True, NVCC_OLD, "8.0;12.0", r"nvcc 12\.4 cannot compile for 12\.0;"),
        (True, NVCC, "7.5", r"has nothing from 8\.0 on"),
    ],
)
def test_cuda_demanded_but_impossible(sources, nvcc, archs, message):
    with pytest.raises(BuildError, match=message) as error:
        plan.decide_cuda("1", has_sources=sources, nvcc=nvcc, torch=TORCH_CPU, arch_list=archs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", ["1", "auto"])
@pytest.mark.parametrize(
    ("archs", "expected"),
    [("9.0a", "9.0a"), ("7.5 8.0 8.6+PTX", "8.0;8.6+PTX"), ("", "8.0;9.0a;10.0;12.0+PTX")],
)
def test_arch_list_is_honoured(setting, archs, expected):
    decision = plan.decide_cuda(
        setting, has_sources=True, nvcc=NVCC, torch=TORCH_CUDA, arch_list=archs
    )
    assert arch.describe(decision.archs) == expected


@pytest.mark.parametrize("setting", ["1", "auto"])
def test_malformed_arch_list_is_an_error_even_with_auto(setting):
    with pytest.raises(BuildError, match="'Hopper' is not understood"):
        plan.decide_cuda(
            setting, has_sources=True, nvcc=NVCC, torch=TORCH_CUDA, arch_list="8.0;Hopper"
        )


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "auto"), ("", "auto"), ("auto", "auto"), ("AUTO", "auto"), ("0", "0"), (" 1 ", "1")],
)
def test_cuda_setting(value, expected):
    assert plan.cuda_setting(value) == expected


def test_cuda_setting_rejects_other_values():
    with pytest.raises(BuildError, match=r"KANERVA_CUDA is 'yes'; expected 0, 1 or auto\."):
        plan.cuda_setting("yes")


# CPU, jobs, PyTorch


@pytest.mark.parametrize(
    ("machine", "compiler", "expected"),
    [
        ("x86_64", ("baseline", "avx2", "avx512"), ("baseline", "avx2", "avx512")),
        ("AMD64", ("baseline", "avx2", "avx512"), ("baseline", "avx2", "avx512")),
        ("x86_64", ("baseline", "avx2"), ("baseline", "avx2")),
        ("aarch64", ("baseline", "avx2", "avx512"), ("baseline",)),
        ("arm64", ("baseline",), ("baseline",)),
    ],
)
def test_instruction_sets(machine, compiler, expected):
    assert plan.decide_isas(machine, plan.Compiler(("c++",), "c++ 12", compiler)) == expected


GIB = 1024**3


@pytest.mark.parametrize(
    ("max_jobs", "cores", "free", "cuda", "expected"),
    [
        (None, 8, 64 * GIB, False, 8),
        ("", 8, 64 * GIB, True, 8),
        (None, 8, 4 * GIB, False, 4),
        (None, 8, 7 * GIB, True, 2),
        (None, 8, GIB // 2, True, 1),
        (None, 4, None, False, 4),
        ("3", 8, GIB, True, 3),
    ],
)
def test_jobs(max_jobs, cores, free, cuda, expected):
    assert plan.decide_jobs(max_jobs, cores, free, cuda=cuda) == expected


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_jobs_rejects(value):
    with pytest.raises(BuildError, match=f"MAX_JOBS is '{value}'"):
        plan.decide_jobs(value, 8, None, cuda=False)


@pytest.mark.parametrize(
    ("version", "recent"),
    [
        ("2.11.0", True),
        ("2.13.0+cpu", True),
        ("3.0.0a0+git12", True),
        ("2.10.1", False),
        ("1.13", False),
    ],
)
def test_torch_release(version, recent):
    torch = plan.Torch(version, INCLUDE)
    assert torch.recent_enough is recent
    if recent:
        assert plan.require_torch(torch) is torch
    else:
        with pytest.raises(BuildError, match=rf"PyTorch {re.escape(version)} is too old"):
            plan.require_torch(torch)


def test_no_torch():
    with pytest.raises(BuildError, match=r"headers of PyTorch >= 2\.11 are needed"):
        plan.require_torch(None)


def test_torch_target_is_the_minimum():
    assert plan.TORCH_TARGET == "0x020b000000000000"
    requirement = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"torch>={plan.MIN_TORCH_TEXT}"' in requirement


# Finding PyTorch without importing it


def test_read_torch(tmp_path):
    site = fake_torch(tmp_path, "2.12.1", cuda="13.0")
    expected = plan.Torch("2.12.1", site / "torch/include", cuda="13.0")
    assert probe.find_torch([str(tmp_path / "nowhere"), str(site)]) == expected


@pytest.mark.parametrize("missing", ["torch/include/torch", "torch/version.py"])
def test_incomplete_torch_is_none(tmp_path, missing):
    path = fake_torch(tmp_path) / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert probe.find_torch([str(tmp_path)]) is None


def test_torch_on_the_path_goes_first(tmp_path, monkeypatch):
    on_path = fake_torch(tmp_path / "overlay", "2.14.0")
    installed = fake_torch(tmp_path / "site", "2.13.0")
    monkeypatch.setattr(probe, "site_dirs", lambda: [str(installed)])
    monkeypatch.setattr(sys, "path", [str(on_path)])
    assert probe.find_torch().version == "2.14.0"
    monkeypatch.setattr(sys, "path", [])
    assert probe.find_torch().version == "2.13.0"


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.13.0", []), ("2.11.0", []), ("2.10.0", ["torch>=2.11"]), (None, ["torch>=2.11"])],
)
@pytest.mark.parametrize(
    "hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"]
)
def test_torch_is_required_only_where_it_is_missing(tmp_path, monkeypatch, hook, version, expected):
    if version is not None:
        fake_torch(tmp_path, version)
    monkeypatch.setattr(probe, "site_dirs", lambda: [str(tmp_path)])
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(backend.build_meta, hook, lambda settings: ["other"])
    monkeypatch.delenv("KANERVA_BUILD_TORCH", raising=False)
    assert getattr(backend, hook)() == ["other", *expected]


def test_which_torch_to_fetch_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "site_dirs", lambda: [str(tmp_path)])
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setenv("KANERVA_BUILD_TORCH", "torch==2.13.0")
    assert backend.torch_requirement() == ["torch==2.13.0"]


def test_an_sdist_does_not_require_torch():
    assert backend.get_requires_for_build_sdist is backend.build_meta.get_requires_for_build_sdist


@pytest.mark.parametrize(("value", "visible"), [("true", True), ("True", True), ("false", False)])
def test_site_dirs_of_a_venv(tmp_path, monkeypatch, value, visible):
    (tmp_path / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = {value}\n"
    )
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", "/base")
    monkeypatch.setattr(sys, "base_exec_prefix", "/base")
    dirs = probe.site_dirs()
    assert dirs[0] == sysconfig.get_path("purelib")
    assert any(d.startswith("/base/") for d in dirs) is visible


# Compilers


def test_compiler_is_found():
    compiler = probe.find_compiler({"PATH": os.environ["PATH"]})
    assert compiler.version
    assert "baseline" in compiler.isas


def test_cxx_is_honoured(tmp_path):
    log = tmp_path / "log"
    fake = executable(tmp_path / "my c++", f'echo "$@" >> {log}; echo fake 1.0')
    compiler = probe.find_compiler({"CXX": f"'{fake}' -m64", "PATH": ""})
    assert compiler.command == (str(fake), "-m64")
    assert compiler.version == "fake 1.0"
    assert "-m64 -std=c++17" in log.read_text()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"CXX": "/nonexistent", "PATH": ""}, "CXX=/nonexistent was not found or does not run"),
        ({"PATH": ""}, r"no C\+\+ compiler was found"),
        ({"CXX": "false", "PATH": ""}, "CXX=false was not found or does not run"),
    ],
)
def test_no_compiler(env, message):
    with pytest.raises(BuildError, match=message) as error:
        probe.find_compiler(env)
    assert "\n" not in str(error.value)


def test_compiler_without_cxx17(tmp_path):
    old = executable(tmp_path / "old", 'test "$1" = --version && echo old 4.8')
    with pytest.raises(BuildError, match=r"cannot compile C\+\+17"):
        probe.find_compiler({"CXX": str(old)})


def test_missing_compiler_fails_with_one_sentence(tmp_path):
    done = run_setup("build_ext", "--build-lib", str(tmp_path), CXX="/nonexistent")
    assert done.returncode != 0
    assert "CXX=/nonexistent was not found or does not run" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_nvcc_is_described(tmp_path):
    (tmp_path / "bin").mkdir()
    executable(
        tmp_path / "bin/nvcc",
        'case $1 in --version) echo "Cuda compilation tools, release 12.8, V12.8.93";;\n'
        "--list-gpu-arch) printf 'compute_80\\ncompute_90\\ncompute_120\\n';; esac",
    )
    expected = plan.Nvcc(str(tmp_path / "bin/nvcc"), "12.8", ("80", "90", "120"))
    assert probe.find_nvcc({"CUDA_HOME": str(tmp_path), "PATH": ""}) == expected
    assert probe.find_nvcc({"PATH": str(tmp_path / "bin")}) == expected


def test_cuda_headers_are_where_nvcc_says(tmp_path):
    """nvcc may be a script far from its toolkit; else they lie beside its folder."""
    toolkit = tmp_path / "toolkit"
    for folder in (toolkit / "bin", toolkit / "include", tmp_path / "targets"):
        folder.mkdir(parents=True)
    nvcc = executable(toolkit / "bin/nvcc", f"echo '#$ INCLUDES=\"-I{tmp_path}/targets\"  ' >&2")
    assert probe._cuda_include(nvcc) is None
    (toolkit / "include/cuda_runtime.h").write_text("")
    assert probe._cuda_include(nvcc) == toolkit / "include"
    (tmp_path / "targets/cuda_runtime.h").write_text("")
    assert probe._cuda_include(nvcc) == tmp_path / "targets"
    assert probe._cuda_include(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("command", "program"),
    [(("g++",), "g++"), (("ccache", "g++", "-m64"), "g++"), (("/usr/bin/sccache", "c++"), "c++")],
)
def test_compiler_program(command, program):
    assert plan.Compiler(command, "").program == program
