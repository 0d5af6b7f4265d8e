"""EpisodicMemory with numbers, features and calls that it was not given before."""

import contextlib
import copy
import pickle
import threading
import warnings

import pytest
import torch
from episodic_cases import cases
from torch import nn

from kanerva_ext.episodic import EpisodicMemory, SQLiteStore, _saving

S, C, K = 8, 4, 16
facts, make, filled = cases(S, C, K)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("change", ["write", "edit"])
def test_what_was_written_is_not_the_callers_any_more(normalize, change):
    memory, same = (make(dtype="float64", normalize=normalize, slots=S) for _ in range(2))
    keys, values = facts(3, dtype=torch.float64)
    same.write(keys, values)
    wanted = same.read(keys).values
    for given in ((keys.clone(), values.clone()), (keys.numpy().copy(), values.numpy().copy())):
        if change == "write":
            memory.write(*given, ids=[0, 1, 2], replace=True)
        else:
            memory.write(keys, values + 1, ids=[0, 1, 2], replace=True)
            memory.edit([0, 1, 2], given[1])
        for array in given:
            array[:] = 0
        torch.testing.assert_close(memory.read(keys).values, wanted)
        assert torch.equal(memory.get([0, 1, 2]).values, values)


def test_a_callable_may_use_its_result_again():
    buffer = torch.zeros(1, K, dtype=torch.float64)
    matrix = torch.randn(S, K, dtype=torch.float64)

    def features(keys):
        return torch.matmul(keys.double(), matrix, out=buffer)

    keys, values = facts(3)
    memory, same = make(features=features), make(features=lambda x: x.double() @ matrix)
    for i in range(3):
        for one in (memory, same):
            one.write(keys[i : i + 1], values[i : i + 1])
    torch.testing.assert_close(memory.state().mean, same.state().mean)


@pytest.mark.parametrize("features", ["none", "relu", "fourier"])
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-10, 1e10, 1e20, 1e37])
def test_the_norm_of_a_key_does_not_matter(features, scale):
    slots = S if features == "none" else K
    keys, values = facts(5)
    plain, memory = (make(features=features, slots=slots) for _ in range(2))
    plain.write(keys, values)
    memory.write(scale * keys, values)
    wanted = plain.read(keys)
    for queries in (scale * keys, keys, (scale * keys).double(), keys.double() * scale**8):
        out = memory.read(queries)
        torch.testing.assert_close(out.values.float(), wanted.values, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out.score.float(), wanted.score, rtol=1e-4, atol=1e-4)
    assert memory.nearest(scale * keys, by="key").ids == [[i] for i in range(5)]
    memory.forget(scale * keys[2])
    assert list(memory) == [0, 1, 3, 4]


def test_gradients_of_a_scaled_key():
    memory, keys, _ = filled(features="fourier")
    for scale in (1e-150, 1.0, 1e150):
        query = (keys.double() * scale).requires_grad_()
        memory.read(query).values.sum().backward()
        one = keys.double().requires_grad_()
        memory.read(one).values.sum().backward()
        torch.testing.assert_close(query.grad * scale, one.grad)
    blank = torch.zeros(1, S, requires_grad=True)
    memory.read(blank).values.sum().backward()
    assert torch.isfinite(blank.grad).all()


def test_keys_that_the_dtype_cannot_hold():
    memory = make(dtype="float16")
    keys, values = facts(2)
    for scale, message in (
        (1e6, "keys must be finite in the memory's dtype"),
        (1e-9, "zero|small"),
    ):
        with pytest.raises(ValueError, match=message):
            memory.write(scale * keys, values)
    with pytest.raises(ValueError, match="values must be finite in the memory's dtype, float16"):
        memory.write(keys, 1e6 * values)
    with pytest.raises(ValueError, match="keys are too small for the memory's dtype, float32"):
        make().write(1e-43 * keys.double(), values)
    assert len(memory) == 0


