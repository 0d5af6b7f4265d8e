"""Where the facts of an episodic memory lie: what is needed to forget and edit them exactly."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_int

__all__ = ["DTYPES", "Facts", "InMemoryStore", "Store"]

#: Number formats of stored keys and values.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "float64": torch.float64}
#: Facts that are read at a time.
CHUNK = 4096


class Facts(NamedTuple):
    """Facts of one memory.

    Attributes:
        ids: of the N facts.
        keys: (N, key_size), in the store's dtype, on the CPU.
        values: (N, value_size), likewise.
    """

    ids: list[Hashable]
    keys: Tensor
    values: Tensor


class Store:
    """What an `EpisodicMemory` asks of a store. Facts are named by (memory, id).

    `change` changes all or, with an error, nothing. Its arguments have been checked: ids that are
    removed are there, those that are added are not, or are removed by the same change.

    Attributes:
        key_size, value_size, dtype, num_memories: what it was made for, where it says so; an
            `EpisodicMemory` has to agree. None: anything.
    """

    key_size: int | None = None
    value_size: int | None = None
    dtype: str | None = None
    num_memories: int | None = None

    def change(self, changes: Sequence[tuple[int, Sequence, Facts]]) -> None:
        """For each (memory, ids, facts), no memory twice: remove the ids and put in the facts. Ids
        in both keep their place in the order."""
        raise NotImplementedError

    def get(self, memory: int, ids: Sequence) -> Facts:
        """The facts of these ids, in their order."""
        raise NotImplementedError

    def contains(self, memory: int, id: Hashable) -> bool:
        raise NotImplementedError

    def count(self, memory: int) -> int:
        raise NotImplementedError

    def ids(self, memory: int) -> Iterator:
        """Ids in the order of their writes."""
        raise NotImplementedError

    def chunks(self, memory: int, size: int = CHUNK) -> Iterator[Facts]:
        """All facts, in the order of their writes."""
        raise NotImplementedError

    def sample(self, memory: int, count: int) -> Tensor:
        """Keys of at most ``count`` facts, spread over the order of their writes."""
        raise NotImplementedError

    def first_free(self, memory: int) -> int:
        """An int above every id of type int that is or was there: none is given twice."""
        raise NotImplementedError

    def reserve(self, memory: int, first: int) -> None:
        """`first_free` is at least this from now on. A store may leave it: ids of facts that were
        forgotten may then be given again after a restart."""

    def keep(self, memory: int, name: str, text: str | None) -> None:
        """A short text beside the facts, such as a threshold, in place of what was there under this
        name; None: nothing. It is there once the next `change` is. A store may leave it."""

    def kept(self, memory: int, name: str) -> str | None:
        """What `keep` was given; None if there is nothing."""
        return None

    def close(self) -> None:
        """Give back what it holds; not to be used afterwards."""


class _Table:
    """Facts of one memory in arrays that grow; rows of removed facts are used again."""

    def __init__(self, key_size: int, value_size: int, dtype: torch.dtype):
        self.keys = torch.empty(0, key_size, dtype=dtype)
        self.values = torch.empty(0, value_size, dtype=dtype)
        self.rows: dict[Hashable, int] = {}
        self.free: list[int] = []
        self.next_id = 0

    def put(self, facts: Facts) -> None:
        count = len(facts.ids)
        spare = len(self.keys) - len(self.rows) - len(self.free)
        if count > spare + len(self.free):
            size = max(len(self.keys) * 2, len(self.rows) + count)
            # Both before either is set: no memory for the second leaves the table as it was.
            grown = [
                torch.cat([x, x.new_empty(size - len(x), x.shape[1])])
                for x in (self.keys, self.values)
            ]
            self.keys, self.values = grown
        first = len(self.rows) + len(self.free)
        reused = [self.free.pop() for _ in range(min(count, len(self.free)))]
        rows = reused + list(range(first, first + count - len(reused)))
        index = torch.tensor(rows, dtype=torch.int64)
        self.keys[index], self.values[index] = facts.keys, facts.values
        self.rows.update(zip(facts.ids, rows, strict=True))
        self.next_id = max(
            [self.next_id, *(i + 1 for i in facts.ids if isinstance(i, int))], default=0
        )


class InMemoryStore(Store):
    """Facts in this process's memory: gone with it, unless the memory is saved.

    Args:
        key_size: S.
        value_size: C.
        dtype: ``"float32"``, ``"float16"`` or ``"float64"``.
        num_memories: M.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or size.
    """

    def __init__(
        self, key_size: int, value_size: int, dtype: str = "float32", num_memories: int = 1
    ):
        self.key_size = check_int("", "key_size", key_size)
        self.value_size = check_int("", "value_size", value_size)
        self.num_memories = check_int("", "num_memories", num_memories)
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {tuple(DTYPES)}, got {dtype!r}")
        self.dtype = dtype
        self._tables = [_Table(key_size, value_size, DTYPES[dtype]) for _ in range(num_memories)]
        self._texts: dict[tuple[int, str], str | None] = {}

    def change(self, changes: Sequence[tuple[int, Sequence, Facts]]) -> None:
        for memory, removed, added in changes:
            self._change(self._tables[memory], removed, added)

    @staticmethod
    def _change(table: _Table, removed: Sequence, added: Facts) -> None:
        if not removed:
            table.put(added)
            return
        kept = set(added.ids)
        at = {id: i for i, id in enumerate(added.ids)}
        same = [id for id in removed if id in kept]
        rows = torch.tensor([table.rows[id] for id in same], dtype=torch.int64)
        index = torch.tensor([at[id] for id in same], dtype=torch.int64)
        new = [i for i, id in enumerate(added.ids) if id not in table.rows]
        if new:
            table.put(Facts([added.ids[i] for i in new], added.keys[new], added.values[new]))
        table.keys[rows], table.values[rows] = added.keys[index], added.values[index]
        for id in removed:
            if id not in kept:
                table.free.append(table.rows.pop(id))

    def get(self, memory: int, ids: Sequence) -> Facts:
        table = self._tables[memory]
        rows = torch.tensor([table.rows[id] for id in ids], dtype=torch.int64)
        return Facts(list(ids), table.keys[rows], table.values[rows])

    def contains(self, memory: int, id: Hashable) -> bool:
        return id in self._tables[memory].rows

    def count(self, memory: int) -> int:
        return len(self._tables[memory].rows)

    def ids(self, memory: int) -> Iterator:
        return iter(list(self._tables[memory].rows))

    def chunks(self, memory: int, size: int = CHUNK) -> Iterator[Facts]:
        ids = list(self._tables[memory].rows)
        for start in range(0, len(ids), size):
            yield self.get(memory, ids[start : start + size])

    def sample(self, memory: int, count: int) -> Tensor:
        table = self._tables[memory]
        rows = torch.tensor(list(table.rows.values()), dtype=torch.int64)
        return table.keys[rows[spread(len(rows), count)]]

    def first_free(self, memory: int) -> int:
        return self._tables[memory].next_id

    def reserve(self, memory: int, first: int) -> None:
        table = self._tables[memory]
        table.next_id = max(table.next_id, first)

    def keep(self, memory: int, name: str, text: str | None) -> None:
        self._texts[memory, name] = text

    def kept(self, memory: int, name: str) -> str | None:
        return self._texts.get((memory, name))


def spread(size: int, count: int) -> Tensor:
    """At most ``count`` indices of 0 .. size - 1, evenly spread."""
    if size <= count:
        return torch.arange(size)
    return torch.linspace(0, size - 1, count, dtype=torch.float64).round().long()
