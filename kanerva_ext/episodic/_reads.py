"""Reading an episodic memory, and how sure a read is."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._checks import check_int
from .._state import register_for_loading
from . import _calibration, _saving
from ._arguments import as_ids, as_rows, check_finite, named
from ._core import CHUNK, Core, grouped, plain, take_rows
from .features import unit_rows
from .stores import spread

#: Facts that a calibration looks at.
SAMPLE = 1024
#: Part of the facts that may change before the threshold is found anew.
STALE = 1 / 16


class EpisodicRead(NamedTuple):
    """What `EpisodicMemory.read` returns for T keys.

    Attributes:
        values: (T, value_size), what the memory holds at these keys; near 0 where nothing is.
        score: (T,), nats that it knows of each element of the value, at least 0.
        is_known: (T,) bool, whether the score passes the memory's threshold.
        read_var: (T,), exact predictive variance of each element of ``values``.
    """

    values: Tensor
    score: Tensor
    is_known: Tensor
    read_var: Tensor


class Nearest(NamedTuple):
    """The stored facts nearest to what T keys read.

    Attributes:
        ids: T lists of k ids, nearest first; fewer than k where there are fewer facts.
        similarity: (T, k) cosines.
    """

    ids: list[list[Hashable]]
    similarity: Tensor


class Sources(NamedTuple):
    """The facts that what T keys read is made of.

    Attributes:
        ids: T lists of k ids, that with the largest share first; fewer where there are fewer facts.
        shares: (T, k), float64; 0 where there is no fact.
    """

    ids: list[list[Hashable]]
    shares: Tensor


register_for_loading(EpisodicRead)


class Reads(Core):
    """See `EpisodicMemory`."""

    def read(self, keys: Tensor, *, memory: Any = None) -> EpisodicRead:
        """What the memory holds at keys, and how sure that is.

        Differentiable in ``keys``, and in the parameters of ``features``.

        Args:
            keys: (T, S), or (S,) for one; NumPy arrays are taken too. With ``num_memories`` also
                (M, T, S).
            memory: with ``num_memories``: the memory of all, an int, or of each, T ints.

        Returns:
            `EpisodicRead` on the memory's device, in float32 (float64 for keys of float64), in the
            shape of ``keys``.

        Raises:
            TypeError, ValueError: keys of the wrong kind or shape, NaN or Inf.
            RuntimeError: ``features`` of your own raised an error.
            IllConditioned: the addresses of what was written do not determine the memory in
                float64 at this ``noise_var``.
        """
        keys = as_rows("keys", keys, self.key_size, "key_size")
        which = self._which(memory, keys)
        shape, keys = keys.shape[:-1], keys.reshape(-1, self.key_size)
        check_finite("keys", keys.detach())
        # Half precision is no matter of the caller's: scores are differences of near numbers.
        with self._lock, torch.autocast(self.device.type, enabled=False):
            address = self._address(keys, wide=False)
            groups = list(grouped(which))
            parts = [
                self._read(m, *(take_rows(x, rows, groups) for x in (keys, address)))
                for m, rows in groups
            ]
        if len(parts) == 1:
            values, leverage, known = parts[0]
        elif not parts:
            values, leverage = address.new_zeros(0, self.value_size), address.new_zeros(0)
            known = address.new_zeros(0)
        else:
            back = torch.tensor([i for _, rows in groups for i in rows]).argsort()
            values, leverage, known = (
                torch.cat(part)[back.to(self.device)] for part in zip(*parts, strict=True)
            )
        score = _calibration.scores(leverage, address, self.ridge)
        results = values, score, score > known, self.noise_var * leverage
        return EpisodicRead(*(x.reshape((*shape, *x.shape[1:])) for x in results))

    def _read(self, m: int, keys: Tensor, address: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, leverages and the threshold of each."""
        with torch.inference_mode(False), torch.no_grad():
            self._mend(m)
            self._sums[m].prepare(address.dtype)
            known = self._threshold(m, keys)
        values, leverage = self._sums[m].read(address)
        return values, leverage, known.to(leverage)

    @plain
    def threshold(self, keys: Tensor | None = None, *, memory: int | None = None) -> Any:
        """The score above which a key is called known, by the keys of `calibrate` or by the facts.

        By the facts: up to 1,024 of them are each scored as if it alone had not been written, which
        the predictive variance gives exactly, and a part ``false_alarm`` of these scores lies
        above. It holds for unknown keys that come from where the facts' keys do, also of those
        between close facts and of those between scattered ones: from 128 facts on each key has the
        threshold of the facts that lie as densely as it. Other wording is something that the memory
        does not know either: for questions in other words than were written, `calibrate` it with
        such questions. After a sixteenth of the facts has changed it is found anew, in either case.
        Infinite in an empty memory that was not calibrated.

        Args:
            keys: (T, S): the threshold of each, a tensor (T,). None: a float, that of all together.
            memory: with ``num_memories``, the memory.

        Raises:
            TypeError, ValueError: keys of the wrong kind or shape.
        """
        (m,) = self._which(memory)
        if keys is None:
            self._find(m)
            return self._thresholds[m]
        keys = as_rows("keys", keys, self.key_size, "key_size").reshape(-1, self.key_size)
        check_finite("keys", keys)
        self._mend(m)
        return self._threshold(m, keys)

    def _threshold(self, m: int, keys: Tensor) -> Tensor:
        """Of each key (T, S)."""
        self._find(m)
        local = self._local[m]
        if local is not None:
            return local(keys.to(self.device))
        return torch.full((len(keys),), self._thresholds[m], device=self.device)

    def _find(self, m: int) -> None:
        """Make the thresholds those of the facts as they are, or nearly so."""
        stale = self._changes[m] > STALE * self._counts[m]
        if self._thresholds[m] is None or stale:
            self._mend(m)
            found = self._find_threshold(m, self._calibrated_by(m))
            self._thresholds[m], self._local[m] = found
            self._changes[m] = 0

    def _find_threshold(
        self, m: int, unknown: Tensor | None
    ) -> tuple[float, _calibration.Local | None]:
        keys = self._store.sample(m, SAMPLE) if unknown is None else unknown
        address = self._address(keys, wide=True)
        leverage = self._sums[m].read(address)[1]
        written = _calibration.scores(leverage, address, self.ridge)
        if unknown is not None:
            return _calibration.threshold(written, written, self.false_alarm), None
        left_out = _calibration.without_itself(leverage)
        left_out = _calibration.scores(left_out, address, self.ridge)
        local = None
        if len(keys) >= 2 * _calibration.Local.window(self.false_alarm):
            of = keys.to(self.device), left_out, self.false_alarm, self.normalize
            local = _calibration.Local(*of)
        return _calibration.threshold(written, left_out, self.false_alarm), local

    @plain
    def calibrate(self, keys: Tensor | None, *, memory: int | None = None) -> float:
        """Set the threshold by keys that were not written: better than the memory's own guess.

        They are kept, also in the file of the memory and over `save` and `load`, and it is found
        anew by them as the facts change.

        Args:
            keys: (T, S), of questions that it cannot answer; at least ``1 / false_alarm - 1``. Of
                more than 4,096, so many are taken. None: by the facts again.
            memory: with ``num_memories``, the memory.

        Returns:
            The threshold.

        Raises:
            TypeError, ValueError: keys of the wrong kind or shape, or too few.
            OSError: the store's file cannot be written.
        """
        (m,) = self._which(memory)
        if keys is not None:
            keys = as_rows("keys", keys, self.key_size, "key_size")
            keys = self._stored("keys", keys)
            if len(keys) + 1 < 1 / self.false_alarm:
                raise ValueError(
                    f"keys must be at least {math.ceil(1 / self.false_alarm) - 1} for false_alarm "
                    f"= {self.false_alarm}, got {len(keys)}"
                )
            keys = keys[spread(len(keys), CHUNK)]
        self._mend(m)
        found, local = self._find_threshold(m, keys)
        _saving.keep_rows(self._store, m, keys)
        self._store.change([])
        self._thresholds[m], self._local[m] = found, local
        self._unknown[m], self._changes[m] = keys, 0
        return found

    @plain
    def nearest(
        self, keys: Tensor, k: int = 1, *, by: str = "value", memory: int | None = None
    ) -> Nearest:
        """The stored facts that keys lead to: a read-out becomes one of the answers that exist.

        Args:
            keys: (T, S).
            k: facts for each.
            by: ``"value"``: those whose values are nearest to what is read; ``"key"``: those whose
                keys are nearest to the keys, without the memory, as an index would find them.
            memory: with ``num_memories``, the memory.

        Returns:
            `Nearest`. It looks through all facts.

        Raises:
            TypeError, ValueError: as `read`.
        """
        (m,) = self._which(memory)
        if by not in ("value", "key"):
            raise ValueError(f'by must be "value" or "key", got {by!r}')
        keys = as_rows("keys", keys, self.key_size, "key_size").reshape(-1, self.key_size)
        check_finite("keys", keys)
        k = check_int("nearest", "k", k)
        if by == "value":
            one = None if self.num_memories is None else m
            keys = self.read(keys, memory=one).values
        return self._nearest(m, keys, k, by)

    def _nearest(self, m: int, wanted: Tensor, k: int, by: str) -> Nearest:
        wanted = _directions(wanted.to(self.device))
        best = _Best(len(wanted), k, wanted)
        for facts in self._store.chunks(m, 4 * CHUNK):
            stored = facts.values if by == "value" else facts.keys
            best.add(facts.ids, wanted @ _directions(stored.to(self.device)).mT)
        return Nearest(best.ids, best.values)

    @plain
    def sources(self, keys: Tensor, k: int = 1, *, memory: Any = None) -> Sources:
        """The facts that a read is made of: it is the sum over all of them of share times value.

        The shares are ``(gram + ridge I)^-1`` between the addresses of the key and of the fact:
        near 1 of the fact that was asked for and near 0 of the others, where these are few, and
        near 0 of all where nothing is known. They tell apart facts with the same value.

        Args:
            keys: (T, S), or (S,) for one. With ``num_memories`` also (M, T, S).
            k: facts for each, those whose shares are the largest, of either sign.
            memory: as in `read`.

        Returns:
            `Sources`, of the keys one after the other. It looks through all facts.

        Raises:
            TypeError, ValueError, RuntimeError, IllConditioned: as `read`.
        """
        keys = as_rows("keys", keys, self.key_size, "key_size")
        which = self._which(memory, keys)
        keys = keys.reshape(-1, self.key_size)
        check_finite("keys", keys)
        k = check_int("sources", "k", k)
        address = self._address(keys, wide=True)
        ids: list[list] = [[] for _ in which]
        most = max((self._counts[m] for m in set(which)), default=0)
        shares = address.new_zeros(len(which), min(k, most))
        for m, rows in grouped(which):
            self._mend(m)
            half = self._sums[m].reader().half
            solved = address[rows] @ half.mT @ half
            best = _Best(len(rows), k, solved)
            for facts in self._store.chunks(m):
                best.add(facts.ids, solved @ self._address(facts.keys, wide=True).mT, torch.abs)
            shares[torch.tensor(rows)[:, None], torch.arange(best.values.shape[-1])] = best.values
            for i, mine in zip(rows, best.ids, strict=True):
                ids[i] = mine
        return Sources(ids, shares)

    def _ids_with(self, m: int, keys: Tensor) -> list:
        """The ids of the facts that have exactly these keys (T, S), as stored."""
        found: dict[bytes, list] = {row: [] for row in _exact(keys)}
        first = keys[:, 0].numpy()
        for facts in self._store.chunks(m, 4 * CHUNK) if found else ():
            some = np.isin(facts.keys[:, 0].numpy(), first).nonzero()[0]
            for i, row in zip(some.tolist(), _exact(facts.keys[some]), strict=True):
                if row in found:
                    found[row].append(facts.ids[i])
        ids = [found[row] for row in _exact(keys)]
        missing = [i for i, mine in enumerate(ids) if not mine]
        if missing:
            message = f"no fact was written with the key(s) of row(s) {named(missing)}"
            if self._counts[m]:
                nearest = self._nearest(m, keys[missing[:1]], 1, "key")
                message += (
                    f"; the key nearest to row {missing[0]} is that of id "
                    f"{nearest.ids[0][0]!r}, at cosine {nearest.similarity.item():.8g}"
                )
            raise KeyError(message)
        for i, mine in enumerate(ids):
            if len(mine) > 1:
                raise ValueError(
                    f"which must name one fact each, but {len(mine)} have the key of row {i}: "
                    f"say which by ids, {named(mine)}"
                )
        return [mine[0] for mine in ids]

    def _ids_of(self, m: int, which: Any) -> list:
        if isinstance(which, np.ndarray) and which.dtype.kind == "f":
            which = torch.as_tensor(which)
        if isinstance(which, Tensor) and which.is_floating_point():
            keys = as_rows("which", which, self.key_size, "key_size")
            keys = self._stored("which", keys)
            return self._ids_with(m, keys)
        ids = as_ids(which)
        missing = [id for id in ids if not self._store.contains(m, id)]
        if missing:
            raise KeyError(f"the memory has no fact with the id(s) {named(missing)}")
        return ids


