"""The build's commands, ninja, the sdist, and the libraries that were built."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from build_helpers import (
    INCLUDE,
    NVCC,
    ROOT,
    TORCH_CPU,
    BuildError,
    arch,
    build_ext,
    fake_torch,
    ninja_build,
    plan,
    probe,
    run_setup,
    targets,
)

# Commands


def make_layout(folder: Path, *names: str) -> object:
    for name in (
        "cpu/kernels.cpp",
        "cpu/dispatch.cpp",
        "torch/register_cpu.cpp",
        "numpy/m.cpp",
        *names,
    ):
        path = folder / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (folder / "py").mkdir()
    (folder / "py/Python.h").write_text("")
    return targets.Layout(folder, folder / "b", folder / "py", folder / "pybind11")


def make_plan(cuda=None, isas=("baseline", "avx2", "avx512"), **changes):
    compiler = plan.Compiler(("ccache", "g++"), "g++ 12.2", isas)
    cuda = cuda or plan.Cuda(False, "nvcc was not found")
    return plan.Plan(TORCH_CPU, compiler, isas, cuda, jobs=2, **changes)


def commands(edges) -> dict[str, str]:
    return {edge.what: " ".join(edge.command) for edge in edges}


def test_kernels_are_compiled_once_per_instruction_set(tmp_path):
    found = commands(targets.edges(make_plan(), make_layout(tmp_path)))
    kernels = {what: command for what, command in found.items() if "kernels" in what}
    assert list(kernels) == [f"compile cpu/kernels.cpp [{isa}]" for isa in plan.ISA_FLAGS]
    for isa, flags in plan.ISA_FLAGS.items():
        command = kernels[f"compile cpu/kernels.cpp [{isa}]"]
        assert f"-DKANERVA_ISA={isa} " in command
        assert all(flag in command for flag in flags)
    assert "-mavx" not in kernels["compile cpu/kernels.cpp [baseline]"]
    assert "-mavx" not in found["compile cpu/dispatch.cpp"]
    assert "-DKANERVA_HAVE_AVX2 -DKANERVA_HAVE_AVX512" in found["compile cpu/dispatch.cpp"]


def test_dispatch_knows_what_is_not_built(tmp_path):
    found = commands(targets.edges(make_plan(isas=("baseline",)), make_layout(tmp_path)))
    assert "KANERVA_HAVE" not in found["compile cpu/dispatch.cpp"]
    assert [what for what in found if "[" in what] == ["compile cpu/kernels.cpp [baseline]"]


def test_only_the_torch_library_sees_torch(tmp_path):
    found = commands(targets.edges(make_plan(), make_layout(tmp_path)))
    sees_torch = {what for what, command in found.items() if str(INCLUDE) in command}
    assert sees_torch == {"compile torch/register_cpu.cpp"}
    assert "-DTORCH_TARGET_VERSION=0x020b000000000000" in found["compile torch/register_cpu.cpp"]
    assert "-fvisibility=hidden" in found["compile torch/register_cpu.cpp"]


def test_autograd_is_compiled_against_the_whole_of_torch(tmp_path):
    layout = make_layout(tmp_path, "torch/autograd.cpp")
    assert not [what for what in commands(targets.edges(make_plan(), layout)) if "autograd" in what]
    found = commands(targets.autograd_edges(make_plan(), layout))
    command = found["compile torch/autograd.cpp"]
    assert str(INCLUDE) in command
    assert "TORCH_TARGET_VERSION" not in command
    assert command.index("-std=c++17") < command.index("-std=c++20")
    if sys.platform != "darwin":
        link = found[f"link _autograd{sysconfig.get_config_var('EXT_SUFFIX')}"]
        assert "-ltorch_python" in link


@pytest.mark.skipif(sys.platform == "darwin", reason="the linker's options are those of Linux")
def test_links(tmp_path):
    found = commands(targets.edges(make_plan(ldflags=("-Wl,-s",)), make_layout(tmp_path)))
    torch_library = found["link _C.abi3.so"]
    core = found[f"link _core{sysconfig.get_config_var('EXT_SUFFIX')}"]
    for command in (torch_library, core):
        assert command.startswith("ccache g++ ")
        assert command.count("kernels.") == 3
        assert "-Wl,-s" in command
        assert "rpath" not in command
    assert "-ltorch_cpu" in torch_library
    assert "torch" not in core.replace(str(tmp_path), "")


def test_user_flags_come_after_ours(tmp_path):
    found = commands(targets.edges(make_plan(cxxflags=("-O1", "-g")), make_layout(tmp_path)))
    command = found["compile torch/register_cpu.cpp"]
    assert command.index("-O3") < command.index("-O1 -g")


def cuda_plan() -> object:
    return make_plan(plan.Cuda(True, archs=arch.parse("8.0;9.0a+PTX"), nvcc=NVCC))


def test_cuda_commands(tmp_path):
    layout = make_layout(tmp_path, "cuda/read.cu", "torch/register_cuda.cpp")
    found = commands(targets.edges(cuda_plan(), layout))
    command = found["compile cuda/read.cu [8.0;9.0a+PTX]"]
    assert command.startswith("/cuda/bin/nvcc ")
    for words in (
        "-ccbin g++",
        "-gencode arch=compute_80,code=sm_80",
        "-gencode arch=compute_90a,code=sm_90a",
        "-gencode arch=compute_90a,code=compute_90a",
    ):
        assert words in command
    assert "USE_CUDA" not in command
    link = found["link _C_cuda.abi3.so"]
    assert "-cudart static" in link
    assert "-ltorch_cuda" in link
    for name in ("obj/cuda/read.cu.o", "obj/torch/register_cuda.o"):
        assert str(layout.build / name) in link
    assert not [what for what in commands(targets.edges(make_plan(), layout)) if "cuda" in what]


def test_registration_of_cuda_operators_is_plain_cpp(tmp_path):
    """nvcc sees no torch; what sees torch has the C++ flags and the toolkit's headers."""
    layout = make_layout(tmp_path, "cuda/read.cu", "torch/register_cuda.cpp")
    found = commands(targets.edges(cuda_plan(), layout))
    sees_torch = {what for what, command in found.items() if str(INCLUDE) in command}
    assert sees_torch == {"compile torch/register_cpu.cpp", "compile torch/register_cuda.cpp"}
    command = found["compile torch/register_cuda.cpp"]
    assert command.startswith("ccache g++ ")
    for words in (
        "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        "-isystem /cuda/include",
        "-fvisibility=hidden",
    ):
        assert words in command
    assert "-DUSE_CUDA" not in found["compile torch/register_cpu.cpp"]


