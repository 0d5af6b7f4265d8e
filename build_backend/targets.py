"""Turns a plan into the commands that compile and link the libraries."""

from __future__ import annotations

import json
import platform
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from . import arch
from .errors import BuildError
from .ninja_build import Edge
from .plan import ISA_FLAGS, MIN_TORCH_TEXT, TORCH_TARGET, Plan

CXX_FLAGS = (
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
)
NVCC_FLAGS = (
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "--expt-relaxed-constexpr",
    "--compiler-options=-fPIC,-fvisibility=hidden",
)
LIBRARY_NAMES = {"_C": "_C.abi3.so", "_C_cuda": "_C_cuda.abi3.so"}


@dataclass(frozen=True)
class Layout:
    """Where things lie: sources under ``root``, everything generated under ``build``."""

    root: Path
    build: Path
    python_include: Path
    pybind11_include: Path

    @property
    def csrc(self) -> Path:
        return self.root / "csrc"

    def sources(self, pattern: str) -> tuple[Path, ...]:
        return tuple(sorted(self.csrc.glob(pattern)))


def library_file(name: str) -> str:
    """File name of a library: "_C.abi3.so"; "_core" with the interpreter's own suffix."""
    return LIBRARY_NAMES.get(name) or name + sysconfig.get_config_var("EXT_SUFFIX")


def build_info(plan: Plan, version: str) -> dict[str, object]:
    """What ``_core.build_info()`` reports. No dates, no paths: the build is reproducible."""
    return {
        "version": version,
        "python": platform.python_version(),
        "platform": sysconfig.get_platform(),
        "torch": plan.torch.version,
        "torch_target": MIN_TORCH_TEXT,
        "compiler": plan.compiler.version,
        "flags": " ".join(
            [*(f for f in CXX_FLAGS if not f.startswith(("-W", "-D"))), *plan.cxxflags]
        ),
        "isas": list(plan.isas),
        "cuda": plan.cuda.build,
        "cuda_reason": plan.cuda.reason,
        "cuda_archs": [str(a) for a in plan.cuda.archs],
        "nvcc": plan.cuda.nvcc.version if plan.cuda.nvcc else None,
    }


def build_info_header(plan: Plan, version: str) -> str:
    text = json.dumps(build_info(plan, version), sort_keys=True)
    return f'#pragma once\n#define KANERVA_BUILD_INFO_JSON R"KANERVA({text})KANERVA"\n'


def edges(plan: Plan, layout: Layout) -> list[Edge]:
    """Every command of the build that must succeed, each library's link included."""
    core = _core_edges(plan, layout)
    libraries = [
        *_torch_edges(plan, layout, core),
        *_binding_edges(plan, layout, core),
    ]
    if plan.cuda.build:
        libraries += _cuda_edges(plan, layout)
    return [*core, *libraries]


def autograd_edges(plan: Plan, layout: Layout) -> list[Edge]:
    """The commands of ``_autograd``, which needs PyTorch's unstable headers: it may fail."""
    include = plan.torch.include
    system = (include, include / "torch/csrc/api/include")
    system += (layout.python_include, layout.pybind11_include)
    objects = [
        _compile(plan, layout, source, ("-std=c++20",), system, implicit=(_torch_stamp(plan),))
        for source in layout.sources("torch/autograd.cpp")
    ]
    names = ("torch_cpu", "torch_python", "c10")
    needs = tuple(option for name in names for option in _needs(plan.torch.lib, name))
    return [*objects, _link(plan, layout, "_autograd", objects, needs)]


def library_path(layout: Layout, name: str) -> Path:
    return layout.build / "lib" / library_file(name)


def _compile(
    plan: Plan,
    layout: Layout,
    source: Path,
    flags: tuple[str, ...] = (),
    system: tuple[Path, ...] = (),
    *,
    variant: str = "",
    implicit: tuple[Path, ...] = (),
) -> Edge:
    relative = source.relative_to(layout.csrc)
    suffix = f".{variant}.o" if variant else ".o"
    output = layout.build / "obj" / relative.with_name(relative.stem + suffix)
    # File names in registrations and errors do not depend on where the tree lay.
    prefix = f"-fmacro-prefix-map={layout.root}/="
    includes = [prefix, f"-I{layout.csrc}", f"-I{layout.build / 'include'}"]
    includes += [word for folder in system for word in ("-isystem", str(folder))]
    command = [*plan.compiler.command, *CXX_FLAGS, *flags, *plan.cxxflags, *includes]
    command += ["-MMD", "-MF", f"{output}.d", "-c", str(source), "-o", str(output)]
    what = f"compile {relative}{f' [{variant}]' if variant else ''}"
    return Edge(output, (source,), tuple(command), what, implicit, depfile=True)


def _core_edges(plan: Plan, layout: Layout) -> list[Edge]:
    have = tuple(f"-DKANERVA_HAVE_{isa.upper()}" for isa in plan.isas if isa != "baseline")
    kernels = layout.sources("cpu/kernels*.cpp")
    if not kernels:
        raise BuildError(f"no sources in {layout.csrc / 'cpu'}: the source tree is incomplete.")
    found = [
        _compile(
            plan, layout, source, (f"-DKANERVA_ISA={isa}", *ISA_FLAGS[isa], *have), variant=isa
        )
        for isa in plan.isas
        for source in kernels
    ]
    rest = [source for source in layout.sources("cpu/*.cpp") if source not in kernels]
    return found + [_compile(plan, layout, source, have) for source in rest]


