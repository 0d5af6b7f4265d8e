"""A memory that writes where it was least used: Santoro et al., "Meta-Learning with
Memory-Augmented Neural Networks" (ICML 2016), section 3.2, in the place of a DNC's memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dnc import DNC

__all__ = ["LRUMemory", "LRUState"]


class LRUState(NamedTuple):
    """What the memory carries from step to step. B: batch, N: slots, W: word size, R: read heads.

    Attributes:
        memory: (B, N, W), M.
        usage: (B, N), w^u before the last write; the next write adds what was used since.
        write_weights: (B, N), w^w of the last write.
        read_weights: (B, R, N), w^r of the last step, written or not.
        read_vectors: (B, R, W), r of the last step.
        hidden: (B, H), h of the LSTM.
        cell: (B, H), its cell.
    """

    memory: Tensor
    usage: Tensor
    write_weights: Tensor
    read_weights: Tensor
    read_vectors: Tensor
    hidden: Tensor
    cell: Tensor


class _Interface(NamedTuple):
    """The pieces of the interface vector, squashed into their domains."""

    read_keys: Tensor  # (..., R, W): k by its strength over its norm
    write_vector: Tensor  # (..., W)
    gate: Tensor  # (..., 1): sigmoid(alpha): to what was read last, or to the least used slot


class LRUMemory(DNC):
    """An LSTM with a memory whose one write head has no key: it writes to the slot that was least
    used, which is emptied before, or adds to what the last step read.

    No free list and no links, so that reads are by content alone. What the paper leaves open, or
    is done otherwise here:

    - one write head, for which the weights of all read heads are averaged, and which writes a
      vector of its own, not the read key;
    - a strength for each key, as in a `DNC`;
    - of slots that were used equally, the first; no gradient through the choice;
    - a step without writing leaves memory, usage and last write weights as they are.

    Args:
        input_size: I.
        output_size: O.
        usage_decay: gamma, in [0, 1): how fast it is forgotten that a slot was used.
        options: further keyword arguments of `DNC`.

    Raises:
        ValueError: sizes that are not positive ints, or a decay outside [0, 1).
    """

    _state = LRUState

    def __init__(
        self, input_size: int, output_size: int, *, usage_decay: float = 0.95, **options: Any
    ) -> None:
        if not 0 <= usage_decay < 1:
            raise ValueError(f"usage_decay must be in [0, 1), got {usage_decay}")
        super().__init__(input_size, output_size, **options)
        self.usage_decay = usage_decay

    @staticmethod
    def _interface_sizes(heads: int, words: int) -> tuple[int, ...]:
        """Of read keys, their strengths, the write vector, the gate."""
        return (heads * words, heads, words, 1)

    def _parse(self, interface: Tensor) -> _Interface:
        keys, strengths, vector, gate = interface.split(self._pieces, dim=-1)
        return _Interface(self._scaled(keys, strengths), vector, gate.sigmoid())

    def _write(self, xi: _Interface, state: LRUState) -> LRUState:
        used = state.read_weights.sum(1) + state.write_weights
        usage = self.usage_decay * state.usage + used
        first = usage.detach().sort(dim=-1, stable=True).indices[:, :1]
        least_used = torch.zeros_like(usage).scatter(-1, first, 1.0)
        weights = torch.lerp(least_used, state.read_weights.mean(1), xi.gate)
        emptied = state.memory * (1 - least_used).unsqueeze(-1)
        memory = torch.addcmul(emptied, weights.unsqueeze(-1), xi.write_vector.unsqueeze(1))
        return state._replace(memory=memory, usage=usage, write_weights=weights)

    def _read(self, xi: _Interface, state: LRUState) -> tuple[Tensor, Tensor]:
        weights = self._lookup(xi.read_keys.flatten(1, -2), state.memory)
        return weights, weights @ state.memory
