"""EpisodicMemory: a column of the values does not know of the others, however large they are."""

import pytest
import torch
from episodic_cases import cases

from kanerva_ext.episodic import EpisodicMemory

S, C, K = 16, 5, 64
facts, make, filled = cases(S, C, K)
#: Powers of two, which round nothing.
SCALE = 2.0 ** torch.tensor([20, -10, 0, 66, -66])


def changed(memory, values, change):
    """Written, and then changed in place or not."""
    keys, _ = facts(len(values))
    memory.write(keys, values, ids=range(len(values)))
    if change:
        memory.read(keys)
    if change == "forget":
        memory.forget(list(range(10)))
    elif change == "edit":
        memory.edit(list(range(10)), values[20:30])
    return memory


@pytest.mark.parametrize("change", [None, "edit", "forget"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_of_any_size_beside_each_other(change, dtype):
    """What is known is a matter of keys alone; each column is read as if it were of size 1."""
    _, values = facts(40, dtype=torch.float64)
    queries = facts(40, seed=1)[0].to(dtype)
    memory = changed(make(dtype="float64"), values * SCALE.double(), change)
    even = changed(make(dtype="float64"), values, change)
    out, wanted = memory.read(queries), even.read(queries)
    assert torch.equal(out.score, wanted.score) and torch.equal(out.is_known, wanted.is_known)
    assert memory.threshold() == even.threshold()
    assert torch.equal(out.values / SCALE, wanted.values)


@pytest.mark.parametrize("reading", [False, True])
@pytest.mark.parametrize("how", ["forget", "edit"])
def test_something_huge_in_a_small_column(reading, how):
    """Its rounding goes when it goes, though another column is as large all the time."""
    keys, values = facts(40, dtype=torch.float64)
    values = values * torch.tensor([1e9, 1e-3, 1, 1, 1]).double()
    memory, never = make(dtype="float64"), make(dtype="float64")
    never.write(keys, values)
    huge = values[:1].clone()
    huge[:, 1] = 1e9
    if how == "forget":
        memory.write(keys, values)
        if reading:
            memory.read(keys)
        ids = memory.write(-keys[:1], huge)
        if reading:
            memory.read(keys)
        memory.forget(ids)
    else:
        memory.write(keys, torch.cat([huge, values[1:]]))
        if reading:
            memory.read(keys)
        memory.edit([0], values[:1])
    read, wanted = memory.read(keys).values, never.read(keys).values
    assert ((read - wanted).abs().amax(0) <= 1e-9 * wanted.abs().amax(0)).all()


@pytest.mark.parametrize("reading", [False, True])
@pytest.mark.parametrize("how", ["forget", "edit"])
def test_a_column_that_nothing_uses_any_more_is_zero(tmp_path, reading, how):
    """Without the facts being summed anew: values may be one-hot."""
    keys, _ = facts(40)
    values = torch.eye(C)[torch.arange(40) % (C - 1)]
    values[7] = 3 * torch.eye(C)[C - 1]
    memory = make(dtype="float64")
    memory.write(keys, values)
    if reading:
        memory.read(keys)
    if how == "forget":
        memory.forget(7)
    else:
        memory.edit(7, values[0])
    assert not memory._broken[0]
    assert not memory.read(keys.double()).values[:, C - 1].any()
    assert not memory.read(keys).values[:, C - 1].any()
    memory.write(keys[7:8], values[7:8], ids=["again"])
    assert memory.read(keys[7]).values[C - 1] > 1


def test_what_is_known_of_the_columns_is_in_the_file(tmp_path):
    keys, values = facts(100)
    values[:, 0] *= 1e12
    values[99, 1] = 1e12
    values[:98, 2] = 0
    with make(tmp_path / "facts.db") as memory:
        memory.write(keys, values)
        tables = memory._sums[0].scales.tables()
    with EpisodicMemory.load(tmp_path / "facts.db") as again:
        assert not again._broken[0]  # from the sums
        for name, table in again._sums[0].scales.tables().items():
            assert torch.equal(table, tables[name])
        again.forget(99)
        assert again._broken[0]  # column 1 had been huge
        again.forget(98)
        never = make()
        never.write(keys[:98], values[:98])
        torch.testing.assert_close(again.state().mean, never.state().mean, rtol=1e-9, atol=0)
        assert not again.read(keys).values[:, 2].any()