def _link(
    plan: Plan, layout: Layout, name: str, objects: list[Edge], extra: tuple[str, ...] = ()
) -> Edge:
    output = library_path(layout, name)
    inputs = tuple(edge.output for edge in objects)
    if sys.platform == "darwin":
        options = ["-bundle", "-undefined", "dynamic_lookup"]
    else:
        options = ["-shared", *extra]
    command = [*plan.compiler.command, "-pthread", "-o", str(output), *map(str, inputs)]
    command += [*options, *plan.ldflags]
    return Edge(output, inputs, tuple(command), f"link {output.name}")


def _needs(torch_lib: Path, name: str) -> tuple[str, ...]:
    """Options that record torch's library ``name`` as needed, without a path to it.

    torch loads its libraries with local visibility, so their symbols are found only through such
    a record; the one that ``import torch`` loaded serves it, whatever its version.
    """
    return (f"-L{torch_lib}", "-Wl,--no-as-needed", f"-l{name}", "-Wl,--as-needed")


def _compile_with_torch(
    plan: Plan,
    layout: Layout,
    source: Path,
    flags: tuple[str, ...] = (),
    system: tuple[Path, ...] = (),
) -> Edge:
    include = plan.torch.include
    flags = (f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *flags)
    system = (include, include / "torch/csrc/api/include", *system)
    return _compile(plan, layout, source, flags, system, implicit=(_torch_stamp(plan),))


def _torch_stamp(plan: Plan) -> Path:
    """-MMD leaves system headers out: a torch that is exchanged in place must still rebuild."""
    return plan.torch.include / "torch/headeronly/version.h"


def _torch_edges(plan: Plan, layout: Layout, core: list[Edge]) -> list[Edge]:
    sources = layout.sources("torch/register_cpu.cpp")
    if not sources:
        raise BuildError(f"no sources in {layout.csrc / 'torch'}: the source tree is incomplete.")
    objects = [_compile_with_torch(plan, layout, source) for source in sources]
    # Defined or in torch: a symbol that is missing fails here and not at a user's import.
    needs = (*_needs(plan.torch.lib, "torch_cpu"), "-Wl,-z,defs")
    return [*objects, _link(plan, layout, "_C", [*core, *objects], needs)]


def _binding_edges(plan: Plan, layout: Layout, core: list[Edge]) -> list[Edge]:
    sources = layout.sources("numpy/*.cpp")
    if not sources:
        raise BuildError(f"no sources in {layout.csrc / 'numpy'}: the source tree is incomplete.")
    if not (layout.python_include / "Python.h").is_file():
        raise BuildError(
            f"Python.h was not found in {layout.python_include}; install Python's headers "
            "(Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)."
        )
    system = (layout.python_include, layout.pybind11_include)
    header = (layout.build / "include/kanerva_build_info.h",)
    objects = [_compile(plan, layout, source, (), system, implicit=header) for source in sources]
    return [*objects, _link(plan, layout, "_core", [*core, *objects])]


def _cuda_edges(plan: Plan, layout: Layout) -> list[Edge]:
    """The kernels by nvcc, which sees no torch; what registers them by the C++ compiler."""
    nvcc = plan.cuda.nvcc
    assert nvcc is not None  # decide_cuda never builds without one
    gencode = [flag for a in plan.cuda.archs for flag in a.gencode()]
    # Kernels and the program that started Python must agree on one C++ library.
    host = ["-ccbin", plan.compiler.program]
    objects = []
    for source in layout.sources("cuda/*.cu"):
        relative = source.relative_to(layout.csrc)
        output = layout.build / "obj" / relative.with_suffix(".cu.o")
        command = [nvcc.path, *NVCC_FLAGS, *host, *gencode, f"-I{layout.csrc}"]
        command += ["-MD", "-MF", f"{output}.d", "-c", str(source), "-o", str(output)]
        what = f"compile {relative} [{arch.describe(plan.cuda.archs)}]"
        objects.append(Edge(output, (source,), tuple(command), what, depfile=True))
    toolkit = (nvcc.include,) if nvcc.include else ()
    # torch's stable headers declare the current stream only with USE_CUDA.
    objects += [
        _compile_with_torch(plan, layout, source, ("-DUSE_CUDA",), toolkit)
        for source in layout.sources("torch/register_cuda.cpp")
    ]
    # A torch without CUDA has no libtorch_cuda: an empty library of that name stands in for the
    # linker, which only has to record the name.
    stub = layout.build / "stubs/libtorch_cuda.so"
    source = layout.build / "stubs/empty.cpp"
    make_stub = [*plan.compiler.command, "-shared", "-Wl,-soname,libtorch_cuda.so"]
    make_stub += ["-o", str(stub), str(source)]
    objects.append(Edge(stub, (source,), tuple(make_stub), "make a stand-in for libtorch_cuda"))
    output = library_path(layout, "_C_cuda")
    inputs = tuple(edge.output for edge in objects)
    # The CUDA runtime is linked in, so that the library serves any CUDA version of torch.
    command = [nvcc.path, *host, "-shared", "-cudart", "static", "-o", str(output)]
    command += map(str, inputs[:-1])
    for option in (*_needs(plan.torch.lib, "torch_cpu"), *_needs(stub.parent, "torch_cuda")):
        # All for the linker, in this order: nvcc moves its own -l behind what is for the linker.
        command += ["-Xlinker", option.removeprefix("-Wl,")]
    return [*objects, Edge(output, inputs, tuple(command), f"link {output.name}")]
