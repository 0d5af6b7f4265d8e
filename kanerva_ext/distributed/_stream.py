"""Writing more than memory holds: batch after batch, each exactly once whatever is killed when."""

from __future__ import annotations

import hashlib
import itertools
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import __version__
from .._checks import check_int
from .._safetensors import field, of_another_version, read_tensors, write_tensors
from .._state import MemoryState
from ..ops.bayes_write import bayes_write
from ._collectives import Group
from ._write import as_state, write

_OP = "distributed.write_stream"
_FORMAT = "kanerva_ext.write_stream 1"


def write_stream(
    loader: Iterable | Callable[[int], Iterable],
    state: MemoryState | tuple[Tensor, Tensor],
    checkpoint: str | os.PathLike,
    *,
    noise_var: float | Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    save_every: int = 100,
    prefetch: int = 2,
    progress: bool = True,
) -> tuple[MemoryState, Tensor]:
    """Write all batches of a loader into a memory; go on where a killed run left off.

    The checkpoint holds the state and how many batches it has, in one file that is replaced as a
    whole: after any kill, what was written since the last save is written again into the state as
    it was saved, and nothing twice. The same batches in the same order give the same state, bit
    for bit, on the same number of processes and threads.

    On several processes each has a loader of its own share, and every batch is written by
    `write`; loaders may be of different lengths. The first rank reads and saves the checkpoint.

    Args:
        loader: gives (weights, values) or (weights, values, noise_var) as `write` takes them. A
            function gets the number of batches to leave out and gives the others; a sequence is
            begun there; of any other iterable these are read and thrown away. Every run must
            give the same batches.
        state: to begin with, the same on every rank; (B, K, C) and (B, K, K).
        checkpoint: a safetensors file in a folder that exists, made if it is not there.
        noise_var: of batches without one.
        group: of processes; None: all, or this one alone where torch.distributed is not
            initialised.
        save_every: batches between two saves.
        prefetch: batches that a thread reads ahead.
        progress: show a bar (tqdm) on the first rank.

    Returns:
        `MemoryState` and log evidence (B,), float64, of all batches.

    Raises:
        TypeError, ValueError: an argument or a batch, as `write`; a checkpoint that is damaged, was
            begun with another state, or by another number of processes.
        ModuleNotFoundError: safetensors is not installed, or tqdm, with ``progress``.
        RuntimeError, OSError: as `write`; the checkpoint cannot be read or written; another
            rank's loader failed, or the first could not save.

    >>> import tempfile, torch
    >>> from kanerva_ext import distributed
    >>> prior = torch.zeros(1, 4, 3), torch.eye(4)[None]
    >>> batches = [(torch.eye(4)[None], torch.ones(1, 4, 3)) for _ in range(10)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/stream.safetensors"
    ...     options = {"noise_var": 1.0, "progress": False}
    ...     half, _ = distributed.write_stream(batches[:5], prior, path, **options)
    ...     state, _ = distributed.write_stream(batches, prior, path, **options)  # the others
    >>> (1 / half.cov[0, 0, 0] - 1).round(), (1 / state.cov[0, 0, 0] - 1).round()
    (tensor(5.), tensor(10.))
    """
    check_int(_OP, "save_every", save_every)
    check_int(_OP, "prefetch", prefetch)
    members = Group(_OP, group) if group is not None or _initialised() else None
    prior = MemoryState(*(x.detach() for x in as_state(_OP, state)))
    run = _Run(Path(checkpoint), prior, members)
    with torch.no_grad(), _bar(progress and run.is_first, run.done) as bar:
        batches = _ahead(_remaining(loader, run.done), prefetch)
        try:
            for steps in run.rounds(batches, noise_var):
                run.write(steps, group)
                if run.done % save_every == 0:
                    run.save()
                bar.update()
        finally:
            batches.close()
        if run.done != run.saved:
            run.save()
    return run.state, run.evidence


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Run:
    """The state, how many batches it has, and the file that holds both."""

    def __init__(self, path: Path, prior: MemoryState, members: Group | None) -> None:
        self.path, self.members = path, members
        self.is_first = members is None or members.rank == 0
        self.count = 1 if members is None else members.size
        content = b"".join(x.contiguous().cpu().numpy().tobytes() for x in prior)
        self.prior = hashlib.sha256(content).hexdigest()
        self.state, self.done = prior, 0
        self.evidence = prior.mean.new_zeros(prior.mean.shape[:-2], dtype=torch.float64)
        error = None
        if self.is_first:
            try:
                _check_place(path)
                if path.exists():
                    self._load()
            except (OSError, ValueError) as refused:
                error = refused
        if members is not None:
            shape = "x".join(map(str, prior.mean.shape))
            members.announce((f"state {shape} {prior.mean.dtype}", self.prior[:8]), error).wait()
            self._share()
        elif error is not None:
            raise error
        self.saved = self.done

    def _load(self) -> None:
        try:
            tensors, metadata = read_tensors(self.path)
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {_FORMAT!r}")
            done, count = field(metadata, "batches", int), field(metadata, "processes", int)
            prior = field(metadata, "prior", str)
            mean, cov, evidence = (tensors[name] for name in ("mean", "cov", "evidence"))
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{_OP}: {self.path} is no checkpoint of a stream, or damaged: {error}"
            ) from error
        if prior != self.prior:
            raise ValueError(
                f"{_OP}: state must be the one that {self.path} was begun with, got another"
                f"{of_another_version(metadata)}"
            )
        if count != self.count:
            raise ValueError(
                f"{_OP}: {self.path} was begun by {count} processes, whose shares go on, got "
                f"{self.count}"
            )
        device = self.state.mean.device
        self.state, self.done = MemoryState(mean.to(device), cov.to(device)), done
        self.evidence = evidence.to(device)

    def _share(self) -> None:
        """What the first rank has, on all."""
        members = self.members
        done = torch.tensor([self.done], device=members.device)
        parts = [*self.state, self.evidence]
        parts = [members.broadcast(x.contiguous().clone(), 0) for x in parts]
        self.done = int(members.broadcast(done, 0).item())
        self.state, self.evidence = MemoryState(*parts[:2]), parts[2]

    def rounds(self, batches: Iterator, noise_var) -> Iterator[tuple]:
        """This rank's batches, and empty ones after them while other ranks have more."""
        if self.members is None:
            yield from (self._checked(batch, noise_var) for batch in batches)
            return
        mean = self.state.mean
        lead, (slots, code) = mean.shape[:-2], mean.shape[-2:]
        empty = mean.new_zeros(*lead, 0, slots), mean.new_zeros(*lead, 0, code), 1.0
        while True:
            batch, error = None, None
            try:
                for found in itertools.islice(batches, 1):
                    batch = self._checked(found, noise_var)
            except Exception as failed:
                error = failed
            own = torch.tensor([batch is not None, error is not None], device=self.members.device)
            more, failed = self.members.any(own).tolist()
            if error is not None:
                raise error
            if failed:
                raise RuntimeError(f"{_OP}: the loader of another rank failed; see its error")
            if not more:
                return
            yield empty if batch is None else batch

    def _checked(self, batch: Any, noise_var) -> tuple:
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            got = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
            raise TypeError(
                f"{_OP}: loader must give (weights, values) or (weights, values, noise_var), got "
                f"{type(batch).__name__}{got}"
            )
        if len(batch) == 2:
            if noise_var is None:
                raise TypeError(f"{_OP}: noise_var must be given, or come with every batch")
            batch = (*batch, noise_var)
        device = self.state.mean.device
        return tuple(x.to(device) if isinstance(x, Tensor) else x for x in batch)

    def write(self, steps: tuple, group) -> None:
        if self.members is None:
            *state, evidence = bayes_write(*self.state, *steps)
            self.state = MemoryState(*state)
        else:
            self.state, evidence = write(self.state, *steps, group=group)
        self.evidence = self.evidence + evidence
        self.done += 1

    def save(self) -> None:
        """By the first rank; the others learn whether it could."""
        self.saved, error = self.done, None
        if self.is_first:
            try:
                self._write_file()
            except Exception as failed:
                error = failed
        if self.members is not None:
            failure = torch.tensor([error is not None], device=self.members.device)
            if self.members.any(failure).item() and error is None:
                raise RuntimeError(
                    f"{_OP}: rank 0 could not save {self.path}, which ends with the batches "
                    "before; see its error"
                )
        if error is not None:
            raise error

    def _write_file(self) -> None:
        tensors = {"mean": self.state.mean, "cov": self.state.cov, "evidence": self.evidence}
        tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        about = {"format": _FORMAT, "batches": self.done, "processes": self.count}
        about |= {"prior": self.prior, "kanerva_ext": __version__}
        write_tensors(self.path, tensors, about)