@pytest.mark.parametrize("folder", ["cpu", "torch", "numpy"])
def test_incomplete_source_tree(tmp_path, folder):
    layout = make_layout(tmp_path)
    shutil.rmtree(tmp_path / "csrc" / folder)
    with pytest.raises(BuildError, match=f"csrc/{folder}: the source tree is incomplete"):
        targets.edges(make_plan(), layout)


def test_missing_python_headers(tmp_path):
    layout = make_layout(tmp_path)
    (tmp_path / "py/Python.h").unlink()
    with pytest.raises(BuildError, match=r"Python\.h was not found in .*; install"):
        targets.edges(make_plan(), layout)


@pytest.mark.parametrize(
    ("cuda", "expected"),
    [
        (None, "no CUDA (nvcc was not found)"),
        (
            plan.Cuda(True, archs=arch.parse("8.0;9.0a"), nvcc=NVCC),
            "CUDA (8.0;9.0a) with nvcc 13.0",
        ),
    ],
)
def test_summary_is_one_line(cuda, expected):
    summary = make_plan(cuda).summary()
    assert expected in summary
    assert "CPU (baseline, avx2, avx512) with g++ 12.2" in summary
    assert "2.13.0+cpu" in summary
    assert "\n" not in summary


def test_build_info_header_is_one_raw_string_and_reproducible():
    header = targets.build_info_header(make_plan(), "1.2.3")
    assert header == targets.build_info_header(make_plan(), "1.2.3")
    text = re.search(r'R"KANERVA\((.*)\)KANERVA"', header)[1]
    info = json.loads(text)
    assert info["version"] == "1.2.3"
    assert info["isas"] == ["baseline", "avx2", "avx512"]
    assert info["cuda"] is False
    assert info["cuda_reason"] == "nvcc was not found"


