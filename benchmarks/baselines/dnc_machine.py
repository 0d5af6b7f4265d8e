"""The Kanerva Machine with a Differentiable Neural Computer in place of its Bayesian memory.

The comparison of The Kanerva Machine (Wu, Wayne, Graves, Lillicrap, ICLR 2018).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kanerva_ext.models import KanervaMachine
from kanerva_ext.models._common import sample_normal, standard_normal

from .dnc import DNC, DNCState
from .lru import LRUMemory, LRUState

__all__ = ["DNCMachine", "DNCWriteOutput"]


VARIANTS = {"dnc": DNC, "lru": LRUMemory}


class DNCWriteOutput(NamedTuple):
    """What a write returns, with the fields of `kanerva_ext.WriteOutput`.

    A DNC has no posterior and no distribution over addresses: all fields but ``state`` are None.
    """

    state: DNCState | LRUState
    weights: None = None
    kl_weights: None = None
    kl_memory: None = None
    log_evidence: None = None


class DNCMachine(KanervaMachine):
    """`KanervaMachine`, coders, q and bound alike, whose memory is a `DNC`.

    Generative: ``y ~ N(0, I)``, key ``b = f(y)``, ``z ~ N(d(b, M), code_std^2 I)``, where d is the
    output of one step of the DNC that writes nothing, and image ~ likelihood(decoder(z)). M is the
    whole state of the DNC, its controller's too. It was written from zeros, in one step for each
    image of the episode, in order; the steps see ``[z, b, 1]``, with z sampled from q(z|x) and b at
    the mean of q(y|x), and reads see ``[0, b, 0]``, each from the state after the last write.

    The bound is conditional on M as `KanervaMachine`'s is, and ``kl_memory`` is None: what M holds
    has no price that could be computed. Unlike it, it depends on the order of the episode.

    The defaults make the memory as large as a Kanerva memory of 64 slots: 64 x 100 floats for what
    is stored, and 64 x 64 links where that has its covariance; with weightings, read vectors and
    the LSTM's state it is 11,744 floats for 10,496.

    Args:
        memory_size: N, number of slots.
        code_size: C, size of a code z.
        word_size: W, size of a slot; None: ``code_size``.
        num_read_heads: R.
        controller_size: H, hidden units of the LSTM.
        variant: "dnc", or "lru", an `LRUMemory` in its place.
        options: further keyword arguments of `KanervaMachine`, except ``noise_std`` and
            ``backend``, which are its memory's.

    Raises:
        ValueError: sizes or standard deviations that are not positive, or another variant.
        TypeError: options that there are not.
    """

    def __init__(
        self,
        memory_size: int = 64,
        code_size: int = 100,
        *,
        word_size: int | None = None,
        num_read_heads: int = 4,
        controller_size: int = 200,
        variant: str = "dnc",
        **options: Any,
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        if unknown := {"noise_std", "backend"} & options.keys():
            raise TypeError(f"a DNC has no {' and no '.join(sorted(unknown))}")
        super().__init__(memory_size, code_size, **options)
        del self.config["noise_std"]
        sizes = {
            "memory_size": memory_size,
            "word_size": code_size if word_size is None else word_size,
            "num_read_heads": num_read_heads,
            "controller_size": controller_size,
        }
        self.config |= sizes | {"variant": variant}
        input_size = code_size + self.config["key_size"] + 1
        self.memory = VARIANTS[variant](input_size, code_size, **sizes)

    def _write(
        self,
        features: Tensor,
        latent: tuple[Tensor, Tensor],
        state: DNCState | LRUState | None,
        generator: torch.Generator | None,
    ) -> DNCWriteOutput:
        sample = self.config["sample_write_address"]
        y = sample_normal(*latent, generator) if sample else latent[0]
        codes = sample_normal(*self.write_code(features), generator)
        inputs = F.pad(torch.cat([codes, self.key(y)], dim=-1), (0, 1), value=1.0)
        return DNCWriteOutput(self.memory.write(inputs, state))

    def _read(self, y: Tensor, state: DNCState | LRUState) -> Tensor:
        """What the DNC puts out for the keys of y: (B, Q, latent_size) to (B, Q, C)."""
        return self.memory.read(F.pad(self.key(y), (self.config["code_size"], 1)), state)

    def _prior_codes(
        self, state: DNCState | LRUState, num_samples: int, generator: torch.Generator | None
    ) -> Tensor:
        shape = (len(state.memory), num_samples, self.config["latent_size"])
        return self._read(standard_normal(state.memory.new_empty(shape), generator), state)

    def _addresses(self, query: Tensor, state: DNCState | LRUState) -> Tensor:
        raise NotImplementedError("a DNC has no address by which a code could be read")

    def _codes_at(self, weights: Tensor, state: DNCState | LRUState) -> Tensor:
        raise NotImplementedError("a DNC has no address by which a code could be read")
