"""The memory's belief, and what its module returns, as values."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from ._checks import STATE_DTYPES
from ._files import write_bytes
from ._version import __version__

FORMAT = "kanerva_ext.MemoryState"
# What reading a damaged file raises.
DAMAGED = (KeyError, TypeError, AttributeError, ValueError, RecursionError)


def wide_to(x: Tensor, *args, **kwargs) -> Tensor:
    """``x.to(...)``; where that asks for a half-precision dtype, the device alone, every digit
    kept."""
    moved = x.to(*args, **kwargs)
    if moved.dtype not in (torch.float16, torch.bfloat16):
        return moved
    return x.to(moved.device, copy=kwargs.get("copy", False))


class MemoryState(NamedTuple):
    """Belief about a memory matrix, ``M ~ MN(mean, cov, I)``: a tuple, hence a pytree.

    ``state[0]`` is the field ``mean`` and ``state[1]`` is ``cov``, as of any tuple, and
    ``len(state)`` is 2; `select` takes items of the batch. ``torch.load`` takes it with
    ``weights_only=True``.

    Attributes:
        mean: (..., K, C), K slots of code size C.
        cov: (..., K, K), row covariance shared by all columns, symmetric positive definite.

    >>> import torch, kanerva_ext
    >>> state = kanerva_ext.FusedKanervaMemory(4, 8).prior(3)
    >>> state.select([2, 0]).mean.shape  # the third memory and the first
    torch.Size([2, 4, 8])
    """

    mean: Tensor
    cov: Tensor

    def clone(self) -> MemoryState:
        """A copy that owns its memory, contiguous (a prior is expanded: its items share theirs)."""
        return MemoryState(*(x.clone(memory_format=torch.contiguous_format) for x in self))

    def detach(self) -> MemoryState:
        """The same values without their gradients' history."""
        return MemoryState(self.mean.detach(), self.cov.detach())

    def to(self, *args, **kwargs) -> MemoryState:
        """Brought to a device, a dtype, or both, as ``torch.Tensor.to``. A belief is float32 or
        float64: to a half-precision dtype it keeps its own."""
        moved = MemoryState(*(wide_to(x, *args, **kwargs) for x in self))
        dtype = moved.mean.dtype
        if dtype not in STATE_DTYPES:
            raise TypeError(f"MemoryState.to: dtype must be a real floating-point one, got {dtype}")
        return moved

    def select(self, index: Tensor | Sequence[int]) -> MemoryState:
        """The memories of ``index`` along the first leading dimension, in its order: a copy.

        Args:
            index: (B',) integers in 0 .. B - 1, a tensor or a sequence.

        Raises:
            TypeError, ValueError, IndexError: an index of the wrong kind, shape or range.
        """
        if self.mean.dim() < 3 or self.cov.dim() < 3:
            raise ValueError(
                "MemoryState.select: mean and cov must have a leading dimension, got "
                f"{tuple(self.mean.shape)} and {tuple(self.cov.shape)}"
            )
        index = as_index("MemoryState.select", index, self.mean)
        return MemoryState(self.mean.index_select(0, index), self.cov.index_select(0, index))

    def save(self, path: str | os.PathLike) -> None:
        """Write it to a safetensors file, with its dtype, sizes and the library's version.

        If the write fails, an older file of that name is left as it was.

        Raises:
            ModuleNotFoundError: safetensors is not installed (``pip install safetensors``).
            OSError: the file cannot be written.
            TypeError: it is no state of one dtype, float32 or float64.
        """
        safetensors = _safetensors("MemoryState.save")
        if self.mean.dtype != self.cov.dtype or self.mean.dtype not in STATE_DTYPES:
            raise TypeError(
                "MemoryState.save: mean and cov must both be torch.float32 or both torch.float64, "
                f"got {self.mean.dtype} and {self.cov.dtype}"
            )
        state = self.detach().to("cpu").clone()
        described = {
            "format": FORMAT,
            "kanerva_ext": __version__,
            "dtype": str(self.mean.dtype),
            "mean": json.dumps(list(self.mean.shape)),
            "cov": json.dumps(list(self.cov.shape)),
        }
        # Where a link leads, so that it stays one.
        write_bytes(Path(path).resolve(), safetensors.save(state._asdict(), described))

    @classmethod
    def load(cls, path: str | os.PathLike, device: torch.device | str = "cpu") -> MemoryState:
        """The state of a file of `save`.

        Args:
            path: of the file.
            device: where its tensors shall be.

        Raises:
            ModuleNotFoundError: safetensors is not installed.
            OSError: there is no such file, or it cannot be read.
            ValueError: it is no file of `save`, or it is damaged.
        """
        safetensors = _safetensors("MemoryState.load")
        content = Path(path).read_bytes()
        try:
            size = int.from_bytes(content[:8], "little")
            described = json.loads(content[8 : 8 + size]).get("__metadata__", {})
            if described.get("format") != FORMAT:
                raise ValueError(f"its format is {described.get('format')!r}, not {FORMAT!r}")
            tensors = safetensors.load(content)
            mean, cov = tensors["mean"], tensors["cov"]
            for name, tensor in (("mean", mean), ("cov", cov)):
                if list(tensor.shape) != json.loads(described[name]):
                    raise ValueError(f"{name} has the shape {tuple(tensor.shape)}")
                if str(tensor.dtype) != described["dtype"]:
                    raise ValueError(f"{name} has the dtype {tensor.dtype}")
        except (*DAMAGED, safetensors.SafetensorError) as e:
            raise ValueError(f"MemoryState.load: {path} is no saved MemoryState: {e}") from e
        return cls(mean.to(device), cov.to(device))