# ninja


def test_ninja_file():
    edge = ninja_build.Edge(
        Path("/b/a b.o"),
        (Path("/s/a b.cpp"),),
        ("c++", "-DX=$y", "/s/a b.cpp"),
        "compile a b",
        (Path("/t/version.h"),),
        depfile=True,
    )
    text = ninja_build.render([edge])
    assert "build /b/a$ b.o: compile /s/a$ b.cpp | /t/version.h\n" in text
    assert "  cmd = c++ '-DX=$$y' '/s/a b.cpp'\n" in text
    assert "  depfile = $out.d\n" in text


def copy_edge(folder: Path, mark: str = "") -> object:
    script = f"echo {mark} >> log; cp in out"
    return ninja_build.Edge(Path("out"), (Path("in"),), ("sh", "-c", script), "copy")


def test_ninja_runs_only_what_changed(tmp_path, capfd):
    (tmp_path / "in").write_text("one")
    for mark, text, expected in [
        ("x", "one", ["x"]),
        ("x", "one", ["x"]),
        ("y", "one", ["x", "y"]),
        ("y", "two", ["x", "y", "y"]),
    ]:
        if (tmp_path / "in").read_text() != text:
            (tmp_path / "in").write_text(text)
            newer = (tmp_path / "out").stat().st_mtime_ns + 10**9
            os.utime(tmp_path / "in", ns=(newer, newer))
        ninja_build.run(tmp_path, [copy_edge(tmp_path, mark)], 1)
        assert (tmp_path / "log").read_text().split() == expected
        assert (tmp_path / "out").read_text() == text
    capfd.readouterr()


def test_failed_compilation_is_an_error(tmp_path, capfd):
    edge = ninja_build.Edge(Path("out"), (), ("sh", "-c", "echo cause; exit 3"), "fail")
    with pytest.raises(BuildError, match="compilation failed"):
        ninja_build.run(tmp_path, [edge], 1)
    assert "cause" in capfd.readouterr().out


def test_a_torch_that_autograd_does_not_compile_against_gets_the_rest(
    tmp_path, monkeypatch, capsys
):
    runs = []

    def run(folder, edges, jobs, verbose=False):
        runs.append(list(commands(edges)))
        if any("autograd" in what for what in runs[-1]):
            raise BuildError("compilation failed; the compiler's messages are above.")

    monkeypatch.setattr(build_ext.ninja_build, "run", run)
    layout = make_layout(tmp_path, "torch/autograd.cpp")
    left_out = build_ext.NinjaBuildExt._compile(SimpleNamespace(verbose=0), make_plan(), layout)
    assert left_out == {"_C_cuda", "_autograd"}
    assert runs[1] == list(commands(targets.edges(make_plan(), layout)))
    assert "Python records gradients instead" in capsys.readouterr().out


def test_unchanged_files_are_not_written(tmp_path):
    path = tmp_path / "folder/file"
    assert ninja_build.write_if_changed(path, "a")
    assert not ninja_build.write_if_changed(path, "a")
    assert ninja_build.write_if_changed(path, "b")
    assert path.read_text() == "b"


# setup.py, the sdist, and what was built


