"""EpisodicMemory on the disk: files, crashes, full disks, damage."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
import torch
from episodic_cases import cases
from torch import nn

from kanerva_ext.episodic import EpisodicMemory, SQLiteStore, _saving

S, C, K = 12, 7, 20
facts, make, _ = cases(S, C, K)


def assert_same(memory, other, tolerance=1e-9):
    assert list(memory) == list(other)
    for a, b in zip(memory.state(), other.state(), strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def sidecars(path):
    return sorted(p.name for p in path.parent.iterdir())


def test_a_store_on_the_disk_is_like_one_in_memory(tmp_path):
    path = tmp_path / "facts.db"
    keys, values = facts(50)
    ids = [f"fact {i}" if i % 2 else i for i in range(50)]
    inside = make()
    with make(path) as memory:
        for one in (memory, inside):
            one.write(keys, values, ids=ids)
            one.edit(["fact 1", 4], values[:2])
            one.forget(["fact 3", 8])
            one.write(keys[3:5], values[3:5], ids=["new", 8])
            one.write(keys[:3], values[3:6], ids=["new", 10, "newer"], replace=True)
        assert_same(memory, inside)
        assert memory.nearest(keys, k=3).ids == inside.nearest(keys, k=3).ids
        assert memory.threshold() == pytest.approx(inside.threshold(), abs=1e-6)
        assert memory.write(keys[:1], values[:1]) == inside.write(keys[:1], values[:1]) == [49]
        got, wanted = memory.get(["new", 49]), inside.get(["new", 49])
        assert got.ids == wanted.ids and torch.equal(got.keys, wanted.keys)
    assert sidecars(path) == ["facts.db"]
    with pytest.raises(ValueError, match="is closed"):
        memory.write(keys, values)
    memory.close()
    with EpisodicMemory.load(path) as again:
        assert_same(again, inside)
        again.clear()
        assert len(again) == 0
    assert len(EpisodicMemory.load(path)) == 0


@pytest.mark.parametrize("features", ["relu", "fourier", "none"])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("in_memory", [False, True])
def test_save_and_load(tmp_path, features, on_disk, in_memory):
    path = tmp_path / "saved.memory"
    options = {"features": features, "slots": S if features == "none" else K, "seed": 5}
    options |= {"noise_var": 0.5, "prior_var": 2.0, "false_alarm": 0.2, "dtype": "float16"}
    options |= {"bandwidth": 0.7} if features == "fourier" else {}
    memory = make(tmp_path / "store.db" if on_disk else None, **options)
    keys, values = facts(40)
    for count in (0, 40):
        memory.write(keys[:count], values[:count])
        memory.save(path)
        loaded = EpisodicMemory.load(path, in_memory=in_memory)
        assert_same(loaded, memory)
        out, wanted = loaded.read(keys), memory.read(keys)
        torch.testing.assert_close(out.values, wanted.values)
        assert torch.equal(out.is_known, wanted.is_known)
        assert loaded.dtype == "float16" and loaded.false_alarm == 0.2
        loaded.write(keys[:1], values[:1])
        assert len(loaded) == count + 1
        loaded.close()
        with EpisodicMemory.load(path) as after:
            assert len(after) == (count if in_memory else count + 1)
    memory.close()
    expected = ["saved.memory"] + ["store.db"] * on_disk
    assert sidecars(path) == expected


def test_many_memories_in_one_file(tmp_path):
    path = tmp_path / "users.db"
    keys, values = facts(90)
    with make(path, num_memories=3) as memory:
        memory.write(keys.view(3, 30, S), values.view(3, 30, C))
        memory.forget([1, 2], memory=1)
        state = memory.state(memory=1)
    with EpisodicMemory.load(path) as again:
        assert again.num_memories == 3 and len(again) == 88
        torch.testing.assert_close(again.state(memory=1).mean, state.mean)


def test_what_changed_since_the_sums_were_saved(tmp_path):
    """Added, edited and forgotten facts, of before and of after the sums, in any combination."""
    path = tmp_path / "facts.db"
    keys, values = facts(60)
    memory, inside = make(path), make()
    for one in (memory, inside):
        one.write(keys[:40], values[:40])
        if one is memory:
            one.save(path)
        one.forget([1, 2])
        one.edit([3, 4], values[:2])
        one.edit([3], values[5:6])
        one.write(keys[40:], values[40:])
        one.edit([45], values[:1])
        one.forget([46, 4])
        one.write(keys[:1], values[:1], ids=[1])
        one.write(keys[:2], values[3:5], ids=[1, 7], replace=True)
    assert memory._store.changes() > 20
    memory._store.close()  # without the sums, as a crash leaves it
    calls = []
    again = EpisodicMemory.load(path)
    again._store.chunks = lambda *args: calls.append(args)
    assert_same(again, inside)
    assert calls == []  # from the saved sums and what had changed, not from all facts


def test_sums_are_saved_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(_saving, "CHANGES", 100)
    path = tmp_path / "facts.db"
    memory = make(path)
    keys, values = facts(330)
    for part in torch.arange(330).split(30):
        memory.write(keys[part], values[part])
    assert memory._store.changes() == 330 - 2 * 120
    memory._store.close()
    inside = make()
    inside.write(keys, values)
    assert_same(EpisodicMemory.load(path), inside)


def test_features_of_ones_own(tmp_path):
    path = tmp_path / "own.db"
    features = nn.Sequential(nn.Linear(S, K), nn.ReLU())
    keys, values = facts(30)
    with make(path, features=features) as memory:
        memory.write(keys, values)
        read = memory.read(keys).values
    with EpisodicMemory.load(path, features=features) as again:
        torch.testing.assert_close(again.read(keys).values, read, rtol=1e-4, atol=1e-4)
    for other, message in (
        (None, r"load\(path, features=...\)"),
        (nn.Linear(S, K), "their addresses differ"),
        (nn.Linear(S, 3), r"\(T, slots\)"),
    ):
        with pytest.raises(ValueError, match=message):
            EpisodicMemory.load(path, features=other)
    make(tmp_path / "relu.db").close()
    with pytest.raises(ValueError, match=r'features must be None.* has "relu"'):
        EpisodicMemory.load(tmp_path / "relu.db", features=features)


WRITER = """
import sys, torch
from kanerva_ext.episodic import EpisodicMemory, _saving
torch.set_num_threads(1)
_saving.CHANGES = 64
memory = EpisodicMemory({S}, {C}, {K}, store=sys.argv[1])
def fact(i):
    generator = torch.Generator().manual_seed(i)
    return torch.randn(1, {S}, generator=generator), torch.randn(1, {C}, generator=generator)
