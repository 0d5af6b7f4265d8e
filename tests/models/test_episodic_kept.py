"""What an episodic memory keeps beside its facts, over restarts; and what a read is made of."""

import sqlite3

import pytest
import torch
from episodic_cases import cases

from kanerva_ext.episodic import EpisodicMemory, InMemoryStore, SQLiteStore, Store

S, C, K = 8, 4, 16
facts, make, filled = cases(S, C, K)


def restart(memory, path, kind):
    """The memory as another process finds it."""
    if kind == "killed":  # its store's file as the last change left it
        memory._store.close()
    elif kind == "closed":
        memory.close()
    else:
        memory.save(path)
        memory._store.close()
    if kind == "store":
        return make(SQLiteStore(path), slots=memory.slots)
    return EpisodicMemory.load(path, in_memory=kind == "copied")


def start(path, kind, **options):
    return make(None if kind in ("saved", "copied", "store") else path, **options)


KINDS = pytest.mark.parametrize("kind", ["killed", "closed", "saved", "copied", "store"])


@KINDS
def test_a_calibrated_threshold_outlives_the_process(tmp_path, kind):
    path = tmp_path / "facts.db"
    memory = start(path, kind, slots=128)
    keys, values = facts(64)
    memory.write(keys, values)
    own = memory.threshold()
    asked = keys[:40] + 0.3 * facts(40, seed=3)[0]  # more like facts than these like each other
    calibrated = memory.calibrate(asked)
    assert calibrated > own + 0.1
    memory.edit(5, values[0])
    assert memory.threshold() == calibrated
    again = restart(memory, path, kind)
    assert again.threshold() == pytest.approx(calibrated, rel=1e-9)
    known = again.read(keys).score > again.threshold()
    assert torch.equal(again.read(keys).is_known, known)
    again._store.close()


def test_it_is_found_anew_by_the_same_keys_as_facts_change():
    memory = make(slots=128)
    keys, values = facts(64)
    memory.write(keys, values)
    asked = keys[:40] + 0.3 * facts(40, seed=3)[0]
    first = memory.calibrate(asked)
    memory.write(keys[:4], values[:4])
    assert memory.threshold() == first  # a sixteenth has to change
    memory.forget(list(range(30)))
    second = memory.threshold()
    fresh = make(slots=128)
    fresh.write(keys[30:], values[30:])
    fresh.write(keys[:4], values[:4])
    own = fresh.threshold()
    assert second == pytest.approx(fresh.calibrate(asked), rel=1e-9)
    assert second < first and second != pytest.approx(own, rel=1e-3)
    assert memory.calibrate(None) == pytest.approx(own, rel=1e-9) == memory.threshold()


def test_of_many_keys_some_are_kept(tmp_path):
    memory = make(tmp_path / "facts.db")
    memory.write(*facts(16))
    threshold = memory.calibrate(facts(9000, seed=3)[0])
    memory._store.close()
    again = EpisodicMemory.load(tmp_path / "facts.db")
    assert again.threshold() == pytest.approx(threshold, rel=1e-9)
    assert again._calibrated_by(0).shape == (4096, S)
    again.calibrate(None)
    again._store.close()
    with EpisodicMemory.load(tmp_path / "facts.db") as last:
        assert last._calibrated_by(0) is None


def test_a_threshold_that_cannot_be_kept_is_not_taken(tmp_path, monkeypatch):
    memory = make(tmp_path / "facts.db")
    memory.write(*facts(16))
    own = memory.threshold()

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SQLiteStore, "change", full)
        with pytest.raises(OSError, match="No space left"):
            memory.calibrate(facts(40, seed=3)[0])
    assert memory.threshold() == own


def test_features_that_changed_give_it_another_threshold():
    features = torch.nn.Linear(S, K)
    memory = make(features=features)
    memory.write(*facts(16))
    asked = facts(40, seed=3)[0]
    before = memory.calibrate(asked)
    with torch.no_grad():
        features.weight.mul_(torch.rand(S))
    memory.refresh()
    after = memory.threshold()
    assert after != before and after == memory.calibrate(asked)


@KINDS
def test_ids_are_not_given_twice(tmp_path, kind):
    path = tmp_path / "facts.db"
    memory = start(path, kind)
    keys, values = facts(6)
    assert memory.write(keys, values) == [0, 1, 2, 3, 4, 5]
    memory.forget([4, 5])
    again = restart(memory, path, kind)
    assert again.write(keys[:1], values[:1]) == [6]
    again.write(keys[:1], values[:1], ids=[20])
    again.write(keys[:1], values[:1], ids=[20], replace=True)
    again.clear()
    if kind == "copied":
        again.save(path)
    again._store.close()
    with EpisodicMemory.load(path) as last:
        assert len(last) == 0 and last.write(keys[:2], values[:2]) == [21, 22]