def test_setup_works_without_torch(tmp_path):
    """Metadata must be readable before torch is there."""
    fake_torch(tmp_path)  # raises when imported, and goes first
    done = run_setup("--version", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == importlib.import_module("kanerva_ext").__version__


def test_what_a_killed_build_left_is_not_packed_again(tmp_path, monkeypatch):
    from setuptools import Distribution

    from build_backend import build_ext

    monkeypatch.setattr(build_ext, "prepare", lambda: None)
    monkeypatch.chdir(tmp_path)
    command = build_ext.FreshBuildPy(Distribution({"name": "x", "packages": []}))
    command.ensure_finalized()
    left = [Path(command.build_lib), Path(command.get_finalized_command("bdist").bdist_base)]
    for folder in left:
        (folder / "wheel/x-1.dist-info").mkdir(parents=True)
    command.run()
    assert not any((folder / "wheel").exists() for folder in left)


def test_sdist_holds_all_that_a_wheel_needs(tmp_path):
    done = run_setup("egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    generated = {".so", ".pyc", ".o"}
    wanted = [ROOT / name for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md")]
    for folder in ("build_backend", "csrc", "kanerva_ext", "tests"):
        wanted += [p for p in (ROOT / folder).rglob("*") if p.is_file()]
    expected = {str(p.relative_to(ROOT)) for p in wanted if p.suffix not in generated}
    assert len(expected) > 20
    assert expected <= names
    assert not [name for name in names if Path(name).suffix in generated]


def test_every_file_of_the_package_is_installed():
    package = Path(importlib.import_module("kanerva_ext").__file__).parent
    source = ROOT / "kanerva_ext"
    names = [p.relative_to(source) for p in source.rglob("*") if p.is_file()]
    names = [name for name in names if name.suffix not in {".so", ".pyc"}]
    assert Path("py.typed") in names
    assert [name for name in names if not (package / name).is_file()] == []
    assert (package / "_C.abi3.so").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils' nm and readelf")
def test_the_torch_library_uses_only_the_stable_abi():
    package = Path(importlib.import_module("kanerva_ext").__file__).parent
    library = str(package / "_C.abi3.so")

    def output(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    undefined = [line.split()[-1] for line in output("nm", "-D", "-u", library).splitlines()]
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in undefined)
    demangled = output("nm", "-D", "-u", "-C", library)
    assert not re.search(r"\b(at|c10|torch|caffe2)::", demangled), demangled
    assert not [name for name in undefined if name.startswith("Py")]
    dynamic = output("readelf", "-d", library)
    assert "libtorch_cpu.so" in dynamic
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.skipif(probe.find_nvcc() is None, reason="needs nvcc (a CUDA toolkit; no GPU)")
def test_cuda_library_builds_against_any_torch(tmp_path, capfd):
    """A PyTorch without CUDA included: its stable ABI headers are enough."""
    layout = make_layout(tmp_path, "cuda/twice.cu", "torch/register_cuda.cpp")
    (tmp_path / "csrc/cuda/twice.cu").write_text(
        "__global__ void twice(float* x, int n) {\n"
        "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n  if (i < n) x[i] *= 2;\n}\n"
        "void launch(float* x, int n, cudaStream_t stream) {\n"
        "  twice<<<1, 32, 0, stream>>>(x, n);\n}\n"
    )
    (tmp_path / "csrc/torch/register_cuda.cpp").write_text(
        "#include <cuda_runtime.h>\n#include <torch/csrc/stable/tensor.h>\n"
        "void launch(float* x, int n, cudaStream_t stream);\n"
        "void run(const torch::stable::Tensor& x) {\n  void* stream = nullptr;\n"
        "  aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream);\n"
        "  launch(static_cast<float*>(x.data_ptr()), int(x.numel()), cudaStream_t(stream));\n}\n"
    )
    nvcc, torch = probe.find_nvcc(), probe.find_torch()
    compiler = probe.find_compiler()
    cuda = plan.decide_cuda("1", has_sources=True, nvcc=nvcc, torch=torch, arch_list="8.0")
    chosen = plan.Plan(torch, compiler, ("baseline",), cuda, jobs=1)
    ninja_build.write_if_changed(layout.build / "stubs/empty.cpp", "")
    ninja_build.run(layout.build, targets._cuda_edges(chosen, layout), 1)
    library = targets.library_path(layout, "_C_cuda")
    # Without the record torch's CUDA symbols would not be found when the library is loaded.
    for name in (b"libtorch_cpu.so\0", b"libtorch_cuda.so\0"):
        assert name in library.read_bytes()
    capfd.readouterr()
