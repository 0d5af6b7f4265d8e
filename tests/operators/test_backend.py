import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from helpers import run_python

import kanerva_ext
from kanerva_ext import _backend, ops

ARGS = (torch.zeros(1, 2, 3), torch.eye(2)[None], torch.ones(1, 1, 2))


@pytest.fixture
def without_library(monkeypatch):
    """As if the C++ library had not been built."""
    monkeypatch.setitem(_backend._status, "cpu", "it was not built; reinstall")
    monkeypatch.setattr(_backend, "_warned", set())


def test_backends_names_every_backend_with_its_state():
    status = kanerva_ext.backends()
    assert set(status) == {"cpu", "cuda", "triton", "reference"}
    assert status["reference"] == "available"
    assert status["triton"]
    assert status["cuda"]
    status["cpu"] = "changed"
    assert kanerva_ext.backends()["cpu"] != "changed"


def test_the_installed_package_has_its_library():
    """A build without compiled operators is a broken build, not a reason to skip tests."""
    assert kanerva_ext.backends()["cpu"] == "available"


def test_use_backend_as_context_and_as_call():
    assert _backend.default == "auto"
    with kanerva_ext.use_backend("reference"):
        assert _backend.default == "reference"
        with kanerva_ext.use_backend("auto"):
            assert _backend.default == "auto"
        assert _backend.default == "reference"
    assert _backend.default == "auto"
    kanerva_ext.use_backend("reference")
    assert _backend.default == "reference"
    kanerva_ext.use_backend("auto")
    assert _backend.default == "auto"
    with pytest.raises(KeyError), kanerva_ext.use_backend("reference"):
        raise KeyError
    assert _backend.default == "auto"


def test_use_backend_is_obeyed():
    def calls(function):
        with torch.profiler.profile() as profile:
            function()
        return any("kanerva::read" in event.key for event in profile.key_averages())

    assert calls(lambda: ops.read(*ARGS))
    assert not calls(lambda: ops.read(*ARGS, backend="reference"))
    with kanerva_ext.use_backend("reference"):
        assert not calls(lambda: ops.read(*ARGS))
        if kanerva_ext.backends()["cpu"] == "available":
            assert calls(lambda: ops.read(*ARGS, backend="cpu"))


def test_wrong_names():
    for name, error in (("gpu", ValueError), (None, TypeError), (1, TypeError)):
        with pytest.raises(error, match="name must be"):
            kanerva_ext.use_backend(name)
    missing = [n for n, status in kanerva_ext.backends().items() if status != "available"]
    assert "cuda" in missing or torch.version.cuda
    for name in missing:
        with pytest.raises(RuntimeError, match=f'"{name}" is not available: '):
            kanerva_ext.use_backend(name)
    assert _backend.default == "auto"


def test_cpu_backend_without_the_library(without_library):
    with pytest.raises(RuntimeError, match="not built; reinstall"):
        ops.read(*ARGS, backend="cpu")
    with pytest.raises(RuntimeError, match="not built; reinstall"):
        kanerva_ext.use_backend("cpu")