def _check_place(path: Path) -> None:
    """Before hours of batches, not after them."""
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{_OP}: checkpoint must lie in a folder that exists, got {os.fspath(path)!r}"
        )
    if path.is_dir():
        raise IsADirectoryError(f"{_OP}: checkpoint must be a file, got the folder {path}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{_OP}: checkpoint lies in {folder}, where nothing can be written")


def _remaining(loader, done: int) -> Iterable:
    """What the loader gives after its first ``done`` batches."""
    if isinstance(loader, Sequence):
        return (loader[i] for i in range(done, len(loader)))
    if isinstance(loader, Iterable):
        return itertools.islice(loader, done, None)
    if callable(loader):
        return loader(done)
    raise TypeError(
        f"{_OP}: loader must be an iterable of batches or a function of the number of batches to "
        f"leave out, got {type(loader).__name__}"
    )


def _ahead(batches: Iterable, count: int) -> Iterator:
    """The batches; a thread reads up to ``count`` ahead, and its errors come at their place."""
    ready: queue.Queue = queue.Queue(count)
    stopped = threading.Event()

    def put(item) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for batch in batches:
                if not put((batch, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch
    finally:
        stopped.set()
        thread.join(timeout=5)


def _bar(shown: bool, done: int):
    if not shown:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{_OP} needs tqdm for its progress bar, which is not installed: pip install tqdm, or "
            "progress=False",
            name=error.name,
        ) from error
    return tqdm(initial=done, unit="batch", mininterval=0.2 if sys.stderr.isatty() else 15)


class _NoBar:
    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def update(self) -> None:
        pass
