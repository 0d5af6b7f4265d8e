"""The setuptools commands: libraries are built by ninja, Python files are copied afresh."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

from . import ninja_build, plan, probe, targets
from .errors import BuildError

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "kanerva_ext"
OPTIONAL = ("_autograd", "_C_cuda")


def layout() -> targets.Layout:
    try:
        import pybind11
    except ImportError:
        raise BuildError("pybind11 was not found; install it (pip install pybind11).") from None
    # One folder per interpreter, kept between builds: only what changed is compiled again.
    tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    return targets.Layout(
        root=ROOT,
        build=ROOT / "build" / f"ninja-{tag}",
        python_include=Path(sysconfig.get_path("include")),
        pybind11_include=Path(pybind11.get_include()),
    )


def has_cuda_sources() -> bool:
    return any((ROOT / "csrc/cuda").glob("*.cu"))


def make_plan(env: Mapping[str, str]) -> plan.Plan:
    """Probes the machine and decides, by the variables in ``env``."""
    if sys.platform == "win32":
        raise BuildError("Windows is not supported; use WSL 2.")
    setting = plan.cuda_setting(env.get("KANERVA_CUDA"))
    compiler = probe.find_compiler(env)
    torch = plan.require_torch(probe.find_torch())
    cuda = plan.decide_cuda(
        setting,
        has_sources=has_cuda_sources(),
        nvcc=None if setting == "0" else probe.find_nvcc(env),
        torch=torch,
        arch_list=env.get("TORCH_CUDA_ARCH_LIST"),
    )
    return plan.Plan(
        torch=torch,
        compiler=compiler,
        isas=plan.decide_isas(platform.machine(), compiler),
        cuda=cuda,
        jobs=plan.decide_jobs(
            env.get("MAX_JOBS"), probe.cores(), probe.free_memory(), cuda=cuda.build
        ),
        cxxflags=tuple(shlex.split(env.get("CXXFLAGS", ""))),
        ldflags=tuple(shlex.split(env.get("LDFLAGS", ""))),
    )


def extensions() -> list[Extension]:
    """What setuptools has to know: the names. Sources and options are ninja's business."""
    names = ["_C", "_core", *OPTIONAL]
    if not has_cuda_sources():
        names.remove("_C_cuda")
    # Which of them are there is decided in build_extensions, not by setuptools.
    return [Extension(f"{PACKAGE}.{n}", sources=[], optional=n in OPTIONAL) for n in names]


@functools.cache
def prepare() -> tuple[plan.Plan, targets.Layout]:
    """The plan and the layout of this build."""
    return make_plan(os.environ), layout()


class FreshBuildPy(build_py):
    """Empties the folders that are packed first: a module deleted since must not be in the wheel,
    and what a build that was killed left there would end this one."""

    def run(self) -> None:
        prepare()  # what is missing is said at once, not below a list of copied files
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
            shutil.rmtree(self.get_finalized_command("bdist").bdist_base, ignore_errors=True)
        super().run()


class NinjaBuildExt(build_ext):
    """Plans, says in one line what is built, builds, and puts the libraries in place."""

    def build_extensions(self) -> None:
        chosen, where = prepare()
        print(chosen.summary(), flush=True)
        header = targets.build_info_header(chosen, self.distribution.get_version())
        ninja_build.write_if_changed(where.build / "include/kanerva_build_info.h", header)
        ninja_build.write_if_changed(where.build / "stubs/empty.cpp", "")
        left_out = self._compile(chosen, where)
        for extension in self.extensions:
            name = extension.name.rpartition(".")[2]
            target = Path(self.get_ext_fullpath(extension.name))
            if name in left_out:
                # Left over from an earlier build, it would be packed or loaded.
                target.unlink(missing_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(targets.library_path(where, name)), str(target))

    def _compile(self, chosen: plan.Plan, where: targets.Layout) -> set[str]:
        """Compiles and links; returns the names of the libraries that do not come of it."""
        left_out = set() if chosen.cuda.build else {"_C_cuda"}
        required = targets.edges(chosen, where)
        verbose = self.verbose > 1
        try:
            every = [*targets.autograd_edges(chosen, where), *required]
            ninja_build.run(where.build, every, chosen.jobs, verbose=verbose)
        except BuildError:
            ninja_build.run(where.build, required, chosen.jobs, verbose=verbose)
            print(
                "kanerva_ext: _autograd could not be compiled against the headers of torch "
                f"{chosen.torch.version} (messages above); Python records gradients instead, "
                "which costs some 35 us more a call",
                flush=True,
            )
            left_out.add("_autograd")
        return left_out

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        build_py = self.get_finalized_command("build_py")
        for extension in self.extensions:
            in_place, built = self._get_inplace_equivalent(build_py, extension)
            if extension.optional and not os.path.exists(built):
                Path(in_place).unlink(missing_ok=True)

    def get_ext_filename(self, fullname: str) -> str:
        package, _, name = fullname.rpartition(".")
        if name in targets.LIBRARY_NAMES:
            return os.path.join(*package.split("."), targets.LIBRARY_NAMES[name])
        return super().get_ext_filename(fullname)