def test_ids_of_each_memory(tmp_path):
    path = tmp_path / "users.db"
    keys, values = facts(6)
    with make(path, num_memories=2) as memory:
        memory.write(keys, values, memory=0)
        memory.write(keys[:2], values[:2], memory=1)
        memory.clear(memory=0)
        memory.forget([1], memory=1)
        memory.calibrate(facts(40, seed=3)[0], memory=1)
        threshold = memory.threshold(memory=1)
    with EpisodicMemory.load(path) as again:
        assert again._calibrated_by(0) is None and again._calibrated_by(1).shape == (40, S)
        assert again.threshold(memory=1) == pytest.approx(threshold, rel=1e-9)
        assert again.write(keys[:2], values[:2], memory=[0, 1]) == [6, 2]
        again.forget([2], memory=1)
    with EpisodicMemory.load(path, in_memory=True) as again:
        assert again.write(keys[:2], values[:2], memory=[0, 1]) == [7, 3]


def test_the_last_id_is_remembered(tmp_path):
    path = tmp_path / "facts.db"
    with make(path) as memory:
        memory.write(*facts(1), ids=[2**63 - 1])
        memory.clear()
    with EpisodicMemory.load(path) as again, pytest.raises(ValueError, match="ids must be given"):
        again.write(*facts(1))


def test_a_store_that_keeps_nothing_serves():
    """One of the user's, of before `Store.keep` and `Store.reserve`."""

    class Plain(InMemoryStore):
        keep, kept, reserve = Store.keep, Store.kept, Store.reserve

    memory = make(Plain(S, C))
    memory.write(*facts(16))
    threshold = memory.calibrate(facts(40, seed=3)[0])
    memory.edit(0, facts(1)[1])
    memory.forget([0])
    assert memory.threshold() == pytest.approx(threshold, rel=0.1)
    assert memory._calibrated_by(0) is not None


def test_a_text_that_is_damaged(tmp_path):
    path = tmp_path / "facts.db"
    with make(path) as memory:
        memory.write(*facts(16))
        memory.calibrate(facts(40, seed=3)[0])
        memory.forget([15])
    for name in ("unknown:0", "next:0"):
        good = path.read_bytes()
        with sqlite3.connect(path) as connection:
            query = "UPDATE meta SET content = content || '7' WHERE name = ?"
            assert connection.execute(query, (name,)).rowcount == 1
        connection.close()
        with pytest.raises(ValueError, match=rf"facts\.db is damaged: {name}"):
            EpisodicMemory.load(path, in_memory=True)
        path.write_bytes(good)
    EpisodicMemory.load(path).close()


@pytest.mark.parametrize("count", [3, 40])
def test_a_read_is_the_sum_of_its_sources(count):
    memory, keys, values = filled(count)
    values[1] = values[0]
    memory.edit(1, values[1])
    asked = torch.cat([keys, facts(5, seed=4)[0]]).double()
    found = memory.sources(asked, k=count)
    assert found.shares.dtype == torch.float64 and found.shares.shape == (count + 5, count)
    for row, shares, read in zip(found.ids, found.shares, memory.read(asked).values, strict=True):
        assert sorted(row) == list(range(count))
        torch.testing.assert_close(shares @ values[row].double(), read)
        assert (shares.abs().diff() <= 0).all()
    some = memory.sources(asked, k=2)
    assert some.ids == [row[:2] for row in found.ids]
    torch.testing.assert_close(some.shares, found.shares[:, :2])
    if count == 3:  # facts of one value are told apart
        assert [row[0] for row in found.ids[:3]] == [0, 1, 2]


def test_sources_of_many_memories():
    memory = make(num_memories=2)
    keys, values = facts(5)
    memory.write(keys[:3], values[:3], memory=0)
    memory.write(keys, values, ids=list("abcde"), memory=1)
    found = memory.sources(keys[:3], k=4, memory=[1, 0, 1])
    assert [len(row) for row in found.ids] == [4, 3, 4]
    assert [row[0] for row in found.ids] == ["a", 1, "c"] and found.shares[1, 3] == 0
    assert memory.sources(keys[:0], memory=0).shares.shape == (0, 0)
    empty = make().sources(keys[0])
    assert empty.ids == [[]] and empty.shares.shape == (1, 0)
    with pytest.raises(ValueError, match="k must be"):
        memory.sources(keys, 0, memory=0)
    with pytest.raises(ValueError, match="finite"):
        memory.sources(keys * torch.inf, memory=0)
