"""EpisodicMemory and files or stores that are not what they should be."""

import os
import subprocess

import pytest
import torch
from episodic_cases import cases
from torch import nn

from kanerva_ext.episodic import EpisodicMemory, InMemoryStore, SQLiteStore

S, C, K = 8, 4, 16
facts, make, filled = cases(S, C, K)


def other_settings(path):
    """Ways to take the file at `path` for what it is not."""
    return (
        ({"key_size": S + 1}, f"store must have key_size = {S + 1}, got a store with {S}"),
        ({"value_size": C + 1}, "value_size"),
        ({"dtype": "float64"}, "dtype = float64, got a store with float32"),
        ({"num_memories": 3}, "num_memories"),
        ({"slots": K + 1}, f"slots = {K + 1}, but .*facts.db has {K}"),
        ({"normalize": False}, "normalize"),
        ({"features": "fourier"}, "features"),
        ({"seed": 5}, "same features .*facts.db"),
    )


def test_a_store_that_is_another_memorys(tmp_path):
    path = tmp_path / "facts.db"
    keys, values = facts(30)
    with make(path) as memory:
        memory.write(keys, values)
        read = memory.read(keys).values
    for options, message in other_settings(path):
        sizes = {"key_size": S, "value_size": C, "slots": K} | options
        store = SQLiteStore(path)
        with pytest.raises(ValueError, match=message):
            EpisodicMemory(store=store, **sizes)
        store.close()
    with make(SQLiteStore(path), noise_var=0.01) as again:
        torch.testing.assert_close(again.read(keys).values, read)
        again.write(keys[:1], values[:1])
    with EpisodicMemory.load(path) as again:
        assert len(again) == 31


def test_a_file_without_settings_gets_them(tmp_path):
    path = tmp_path / "facts.db"
    keys, values = facts(30)
    with make(SQLiteStore(path, S, C), seed=3) as memory:
        memory.write(keys, values)
        read = memory.read(keys).values
    with EpisodicMemory.load(path) as again:
        assert again.seed == 3
        torch.testing.assert_close(again.read(keys).values, read)


def test_stores_in_memory_of_other_sizes():
    for store, message in (
        (InMemoryStore(S + 1, C), "key_size = 8, got a store with 9"),
        (InMemoryStore(S, C + 1), "value_size"),
        (InMemoryStore(S, C, "float64"), "dtype"),
        (InMemoryStore(S, C, num_memories=2), "num_memories"),
    ):
        with pytest.raises(ValueError, match=message):
            make(store)
    with pytest.raises(ValueError, match=r"dtype must be one of .* got 'int8'"):
        InMemoryStore(S, C, "int8")
    with pytest.raises(ValueError, match="key_size"):
        InMemoryStore(0, C)


def test_single_bits_of_a_file(tmp_path):
    """Each of many: an error that names the file, or what was written."""
    path = tmp_path / "facts.db"
    keys, values = facts(40)
    with make(path) as memory:
        memory.write(keys, values)
    with EpisodicMemory.load(path) as memory:
        memory.write(keys[:3], values[:3], ids=["x", "y", "z"])
        memory.forget([3, 4])
        memory._store.close()
    good = path.read_bytes()

    def look():
        memory = EpisodicMemory.load(path)
        try:
            ids = list(memory)
            stored = memory.get(ids)
            return ids, stored.keys, stored.values, memory.read(keys).values, memory.nearest(keys)
        finally:
            memory._store.close()

    wanted = look()
    generator = torch.Generator().manual_seed(0)
    used = [i for i, byte in enumerate(good) if byte]
    refused = 0
    for i in torch.randint(len(used), (150,), generator=generator).tolist():
        content = bytearray(good)
        content[used[i]] ^= 1 << (i % 8)
        path.write_bytes(content)
        try:
            found = look()
        except (ValueError, OSError) as error:
            assert "facts.db" in str(error), error
            refused += 1
        else:
            assert found[0] == wanted[0] and found[4].ids == wanted[4].ids
            for a, b in zip(found[1:4], wanted[1:4], strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"facts.db{suffix}").unlink(missing_ok=True)
    assert refused > 50


