"""What the processes of a group send each other: handshakes, sums, scans; counted on request."""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from .. import __version__

LOSSES = ("same", "sum")
# How far the sums of the ranks' states may be apart, of those of their absolute values.
ALIKE = 1e-5
_greeted: weakref.WeakSet = weakref.WeakSet()
_counters: list[dict[str, int]] = []


class Group:
    """A process group as these functions use it; None is the default group.

    Raises:
        RuntimeError: torch.distributed is not initialised, or this process is not in the group.
    """

    def __init__(self, op: str, group: dist.ProcessGroup | None) -> None:
        self.op = op
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                f"{op}: torch.distributed must be initialised first, as by "
                'torch.distributed.init_process_group("gloo") under torchrun'
            )
        if group is not None and not isinstance(group, dist.ProcessGroup):
            if group is dist.GroupMember.NON_GROUP_MEMBER:
                raise RuntimeError(f"{op}: this process is not a member of group")
            raise TypeError(
                f"{op}: group must be a torch.distributed.ProcessGroup or None, got "
                f"{type(group).__name__}"
            )
        self.group = dist.group.WORLD if group is None else group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        # What is sent lies where the backend can send it from.
        on_gpu = dist.get_backend(self.group) == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu"

    def greet(self) -> None:
        """All have the same versions; once for a group, whose first call every process makes."""
        if self.group in _greeted:
            return
        own = f"torch {torch.__version__}, kanerva_ext {__version__}"
        text = torch.zeros(128, dtype=torch.uint8)
        text[: len(own)] = torch.frombuffer(bytearray(own.encode()), dtype=torch.uint8)[:128]
        rows = self.all_gather(text.to(self.device)).cpu()
        found = [bytes(row.tolist()).rstrip(b"\0").decode() for row in rows]
        self._same(found, "all processes must run the same versions")
        _greeted.add(self.group)

    def _same(self, found: Sequence, what: str) -> None:
        odd = next((i for i, value in enumerate(found) if value != found[0]), None)
        if odd is not None:
            raise RuntimeError(
                f"{self.op}: {what}, got {found[0]} on rank 0 and {found[odd]} on rank {odd}"
            )

    def announce(
        self,
        words: Sequence[str],
        error: Exception | None,
        steps: int = 0,
        state: Sequence[Tensor] = (),
    ) -> Agreement:
        """Begin to compare what was called with what on every rank, and whether it was refused;
        to tell each other the numbers of steps, which may differ. Of ``state``, mean and cov, sums
        are compared."""
        self.greet()
        return Agreement(self, words, error, steps, state)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """(P, ...): every rank's tensor, of one shape."""
        out = tensor.new_empty((self.size, *tensor.shape))
        self.count("all_gather", (self.size - 1) * tensor.nbytes)
        with self._told():
            dist.all_gather(list(out.unbind(0)), tensor.contiguous(), group=self.group)
        return out

    def start_sum(
        self, tensor: Tensor, op=dist.ReduceOp.SUM, kind: str = "all_reduce"
    ) -> Callable[[], Tensor]:
        """Begin an all-reduce in place; what is returned waits for it."""
        self.count(kind, tensor.nbytes)
        if tensor.numel() == 0 or self.size == 1:
            return lambda: tensor
        with self._told():
            work = dist.all_reduce(tensor, op, group=self.group, async_op=True)

        def wait() -> Tensor:
            with self._told():
                work.wait()
            return tensor

        return wait

    def sum(self, tensor: Tensor) -> Tensor:
        return self.start_sum(tensor.contiguous())()

    def any(self, flags: Tensor) -> Tensor:
        """Which flags are set on any rank: all ranks decide alike."""
        return self.start_sum(flags.to(torch.int32), dist.ReduceOp.MAX, "flags")().bool()

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Rank ``source``'s tensor, in place."""
        self.count("broadcast", tensor.nbytes)
        if self.size > 1 and tensor.numel():
            with self._told():
                dist.broadcast(tensor, group=self.group, group_src=source)
        return tensor

    def scan(
        self,
        own: tuple[Tensor, ...],
        merge: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, ...]],
        neutral: tuple[Tensor, ...],
        backwards: bool = False,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What the ranks before this one hold together, and that with its own.

        ``merge(earlier, later)`` is associative. ceil(log2 P) rounds, and one more that moves the
        results on by a rank (Hillis and Steele, Data parallel algorithms, 1986). ``backwards``:
        the ranks after this one, the last of them first.
        """
        place = self.size - 1 - self.rank if backwards else self.rank
        total, distance = own, 1
        while distance < self.size:
            received = self._shift(total, place, distance, backwards)
            if received is not None:
                total = merge(received, total)
            distance *= 2
        before = self._shift(total, place, 1, backwards) if self.size > 1 else None
        return (neutral if before is None else before), total

    def _shift(self, tensors, place: int, distance: int, backwards: bool):
        """Send to the place ``distance`` later, receive from the one as much earlier."""
        flat = torch.cat([t.reshape(-1) for t in tensors])
        received = torch.empty_like(flat)
        moves = []
        for peer, operation, buffer in (
            (place + distance, dist.isend, flat),
            (place - distance, dist.irecv, received),
        ):
            if 0 <= peer < self.size:
                rank = self.size - 1 - peer if backwards else peer
                moves.append(dist.P2POp(operation, buffer, group=self.group, group_peer=rank))
        if place + distance < self.size:
            self.count("send", flat.nbytes)
        if moves and flat.numel():
            with self._told():
                for work in dist.batch_isend_irecv(moves):
                    work.wait()
        if place - distance < 0:
            return None
        parts = received.split([t.numel() for t in tensors])
        return tuple(p.view(t.shape) for p, t in zip(parts, tensors, strict=True))

    def count(self, kind: str, nbytes: int) -> None:
        for counter in _counters:
            counter[kind] = counter.get(kind, 0) + nbytes

    @contextmanager
    def _told(self):
        """Says what failed and where when a process is lost or a time-out is over."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(
                f"{self.op}: rank {self.rank} of {self.size} could not finish a collective: a "
                "process of the group has ended, does not answer within the group's time-out, or "
                f"made another call; the group is of no use any more ({error})"
            ) from error


