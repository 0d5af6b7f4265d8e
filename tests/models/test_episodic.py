"""EpisodicMemory: what it computes, whatever the order and the cut of the calls."""

import math
import threading

import numpy as np
import pytest
import torch
from episodic_cases import cases
from torch import nn

import kanerva_ext
from kanerva_ext import ops
from kanerva_ext.episodic import (
    EpisodicMemory,
    InMemoryStore,
    RandomFourier,
    RandomReLU,
    SQLiteStore,
    _regression,
)

S, C, K = 12, 7, 20
FEATURES = ("relu", "fourier", "none")
facts, *_ = cases(S, C, K)


def make(features="relu", **options):
    slots = S if features == "none" else K
    return EpisodicMemory(S, C, options.pop("slots", slots), features, **options)


def address(memory, keys):
    keys = keys.double()
    return memory.features(keys / keys.norm(dim=-1, keepdim=True))


def written(memory, keys, values):
    """The belief that the operators compute."""
    slots = memory.slots
    prior = torch.zeros(slots, C).double(), memory.prior_var * torch.eye(slots).double()
    weights = address(memory, keys)
    return ops.bayes_write(*prior, weights, values.double(), memory.noise_var)[:2]


def assert_same(state, other, tolerance=1e-9):
    for a, b in zip(state, other, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("count", [0, 1, 9, 300])
def test_it_is_the_exact_write(features, count):
    memory = make(features, noise_var=0.02, prior_var=3.0)
    keys, values = facts(count)
    memory.write(keys, values)
    assert_same(memory.state(), written(memory, keys, values))
    queries = facts(5, seed=1)[0].double()
    out = memory.read(queries)
    mean, var = ops.read(*written(memory, keys, values), address(memory, queries))
    torch.testing.assert_close(out.values, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.read_var, var, rtol=1e-9, atol=1e-9)
    prior = 3.0 * address(memory, queries).square().sum(-1)
    torch.testing.assert_close(out.score, -0.5 * (var / prior).log(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("reading", [False, True])
def test_a_stream_is_a_batch(features, reading):
    """In one call, in chunks, one by one, backwards; with reads between, which keep a posterior."""
    keys, values = facts(90)
    whole = make(features)
    whole.write(keys, values)
    order = torch.arange(90)
    for cuts in ([order], order.split(7), order.split(1), order.flip(0).split(13)):
        memory = make(features)
        for part in cuts:
            memory.write(keys[part], values[part])
            if reading:
                memory.read(keys[:2])
        assert_same(memory.state(), whole.state())


@pytest.mark.parametrize("reading", [False, True])
def test_forgetting_and_writing_again(reading):
    keys, values = facts(60)
    memory, fresh = make(), make()
    fresh.write(keys, values)
    memory.write(keys, values, ids=range(60))
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        half = torch.randperm(60, generator=generator)[:30].tolist()
        memory.forget(half)
        if reading:
            memory.read(keys)
        left = [i for i in range(60) if i not in half]
        assert sorted(memory) == left and len(memory) == 30
        rest = make()
        rest.write(keys[left], values[left])
        assert_same(memory.state(), rest.state(), 1e-7)
        memory.write(keys[half], values[half], ids=half)
    assert_same(memory.state(), fresh.state(), 1e-7)
    assert memory.refresh() < 1e-9  # how far the sums had drifted, relative to the ridge
    assert_same(memory.state(), fresh.state(), 1e-10)


def test_what_is_forgotten_is_as_if_it_had_never_been_there():
    keys, values = facts(10)
    memory = make(slots=200)
    memory.write(keys, values, ids=[f"fact {i}" for i in range(10)])
    assert nn.functional.cosine_similarity(memory.read(keys).values, values).min() > 0.999
    memory.forget("fact 3")
    memory.forget(["fact 4", "fact 4"])
    never = make(slots=200)
    never.write(keys[[0, 1, 2, 5, 6, 7, 8, 9]], values[[0, 1, 2, 5, 6, 7, 8, 9]])
    torch.testing.assert_close(memory.read(keys).values, never.read(keys).values)
    memory.clear()
    assert len(memory) == 0 and list(memory) == []
    out = memory.read(keys)
    assert out.values.abs().max() == 0 and not out.is_known.any() and out.score.abs().max() < 1e-6
    memory.clear()


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("reading", [False, True])
def test_an_edit_is_a_forget_and_a_write(by_key, reading):
    keys, values = facts(15)
    memory = make(slots=100)
    ids = memory.write(keys, values)
    if reading:
        memory.read(keys)
    new = torch.randn(2, C)
    memory.edit(keys[[3, 9]] if by_key else [ids[3], ids[9]], new)
    edited = values.clone()
    edited[[3, 9]] = new
    other = make(slots=100)
    other.write(keys, edited)
    assert_same(memory.state(), other.state())
    torch.testing.assert_close(memory.get([3, 9]).values, new)
    memory.edit(keys[3].numpy() if by_key else 3, values[3].numpy())
    memory.write(keys[9:10], values[9:10], ids=[9], replace=True)
    assert list(memory) == list(range(15))
    other.refresh()
    first = make(slots=100)
    first.write(keys, values)
    assert_same(memory.state(), first.state())


def test_many_small_changes_stay_close_to_the_facts():
    """The posterior is changed in place for a while, then made anew."""
    memory = make(slots=64, noise_var=1e-4)
    keys, values = facts(400)
    memory.write(keys[:200], values[:200], ids=range(200))
    for i in range(200):
        memory.read(keys[:1])
        memory.forget(i)
        memory.write(keys[200 + i : 201 + i], values[200 + i : 201 + i], ids=[200 + i])
    fresh = make(slots=64, noise_var=1e-4)
    fresh.write(keys[200:], values[200:])
    assert_same(memory.state(), fresh.state(), 1e-6)
    out, other = memory.read(keys), fresh.read(keys)
    torch.testing.assert_close(out.values, other.values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.read_var, other.read_var, rtol=1e-4, atol=1e-7)


def test_the_posterior_in_place_is_left_before_it_loses_digits(monkeypatch):
    """Small noise: what is forgotten was known to all but 1e-9 of its variance."""
    memory = make("none", noise_var=1e-10)
    keys, values = facts(8)
    memory.write(keys, values)
    memory.read(keys)
    memory.forget([0, 1])
    fresh = make("none", noise_var=1e-10)
    fresh.write(keys[2:], values[2:])
    assert_same(memory.state(), fresh.state(), 1e-5)


def test_merging_is_writing_both():
    keys, values = facts(30)
    a, b, both = make(), make(), make()
    a.write(keys[:10], values[:10], ids=range(10))
    b.write(keys[10:], values[10:], ids=range(10, 30))
    both.write(keys, values)
    a.merge(b)
    assert list(a) == list(range(30)) and len(b) == 20
    assert_same(a.state(), both.state())
    with pytest.raises(ValueError, match="are in the memory"):
        a.merge(b)
    assert len(a) == 30
    for other, message in (
        (make(seed=1), "same features"),
        (make("fourier"), "same features"),
        (make(slots=21), "slots = 20, got 21"),
        (EpisodicMemory(S, 3, K), "value_size"),
        (make(num_memories=2), "num_memories"),
        (a, "another memory"),
    ):
        with pytest.raises(ValueError, match=message):
            a.merge(other)
    with pytest.raises(TypeError, match="EpisodicMemory"):
        a.merge(3)


def test_many_memories_are_as_many_single_ones():
    keys, values = facts(24)
    many = make(num_memories=3)
    ids = many.write(keys.view(3, 8, S), values.view(3, 8, C))
    assert ids == [0, 1, 2, 3, 4, 5, 6, 7] * 3 and len(many) == 24
    many.write(keys[:3], values[:3], ids=["a", "b", "a"], memory=[2, 0, 0])
    assert list(many.ids(memory=0)) == [*range(8), "b", "a"]
    assert (2, "a") in many and (1, "a") not in many and (2, "a") in list(many)
    many.edit(5, values[0], memory=1)
    many.forget("a", memory=2)
    singles = [make() for _ in range(3)]
    for i, single in enumerate(singles):
        single.write(keys[8 * i : 8 * i + 8], values[8 * i : 8 * i + 8])
    singles[0].write(keys[1:3], values[1:3])
    singles[1].edit(5, values[0])
    for i, single in enumerate(singles):
        assert_same(many.state(memory=i), single.state())
        assert many.count(memory=i) == len(single)
        assert many.nearest(keys[8 * i : 8 * i + 1], memory=i).ids == [[0]]
    which = torch.tensor([2, 0, 1, 0, 2])
    mixed = many.read(keys[:5], memory=which)
    for i, m in enumerate(which.tolist()):
        alone = singles[m].read(keys[i : i + 1])
        torch.testing.assert_close(mixed.values[i], alone.values[0])
        assert mixed.is_known[i] == alone.is_known[0]
    shaped = many.read(keys.view(3, 8, S))
    assert shaped.values.shape == (3, 8, C) and shaped.is_known.shape == (3, 8)
    torch.testing.assert_close(shaped.values[1], singles[1].read(keys[8:16]).values)
    assert many.read(keys[:0], memory=[]).values.shape == (0, C)
    for call, message in (
        (lambda: many.read(keys), "which of the num_memories"),
        (lambda: many.read(keys, memory=3), "in 0 .. 2, got 3"),
        (lambda: many.read(keys, memory=[0]), "24 of them, got 1"),
        (lambda: many.read(keys.view(2, 12, S)), "M = num_memories = 3"),
        (lambda: singles[0].read(keys, memory=0), "None without num_memories"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"\(memory, id\)"):
        3 in many  # noqa: B015


class Projection(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(S, K)

    def forward(self, keys):
        return torch.tanh(self.linear(keys))


def test_features_of_ones_own():
    features = Projection()
    memory = EpisodicMemory(S, C, K, features)
    keys, values = facts(9)
    memory.write(keys, values)
    weights = features(nn.functional.normalize(keys)).detach()
    prior = torch.zeros(K, C).double(), torch.eye(K).double()
    mean, cov, _ = ops.bayes_write(*prior, weights.double(), values.double(), memory.noise_var)
    assert_same(memory.state(), (mean, cov), 1e-4)
    # Gradients of a read reach the query and the projection.
    query = keys[:3].clone().requires_grad_()
    memory.read(query).values.square().sum().backward()
    assert query.grad.abs().min() > 0 and features.linear.weight.grad.abs().max() > 0
    # Trained on: the facts are written anew at their new addresses.
    with torch.no_grad():
        features.linear.weight.add_(0.1)
    other = EpisodicMemory(S, C, K, features)
    other.write(keys, values)
    memory.refresh()
    assert_same(memory.state(), other.state(), 1e-5)
    function = EpisodicMemory(S, C, 2 * S, lambda keys: torch.cat([keys, keys.square()], -1))
    function.write(keys, values)
    assert function.read(keys[0]).values.shape == (C,)
    with pytest.raises(ValueError, match=r"\(T, slots\) = \(T, 5\).*got \(1, 12\)"):
        EpisodicMemory(S, C, 5, lambda keys: keys)


def test_random_features_are_the_kernels_that_they_say():
    keys = nn.functional.normalize(torch.randn(2, 5), dim=-1)
    cosine, apart = (keys[0] @ keys[1]).item(), (keys[0] - keys[1]).norm().item()
    relu, fourier = RandomReLU(5, 400_000), RandomFourier(5, 400_000, bandwidth=0.8)
    angle = math.acos(cosine)
    arc_cosine = (math.sin(angle) + (math.pi - angle) * cosine) / math.pi
    assert abs((relu(keys) @ relu(keys).mT)[0, 1].item() - arc_cosine) < 0.01
    gaussian = math.exp(-(apart**2) / (2 * 0.8**2))
    assert abs((fourier(keys) @ fourier(keys).mT)[0, 1].item() - gaussian) < 0.01
    assert torch.equal(RandomReLU(5, 9, seed=3).matrix, RandomReLU(5, 9, seed=3).matrix)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_what_is_written_is_what_is_stored(dtype):
    memory, same = make(dtype=dtype), make(dtype="float64")
    keys, values = (x.double() for x in facts(30))
    memory.write(keys, values)
    stored = [x.to(getattr(torch, dtype)) for x in (keys, values)]
    same.write(*(x.double() for x in stored))
    assert_same(memory.state(), same.state())
    assert torch.equal(memory.get([4]).values, stored[1][4:5])
    memory.edit(keys[4:5], values[5:6])
    memory.forget(list(range(30)))
    assert memory.read(keys).values.abs().max() == 0


def test_arrays_and_dtypes():
    memory = make()
    keys, values = facts(9)
    memory.write(keys.numpy(), values.numpy().astype(np.float64), ids=np.arange(9))
    assert list(memory) == list(range(9)) and all(type(i) is int for i in memory)
    memory.write(keys[:1].bfloat16(), values[:1].half(), ids=torch.tensor([20]))
    assert memory.write(keys[:2], values[:2]) == [21, 22]
    assert np.int64(20) in memory and True not in memory and 1.5 not in memory
    assert memory.read(keys.bfloat16()).values.dtype == torch.float32
    assert memory.write(keys[:0], values[:0]) == []


def test_it_is_written_to_by_several_threads():
    memory = make()
    keys, values = facts(80)

    def write(start):
        for i in range(start, start + 20):
            memory.write(keys[i : i + 1], values[i : i + 1], ids=[i])
            memory.read(keys[i : i + 1])

    threads = [threading.Thread(target=write, args=(20 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = make()
    whole.write(keys, values)
    assert_same(memory.state(), whole.state())


@pytest.mark.parametrize("first", ["write", "forget"])
def test_a_change_that_is_cut_off_is_made_good(monkeypatch, first):
    """Wherever an interrupt comes: the sums are those of the store."""
    keys, values = facts(40)
    memory = make()
    memory.write(keys[:30], values[:30])
    memory.read(keys)
    write = _regression.Regression.write

    def interrupted(self, *args):
        write(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(_regression.Regression, "write", interrupted)
    if first == "forget":
        with pytest.raises(KeyboardInterrupt):
            memory.forget([0])
        memory.write(keys[30:], values[30:])
    else:
        with pytest.raises(KeyboardInterrupt):
            memory.write(keys[30:], values[30:])
        memory.forget([0])
    monkeypatch.undo()
    assert len(memory) == 39 and 0 not in memory and 39 in memory
    whole = make()
    whole.write(keys[1:], values[1:])
    assert_same(memory.state(), whole.state())
    assert memory.write(keys[:1], values[:1]) == [40]


def test_bad_arguments():
    keys, values = facts(4)
    for options, error, message in (
        ({"slots": 0}, ValueError, "slots must be at least 1"),
        ({"features": "none", "slots": 9}, ValueError, "slots must be key_size = 12"),
        ({"features": "rbf"}, ValueError, "features must be one of"),
        ({"features": 3}, TypeError, "features must be one of .* or a callable, got int"),
        ({"bandwidth": 1.0}, ValueError, 'unless features="fourier"'),
        ({"features": "fourier", "bandwidth": 0}, ValueError, "bandwidth must be positive"),
        ({"noise_var": 0}, ValueError, "noise_var must be positive"),
        ({"noise_var": "1"}, TypeError, "noise_var must be a number"),
        ({"false_alarm": 1}, ValueError, "false_alarm must be between 0 and 1"),
        ({"dtype": "bfloat16"}, ValueError, "dtype must be one of"),
        ({"num_memories": 0}, ValueError, "num_memories must be at least 1"),
        ({"store": 3}, TypeError, "store must be None, a path or a Store, got int"),
    ):
        with pytest.raises(error, match=message):
            make(**options)
    memory = make()
    memory.write(keys, values, ids=["a", "b", "c", 4])
    before = memory.state()
    nan = values.clone()
    nan[2] = torch.nan
    for call, error, message in (
        (lambda: memory.write(keys[:, 1:], values), ValueError, "key_size = 12, got \\(4, 11\\)"),
        (lambda: memory.write(keys, values[:3]), ValueError, "as many"),
        (lambda: memory.write(keys, nan), ValueError, "values must be finite.* row\\(s\\) 2"),
        (lambda: memory.write(nan[:, :1].expand(4, S), values), ValueError, "keys must be finite"),
        (lambda: memory.write(0 * keys, values), ValueError, "must not be zero"),
        (lambda: memory.write(keys, 1e39 * values.double()), ValueError, "values must be finite"),
        (lambda: memory.write(keys.int(), values), TypeError, "floating-point dtype"),
        (lambda: memory.write("what", values), TypeError, "keys must be a torch.Tensor or an"),
        (lambda: memory.write(keys, values, ids=[1, 2, 3]), ValueError, "as many as keys, 4"),
        (lambda: memory.write(keys, values, ids=[1, 2, 1, 3]), ValueError, "got 1 more than once"),
        (lambda: memory.write(keys, values, ids=[1, 2, "b", 3]), ValueError, "'b' are in the mem"),
        (lambda: memory.write(keys, values, ids=[1, 2, 3.0, 5]), TypeError, "int or a str, got f"),
        (lambda: memory.write(keys, values, ids=[1, 2, True, 5]), TypeError, "int or a str"),
        (lambda: memory.write(keys, values, ids=[1, 2, 2**63, 5]), ValueError, "64 bits"),
        (lambda: memory.write(keys, values, ids=3.5), TypeError, "ids must be an int"),
        (lambda: memory.forget("z"), KeyError, "no fact with the id\\(s\\) 'z'"),
        (lambda: memory.forget(["a", 7]), KeyError, "no fact with the id\\(s\\) 7"),
        (lambda: memory.forget(-keys[:2]), KeyError, "key\\(s\\) of row\\(s\\) 0, 1"),
        (lambda: memory.edit("z", values[0]), KeyError, "'z'"),
        (lambda: memory.edit("a", values), ValueError, "one for each fact, 1, got 4"),
        (lambda: memory.edit("a", nan[2]), ValueError, "finite"),
        (lambda: memory.edit(["a", "a"], values[:2]), ValueError, "must differ"),
        (lambda: memory.get([1]), KeyError, "1"),
        (lambda: memory.read(nan[:, :1].expand(4, S)), ValueError, "keys must be finite"),
        (lambda: memory.read(values), ValueError, "key_size = 12"),
        (lambda: memory.nearest(keys, k=0), ValueError, "k must be at least 1"),
        (lambda: memory.nearest(keys, by="id"), ValueError, 'by must be "value" or "key"'),
    ):
        with pytest.raises(error, match=message):
            call()
    assert list(memory) == ["a", "b", "c", 4]
    assert_same(memory.state(), before, 0)


def test_the_public_names():
    assert kanerva_ext.episodic.EpisodicMemory is EpisodicMemory
    assert repr(make()) == "EpisodicMemory(key_size=12, value_size=7, slots=20, 0 facts)"
    assert isinstance(make(store=InMemoryStore(S, C)), EpisodicMemory)
    assert issubclass(SQLiteStore, kanerva_ext.episodic.Store)
    memory = make()
    assert memory.to("cpu") is memory and memory.to(torch.device("cpu")).device.type == "cpu"
