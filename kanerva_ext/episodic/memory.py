"""A memory for facts: written in one shot, read with a certainty, edited and forgotten exactly."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._state import MemoryState
from . import _saving
from ._arguments import as_device, as_id, as_ids, as_rows, is_id, named
from ._core import CHUNK, Change, flat, grouped, plain
from ._reads import Reads
from .stores import Facts

__all__ = ["EpisodicMemory"]


class EpisodicMemory(Reads):
    """Facts as pairs of vectors (key, value): a question's embedding and its answer's, say.

    Each key becomes an address of ``slots`` numbers, its `features`, and the memory is exact
    Bayesian linear regression from addresses to values: the write of the Kanerva Machine (Wu et
    al., ICLR 2018) at given addresses with a prior of mean zero, as Larimar (Das et al., ICML
    2024) uses it, with the variance that Larimar leaves out. Writing, editing and forgetting are
    exact, in any order: what remains is as if nothing else had ever been written.

    It holds about as many facts as it has slots; beyond that they blur. Sums are kept in float64,
    so that a stream of single writes equals one call to rounding.

    Args:
        key_size: S, size of a key.
        value_size: C, size of a value.
        slots: K, size of an address; ``key_size`` if None. Memory and the time of a first read
            grow as K^2 and K^3.
        features: ``"none"`` (the address is the key: K = S), ``"relu"`` or ``"fourier"`` (random
            features, `RandomReLU` and `RandomFourier`), a callable from keys (T, S) to addresses
            (T, K), such as a trained module; ``"auto"``: "none" if K = S, else "relu".
        noise_var: how far a value that is read may be from one that was written, as a variance. A
            small one (1e-3) tells like keys apart and gets the most out of the slots; a large one
            (0.1) averages what like keys say, and serves questions in other words better as the
            memory fills up.
        prior_var: variance of each element of a value before anything is written, for an address
            of norm 1. Reads and scores depend on ``noise_var / prior_var`` alone. ``read_var`` is
            in the values' units if this is their mean square.
        false_alarm: part of the keys that were never written that may be called known.
        normalize: divide keys by their norms, so that direction alone counts.
        seed: of random features.
        bandwidth: of ``features="fourier"``.
        store: where facts lie: None, in this process; a path, in a new SQLite file; or a `Store`.
        dtype: of stored keys and values: ``"float32"``, ``"float16"`` or ``"float64"``. What is
            written is what is stored.
        num_memories: M memories in one object, one per user or document, say. Methods then take
            ``memory=``. None: a single one.
        device: of the sums and the features.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or size.
        FileExistsError, OSError: of ``store``.

    It may be used by several threads, one call at a time; its file, by one process at a time. A
    process that is forked does not have the file.

    >>> import torch
    >>> from kanerva_ext.episodic import EpisodicMemory
    >>> _ = torch.manual_seed(0)
    >>> questions, answers = torch.randn(20, 64), torch.randn(20, 16)
    >>> memory = EpisodicMemory(key_size=64, value_size=16, slots=128)
    >>> memory.write(questions, answers)[:3]  # ids, of your own if you give them
    [0, 1, 2]
    >>> out = memory.read(questions + 0.1 * torch.randn(20, 64))  # asked in other words
    >>> bool(torch.cosine_similarity(out.values, answers).min() > 0.9), bool(out.is_known.all())
    (True, True)
    >>> bool(memory.read(torch.randn(1, 64)).is_known)
    False
    >>> memory.edit(3, torch.ones(16))
    >>> memory.forget([4, 5])
    >>> len(memory), 4 in memory, memory.nearest(questions[:1]).ids
    (18, False, [[0]])

    Facts that outlive the process lie in a file, from the first write on:

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/facts.db"
    >>> with EpisodicMemory(64, 16, 128, store=path) as memory:  # a new file
    ...     _ = memory.write(questions, answers)
    >>> with EpisodicMemory.load(path) as memory:  # after a restart: the same file goes on
    ...     len(memory), memory.write(questions[:1], answers[:1])
    (20, [20])

    `save` writes a memory of any store to a file, which ``load(path, in_memory=True)`` copies.
    """

    # Writing

    @plain
    def write(
        self, keys: Tensor, values: Tensor, ids: Any = None, *, memory: Any = None,
        replace: bool = False,
    ) -> list:  # fmt: skip
        """Write facts, all of them or, if anything is wrong, none.

        Args:
            keys: (T, S), any floating dtype; NumPy arrays are taken too. (M, T, S) with
                ``num_memories``: T facts of each.
            values: (T, C), or (M, T, C).
            ids: T names, int or str, to edit and forget the facts by; None: ints above all that
                were ever in the memory, so that none names two facts. A memory's own: two
                memories may use the same.
            memory: with ``num_memories``: the memory of all, an int, or of each, T ints.
            replace: forget facts whose ids are there already first; False: they are an error.

        Returns:
            The T ids.

        Raises:
            TypeError, ValueError: an argument of the wrong kind, shape or size, NaN or Inf, an id
                that is there already or twice.
            RuntimeError: ``features`` of your own raised an error.
            OSError: the store's file cannot be written, as on a full disk, or this process was
                forked from the one that has it open.

        Warns:
            UserWarning: once, where there are more facts than slots.
            RuntimeWarning: the facts are in the file, but not the sums that let it open fast.
        """
        keys = as_rows("keys", keys, self.key_size, "key_size")
        values = as_rows("values", values, self.value_size, "value_size")
        if keys.shape[:-1] != values.shape[:-1]:
            raise ValueError(
                f"keys and values must be as many, got {tuple(keys.shape)} and "
                f"{tuple(values.shape)}"
            )
        which = self._which(memory, keys)
        keys, values = self._stored_keys(keys), self._stored("values", values)
        names = None if ids is None else as_ids(flat(ids))
        if names is not None and len(names) != len(keys):
            raise ValueError(f"ids must be as many as keys, {len(keys)}, got {len(names)}")
        out: list = [None] * len(keys)
        changes = []
        for m, rows in grouped(which):
            if names is None:
                if self._next[m] + len(rows) > 2**63:
                    raise ValueError(
                        "ids must be given: after the largest one in the memory, "
                        f"{self._next[m] - 1}, there are fewer than {len(rows)} of 64 bits"
                    )
                mine = list(range(self._next[m], self._next[m] + len(rows)))
            else:
                mine = [names[i] for i in rows]
                self._check_new(m, mine, replace)
            old = [id for id in mine if self._store.contains(m, id)] if replace and names else []
            one = len(rows) == len(keys)
            facts = Facts(mine, keys, values) if one else Facts(mine, keys[rows], values[rows])
            changes.append((m, old, facts))
            for i, id in zip(rows, mine, strict=True):
                out[i] = id
        self._change(changes)
        return out

    def _check_new(self, m: int, ids: list, replace: bool) -> None:
        if len(set(ids)) < len(ids):
            seen: set = set()
            twice = [id for id in ids if id in seen or seen.add(id)]
            raise ValueError(f"ids must differ, got {named(twice)} more than once")
        if not replace:
            there = [id for id in ids if self._store.contains(m, id)]
            if there:
                raise ValueError(
                    f"ids must be new, but {named(there)} are in the memory: edit changes a "
                    "fact's value, replace=True writes it anew"
                )

    @plain
    def edit(self, which: Any, values: Tensor, *, memory: int | None = None) -> None:
        """Give facts other values: the old ones are forgotten exactly.

        Args:
            which: an id or a list of ids; or keys (T, S), a floating tensor, exactly as they were
                written.
            values: (T, C), or (C,) of one fact.
            memory: with ``num_memories``, the memory.

        Raises:
            KeyError: no such fact; nothing is changed.
            TypeError, ValueError, OSError: as `write`; also where several facts have a key that is
                given, which then need their ids.
        """
        (m,) = self._which(memory)
        values = as_rows("values", values, self.value_size, "value_size")
        values = self._stored("values", values)
        ids = self._ids_of(m, which)
        if len(ids) != len(values):
            raise ValueError(f"values must be one for each fact, {len(ids)}, got {len(values)}")
        if len(set(ids)) < len(ids):
            raise ValueError("edit: ids must differ")
        old = self._store.get(m, ids)
        new = Facts(ids, old.keys, values)
        self._check_addresses(old)
        with Change(self, [m]) as change:
            self._store.change([(m, ids, new)])
            change.stored = True
            # The address stays, and so does what the memory knows of it: only sums of values move.
            for start in range(0, len(ids), CHUNK):
                part = slice(start, start + CHUNK)
                weights = self._address(old.keys[part], wide=True)
                both = (x.values[part].to(weights) for x in (old, new))
                self._sums[m].edit(weights, *both)
        self._changed([m])
        _saving.written(self, len(ids))

    @plain
    def forget(self, which: Any, *, memory: int | None = None) -> None:
        """Remove facts, as if they had never been written.

        Args:
            which: an id or a list of ids; or keys (T, S), a floating tensor, exactly as they were
                written.
            memory: with ``num_memories``, the memory.

        Raises:
            KeyError: no such fact; nothing is changed.
            TypeError, ValueError, OSError: as `write`; also where several facts have a key that is
                given, which then need their ids.
        """
        (m,) = self._which(memory)
        ids = list(dict.fromkeys(self._ids_of(m, which)))
        self._change([(m, ids, self._nothing)])

    @plain
    def clear(self, *, memory: int | None = None) -> None:
        """Forget all facts of a memory."""
        ids = list(self.ids(memory=memory))
        if ids:
            self.forget(ids, memory=memory)

    def merge(self, other: EpisodicMemory) -> None:
        """Write all of another memory's facts, under their ids, exactly.

        Raises:
            TypeError, ValueError: it is no memory of these sizes and features, or an id is in
                both; nothing is changed.
        """
        if not isinstance(other, EpisodicMemory):
            raise TypeError(f"other must be an EpisodicMemory, got {type(other).__name__}")
        if other is self:
            raise ValueError("other must be another memory, got the memory itself")
        # In one order: two threads may merge two memories into each other.
        first, second = sorted((self, other), key=id)
        with first._lock, second._lock:
            self._merge(other)

    @plain
    def _merge(self, other: EpisodicMemory) -> None:
        _saving.check_alike(self, other)
        for m in range(self.num_memories or 1):
            self._check_new(m, list(other._store.ids(m)), replace=False)
        changes = []
        for m in range(self.num_memories or 1):
            parts = list(other._store.chunks(m))
            if parts:
                ids = [id for part in parts for id in part.ids]
                keys = torch.cat([part.keys for part in parts])
                values = torch.cat([part.values for part in parts])
                stored = self._stored_keys(keys), self._stored("values", values)
                changes.append((m, [], Facts(ids, *stored)))
        self._change(changes)

    # The whole

    def __len__(self) -> int:
        return sum(self._counts)

    def __contains__(self, id: Any) -> bool:
        """Whether a fact of this id is there; with ``num_memories``, of (memory, id)."""
        m = 0
        if self.num_memories is not None:
            if not isinstance(id, tuple) or len(id) != 2:
                raise TypeError("with num_memories, ask for (memory, id)")
            m, id = self._which(id[0])[0], id[1]
        with self._lock:
            return is_id(id) and self._store.contains(m, as_id(id))

    def __iter__(self) -> Iterator:
        """Ids in the order of their writes; with ``num_memories``, (memory, id)."""
        if self.num_memories is None:
            return self._store.ids(0)
        return ((m, id) for m in range(self.num_memories) for id in self._store.ids(m))

    def ids(self, *, memory: int | None = None) -> Iterator:
        """The ids of a memory."""
        return self._store.ids(self._which(memory)[0])

    def count(self, *, memory: int | None = None) -> int:
        """The number of facts of a memory; ``len`` is that of all."""
        return self._counts[self._which(memory)[0]]

    @plain
    def get(self, which: Any, *, memory: int | None = None) -> Facts:
        """Facts as they are stored: ids, keys (T, S) and values (T, C).

        Raises:
            KeyError: no such fact.
        """
        (m,) = self._which(memory)
        return self._store.get(m, self._ids_of(m, which))

    @plain
    def state(self, *, memory: int | None = None) -> MemoryState:
        """The belief (mean, cov) in float64, as `kanerva_ext.ops` takes it."""
        (m,) = self._which(memory)
        self._mend(m)
        return self._sums[m].state(self.noise_var)

    @plain
    def refresh(self) -> float:
        """Compute the sums anew from the facts, as after a change of ``features``.

        A file then belongs to the features as they are now: keep their parameters with it.

        Returns:
            How far they had drifted by rounding, the largest difference of an entry of ``W'W``,
            relative to the ridge, which is what an entry has to be compared with.

        Raises:
            OSError: the store's file cannot be written.
        """
        drift = 0.0
        for m, sums in enumerate(self._sums):
            before = None if self._broken[m] else sums.sums()[0].clone()
            self._thresholds[m] = None
            self._mend(m, anew=True)
            if before is not None:
                apart = (sums.sums()[0] - before).tril().abs().max().item()
                drift = max(drift, apart / self.ridge)
        _saving.refreshed(self)
        return drift

    @plain
    def to(self, device: torch.device | str) -> EpisodicMemory:
        """Bring sums and features to a device; facts stay in their store.

        Raises:
            ValueError: there is no such device, or it cannot take them; nothing is changed.
        """
        device = as_device(device)
        takes = [sums.to(device) for sums in self._sums]
        if isinstance(self.features, nn.Module):
            try:
                self.features.to(device)
            except BaseException:
                self.features.to(self.device)
                raise
        for take in takes:
            take()
        self.device = device
        return self

    @plain
    def save(self, path: str | os.PathLike) -> None:
        """Write settings, facts and sums to a SQLite file, which `load` opens.

        A memory whose store is that file only writes its sums, so that it opens fast. An older
        file of that name is replaced, or, if something fails, left as it was. The parameters of a
        ``features`` of your own are not saved.

        Raises:
            OSError: the file cannot be written.
        """
        _saving.save(self, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        features: Callable[[Tensor], Tensor] | None = None,
        *,
        in_memory: bool = False,
        device: torch.device | str = "cpu",
    ) -> EpisodicMemory:
        """Open a file of `save`, or of a memory whose ``store`` it is.

        Args:
            path: of the file.
            features: the callable, if the memory had one of its own.
            in_memory: copy the facts; the file is not changed by what follows, and may be where
                nothing can be written. False: the file is the memory's store.
            device: of sums and features.

        Raises:
            FileNotFoundError, OSError: no such file, another process has it open, or it cannot be
                written and ``in_memory`` is False.
            ValueError: it is no such file or damaged (up to 64 MB, all of it is looked through; of
                a larger one, what is read is), or ``features`` are others than those that
                its facts were written with.
        """
        return _saving.load(cls, path, features, in_memory, device)

    @plain
    def close(self) -> None:
        """Save the sums in the store's file and close it. An in-memory store needs no close."""
        _saving.close(self)

    def __reduce__(self):
        raise TypeError(
            "an EpisodicMemory is neither pickled nor copied: save(path) writes it to a file, and "
            "load(path, in_memory=True) makes another one of it"
        )

    def __enter__(self) -> EpisodicMemory:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __repr__(self) -> str:
        many = "" if self.num_memories is None else f", num_memories={self.num_memories}"
        return (
            f"EpisodicMemory(key_size={self.key_size}, value_size={self.value_size}, "
            f"slots={self.slots}{many}, {len(self)} facts)"
        )