@pytest.fixture
def read_only(tmp_path):
    """A folder with a memory's file, of which nothing can be written, not even by root."""
    folder = tmp_path / "folder"
    folder.mkdir()
    memory, _, _ = filled(30)
    memory.save(folder / "facts.db")
    if os.getuid():
        (folder / "facts.db").chmod(0o444)
        folder.chmod(0o555)
        yield folder, memory
        folder.chmod(0o755)
        return
    bind = ["mount", "--bind", str(folder), str(folder)]
    if subprocess.run(bind, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield folder, memory
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_cannot_be_written(read_only):
    folder, memory = read_only
    keys = facts(5)[0]
    with pytest.raises(PermissionError, match=r"in_memory=True\) reads it.*facts.db"):
        EpisodicMemory.load(folder / "facts.db")
    loaded = EpisodicMemory.load(folder / "facts.db", in_memory=True)
    torch.testing.assert_close(loaded.read(keys).values, memory.read(keys).values)
    loaded.write(*facts(2))
    assert len(loaded) == 32 and os.listdir(folder) == ["facts.db"]
    for call in (lambda: make(folder / "new.db"), lambda: memory.save(folder / "new.db")):
        with pytest.raises(OSError, match=r"new\.db"):
            call()


def linear(slots=200, seed=0):
    torch.manual_seed(seed)
    features = nn.Sequential(nn.Linear(S, slots), nn.BatchNorm1d(slots), nn.ReLU()).eval()
    nn.init.constant_(features[0].bias[199:], -100.0)  # never active
    return features


def own(features, **options):
    return EpisodicMemory(S, C, 200, features, **options)


def test_features_that_differ_in_one_number_are_others(tmp_path):
    """Also in one behind the first 64 slots, or one that no key shows."""
    keys, values = facts(9)
    first = own(linear())
    with own(linear(), store=tmp_path / "a.db") as stored:
        stored.write(keys, values)
    for number, by in (((150, 3), 0.5), ((0, 0), 1e-6), ((199, 0), 1e-3)):
        features = linear()
        with torch.no_grad():
            features[0].weight[number] += by
        other = own(features)
        other.write(keys, values)
        with pytest.raises(ValueError, match="other must have the same features"):
            first.merge(other)
        with pytest.raises(ValueError, match="their addresses differ"):
            EpisodicMemory.load(tmp_path / "a.db", features)
    assert len(first) == 0
    # A module that has only counted batches is the same, and so is one in another dtype.
    same = linear().double()
    same[1].num_batches_tracked += 3
    other = own(same)
    other.write(keys, values)
    first.merge(other)
    assert len(first) == 9


def test_callables_are_told_apart_by_their_addresses():
    def bumps(width):
        return lambda keys: torch.cat([keys, (keys.abs() > width).to(keys)], -1)

    keys, values = facts(9)
    first = EpisodicMemory(S, C, 2 * S, bumps(0.5))
    for width, message in ((0.5, None), (0.52, "same features")):
        other = EpisodicMemory(S, C, 2 * S, bumps(width))
        other.write(keys, values)
        if message:
            with pytest.raises(ValueError, match=message):
                first.merge(other)
        else:
            first.merge(other)
            first.clear()


@pytest.mark.parametrize("facts_of", [30, 300])
def test_a_file_goes_with_features_that_were_trained(tmp_path, facts_of):
    """`refresh` after training: the file is then opened by the features as they are."""
    keys, values = facts(facts_of)
    features = linear()
    memory = own(features, store=tmp_path / "a.db")
    memory.write(keys, values)
    memory.save(tmp_path / "a.db")
    before = {name: x.clone() for name, x in features.state_dict().items()}
    with torch.no_grad():
        features[0].weight.add_(torch.randn_like(features[0].weight))
    memory.refresh()
    read = memory.read(keys).values
    memory._store.close()  # as after a kill
    with EpisodicMemory.load(tmp_path / "a.db", features) as again:
        torch.testing.assert_close(again.read(keys).values, read, rtol=1e-4, atol=1e-4)
    old = linear()
    old.load_state_dict(before)
    with pytest.raises(ValueError, match="their addresses differ"):
        EpisodicMemory.load(tmp_path / "a.db", old)