@pytest.mark.parametrize("scale", [1e-20, 1e20, 1e35])
def test_nearest_values_of_any_size(scale):
    memory = make(slots=64)
    keys, values = facts(6)
    memory.write(keys, scale * values)
    found = memory.nearest(keys)
    assert found.ids == [[i] for i in range(6)] and found.similarity.min() > 0.9


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_key_names_the_fact_that_has_it_alone(dtype):
    generator = torch.Generator().manual_seed(0)
    number = getattr(torch, dtype)
    for _ in range(30):
        memory = make(dtype=dtype)
        key = torch.randn(1, S, generator=generator).to(number)
        near = key * (1 + 1e-5 * torch.randn(1, S, generator=generator).to(number))
        other = key * (1 + 1e-5 * torch.randn(1, S, generator=generator).to(number))
        memory.write(torch.cat([key, near]), torch.randn(2, C), ids=["a", "b"])
        for call in (memory.forget, memory.get, lambda x, m=memory: m.edit(x, torch.ones(C))):
            with pytest.raises(KeyError, match=r"row\(s\) 0; the key nearest .* id '[ab]', at cos"):
                call(other)
        memory.edit(near, torch.ones(C))
        assert memory.get("b").values.eq(1).all() and not memory.get("a").values.eq(1).any()
        memory.forget(near)
        assert list(memory) == ["a"]


def test_keys_along_one_line_are_different_keys():
    memory = make(normalize=False)
    key, value = (x[:1] for x in facts(1))
    memory.write(torch.cat([key, 2 * key, 3 * key, 0 * key]), value.expand(4, C), ids=list("abcd"))
    memory.forget(3 * key)
    memory.forget(-0.0 * key.abs())
    assert list(memory) == ["a", "b"]


def test_a_key_that_several_facts_have_needs_their_ids():
    memory = make()
    keys, values = facts(2)
    memory.write(keys[[0, 1, 0]], torch.cat([values, values[:1]]), ids=["a", "b", "c"])
    for call in (memory.forget, memory.get, lambda x: memory.edit(x, values[0])):
        with pytest.raises(ValueError, match="2 have the key of row 0: say which by ids, 'a', 'c'"):
            call(keys[:1])
    memory.forget("a")
    memory.forget(keys)
    assert len(memory) == 0
    with pytest.raises(KeyError, match="no fact was written"):
        memory.forget(keys)


@pytest.mark.parametrize("reading", [False, True])
@pytest.mark.parametrize("scale", [1e3, 1e6, 1e12, 1e16, 1e25])
@pytest.mark.parametrize("what", ["value", "key", "edit"])
def test_forgetting_something_huge(what, scale, reading):
    options = {"normalize": what != "key"}
    keys, values = facts(3)
    memory, never = make(**options), make(**options)
    never.write(keys[:2], values[:2])
    memory.write(keys[:2], values[:2])
    if reading:
        memory.read(keys)
    if what == "edit":
        never.write(keys[2:], values[2:])
        memory.write(keys[2:], values[2:])
        memory.edit(2, scale * values[2])
        if reading:
            memory.read(keys)
        memory.edit(2, values[2])
    else:
        by = (scale, 1) if what == "key" else (1, scale)
        memory.write(by[0] * keys[2:], by[1] * values[2:])
        if reading:
            memory.read(keys)
        memory.forget(2)
    out, wanted = memory.read(keys.double()), never.read(keys.double())
    torch.testing.assert_close(out.values, wanted.values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.score, wanted.score, rtol=1e-6, atol=1e-6)


def test_forgetting_something_huge_after_loading(tmp_path):
    keys, values = facts(41)
    never = make()
    never.write(keys[:40], values[:40])
    with make(tmp_path / "facts.db") as memory:
        memory.write(keys, torch.cat([values[:40], 1e16 * values[40:]]))
    with EpisodicMemory.load(tmp_path / "facts.db") as again:
        assert not again._broken[0]  # from the sums
        again.forget(40)
        torch.testing.assert_close(again.state().mean, never.state().mean)


def test_ordinary_changes_make_nothing_anew():
    memory, _, _ = filled(40)
    for i in range(30):
        memory.edit(i, 100 * torch.randn(C))
        memory.forget(i)
        assert not memory._broken[0]


BAD = {
    "shape": lambda y: y[:1],
    "wide": lambda y: torch.cat([y, y], -1),
    "nan": lambda y: y * float("nan"),
    "array": lambda y: y.numpy(),
    "raise": lambda y: y.no_such_name,
}


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("kind", BAD)
def test_features_that_fail_change_nothing(tmp_path, kind, on_disk):
    matrix, bad = torch.randn(S, K), False

    def features(keys):
        return BAD[kind](keys.float() @ matrix) if bad else keys.float() @ matrix

    memory = make(tmp_path / "facts.db" if on_disk else None, features=features)
    keys, values = facts(7)
    memory.write(keys[:4], values[:4])
    before = memory.read(keys).values
    bad = True
    for call in (
        lambda: memory.write(keys[4:], values[4:]),
        lambda: memory.write(keys[4:], values[4:], ids=[0, 1, 9], replace=True),
        lambda: memory.forget([0, 1]),
        lambda: memory.edit([0, 1], values[:2]),
        lambda: memory.read(keys),
    ):
        with pytest.raises((ValueError, RuntimeError), match="features"):
            call()
    bad = False
    assert list(memory) == [0, 1, 2, 3] and torch.equal(memory.get([0, 1]).values, values[:2])
    assert torch.equal(memory.read(keys).values, before)
    memory.close()


