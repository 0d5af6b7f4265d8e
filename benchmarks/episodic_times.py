"""Times and drift of the episodic memory, on random vectors: tables of ``benchmarks.episodic``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kanerva_ext.episodic import EpisodicMemory

Row = dict[str, Any]


def measured(call: Callable[[], Any], times: int = 5) -> float:
    """The least of several times, in milliseconds."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def times(_: None = None) -> Iterable[Row]:
    """Milliseconds of each operation: 10,000 random facts, keys and values of 384 numbers; and of
    indices on the same. MB are what a read has in memory, beside the facts themselves."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(10_100, 384, generator=generator) for _ in range(2))
    queries = torch.randn(1000, 384, generator=generator)
    for slots in (512, 2048):
        for disk in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "facts.db" if disk else None
                yield times_row(slots, path, keys, values, queries)
    yield from index_times(keys[:10_000], queries)


def times_row(slots: int, path: Path | None, keys: Tensor, values: Tensor, queries: Tensor) -> Row:
    memory = EpisodicMemory(384, 384, slots, store=path)
    ids = memory.write(keys[10_000:], values[10_000:])  # the first call of each operator
    memory.read(queries)
    memory.forget(ids)
    row = {
        "what": f"{slots:,} slots, {'SQLite' if path else 'memory'}",
        "write 10,000": measured(lambda: memory.write(keys[:10_000], values[:10_000]), 1),
        "first read": measured(lambda: memory.read(queries), 1),
        "read 1,000": measured(lambda: memory.read(queries)),
        "read 1": measured(lambda: memory.read(queries[:1])),
        "edit 1": measured(lambda: memory.edit(7 + len(ids), values[8])),
        "write 1": measured(lambda: memory.write(keys[-1:], values[-1:])),
        "forget 1": measured(lambda: memory.forget(next(iter(memory)))),
        "open": None,
        "MB": held(memory) / 1e6,
    }
    if path:
        memory.close()
        row["open"] = measured(lambda: EpisodicMemory.load(path).close(), 1)
    return row


def held(memory: EpisodicMemory) -> int:
    """Bytes of the sums, of the posterior, and of the copies that reads in float32 have."""
    sums = memory._sums[0]
    sums.prepare(torch.float32)
    reader = sums.reader()
    tensors = [*sums.sums(), reader.half, reader.mean, *reader._narrow.values()]
    return sum(x.numel() * x.element_size() for x in tensors)


def index_times(keys: Tensor, queries: Tensor) -> Iterable[Row]:
    """Of the indices that are installed; an index has nothing to do before its first read."""

    def row(what: str, build: Callable[[], Any], search: Callable[..., Any], size) -> Row:
        start = time.perf_counter()
        built = build()
        out: Row = {"what": what, "write 10,000": 1e3 * (time.perf_counter() - start)}
        out["read 1,000"] = measured(lambda: search(built, queries))
        out["read 1"] = measured(lambda: search(built, queries[:1]))
        return out | {"MB": size(built) / 1e6}

    directions = normalize(keys, dim=-1)
    numbers = 4 * keys.numel()
    yield row(
        "brute force", directions.clone, lambda d, q: (q @ d.mT).argmax(-1), lambda _: numbers
    )
    try:
        import faiss
    except ModuleNotFoundError:
        return

    def made(index: Any) -> Any:
        index.add(directions.numpy())
        return index

    def search(index: Any, q: Tensor) -> Any:
        return index.search(q.numpy(), 1)

    def size(index: Any) -> int:
        return faiss.serialize_index(index).nbytes

    yield row("faiss, flat", lambda: made(faiss.IndexFlatIP(384)), search, size)
    graph = faiss.METRIC_INNER_PRODUCT
    yield row("faiss, HNSW", lambda: made(faiss.IndexHNSWFlat(384, 32, graph)), search, size)


def drift(_: None = None) -> Iterable[Row]:
    """How far half the facts, forgotten and written again and again, move the sums."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2000, 64, generator=generator) for _ in range(2))
    for noise_var in (1e-2, 1e-4, 1e-6):
        memory = EpisodicMemory(64, 64, 256, noise_var=noise_var)
        memory.write(keys, values, ids=range(2000))
        done = 0
        for rounds in (1, 9, 90, 400):
            done += rounds
            for _ in range(rounds):
                half = torch.randperm(2000, generator=generator)[:1000].tolist()
                memory.forget(half)
                memory.write(keys[half], values[half], ids=half)
            fresh = EpisodicMemory(64, 64, 256, noise_var=noise_var)
            fresh.write(keys, values)
            yield {
                "noise_var": noise_var,
                "changes": 2000 * done,
                "of the reads": apart(memory, fresh, keys),
                # It makes them anew: at the end.
                "refresh()": memory.refresh() if done == 500 else None,
            }


def stream(_: None = None) -> Iterable[Row]:
    """100,000 facts in one call, in chunks and one by one: how far apart the memories are."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(100_000, 64, generator=generator) for _ in range(2))
    order = torch.randperm(len(keys), generator=generator)
    whole = EpisodicMemory(64, 64, 256)
    whole.write(keys, values)
    for what, size in (
        ("chunks of 1,000", 1000),
        ("chunks of 7, backwards", -7),
        ("one by one", 1),
    ):
        memory = EpisodicMemory(64, 64, 256)
        for rows in (order if size > 0 else order.flip(0)).split(abs(size)):
            memory.write(keys[rows], values[rows], ids=rows)
        row: Row = {"written": what, "of the reads": apart(memory, whole, keys)}
        half = order[: len(order) // 2]
        memory.forget(half)
        rest = EpisodicMemory(64, 64, 256)
        rest.write(keys[order[len(half) :]], values[order[len(half) :]])
        row["half forgotten"] = apart(memory, rest, keys)
        memory.write(keys[half], values[half], ids=half)
        yield row | {"and written again": apart(memory, whole, keys)}


def apart(memory: EpisodicMemory, other: EpisodicMemory, keys: Tensor) -> float:
    """How far reads of both differ, in parts of their size."""
    reads, wanted = (m.read(keys[:1000].double()).values for m in (memory, other))
    return ((reads - wanted).norm() / wanted.norm()).item()