def test_one_warning_without_the_library(without_library):
    with pytest.warns(RuntimeWarning, match=r"read runs as plain PyTorch.*not built; reinstall"):
        _backend.warn_reference("read", torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _backend.warn_reference("recall", torch.device("cpu"))
    with pytest.warns(RuntimeWarning, match="no compiled kernels for cuda"):
        _backend.warn_reference("recall", torch.device("cuda"))


#: An operator that was declared and is in no library.
TWICE = """
import torch
from kanerva_ext import ops, reference
from kanerva_ext._checks import Arg
from kanerva_ext.ops import _library
from kanerva_ext.ops._declaration import Declaration, Result
reference.twice = lambda mean: 2 * mean
_library.declare(Declaration(
    "twice", (Arg("mean", "KC", "state"),), (Result("", "KC"),), in_place=1
))
mean = torch.ones(1, 1, 1)
"""


@pytest.mark.skipif(kanerva_ext.backends()["cpu"] != "available", reason="needs the C++ library")
def test_one_warning_for_an_operator_that_the_library_lacks():
    """A new one, or the library is older than the Python files."""
    code = "ops.read(mean, mean, mean); print(torch.ops.kanerva.twice(mean).item())"
    done = run_python(f"{TWICE}{code}; torch.ops.kanerva.twice(mean)")
    assert done.stdout.strip() == "2.0", done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    assert "twice runs as plain PyTorch" in done.stderr
    assert "was built without it: run `make develop`" in done.stderr


def test_the_library_of_a_gpu_that_lacks_an_operator(monkeypatch):
    monkeypatch.setattr(_backend, "_warned", set())
    monkeypatch.setitem(_backend._status, "cuda", "available")
    with pytest.warns(RuntimeWarning, match="twice .*library for cuda tensors was built without"):
        _backend.warn_reference("twice", torch.device("cuda", 0))


def test_an_operator_without_a_triton_kernel():
    pytest.importorskip("triton")
    done = run_python(f"{TWICE}torch.ops.kanerva_triton.twice(mean)", TRITON_INTERPRET="1")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("NotImplementedError: twice has no Triton kernel"), done.stderr


def test_cpu_backend_refuses_other_devices():
    meta = [x.to("meta") for x in ARGS]
    if kanerva_ext.backends()["cpu"] == "available":
        with pytest.raises(RuntimeError, match="serves cpu tensors, got tensors on meta"):
            ops.read(*meta, backend="cpu")
    values, var = ops.read(*meta)
    assert values.device.type == "meta" and values.shape == (1, 1, 3) and var.shape == (1, 1)


def test_environment_variable():
    show = "import kanerva_ext; print(kanerva_ext._backend.default)"
    assert run_python(show, KANERVA_BACKEND="reference").stdout.strip() == "reference"
    wrong = run_python(show, KANERVA_BACKEND="tpu")
    assert wrong.returncode != 0
    assert "KANERVA_BACKEND must be one of" in wrong.stderr and "'tpu'" in wrong.stderr
    later = run_python(
        "import torch\nfrom kanerva_ext import ops\n"
        "ops.solve_addresses(torch.eye(2)[None], torch.eye(2)[None], 1.0)",
        KANERVA_BACKEND="triton",
        TRITON_INTERPRET="0",
    )
    assert later.returncode != 0
    # Where torch has GPUs, Triton is available, but not for CPU tensors.
    assert "has no GPU support" in later.stderr or "TRITON_INTERPRET=1" in later.stderr


def test_a_broken_library_is_reported(tmp_path, monkeypatch):
    (tmp_path / "_C.abi3.so").write_bytes(b"not a library")
    monkeypatch.setattr(_backend, "__file__", str(tmp_path / "_backend.py"))
    monkeypatch.setitem(_backend._status, "cpu", "")
    _backend.load()
    assert "could not be loaded under torch" in kanerva_ext.backends()["cpu"]
    (tmp_path / "_C.abi3.so").unlink()
    with pytest.raises(ImportError, match="a copy of the Python files without its compiled"):
        _backend.load()
    monkeypatch.setenv("KANERVA_BACKEND", "reference")
    _backend.load()
    assert "reinstall it with a C++17 compiler" in kanerva_ext.backends()["cpu"]


@pytest.fixture
def cuda_package(tmp_path, monkeypatch):
    """A package folder that has the CUDA library; what load() loads is listed, not loaded."""
    loaded = []
    for name in ("_C.abi3.so", "_C_cuda.abi3.so"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(_backend, "__file__", str(tmp_path / "_backend.py"))
    monkeypatch.setattr(torch.ops, "load_library", lambda path: loaded.append(Path(path).name))
    monkeypatch.setattr(_backend, "_warned", set())
    monkeypatch.setattr(_backend, "_unserved", None)
    monkeypatch.setattr(_backend, "must_choose", False)
    for name, status in _backend._status.items():
        monkeypatch.setitem(_backend._status, name, status)
    return loaded


def pretend(monkeypatch, capabilities, archs):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    monkeypatch.setattr(_backend, "_build_info", lambda: {"cuda_archs": archs})


def choice(backend, device):
    return _backend.choose(backend, device)


def test_cuda_library_is_loaded_only_where_torch_has_cuda(cuda_package, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked at import"))
    monkeypatch.setattr(torch.version, "cuda", None)
    _backend.load()
    assert cuda_package == ["_C.abi3.so"]
    assert "has no CUDA; install a PyTorch with CUDA" in kanerva_ext.backends()["cuda"]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    _backend.load()
    assert cuda_package == ["_C.abi3.so", "_C.abi3.so", "_C_cuda.abi3.so"]
    assert kanerva_ext.backends()["cuda"] == "available"


def test_why_there_is_no_cuda_library(cuda_package, tmp_path, monkeypatch):
    (tmp_path / "_C_cuda.abi3.so").unlink()
    monkeypatch.setattr(_backend, "_build_info", lambda: {"cuda_reason": "nvcc was not found"})
    _backend.load()
    status = kanerva_ext.backends()["cuda"]
    assert "not built (nvcc was not found)" in status and "KANERVA_CUDA=1 pip install" in status
    with pytest.raises(RuntimeError, match="nvcc was not found"):
        ops.read(*ARGS, backend="cuda")
    with pytest.warns(RuntimeWarning, match="no compiled kernels for cuda tensors: .*nvcc was not"):
        _backend.warn_reference("read", torch.device("cuda", 0))
    assert not _backend.must_choose


def test_a_broken_cuda_library_is_reported(cuda_package, monkeypatch):
    def fail(path):
        if Path(path).name == "_C_cuda.abi3.so":
            raise OSError("could not") from OSError("libtorch_cuda.so: no such file")

    monkeypatch.setattr(torch.ops, "load_library", fail)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    _backend.load()
    status = kanerva_ext.backends()
    assert status["cpu"] == "available"
    assert "could not be loaded under torch" in status["cuda"]
    assert "libtorch_cuda.so: no such file" in status["cuda"]


@pytest.mark.parametrize(
    ("capability", "archs", "expected"),
    [
        ((8, 0), ["8.0"], True),
        ((8, 9), ["8.0"], True),
        ((8, 0), ["8.6"], False),
        ((7, 5), ["8.0", "12.0+PTX"], False),
        ((9, 0), ["8.0", "9.0a"], True),
        ((9, 0), ["8.0"], False),
        ((9, 0), ["8.0+PTX"], True),
        ((10, 3), ["9.0a+PTX"], False),
        ((10, 3), ["10.0f"], True),
        ((12, 1), ["8.0", "9.0a", "10.0", "12.0+PTX"], True),
        ((13, 0), ["8.0", "9.0a", "10.0", "12.0+PTX"], True),
        ((13, 0), [], False),
    ],
)
def test_what_runs_on_which_gpu(capability, archs, expected):
    assert _backend.serves_capability(capability, archs) is expected


def test_a_gpu_that_no_code_was_built_for(cuda_package, monkeypatch):
    pretend(monkeypatch, [(9, 0), (7, 5)], ["8.0", "9.0a"])
    _backend.load()
    new, old = torch.device("cuda", 0), torch.device("cuda", 1)
    assert _backend.must_choose
    assert choice("auto", torch.device("cpu")) == "native"
    assert _backend._unserved is None, "CPU tensors start no GPU"
    assert choice("auto", new) == "native"
    monkeypatch.setitem(_backend._status, "triton", "it is not installed")
    with pytest.warns(
        RuntimeWarning, match=r"7\.5, but the CUDA kernels were built for 8\.0, 9\.0a"
    ):
        assert choice("auto", old) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choice("auto", old) == "reference"
        monkeypatch.setitem(_backend._status, "triton", "available")
        assert choice("auto", old) == "triton"
    assert choice("cuda", new) == "native"
    with pytest.raises(RuntimeError, match=r"cuda:1 \(GPU 1\) has compute capability 7\.5, but"):
        choice("cuda", old)
    assert _backend.must_choose, "the second GPU must go on being asked about"


def test_gpus_are_looked_at_once(cuda_package, monkeypatch):
    pretend(monkeypatch, [(9, 0)], ["9.0a"])
    _backend.load()
    assert choice("auto", torch.device("cuda", 0)) == "native"
    assert not _backend.must_choose, "later calls must not pay for the check"
    with kanerva_ext.use_backend("reference"):
        assert _backend.must_choose
    assert not _backend.must_choose


def test_cuda_serves_where_triton_could_too(cuda_package, monkeypatch):
    pretend(monkeypatch, [(9, 0)], ["9.0a"])
    _backend.load()
    monkeypatch.setitem(_backend._status, "triton", "available")
    device = torch.device("cuda", 0)
    assert choice("auto", device) == "native"
    assert not _backend.must_choose
    assert choice("cuda", device) == "native"
    assert choice("triton", device) == "triton", "what is asked for is obeyed"


@pytest.mark.parametrize(
    ("gpu_torch", "triton", "cuda", "expected"),
    [
        ("13.0", "available", "it was not built", True),
        ("13.0", "available", "available", False),
        ("13.0", "it is not installed", "it was not built", False),
        (None, "available", "it was not built", False),
    ],
)
def test_when_triton_serves_gpus(monkeypatch, gpu_torch, triton, cuda, expected):
    monkeypatch.setattr(torch.version, "cuda", gpu_torch)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setitem(_backend._status, "triton", triton)
    monkeypatch.setitem(_backend._status, "cuda", cuda)
    assert _backend.triton_serves_gpus() is expected


def test_where_triton_is_available(monkeypatch):
    for name, status in _backend._status.items():
        monkeypatch.setitem(_backend._status, name, status)
    monkeypatch.setattr(_backend, "interpreted", False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _backend._find_triton()
    assert 'pip install "triton' in kanerva_ext.backends()["triton"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    _backend._find_triton()
    assert "has no GPU support" in kanerva_ext.backends()["triton"]
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 before Python starts"):
        choice("triton", torch.device("cpu"))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    _backend._find_triton()
    assert kanerva_ext.backends()["triton"] == "available"
    assert choice("triton", torch.device("cuda", 0)) == "triton"
    with pytest.raises(RuntimeError, match=r"serves cuda tensors .*got tensors on cpu"):
        choice("triton", torch.device("cpu"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    _backend._find_triton()
    assert choice("triton", torch.device("cpu")) == "triton"
    with pytest.raises(RuntimeError, match="got tensors on meta"):
        choice("triton", torch.device("meta"))


def test_gpus_without_the_cuda_library_run_triton():
    """In a process of its own: kernels for CUDA tensors stay registered."""
    pytest.importorskip("triton")
    show = """
import torch
torch.version.cuda = "13.0"  # as if this torch had it
import kanerva_ext
for namespace in ("kanerva", "kanerva_triton"):
    for name in ("bayes_write", "bayes_write_backward", "read", "recall", "memory_kl"):
        print(torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{name}", "CUDA"))
"""
    result = run_python(show, TRITON_INTERPRET="0")
    assert result.stdout.split() == ["True"] * 10, result.stderr


def test_import_is_lean():
    """Importing neither starts CUDA nor pulls in the optional packages."""
    code = (
        "import sys, torch, kanerva_ext\n"
        "assert not torch.cuda.is_initialized()\n"
        "bad = {'matplotlib', 'safetensors', 'pytest', 'pybind11'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_every_operator_works_without_the_library():
    """The kernels of last resort, in an interpreter that never loads the compiled ones."""
    code = """
import warnings
import torch
torch.ops.load_library = lambda path: (_ for _ in ()).throw(OSError("no library in this test"))
import kanerva_ext
from kanerva_ext import ops
assert "no library in this test" in kanerva_ext.backends()["cpu"]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    memory = kanerva_ext.FusedKanervaMemory(4, 6, learn_noise=True)
    out = memory(torch.randn(2, 5, 6))
    (out.values.sum() + out.kl_memory.sum() + out.kl_weights.sum()).backward()
    assert all(p.grad.abs().sum() > 0 for p in memory.parameters())
    mean, cov, weights = (x.detach() for x in (*out.state, out.weights))
    ops.read(mean, cov, weights)
    ops.to_statistics(mean, cov)
    torch.library.opcheck(torch.ops.kanerva.read.default, (mean, cov, weights))
ours = [w for w in caught if "runs as plain PyTorch" in str(w.message)]
assert len(ours) == 1, [str(w.message) for w in ours]
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
