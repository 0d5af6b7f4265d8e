"""What tells features apart: their parameters to the bit, and the addresses that they give."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ._core import Core

#: Numbers of an address that a file keeps: so many of its first, and so many sums of all of them.
PROBE = 64
#: How alike addresses have to be.
ALIKE = 1e-4
#: Keys at which two memories' addresses are compared, drawn, and of each one's own facts.
DRAWN, OWN = 64, 256


def digest(features: object) -> str | None:
    """Of all floating-point parameters and buffers that a module keeps, whatever their names and
    dtypes; None of anything else. (What it counts, such as batches, tells no features apart.)"""
    if not isinstance(features, nn.Module):
        return None
    # Beside its tensors, a `Features` has its kind and, of one, a width.
    about = [getattr(features, name, None) for name in ("kind", "bandwidth")]
    found = hashlib.sha256(repr([x for x in about if isinstance(x, (str, float))]).encode())
    for tensor in features.state_dict().values():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            own = tensor.detach().cpu().double().contiguous() + 0.0  # one zero
            found.update(repr(tuple(own.shape)).encode())
            found.update(own.numpy().tobytes())
    return found.hexdigest()


def probe(memory: Core) -> list[float]:
    """Of the address of a fixed key: its first numbers, and sums of all with fixed signs."""
    with torch.no_grad():
        key = torch.linspace(-1, 1, memory.key_size, dtype=torch.float64).cos()[None]
        address = memory._address(key, wide=True)[0].cpu()
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (PROBE, len(address)), generator=generator).double() * 2 - 1
    return torch.cat([address[:PROBE], signs @ address / len(address) ** 0.5]).tolist()


def apart(first: list[float] | Tensor, second: list[float] | Tensor) -> bool:
    """Whether addresses (..., K), or probes, are others than rounding makes them."""
    one, two = (torch.as_tensor(x, dtype=torch.float64) for x in (first, second))
    if one.shape != two.shape:
        return True
    allowed = ALIKE * one.abs().amax(-1, keepdim=True).clamp(min=1e-9)
    return not bool(((one - two).abs() <= allowed).all())


def features_differ(memory: Core, other: Core) -> bool:
    """Whether one's addresses mean something else to the other: by all of their parameters, and at
    drawn keys and at keys of both, by all numbers of the addresses."""
    if memory.features is other.features:
        return False
    if digest(memory.features) != digest(other.features):
        return True
    generator = torch.Generator().manual_seed(0)
    keys = [torch.randn(DRAWN, memory.key_size, generator=generator).double()]
    for owner in (memory, other):
        keys += [owner._store.sample(m, OWN).double() for m in range(owner.num_memories or 1)]
    for some in keys:
        both = [x._address(some, wide=True).cpu() for x in (memory, other)]
        if len(some) and apart(*both):
            return True
    return False