class _Best:
    """The k best ids of each of T rows, among all that come."""

    def __init__(self, count: int, k: int, like: Tensor):
        self.k, self.ids = k, [[] for _ in range(count)]
        self.values = like.new_zeros(count, 0)

    def add(self, ids: list, values: Tensor, order: Callable[[Tensor], Tensor] = torch.clone):
        """Ids with their values (T, N); those for which ``order`` of them is the largest stay."""
        top = order(values).topk(min(self.k, len(ids)), dim=-1).indices
        new = [[ids[i] for i in row] for row in top.tolist()]
        candidates = [old + row for old, row in zip(self.ids, new, strict=True)]
        both = torch.cat([self.values, values.gather(-1, top)], -1)
        kept = order(both).topk(min(self.k, both.shape[-1]), dim=-1).indices
        self.values = both.gather(-1, kept)
        self.ids = [
            [row[i] for i in places] for row, places in zip(candidates, kept.tolist(), strict=True)
        ]


def _directions(rows: Tensor) -> Tensor:
    """Unit rows in float32, of numbers that float32 need not hold."""
    return unit_rows(rows if rows.dtype == torch.float64 else rows.float()).float()


def _exact(keys: Tensor) -> list[bytes]:
    """Each row's bits, with one zero."""
    array = np.ascontiguousarray((keys + 0.0).numpy())
    return [row.tobytes() for row in array]
