"""Files of an episodic memory: a SQLite file with settings, features, facts and sums."""

from __future__ import annotations

import base64
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._files import replacing
from .._version import __version__
from ._arguments import as_device
from ._fingerprint import apart, digest, features_differ, probe
from .features import Features
from .sqlite import SQLiteStore
from .stores import InMemoryStore, Store

if TYPE_CHECKING:
    from .memory import EpisodicMemory

#: Settings that are arguments of `EpisodicMemory` under the same names.
ARGUMENTS = (
    "slots", "noise_var", "prior_var", "false_alarm", "normalize", "seed", "bandwidth",
    "num_memories",
)  # fmt: skip
#: Bytes up to which a file is looked through when it is opened.
CHECKED = 1 << 26
#: Changes after which the sums are written again, at least; more slots: more, as they are larger.
CHANGES = 16_384


def describe(memory: EpisodicMemory) -> dict[str, Any]:
    """Settings as JSON holds them."""
    return {
        "kanerva_ext": __version__,
        "features": memory.features.kind if isinstance(memory.features, Features) else "own",
        "digest": digest(memory.features),
        "probe": probe(memory),
        **{name: getattr(memory, name) for name in ARGUMENTS},
    }


def _other_features(settings: dict[str, Any], own: dict[str, Any]) -> bool:
    return settings["digest"] != own["digest"] or apart(settings["probe"], own["probe"])


def check_alike(memory: EpisodicMemory, other: EpisodicMemory) -> None:
    """Raise ValueError unless what one has written means the same to the other."""
    for name in ("key_size", "value_size", "slots", "num_memories", "normalize"):
        own, theirs = getattr(memory, name), getattr(other, name)
        if own != theirs:
            raise ValueError(f"other must have {name} = {own}, got {theirs}")
    if features_differ(memory, other):
        raise ValueError("other must have the same features (and seed): its addresses differ")


def _buffers(memory: EpisodicMemory) -> dict[str, Tensor]:
    """What the library's own features are made of."""
    if not isinstance(memory.features, Features):
        return {}
    return {name: x.detach().double().cpu() for name, x in memory.features.named_buffers()}


def new_file(path: str | os.PathLike, memory: EpisodicMemory) -> SQLiteStore:
    """A store in a new file for a memory."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"store must be None, a path or a Store, got {type(path).__name__}")
    return SQLiteStore(
        path,
        memory.key_size,
        memory.value_size,
        memory.dtype,
        describe(memory),
        _buffers(memory),
    )


def check_store(store: Store, memory: EpisodicMemory) -> None:
    """Raise ValueError unless the store is one for such a memory. A file that was made without a
    memory's settings, and has no facts, gets them."""
    many = memory.num_memories or 1
    wanted = {name: getattr(memory, name) for name in ("key_size", "value_size", "dtype")}
    for name, own in {**wanted, "num_memories": many}.items():
        theirs = getattr(store, name)
        if theirs is not None and theirs != own:
            raise ValueError(f"store must have {name} = {own}, got a store with {theirs}")
    if not isinstance(store, SQLiteStore):
        return
    settings, own = store.settings, describe(memory)
    if "features" not in settings:
        if store.count(0):
            raise ValueError(f"store must have a memory's settings, but {store.path} has none")
        store.put_settings(own, _buffers(memory))
        return
    for name in ("slots", "num_memories", "normalize", "features"):
        if settings.get(name) != own[name]:
            raise ValueError(
                f"store must be of a memory with {name} = {own[name]!r}, but that in {store.path} "
                f"has {settings.get(name)!r}; EpisodicMemory.load opens it as it is"
            )
    if _other_features(settings, own):
        raise ValueError(
            f"store must be of a memory with the same features (and seed), but in {store.path} "
            "addresses differ; EpisodicMemory.load opens it as it is"
        )


def keep_rows(store: Store, m: int, keys: Tensor | None) -> None:
    """With the next change: keys that a memory is calibrated by, as they are stored."""
    text = None if keys is None else base64.b64encode(keys.numpy().tobytes()).decode()
    store.keep(m, "unknown", text)


def kept_rows(store: Store, m: int, like: Tensor) -> Tensor | None:
    """What `keep_rows` was given, in the dtype and width of ``like``."""
    text = store.kept(m, "unknown")
    if text is None:
        return None
    content = bytearray(base64.b64decode(text))
    return torch.frombuffer(content, dtype=like.dtype).view(-1, like.shape[-1])


def put_sums(memory: EpisodicMemory, store: SQLiteStore, summed_anew: bool = False) -> None:
    """Write the sums that take longer to compute again than to read; and, where the features are
    no longer those that the file's facts were summed with, what tells them from others."""
    settings = {**store.settings, **describe(memory)} if summed_anew else None
    named = {}
    for m, sums in enumerate(memory._sums):
        if memory._counts[m] >= memory.slots and not memory._broken[m]:
            gram, cross = sums.sums()
            named[m] = {"gram": gram, "cross": cross, **sums.scales.tables()}
    store.put_sums(named, settings)


def refreshed(memory: EpisodicMemory) -> None:
    """To be told that all sums are those of the features as they are now."""
    store = memory._store
    if isinstance(store, SQLiteStore) and _other_features(store.settings, describe(memory)):
        put_sums(memory, store, summed_anew=True)