def _safetensors(caller: str):
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{caller} needs safetensors, which is not installed: pip install safetensors "
            "(torch.save and torch.load take a MemoryState without it)",
            name=error.name,
        ) from error

    class Functions(NamedTuple):
        save: object
        load: object
        SafetensorError: type

    return Functions(safetensors.torch.save, safetensors.torch.load, safetensors.SafetensorError)


def as_index(where: str, index: Tensor | Sequence[int], like: Tensor) -> Tensor:
    """``index`` as a tensor (B',) of int64 on the device of ``like``, in its first dimension."""
    size = like.shape[0]
    if not isinstance(index, Tensor):
        if isinstance(index, (str, bytes)) or not isinstance(index, Sequence):
            raise TypeError(
                f"{where}: index must be a torch.Tensor or a sequence of int, got "
                f"{type(index).__name__}"
            )
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in index):
            raise TypeError(f"{where}: index must hold int alone, got {index!r}")
        index = torch.tensor(list(index), dtype=torch.int64, device="cpu")
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{where}: index must be torch.int32 or torch.int64, got {index.dtype}")
    if index.dim() != 1:
        raise ValueError(f"{where}: index must have shape (B',), got {tuple(index.shape)}")
    if index.device.type == "cpu" and index.shape[0] and not torch.compiler.is_compiling():
        low, high = index.min().item(), index.max().item()
        if low < 0 or high >= size:
            raise IndexError(
                f"{where}: index must be in 0 .. {size - 1}, got {low if low < 0 else high}"
            )
    return index.to(like.device, torch.int64)


def register_for_loading(*kinds: type) -> None:
    """Let ``torch.load`` (``weights_only``, its default) and ``torch.export`` make these tuples."""
    torch.serialization.add_safe_globals(list(kinds))
    for kind in kinds:
        _pytree._register_namedtuple(kind, serialized_type_name=f"kanerva_ext.{kind.__name__}")


class WriteOutput(NamedTuple):
    """What a write returns.

    Attributes:
        state: the posterior.
        weights: (B, T, K), the addresses written to.
        kl_weights: (B, T), nats; 0 at masked steps.
        kl_memory: (B,), KL of the posterior from the state before the write, nats.
        log_evidence: (B,), ln p(values | weights) under the state before the write, nats.
    """

    state: MemoryState
    weights: Tensor
    kl_weights: Tensor
    kl_memory: Tensor
    log_evidence: Tensor


class ReadOutput(NamedTuple):
    """What a read returns; the last three are set by `FusedKanervaMemory.forward` alone.

    Attributes:
        values: (B, T, C), the read-out, in the state's dtype.
        var: (B, T), its predictive variance, without observation noise.
        weights: (B, T, K), the addresses read from.
        kl_weights: (B, T), nats; 0 at masked steps.
        state: the posterior after the write.
        kl_memory: (B,), nats.
        log_evidence: (B,), nats.
    """

    values: Tensor
    var: Tensor
    weights: Tensor
    kl_weights: Tensor
    state: MemoryState | None = None
    kl_memory: Tensor | None = None
    log_evidence: Tensor | None = None


class AttractorOutput(NamedTuple):
    """What iterative reading returns.

    Attributes:
        values: (B, T, C), the last read-out, in the state's dtype.
        var: (B, T), its predictive variance before ``project``, without observation noise.
        weights: (B, T, K), the addresses of the last step.
        bound: (num_steps, B, T), ln p(query, address | memory) of each step, nats.
        trajectory: (num_steps + 1, B, T, C), the queries and what followed, if asked for.
    """

    values: Tensor
    var: Tensor
    weights: Tensor
    bound: Tensor
    trajectory: Tensor | None = None


register_for_loading(MemoryState, WriteOutput, ReadOutput, AttractorOutput)
