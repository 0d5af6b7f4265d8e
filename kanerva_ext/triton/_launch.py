"""How kernels are launched: the table of configurations, and the workspace.

A configuration is chosen by shape from `TABLE`, never by timing at run time, so that results do not
depend on what ran before. All kernels have fused multiply-adds pinned on, and no software
pipelining, which must not move loads over the barriers between a program's own stores and loads.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Kernels run in the interpreter (TRITON_INTERPRET=1), on tensors of any device.
INTERPRETED = triton.knobs.runtime.interpret

#: Arguments for whose value no kernel is compiled anew: a compilation takes seconds.
VARYING = ("T", "splits", "blocks", "width", "steps", "sequences", "segments", "least")


class Config(NamedTuple):
    """Sizes of tiles, powers of two of at least 16, as matrix products need."""

    steps: int  # of an episode, or queries, at a time
    size: int  # slots and columns
    warps: int
    #: of float32 products: "ieee" is exact, without tensor cores; "tf32x3" splits each number in
    #: two of 11 bits, for tensor cores, and loses a bit or two. "tf32" alone is never used:
    #: everything here enters a linear system.
    precision: str = "ieee"

    def constants(self, work: torch.dtype, rows: str = "M") -> dict:
        """The compile-time arguments of a kernel that computes in ``work``."""
        return {
            rows: self.steps,
            "N": self.size,
            "WORK": {torch.float32: tl.float32, torch.float64: tl.float64}[work],
            "PRECISION": self.precision,
        }


#: By arithmetic: largest number of slots -> configuration, in tiles no larger than what they hold.
#: 32 x 32 at most: of 64 x 64 in float64, two operands and a transposed one pass the 99 KiB of
#: shared memory of consumer GPUs; in float32 they leave the registers, by two kilobytes a thread.
#: With eight warps most kernels keep all that they hold in registers, with four they spill.
#: Products of many tiles in float32 are worth the tensor cores.
TABLE: dict[torch.dtype, tuple[tuple[float, Config], ...]] = {
    torch.float32: (
        (16, Config(16, 16, 2)),
        (32, Config(32, 32, 8)),
        (float("inf"), Config(32, 32, 8, "tf32x3")),
    ),
    torch.float64: (
        (16, Config(32, 16, 8)),
        (float("inf"), Config(32, 32, 8)),
    ),
}


def choose(slots: int, work: torch.dtype) -> Config:
    """The configuration for so many slots, or unknowns of a system."""
    config = next(config for largest, config in TABLE[work] if slots <= largest)
    return config if torch.version.hip is None else for_hip(config)


def for_hip(config: Config) -> Config:
    """AMD's matrix cores have no TF32 to split into, and a warp there has twice the threads."""
    return config._replace(precision="ieee", warps=config.warps // 2)


def launch(kernel, programs: int, config: Config, *args, **named) -> None:
    """Launch on the device of the first tensor. What has many arguments gets them by name, or in
    named tuples (`_arguments`), which Triton binds in less time: `bayes_write.write_kernel` takes
    22 parameters, of which five are tuples of 25 pointers, in four fifths of the time of 42 (13.4
    against 16.9 microseconds by Triton 3.6, 14.1 against 17.2 by 3.9, without a device)."""
    if programs == 0:
        return
    device = next(tensors((*args, *named.values()))).device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            run(kernel, programs, config, args, named)
    else:
        run(kernel, programs, config, args, named)


def tensors(args: Iterable) -> Iterator[Tensor]:
    """Those among the arguments, and in tuples among these."""
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, tuple):
            yield from tensors(arg)


def options(config: Config) -> dict:
    return {"num_warps": config.warps, "num_stages": 1, "enable_fp_fusion": True}


def run(kernel, programs: int, config: Config, args: tuple, named: dict) -> None:
    kernel[(programs,)](*args, **named, **options(config))


def plain(tensor: Tensor | None) -> Tensor | None:
    """Contiguous, as kernels expect it."""
    return tensor if tensor is None else tensor.contiguous()


def empty(like: Tensor, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


def as_bytes(mask: Tensor | None) -> Tensor | None:
    return mask if mask is None else mask.contiguous().view(torch.uint8)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of the device; a few in the interpreter, so that work is shared out there."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