def written(memory: EpisodicMemory, count: int) -> None:
    """To be told how many facts a memory has changed: now and then its file gets its sums."""
    memory._unsummed += count
    if memory._unsummed >= max(CHANGES, 4 * memory.slots):
        memory._unsummed = 0
        if isinstance(memory._store, SQLiteStore):
            _try_put_sums(memory, memory._store)


def _try_put_sums(memory: EpisodicMemory, store: SQLiteStore) -> None:
    """Where the facts are in the file already: without the sums it is complete."""
    try:
        put_sums(memory, store)
    except OSError as error:
        warnings.warn(
            f"the facts are in {store.path}, but not the sums that let it open fast: "
            f"{error.strerror}",
            RuntimeWarning,
            stacklevel=5,
        )


def save(memory: EpisodicMemory, path: str | os.PathLike) -> None:
    path = Path(path).resolve()
    for m in range(len(memory._sums)):
        memory._mend(m)
    own = memory._store
    if isinstance(own, SQLiteStore) and own.path.resolve() == path:
        put_sums(memory, own)
        return
    if path.exists():
        _free(path)
    with replacing(path) as new:
        if new == path:
            raise ValueError(f"{path} must be a file's name")
        store = new_file(new, memory)
        try:
            for m in range(len(memory._sums)):
                for facts in own.chunks(m):
                    store.change([(m, [], facts)])
                store.reserve(m, memory._next[m])
                keep_rows(store, m, memory._calibrated_by(m))
            store.change([])
            put_sums(memory, store)
        finally:
            store.close()
    # Of a file that was there before and that nobody closed; its changes are not this one's.
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _free(path: Path) -> None:
    """Raise OSError if a memory has the file open."""
    try:
        SQLiteStore(path).close()
    except ValueError:
        return  # no file of ours, or damaged: it is replaced


def load(
    cls: type[EpisodicMemory],
    path: str | os.PathLike,
    features: Callable[[Tensor], Tensor] | None,
    in_memory: bool,
    device: torch.device | str,
) -> EpisodicMemory:
    with torch.inference_mode(False):
        store = SQLiteStore(path, read_only=in_memory)
        try:
            return _load(cls, store, features, in_memory, device)
        except BaseException:
            store.close()
            raise


def _load(cls, store, features, in_memory, device) -> EpisodicMemory:
    if store.path.stat().st_size <= CHECKED:
        store.check()
    settings = store.settings
    device = as_device(device)  # before its error could be taken for one of the file
    try:
        kind, arguments = settings["features"], {name: settings[name] for name in ARGUMENTS}
        if kind == "own" and features is None:
            raise ValueError(
                f"{store.path} holds a memory with features of its own: load(path, features=...)"
            )
        if kind != "own" and features is not None:
            raise ValueError(f'features must be None: the memory in {store.path} has "{kind}"')
        memory = cls(
            settings["key_size"],
            settings["value_size"],
            features=features if kind == "own" else kind,
            dtype=settings["dtype"],
            device=device,
            **arguments,
        )
        if isinstance(memory.features, nn.Module) and kind != "own":
            for name, buffer in memory.features.named_buffers():
                width = buffer.shape[-1] if buffer.dim() > 1 else 1
                saved = store.sums(-1, name, width)
                if saved is None or saved.numel() != buffer.numel():
                    raise ValueError(f"it has no {name} of the features")
                buffer.copy_(saved.view(buffer.shape))
        if _other_features(settings, describe(memory)):
            raise ValueError(
                "features must be those that its facts were written with: their addresses differ"
            )
    except (KeyError, TypeError, OverflowError, json.JSONDecodeError) as error:
        raise ValueError(f"{store.path} is damaged: {error!r}") from error
    except ValueError as error:
        if str(store.path) in str(error) or kind == "own":
            raise
        raise ValueError(f"{store.path} is damaged, or no memory of now: {error}") from error
    with torch.no_grad():
        broken = [not _load_sums(memory, store, m) for m in range(len(memory._sums))]
    if in_memory:
        count = len(memory._sums)
        kept = InMemoryStore(memory.key_size, memory.value_size, memory.dtype, count)
        for m in range(count):
            for facts in store.chunks(m):
                kept.change([(m, [], facts)])
            kept.reserve(m, store.first_free(m))
            kept.keep(m, "unknown", store.kept(m, "unknown"))
        memory._attach(kept)
        store.close()
    else:
        memory._attach(store)
    memory._broken = broken
    return memory


def _load_sums(memory: EpisodicMemory, store: SQLiteStore, m: int) -> bool:
    """Sums as they were saved, and what has changed since; False: there are none."""
    gram = store.sums(m, "gram", memory.slots)
    cross = store.sums(m, "cross", memory.value_size)
    scales = store.sums(m, "scales", 2)
    columns = store.sums(m, "columns", memory.value_size)
    shapes = [None if x is None else x.shape[0] for x in (gram, cross)]
    if shapes == [None, None]:
        return store.count(m) == 0  # else from the facts, when they are asked for
    if shapes != [memory.slots, memory.slots] or scales is None or columns is None:
        raise ValueError(f"{store.path} is damaged: its sums have other sizes")
    memory._sums[m].load(gram, cross, scales, columns)
    for facts, sign in store.since_sums(m):
        memory._sum(m, facts, sign)
    return not memory._sums[m].scales.lost()


def close(memory: EpisodicMemory) -> None:
    store = memory._store
    if isinstance(store, SQLiteStore) and not store.closed:
        try:
            if store.changes():
                _try_put_sums(memory, store)
        finally:
            store.close()
