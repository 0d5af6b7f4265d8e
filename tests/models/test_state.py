"""MemoryState and the tuples that are returned: saved, loaded, copied, moved, selected."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import kanerva_ext
from kanerva_ext import FusedKanervaMemory, MemoryState, models
from kanerva_ext._files import naming

safetensors = pytest.importorskip("safetensors.torch")


def make_state(dtype=torch.float32):
    memory = FusedKanervaMemory(4, 9).to(dtype)
    return memory.write(torch.randn(3, 5, 9, dtype=dtype)).state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_save_and_load(tmp_path, dtype):
    path = tmp_path / "memory.safetensors"
    for state in (
        make_state(dtype),
        FusedKanervaMemory(4, 9).to(dtype).prior((2, 3)),  # expanded, requires a gradient
        FusedKanervaMemory(4, 9).to(dtype).prior(()),
        FusedKanervaMemory(4, 9).to(dtype).prior(0),
        MemoryState(torch.zeros(4, 9, dtype=dtype), torch.eye(4, dtype=dtype).expand(2, 4, 4)),
    ):
        state.save(path)
        loaded = MemoryState.load(str(path))
        assert isinstance(loaded, MemoryState)
        for a, b in zip(loaded, state, strict=True):
            assert torch.equal(a, b) and a.dtype == dtype and a.is_contiguous()
            assert not a.requires_grad
    assert [p.name for p in tmp_path.iterdir()] == ["memory.safetensors"]
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["kanerva_ext"] == kanerva_ext.__version__
        assert set(file.keys()) == {"mean", "cov"}
    meta = MemoryState.load(path, device="meta")
    assert meta.mean.device.type == meta.cov.device.type == "meta"


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        MemoryState.load(path)
    state = make_state()
    state.save(path)
    good = path.read_bytes()
    described = {"format": "kanerva_ext.MemoryState"}
    tensors = {"mean": state.mean, "cov": state.cov}
    metadata = {**described, "dtype": "torch.float32", "mean": "[3, 4, 8]", "cov": "[3, 4, 4]"}
    for content in (
        b"",
        b"what",
        good[:-3],
        good[:40],
        b"\xff" * 64,
        safetensors.save(tensors),
        safetensors.save(tensors, {"format": "pt"}),
        safetensors.save(tensors, described),
        safetensors.save({"mean": state.mean}, described),
        safetensors.save(tensors, metadata),
        safetensors.save(tensors, {**metadata, "mean": "[3, 4, 9]", "dtype": "torch.float64"}),
        (8).to_bytes(8, "little") + b"[1,2,3] ",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"MemoryState.load: .*file is no saved MemoryState"):
            MemoryState.load(path)
    with pytest.raises(OSError):
        state.save(tmp_path / "none" / "file")
    state.save(path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: state.save(path), lambda: MemoryState.load(path)):
        with pytest.raises(ModuleNotFoundError, match="needs safetensors, which is not installed"):
            call()


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    old = make_state()
    old.save(path)

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        make_state().save(path)
    assert str(caught.value) == f"[Errno 28] No space left on device: '{path}'"
    monkeypatch.undo()
    assert torch.equal(MemoryState.load(path).mean, old.mean)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_error_without_a_number_keeps_its_words(tmp_path):
    with pytest.raises(OSError, match=r"file: no such device$"), naming(tmp_path / "file"):
        raise OSError("no such device")


def test_every_tuple_loads_by_default():
    """torch.load's default is weights_only=True."""
    memory = FusedKanervaMemory(4, 9)
    layer = kanerva_ext.KanervaLayer(8, 2)
    values = torch.randn(2, 3, 9)
    images = (torch.rand(1, 2, 1, 28, 28) < 0.1).float()
    written = memory.write(values)
    found = (
        written.state,
        written,
        memory(values),
        memory.attractor(values, written.state, 2, return_trajectory=True),
        layer(torch.randn(2, 3, 8), use_cache=True),
        kanerva_ext.compare_memories(memory, lambda: memory(values).values),
        models.KanervaMachine(4, 8, num_filters=2).elbo(images),
        models.DynamicKanervaMachine(4, 8, num_filters=2).elbo(images),
        models.MatchedVAE(8, num_filters=2).elbo(images),
    )
    buffer = io.BytesIO()
    torch.save(found, buffer)
    buffer.seek(0)
    for a, b in zip(torch.load(buffer), found, strict=True):
        assert type(a) is type(b)
        torch.testing.assert_close(a, b)


