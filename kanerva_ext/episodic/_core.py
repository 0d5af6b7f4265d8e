"""What every method of an episodic memory rests on: addresses, sums, and the facts' store."""

from __future__ import annotations

import functools
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_int
from .._memory_checks import positive
from . import _saving
from ._arguments import as_device, check_finite, check_not_zero, is_id, named
from ._calibration import Local
from ._regression import Regression
from .features import Features, make_features, unit_rows
from .stores import DTYPES, Facts, InMemoryStore, Store

#: Facts whose addresses are made at a time.
CHUNK = 4096


def plain(method):
    """One call at a time, and no gradients: sums are changed in place."""

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        with self._lock, torch.inference_mode(False), torch.no_grad():
            return method(self, *args, **kwargs)

    return wrapped


class Core:
    """See `EpisodicMemory`."""

    def __init__(
        self,
        key_size: int,
        value_size: int,
        slots: int | None = None,
        features: str | Callable[[Tensor], Tensor] = "auto",
        *,
        noise_var: float = 1e-2,
        prior_var: float = 1.0,
        false_alarm: float = 0.05,
        normalize: bool = True,
        seed: int = 0,
        bandwidth: float | None = None,
        store: str | os.PathLike | Store | None = None,
        dtype: str = "float32",
        num_memories: int | None = None,
        device: torch.device | str = "cpu",
    ):
        self.key_size = check_int("", "key_size", key_size)
        self.value_size = check_int("", "value_size", value_size)
        self.slots = check_int("", "slots", key_size if slots is None else slots)
        self.noise_var = positive("noise_var", noise_var)
        self.prior_var = positive("prior_var", prior_var)
        self.num_memories = check_int("", "num_memories", num_memories, optional=True)
        self.seed = check_int("", "seed", seed, least=0)
        self.bandwidth = bandwidth
        self.normalize = bool(normalize)
        if not 0 < positive("false_alarm", false_alarm) < 1:
            raise ValueError(f"false_alarm must be between 0 and 1, got {false_alarm}")
        self.false_alarm = float(false_alarm)
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {tuple(DTYPES)}, got {dtype!r}")
        self.dtype = dtype
        self.device = as_device(device)
        with torch.inference_mode(False):
            self.features = make_features(features, self.key_size, self.slots, self.seed, bandwidth)
            if isinstance(self.features, nn.Module):
                self.features.to(self.device)
        self._lock = threading.RLock()
        self._full = False  # has been said
        self._unsummed = 0  # changes that the sums in the store's file do not have
        count = self.num_memories or 1
        with torch.inference_mode(False):
            self._sums = [
                Regression(self.slots, self.value_size, self.ridge, self.device)
                for _ in range(count)
            ]
            with torch.no_grad():
                self._address(torch.eye(1, self.key_size), wide=True)  # that they fit
        if store is None:
            store = InMemoryStore(self.key_size, self.value_size, dtype, count)
        elif not isinstance(store, Store):
            store = _saving.new_file(store, self)
        else:
            _saving.check_store(store, self)
        self._attach(store)

    def _attach(self, store: Store) -> None:
        """Take a store, without its facts' sums."""
        self._store = store
        count = self.num_memories or 1
        self._counts = [store.count(m) for m in range(count)]
        self._next = [store.first_free(m) for m in range(count)]
        self._thresholds: list[float | None] = [None] * count
        self._local: list[Local | None] = [None] * count  # thresholds of single keys
        self._changes = [0] * count  # since the threshold was found
        self._unknown: dict[int, Tensor | None] = {}  # keys that it is found by, if not by facts
        self._broken = [n > 0 for n in self._counts]  # the sums are not those of the store

    @property
    def ridge(self) -> float:
        """Noise variance / prior variance."""
        return self.noise_var / self.prior_var

    @property
    def _nothing(self) -> Facts:
        options = {"dtype": DTYPES[self.dtype]}
        sizes = self.key_size, self.value_size
        return Facts([], *(torch.empty(0, size, **options) for size in sizes))

    def _calibrated_by(self, m: int) -> Tensor | None:
        """The keys that `EpisodicMemory.calibrate` was given, if it was."""
        if m not in self._unknown:
            self._unknown[m] = _saving.kept_rows(self._store, m, self._nothing.keys)
        return self._unknown[m]

    # Addresses

    def _address(self, keys: Tensor, wide: bool) -> Tensor:
        """Addresses of keys, in float64 if ``wide``; both on the memory's device."""
        own = torch.float64 if wide else _reading_dtype(keys.dtype)
        keys = keys.to(self.device, torch.float64 if self.normalize else own)
        if self.normalize:
            keys = unit_rows(keys).to(own)
        if isinstance(self.features, Features):
            return self.features(keys)
        # A module of the user's, in the dtype of its parameters.
        parameters = getattr(self.features, "parameters", lambda: ())()
        keys = keys.to(next((p.dtype for p in parameters), torch.float32))
        try:
            address = self.features(keys)
        except Exception as error:
            raise RuntimeError(
                f"features failed for keys of shape {tuple(keys.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(address, Tensor) or address.shape != (len(keys), self.slots):
            found = tuple(address.shape) if isinstance(address, Tensor) else type(address).__name__
            raise ValueError(
                f"features must give addresses of shape (T, slots) = (T, {self.slots}) for keys "
                f"(T, {self.key_size}), got {found} for T = {len(keys)}"
            )
        check_finite("the addresses that features gave", address.detach())
        # A copy: what a callable returns may be its own, and change.
        return address.to(self.device, own, copy=True)

    def _check_addresses(self, facts: Facts) -> None:
        """Raise what making the addresses raises: before the store changes."""
        if self.normalize and isinstance(self.features, Features):
            return  # nothing to go wrong
        for start in range(0, len(facts.ids), CHUNK):
            address = self._address(facts.keys[start : start + CHUNK], wide=True)
            check_finite("the addresses of keys", address)

    def _which(self, memory: Any, keys: Tensor | None = None) -> list[int]:
        """The memory of each key (or of the call, without keys)."""
        if self.num_memories is None:
            if memory is not None:
                raise ValueError("memory must be None without num_memories")
            return [0] * (1 if keys is None else math.prod(keys.shape[:-1]))
        if keys is not None and keys.dim() == 3 and memory is None:
            if len(keys) != self.num_memories:
                raise ValueError(
                    f"keys of shape (M, T, S) must have M = num_memories = {self.num_memories}, "
                    f"got {tuple(keys.shape)}"
                )
            return [m for m in range(len(keys)) for _ in range(keys.shape[1])]
        if memory is None:
            raise ValueError("memory must say which of the num_memories memories is meant")
        which = memory.tolist() if isinstance(memory, Tensor) else memory
        count = 1 if keys is None else math.prod(keys.shape[:-1])
        which = [which] * count if is_id(which) and not isinstance(which, str) else list(which)
        if len(which) != count:
            raise ValueError(f"memory must be an int or {count} of them, got {len(which)}")
        for m in which:
            if not is_id(m) or isinstance(m, str) or not 0 <= m < self.num_memories:
                raise ValueError(f"memory must be in 0 .. {self.num_memories - 1}, got {m!r}")
        return which

    def _stored(self, name: str, rows: Tensor) -> Tensor:
        """Rows (T, size) as the store keeps them: a copy, which the caller cannot change."""
        given = rows.detach().reshape(-1, rows.shape[-1])
        check_finite(name, given)
        rows = given.to("cpu", DTYPES[self.dtype], copy=True)
        if not torch.isfinite(rows).all():
            raise ValueError(f"{name} must be finite in the memory's dtype, {self.dtype}")
        return rows

    def _stored_keys(self, keys: Tensor) -> Tensor:
        """Keys as the store keeps them, if it keeps the direction of each."""
        rows = self._stored("keys", keys)
        if self.normalize:
            check_not_zero("keys", rows)
            dtype = DTYPES[self.dtype]
            if keys.dtype.itemsize > dtype.itemsize:
                small = rows.abs().amax(-1) < torch.finfo(dtype).tiny
                if small.any():
                    raise ValueError(
                        f"keys are too small for the memory's dtype, {self.dtype}, to keep their "
                        f"digits, in row(s) {named(small.nonzero().flatten().tolist())}"
                    )
        return rows

    def _change(self, changes: list[tuple[int, list, Facts]]) -> None:
        """Bring changes to the store, all at once, and then to the sums."""
        for _, _, facts in changes:
            self._check_addresses(facts)
        olds = [self._store.get(m, removed) if removed else None for m, removed, _ in changes]
        for old in olds:
            if old is not None:
                self._check_addresses(old)
        with Change(self, [m for m, _, _ in changes]) as change:
            self._store.change(changes)
            change.stored = True
            for (m, removed, facts), old in zip(changes, olds, strict=True):
                self._counts[m] += len(facts.ids) - len(removed)
                self._changes[m] += len(facts.ids) + len(removed)
                ints = [id + 1 for id in facts.ids if isinstance(id, int)]
                self._next[m] = max([self._next[m], *ints])
                if self._counts[m] == 0:
                    self._sums[m].clear()
                if self._counts[m] == 0 or m in change.broken:
                    continue
                if old is not None:
                    self._sum(m, old, -1)
                self._sum(m, facts, 1)
        self._changed([m for m, _, _ in changes])
        _saving.written(self, sum(len(removed) + len(facts.ids) for _, removed, facts in changes))

    def _changed(self, which: Sequence[int]) -> None:
        """After a change of these memories."""
        for m in which:
            if self._sums[m].scales.lost():
                self._broken[m] = True  # the next read makes them anew, without that rounding
            if self._counts[m] > self.slots and not self._full:
                self._full = True
                warnings.warn(
                    f"the memory holds {self._counts[m]} facts at {self.slots} slots: beyond as "
                    "many as it has slots values blur, also those of keys that it calls known; "
                    "give more slots, or take nearest(keys) for the answer that is stored",
                    stacklevel=5,
                )

    def _sum(self, m: int, facts: Facts, sign: int) -> None:
        for start in range(0, len(facts.ids), CHUNK):
            part = slice(start, start + CHUNK)
            weights = self._address(facts.keys[part], wide=True)
            self._sums[m].write(weights, facts.values[part].to(weights), sign)

    def _mend(self, m: int, anew: bool = False) -> None:
        """Make the sums those of the store, where a change was cut off before it reached them."""
        if not (self._broken[m] or anew):
            return
        self._broken[m] = True
        self._recount(m)
        self._sums[m].clear()
        for facts in self._store.chunks(m):
            self._sum(m, facts, 1)
        self._broken[m] = False

    def _recount(self, m: int) -> None:
        self._counts[m], self._next[m] = self._store.count(m), self._store.first_free(m)


class Change:
    """From its begin to its end the sums are not those of the store. Cut off, it leaves them to be
    made anew, unless the store itself refused the change: then they are as they were."""

    def __init__(self, memory: Core, which: list[int]):
        self.memory, self.which, self.stored = memory, which, False

    def __enter__(self) -> Change:
        self.broken = {m for m in self.which if self.memory._broken[m]}
        for m in self.which:
            self.memory._broken[m] = True
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None or (not self.stored and issubclass(kind, Exception)):
            for m in self.which:
                self.memory._broken[m] = m in self.broken
        else:
            for m in self.which:
                self.memory._recount(m)


def _reading_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def flat(ids: Any) -> Any:
    """Ids of several memories, a list of lists, as one list."""
    if isinstance(ids, (list, tuple)) and ids and all(isinstance(x, (list, tuple)) for x in ids):
        return [id for part in ids for id in part]
    if isinstance(ids, Tensor):
        return ids.reshape(-1)
    return ids


def grouped(which: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """(memory, rows) for each memory that is named."""
    groups: dict[int, list[int]] = {}
    for i, m in enumerate(which):
        groups.setdefault(m, []).append(i)
    return iter(groups.items())


def take_rows(address: Tensor, rows: list[int], groups: list) -> Tensor:
    return address if len(groups) == 1 else address[rows]