for i in range(10**6):
    memory.write(*fact(i), ids=[i])
    if i % 3 == 2:
        memory.forget(i - 2)
        memory.edit(i - 1, fact(i + 10**6)[1])
    print(i, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.31, 0.6])
def test_a_kill_leaves_the_last_commit(tmp_path, delay):
    path = tmp_path / "facts.db"
    code = WRITER.format(S=S, C=C, K=K)
    process = subprocess.Popen([sys.executable, "-P", "-c", code, path], stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    done = process.stdout.read().split()
    process.wait()
    last = int(done[-1]) if done else 0

    def fact(i):
        generator = torch.Generator().manual_seed(i)
        return torch.randn(1, S, generator=generator), torch.randn(1, C, generator=generator)

    with EpisodicMemory.load(path) as memory:
        # What had returned is there; the step that was cut off, up to one of its three commits.
        ids = list(memory)
        top = max(ids)
        assert top in (last, last + 1)
        full = [i for i in ids if i + 2 <= last]
        assert full == [i for i in range(last - 1) if i % 3]
        edited = [i for i in full if i % 3 == 1]
        inside = make()
        for i in ids:
            key, value = memory.get(i)[1:]
            assert torch.equal(key, fact(i)[0])
            late = i + 1 > last and not torch.equal(value, fact(i)[1])  # the edit that was cut off
            wanted = fact(i + 1 + 10**6)[1] if i in edited or late else fact(i)[1]
            if i % 3 == 1 and i + 1 == last:
                wanted = fact(i + 1 + 10**6)[1]
            assert torch.equal(value, wanted)
            inside.write(key, value, ids=[i])
        assert_same(memory, inside, 1e-7)
        memory.write(*facts(3), ids=["a", "b", "c"])


def test_a_full_disk_changes_nothing(tmp_path):
    path = tmp_path / "facts.db"
    keys, values = facts(4000)
    memory, inside = make(path), make()
    for one in (memory, inside):
        one.write(keys[:50], values[:50])
    memory.read(keys[:1])
    connection = memory._store._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages + 4}")  # as SQLite meets a full disk
    for call in (
        lambda: memory.write(keys[50:], values[50:]),
        lambda: memory.write(keys, values, ids=range(4000), replace=True),
    ):
        with pytest.raises(OSError, match="full; nothing of this change was written") as error:
            call()
        assert error.value.filename == str(path)
    assert_same(memory, inside)
    memory.forget(3)
    inside.forget(3)
    assert_same(memory, inside)
    connection.execute("PRAGMA max_page_count=1000000")
    memory.write(keys[50:], values[50:])
    memory.close()
    assert len(EpisodicMemory.load(path)) == 3999


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a small disk, which needs root")
def test_a_disk_that_is_really_full(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        memory = make(small / "facts.db")
        keys, values = facts(4000)
        memory.write(keys[:100], values[:100])
        with pytest.raises(OSError, match="nothing of this change was written"):
            memory.write(keys, values)
        inside = make()
        inside.write(keys[:100], values[:100])
        assert_same(memory, inside)
        with pytest.raises(OSError):
            EpisodicMemory(64, 64, 512, store=small / "other.db")
        assert not (small / "other.db").exists()
        memory._store.close()
        assert_same(EpisodicMemory.load(small / "facts.db", in_memory=True), inside)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "facts.db"
    memory = make(path)
    with pytest.raises(OSError, match="another process, or memory, has it open"):
        EpisodicMemory.load(path)
    with pytest.raises(OSError, match="has it open"):
        make().save(path)
    with pytest.raises(FileExistsError, match="load opens one"):
        make(path)
    memory.write(*facts(3))
    memory.close()
    assert len(EpisodicMemory.load(path)) == 3


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        EpisodicMemory.load(tmp_path / "missing")
    with pytest.raises(OSError):
        make(tmp_path / "no" / "folder.db")
    with pytest.raises(OSError):
        make().save(tmp_path / "no" / "folder.db")
    text = tmp_path / "text"
    text.write_text("no database, and long enough to be looked at\n" * 200)
    with pytest.raises(ValueError, match="damaged or no memory"):
        EpisodicMemory.load(text)
    (tmp_path / "empty").touch()
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE facts (id)")
    connection.close()
    before = foreign.read_bytes()
    for path in (tmp_path / "empty", foreign):
        with pytest.raises(ValueError, match="no file of an EpisodicMemory"):
            EpisodicMemory.load(path)
    assert foreign.read_bytes() == before
    assert sidecars(text) == ["empty", "foreign.db", "text"]


def test_a_damaged_file_is_refused(tmp_path):
    """Cut short, or with bytes of it changed: an error that names the file, or no effect."""
    path = tmp_path / "facts.db"
    keys, values = facts(200)
    inside = make()
    inside.write(keys, values)
    inside.save(path)
    good = path.read_bytes()
    refused = 0
    places = range(100, len(good) - 40, len(good) // 60)
    flip = bytes(255 - b for b in range(256))
    contents = [good[:i] + good[i : i + 40].translate(flip) + good[i + 40 :] for i in places]
    for content in [*contents, good[:-5000], good[: len(good) // 2], good[:3000]]:
        path.write_bytes(content)
        memory = None
        try:
            memory = EpisodicMemory.load(path)
            assert_same(memory, inside)
            memory.nearest(keys[:2])
            memory.refresh()
            assert_same(memory, inside)
        except ValueError as error:
            assert "facts.db" in str(error)
            refused += 1
        finally:
            if memory is not None:
                memory._store.close()
            for suffix in ("-wal", "-shm"):
                (tmp_path / f"facts.db{suffix}").unlink(missing_ok=True)
    assert refused > 20  # the rest of the bytes were of no use


def test_a_damaged_fact_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "facts.db"
    keys, values = facts(30)
    with make(path) as memory:
        memory.write(keys, values)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE facts SET value = zeroblob(28) WHERE id = 7")
    connection.close()
    memory = EpisodicMemory.load(path)
    for call in (lambda: memory.get(7), memory.refresh, lambda: memory.nearest(keys)):
        with pytest.raises(ValueError, match="damaged: a fact is not what was written"):
            call()
    memory.close()


def test_an_older_file_stays_if_saving_fails(tmp_path, monkeypatch):
    path = tmp_path / "saved"
    memory = make()
    keys, values = facts(30)
    memory.write(keys, values)
    memory.save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SQLiteStore, "put_sums", fail)
    memory.forget(0)
    with pytest.raises(OSError, match="No space left"):
        memory.save(path)
    assert path.read_bytes() == before and sidecars(path) == ["saved"]


@pytest.mark.slow
def test_a_million_facts(tmp_path):
    path = tmp_path / "facts.db"
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1_000_000, 8, generator=generator)
    values = torch.randn(1_000_000, 4, generator=generator)
    with EpisodicMemory(8, 4, 64, store=path) as memory:
        for part in torch.arange(1_000_000).split(50_000):
            memory.write(keys[part], values[part])
        memory.edit(500_000, values[0])
        memory.forget(999_999)
        state = memory.state()
    with EpisodicMemory.load(path) as again:
        assert len(again) == 999_999 and again.get(500_000).values[0, 0] == values[0, 0]
        torch.testing.assert_close(again.state().mean, state.mean)
        assert again.refresh() < 1e-5
        assert again.nearest(keys[:2], by="key").ids == [[0], [1]]
