"""The processes of a training: one, or those of torchrun; and the signals that stop it."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import distributed

from ._device import choose_device

# Not everywhere is there a terminal that hangs up.
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_kept: list[distributed.Work] = []  # until Python ends


class Process(NamedTuple):
    """This process among those of torchrun; alone without it."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def agree(self, number: int) -> int:
        """The largest of all processes' numbers: they must all stop after the same step."""
        if self.count == 1:
            return number
        numbers = torch.tensor(number, device=self.device)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        return int(numbers.item())


@contextmanager
def processes(device: str | None):
    """Joins torchrun's processes, if there are any, and leaves them at the end."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    local = os.environ.get("LOCAL_RANK")
    chosen = choose_device(device, None if local is None else int(local))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if count == 1:
        yield Process(0, 1, chosen)
        return
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    distributed.init_process_group(backend, **_place_to_meet(count))
    try:
        yield Process(distributed.get_rank(), count, chosen)
        # Gloo's threads free a call's tensors some time after the wait for it ends, and abort when
        # Python is gone by then. So all wait here, and this last call's are kept.
        last = distributed.barrier(async_op=True)
        last.wait()
        _kept.append(last)
    finally:
        distributed.destroy_process_group()


def _place_to_meet(count: int) -> dict:
    """Arguments of ``init_process_group`` after torchrun started the processes again.

    Its store still has the addresses of those that ended, and who reads them before they are
    replaced cannot connect. On one machine the number of the start is the same for all.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("LOCAL_WORLD_SIZE") != str(count):
        return {}
    store, rank, _ = next(iter(distributed.rendezvous("env://")))
    store = distributed.PrefixStore(f"kanerva_ext/start_{attempt}", store)
    return {"store": store, "rank": rank, "world_size": count}


class Stop:
    """Becomes true at the first SIGINT, SIGTERM or SIGHUP, so that a step can be finished first."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> Stop:
        self.before = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if self.signal is not None:  # the second time: at once
            self.before[number](number, frame) if callable(self.before[number]) else sys.exit(1)
        self.signal = number