class Agreement:
    """The comparison of a call's arguments that `Group.announce` began."""

    def __init__(
        self,
        group: Group,
        words: Sequence[str],
        error: Exception | None,
        steps: int,
        state: Sequence[Tensor],
    ) -> None:
        self.group, self.words, self.error = group, words, error
        self.work = None
        digest = hashlib.sha256("|".join((group.op, *words)).encode()).digest()[:7]
        self.number = -1 if error is not None else int.from_bytes(digest, "big")
        own = torch.tensor([self.number, steps], device=group.device)
        if group.size > 1:  # Every rank's row is as long, also of one that refuses.
            marks = torch.zeros(4, dtype=torch.float64, device=group.device)
            if state and error is None:
                marks = torch.cat([_marks(x) for x in state]).to(group.device)
            own = torch.cat([own, marks.view(torch.int64)])
        self.rows = own.expand(group.size, -1).clone()
        if group.size > 1:
            with group._told():
                rows = list(self.rows.unbind(0))
                self.work = dist.all_gather(rows, own, group=group.group, async_op=True)
            group.count("handshake", own.nbytes * (group.size - 1))

    def wait(self) -> list[int]:
        """The ranks' numbers of steps, or this rank's own error, or that another rank differs."""
        if self.work is not None:
            with self.group._told():
                self.work.wait()
            self.work = None
        if self.error is not None:
            raise self.error
        rows = self.rows.cpu()
        for rank, number in enumerate(rows[:, 0].tolist()):
            if number == -1:
                raise RuntimeError(
                    f"{self.group.op}: rank {rank} refused its arguments; see its error"
                )
            if number != self.number:
                raise ValueError(
                    f"{self.group.op}: all ranks must call the same function with the same sizes, "
                    f"dtypes and options, got {', '.join(self.words)} here and something else on "
                    f"rank {rank}"
                )
        if self.group.size > 1:
            self._compare(rows[:, 2:].contiguous().view(torch.float64).tolist())
        return rows[:, 1].tolist()

    def _compare(self, marks: list[list[float]]) -> None:
        for rank, others in enumerate(marks):
            for name, at in (("mean", 0), ("cov", 2)):
                (first, size), (here, other) = marks[0][at : at + 2], others[at : at + 2]
                finite = [math.isfinite(x) for x in (first, here)]
                near = ALIKE * max(size, other)
                apart = max(abs(first - here), abs(size - other))
                if finite[0] != finite[1] or (all(finite) and apart > near):
                    raise ValueError(
                        f"{self.group.op}: state must be the same on every rank, got a {name} on "
                        f"rank {rank} that is not that of rank 0"
                    )