def test_clone_detach_to_and_select():
    memory = FusedKanervaMemory(4, 9)
    prior = memory.prior(3)
    copy = prior.clone()
    assert copy.mean.is_contiguous() and copy.mean.stride() == (36, 9, 1)
    assert copy.mean.requires_grad and not prior.detach().mean.requires_grad
    double = prior.to(torch.float64)
    assert double.mean.dtype == double.cov.dtype == torch.float64
    half = prior.to(torch.bfloat16)  # beliefs are never kept in half precision
    assert half.mean.dtype == half.cov.dtype == torch.float32
    assert prior.to("meta").cov.device.type == "meta"
    state = make_state()
    for index in ([2, 0, 0], torch.tensor([2, 0, 0]), (2, 0, 0)):
        some = state.select(index)
        assert isinstance(some, MemoryState)
        assert torch.equal(some.mean, state.mean[[2, 0, 0]])
        assert torch.equal(some.cov, state.cov[[2, 0, 0]])
    assert state[0] is state.mean and len(state) == 2  # still a tuple of two
    assert "state[0]" in MemoryState.__doc__
    with pytest.raises(ValueError, match="must have a leading dimension"):
        memory.prior(()).select([0])
    with pytest.raises(IndexError, match=r"MemoryState.select: index must be in 0 .. 2, got 3"):
        state.select([3])


LINEAR = {"linear_path": True, "likelihood": "scaled_gaussian"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.KanervaMachine(4, 8, num_filters=3, hidden_size=20),
        lambda: models.KanervaMachine(4, 8, num_filters=3, likelihood="gaussian", num_channels=3),
        lambda: models.DynamicKanervaMachine(4, 8, num_filters=3),
        lambda: models.MatchedVAE(8, num_filters=3, likelihood="gaussian"),
        lambda: models.KanervaMachine(4, 8, num_filters=3, **LINEAR),
        lambda: models.DynamicKanervaMachine(4, 8, num_filters=0, **LINEAR),
        lambda: models.MatchedVAE(8, num_filters=3, **LINEAR),
    ],
    ids=[
        "kanerva",
        "kanerva-gaussian",
        "dynamic",
        "vae-gaussian",
        "linear-kanerva",
        "linear-dynamic",
        "linear-vae",
    ],
)
def test_models_start_from_the_meta_device(make):
    """to_empty, and reset_parameters of every module in any order, as FSDP has it."""
    want = make()
    for order in (list, lambda modules: reversed(list(modules))):
        with torch.device("meta"):
            model = make()
        model.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(torch.nan)
        for module in order(model.modules()):
            own = list(module.parameters(recurse=False))
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            else:
                assert not own, type(module)
        for (name, a), b in zip(model.named_parameters(), want.parameters(), strict=True):
            assert a.shape == b.shape and a.isfinite().all(), name
            if (b == b.flatten()[0]).all():  # a start that is not random
                torch.testing.assert_close(a, b, msg=name)
            elif b.numel() > 60:
                torch.testing.assert_close(a.std(), b.std(), rtol=0.4, atol=0, msg=name)


def test_only_states_that_the_operators_take_are_saved(tmp_path):
    mean, cov = torch.zeros(1, 2, 3), torch.eye(2)[None]
    for state in (MemoryState(mean.double(), cov), MemoryState(mean.half(), cov.half())):
        with pytest.raises(TypeError, match=r"both be torch\.float32 or both torch\.float64, got"):
            state.save(tmp_path / "state")
    assert not list(tmp_path.iterdir())
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(TypeError, match=f"must be a real floating-point one, got {dtype}"):
            MemoryState(mean, cov).to(dtype)


def test_many_threads_save_to_one_path(tmp_path):
    state = MemoryState(torch.zeros(1, 2, 3), torch.eye(2)[None])
    (tmp_path / "there").touch()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: state.save(tmp_path / "link"), range(100)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "there"]
    assert (tmp_path / "link").is_symlink()
    assert torch.equal(MemoryState.load(tmp_path / "there").cov, state.cov)


def test_a_file_of_deeply_nested_json_is_damaged(tmp_path):
    header = b"[" * 100_000
    (tmp_path / "state").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="is no saved MemoryState"):
        MemoryState.load(tmp_path / "state")
