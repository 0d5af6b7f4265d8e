import warnings

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
    assert all("not part of this release" in status[n] for n in ("cuda", "triton"))
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
    for name in ("cuda", "triton"):
        with pytest.raises(RuntimeError, match=f'"{name}" is not available.*use backend="auto"'):
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
        KANERVA_BACKEND="cuda",
    )
    assert "not part of this release yet" in later.stderr


def test_a_broken_library_is_reported(tmp_path, monkeypatch):
    (tmp_path / "_C.abi3.so").write_bytes(b"not a library")
    monkeypatch.setattr(_backend, "__file__", str(tmp_path / "_backend.py"))
    monkeypatch.setitem(_backend._status, "cpu", "")
    _backend.load()
    assert "could not be loaded under torch" in kanerva_ext.backends()["cpu"]
    (tmp_path / "_C.abi3.so").unlink()
    _backend.load()
    assert "reinstall it with a C++17 compiler" in kanerva_ext.backends()["cpu"]


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