def _marks(tensor: Tensor) -> Tensor:
    """Two sums in float64 that tell different tensors apart, and equal ones but for rounding not:
    of the rows, each with a weight of its own, and of the absolute values."""
    tensor = tensor.detach()
    rows = tensor.sum(-1, dtype=torch.float64).flatten()
    places = torch.linspace(1, 2, len(rows), dtype=torch.float64, device=rows.device)
    return torch.stack([rows @ places, torch.linalg.vector_norm(tensor, 1, dtype=torch.float64)])


def recorded(args: Sequence) -> str:
    """Whether a call records gradients, which all ranks or none must do that send some."""
    needed = any(isinstance(x, Tensor) and x.requires_grad for x in args)
    return "gradients" if needed and torch.is_grad_enabled() else "no gradients"


def check_plain(op: str, specs: Sequence, given: Sequence) -> None:
    """Raise for tensors that hold no numbers of this rank's own."""
    for spec, x in zip(specs, given, strict=True):
        if isinstance(x, DTensor):
            raise TypeError(
                f"{op}: {spec.name} must be a plain tensor of what this rank holds, "
                "as x.to_local(), got a DTensor; the operators of kanerva_ext.ops take these"
            )
        if isinstance(x, Tensor) and x.is_meta:
            raise ValueError(f"{op}: {spec.name} must hold numbers, got a meta tensor")


def check_loss(op: str, loss: str) -> None:
    if loss not in LOSSES:
        raise ValueError(f"{op}: loss must be one of {LOSSES}, got {loss!r}")


@contextmanager
def count_bytes():
    """Counts what this process hands to collectives, in bytes, by their kind.

    ``all_reduce`` and ``broadcast``: the size of the tensors, ``flags``, 4 bytes a memory, which
    way it goes on; ``all_gather``, ``send`` and ``handshake``: what leaves or reaches this
    process. How often a collective sends its tensor
    on is the backend's business (a ring sends 2 (P - 1) / P times an all-reduced tensor).

    >>> from kanerva_ext.distributed import count_bytes
    >>> with count_bytes() as sent:
    ...     pass
    >>> sent
    {}
    """
    counter: dict[str, int] = {}
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


def pack(symmetric: Tensor | None, *others: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(B, N): the upper triangle of (B, K, K), unless it is None, and all of the others, in the
    dtype of the first or the one given."""
    parts = [other.flatten(1) for other in others]
    if symmetric is not None:
        slots = symmetric.shape[-1]
        rows, columns = torch.triu_indices(slots, slots, device=symmetric.device)
        parts.insert(0, symmetric[:, rows, columns])
    sizes = [part.shape[1] for part in parts]
    packed = parts[0].new_empty(len(parts[0]), sum(sizes), dtype=dtype)
    for place, part in zip(packed.split(sizes, 1), parts, strict=True):
        place.copy_(part)
    return packed


def unpack_triangle(packed: Tensor, slots: int, mirror: bool = True) -> Tensor:
    """The symmetric (or, without ``mirror``, upper triangular) matrices of `pack`."""
    rows, columns = torch.triu_indices(slots, slots, device=packed.device)
    matrix = packed.new_zeros(len(packed), slots, slots)
    matrix[:, rows, columns] = packed
    if mirror:
        matrix[:, columns, rows] = packed
    return matrix