def test_the_last_id():
    memory = make()
    keys, values = facts(3)
    memory.write(keys[:1], values[:1], ids=[2**63 - 2])
    assert memory.write(keys[:1], values[:1]) == [2**63 - 1]
    with pytest.raises(ValueError, match="ids must be given"):
        memory.write(keys, values)
    memory.write(keys, values, ids=[1, 2, 3])
    memory.clear()


def test_two_memories_merged_into_each_other():
    keys, values = facts(2)
    for _ in range(100):
        a, b = make(), make()
        a.write(keys[:1], values[:1], ids=["a"])
        b.write(keys[1:], values[1:], ids=["b"])
        start = threading.Barrier(2)

        def run(one, other, start=start):
            start.wait()
            with contextlib.suppress(ValueError):  # of the second: its own facts are in the other
                one.merge(other)

        threads = [
            threading.Thread(target=run, args=pair, daemon=True) for pair in ((a, b), (b, a))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert sorted([len(a), len(b)]) == [1, 2]


def test_sums_that_find_no_room(tmp_path, monkeypatch):
    """The facts are in the file by then: no error says that they are not."""
    monkeypatch.setattr(_saving, "CHANGES", 10)

    def full(*args):
        raise OSError(28, "the disk is full; nothing of this change was written")

    monkeypatch.setattr(SQLiteStore, "put_sums", full)
    memory = make(tmp_path / "facts.db", slots=100)
    keys, values = facts(500)
    memory._full = True
    with pytest.warns(RuntimeWarning, match="the facts are in .*facts.db"):
        memory.write(keys, values)
    assert len(memory) == 500
    with pytest.warns(RuntimeWarning, match="the facts are in .*facts.db"):
        memory.close()
    with EpisodicMemory.load(tmp_path / "facts.db") as again:
        assert len(again) == 500
        monkeypatch.undo()


@pytest.mark.parametrize("device", ["meta", "nonsense", None, "cuda:999"])
def test_devices_that_do_not_serve(device):
    memory, keys, _ = filled()
    before = memory.read(keys).values
    with pytest.raises(ValueError, match="device"):
        make(device=device)
    with pytest.raises(ValueError, match="device"):
        memory.to(device)
    assert memory.device == torch.device("cpu")
    assert torch.equal(memory.read(keys).values, before)


def test_a_move_that_fails_leaves_the_device(monkeypatch):
    memory, keys, _ = filled(features=nn.Linear(S, K))
    move = nn.Module.to

    def fails(self, device):
        if device != torch.device("cpu"):
            raise RuntimeError("out of memory")
        return move(self, device)

    monkeypatch.setattr("kanerva_ext.episodic.memory.as_device", torch.device)
    monkeypatch.setattr(nn.Module, "to", fails)
    before = memory.read(keys).values
    with pytest.raises(RuntimeError, match="out of memory"):
        memory.to("meta")
    assert memory.device == torch.device("cpu")
    assert torch.equal(memory.read(keys).values, before)


def test_it_is_not_pickled():
    memory, _, _ = filled()
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"save\(path\)"):
            call(memory)


@pytest.mark.parametrize("features", ["relu", "fourier"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_made_and_read_in_inference_mode(tmp_path, features, dtype):
    with torch.inference_mode():
        memory, keys, _ = filled(features=features)
        memory.read(keys.to(dtype))
        memory.save(tmp_path / "facts.db")
        loaded = EpisodicMemory.load(tmp_path / "facts.db")
        loaded.read(keys.to(dtype))
    for one in (memory, loaded):
        query = facts(5)[0].to(dtype).requires_grad_()
        one.read(query).values.sum().backward()
        assert query.grad.abs().max() > 0
    loaded.close()


def test_more_facts_than_slots_are_said_once():
    memory = make()
    keys, values = facts(K + 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.write(keys[:K], values[:K])
    with pytest.warns(UserWarning, match="17 facts at 16 slots"):
        memory.write(keys[K : K + 1], values[K : K + 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.write(keys[K + 1 :], values[K + 1 :])
