"""The Differentiable Neural Computer (Graves et al., Nature 538, 2016), batched, in PyTorch.

Written from the equations of the paper's Methods; the names in comments are the paper's.
Derivatives of derivatives are not supported: they raise RuntimeError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kanerva_ext.models._common import check_sizes

__all__ = ["DNC", "DNCState"]


class DNCState(NamedTuple):
    """What a DNC carries from step to step. B: batch, N: slots, W: word size, R: read heads.

    Attributes:
        memory: (B, N, W), M.
        usage: (B, N), u, in [0, 1].
        precedence: (B, N), p: how far each slot was the last one written; sums to at most 1.
        link: (B, N, N), L: [i, j] is how far i was written right after j; rows and columns sum to
            at most 1, the diagonal is 0.
        write_weights: (B, N), w^w of the last write; the next write adds them to the usage.
        read_weights: (B, R, N), w^r of the last step, written or not.
        read_vectors: (B, R, W), r of the last step.
        hidden: (B, H), h of the LSTM.
        cell: (B, H), its cell.
    """

    memory: Tensor
    usage: Tensor
    precedence: Tensor
    link: Tensor
    write_weights: Tensor
    read_weights: Tensor
    read_vectors: Tensor
    hidden: Tensor
    cell: Tensor


class _Interface(NamedTuple):
    """The pieces of the interface vector xi, squashed into their domains."""

    write_key: Tensor  # (B, 1, W): k by its strength over its norm, beta / |k|
    read_keys: Tensor  # (B, R, W), the same
    write_vector: Tensor  # (B, W): v
    erase: Tensor  # (B, W): e
    free_gates: Tensor  # (B, R): f
    allocation_gate: Tensor  # (B, 1): g^a
    write_gate: Tensor  # (B, 1): g^w
    read_modes: Tensor  # (B, R, 3): pi of backward, content, forward


class _WeightGradient(torch.autograd.Function):
    """Zeros (T, B, O) to add to T products with a detached weight; their gradient gives its own."""

    @staticmethod
    def forward(ctx, weight: Tensor, inputs: list[Tensor], steps: int, batch: int) -> Tensor:
        ctx.inputs = inputs
        return weight.new_zeros(steps, batch, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad.flatten(0, 1).mT @ torch.cat(ctx.inputs), None, None, None


class _SharedLinear:
    """A linear layer that is called exactly T times; its weight's gradient is one product, not T.

    Args:
        weight: (O, I).
        constants: (T, B, O), what each call adds.
    """

    def __init__(self, weight: Tensor, constants: Tensor) -> None:
        self.inputs: list[Tensor] = []
        self.weight = weight.detach().mT
        zeros = _WeightGradient.apply(weight, self.inputs, *constants.shape[:2])
        self.constants = iter((constants + zeros).unbind(0))

    def __call__(self, inputs: Tensor) -> Tensor:
        self.inputs.append(inputs.detach())
        return torch.addmm(next(self.constants), inputs, self.weight)


def _in_its_own_dtype(method: Callable) -> Callable:
    """Of the parameters, also under autocast: what is written is read back many steps later."""

    @wraps(method)
    def run(self: DNC, inputs: Tensor, *args: Any, **options: Any) -> Any:
        with torch.autocast(inputs.device.type, enabled=False):
            return method(self, inputs.to(self.output.weight.dtype), *args, **options)

    return run


class DNC(nn.Module):
    """An LSTM with an external memory that it writes by one head and reads by R heads.

    What the paper leaves open, or is done otherwise here:

    - one layer of LSTM, and biases in the linear layers of the interface and the output;
    - the gradient goes through the sorted usage as through a fixed permutation, and through all of
      its factors; slots of equal usage are taken in order;
    - in the products over the free list alone the usage is ``eps + (1 - eps) u``, and in the
      cosines ``eps`` is added to the squared norms: the cosine with an empty slot is 0;
    - everything starts from zeros, as in the paper; nothing of the initial state is learned;
    - a step without writing (not in the paper) leaves memory, usage, precedence, links and last
      write weights as they are, its free gates included; what it changes is the controller's state
      and the last reads.

    Args:
        input_size: I.
        output_size: O.
        memory_size: N, number of slots.
        word_size: W.
        num_read_heads: R.
        controller_size: H, hidden units of the LSTM.
        eps: see above.

    Raises:
        ValueError: sizes that are not positive ints.
    """

    _state: type = DNCState

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        memory_size: int = 64,
        word_size: int = 100,
        num_read_heads: int = 4,
        controller_size: int = 200,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_sizes(
            input_size=input_size,
            output_size=output_size,
            memory_size=memory_size,
            word_size=word_size,
            num_read_heads=num_read_heads,
            controller_size=controller_size,
        )
        self.memory_size = memory_size
        self.word_size = word_size
        self.num_read_heads = num_read_heads
        self.controller_size = controller_size
        self.eps = eps
        read_size = num_read_heads * word_size
        self.controller = nn.LSTMCell(input_size + read_size, controller_size)
        self._pieces = self._interface_sizes(num_read_heads, word_size)
        self.interface = nn.Linear(controller_size, sum(self._pieces))
        self.output = nn.Linear(controller_size + read_size, output_size)
        outside_diagonal = 1 - torch.eye(memory_size)
        self.register_buffer("_outside_diagonal", outside_diagonal, persistent=False)

    @staticmethod
    def _interface_sizes(heads: int, words: int) -> tuple[int, ...]:
        """Of keys and strengths (the write head's first), the write vector, gates (erase vector,
        free gates, allocation gate, write gate), and read modes."""
        return ((1 + heads) * words, 1 + heads, words, words + heads + 2, 3 * heads)

    def initial_state(self, batch_size: int) -> DNCState:
        """Zeros, of the parameters' dtype and device."""
        n, r, w, h = self.memory_size, self.num_read_heads, self.word_size, self.controller_size
        shapes = {
            "memory": (n, w),
            "link": (n, n),
            "read_weights": (r, n),
            "read_vectors": (r, w),
            "hidden": (h,),
            "cell": (h,),
        }
        zeros = self.output.weight.new_zeros
        fields = self._state._fields  # one number a slot, if nothing is said
        return self._state(*(zeros(batch_size, *shapes.get(name, (n,))) for name in fields))

    @_in_its_own_dtype
    def forward(self, inputs: Tensor, state: DNCState | None = None) -> tuple[Tensor, DNCState]:
        """T steps, each of which writes: inputs (B, T, I) to outputs (B, T, O) and the last state.

        Args:
            inputs: (B, T, I), floating point; cast to the parameters' dtype.
            state: before the first step; the initial one if None.
        """
        state = self.initial_state(len(inputs)) if state is None else state
        states = [state, *self._unroll(inputs, state)]
        results = torch.stack([self._result(each) for each in states], dim=1)
        return self.output(results[:, 1:]), states[-1]

    @_in_its_own_dtype
    def step(self, inputs: Tensor, state: DNCState, write: bool = True) -> tuple[Tensor, DNCState]:
        """One step: inputs (B, I) to outputs (B, O) and the next state.

        Args:
            inputs: (B, I), floating point; cast to the parameters' dtype.
            state: before the step.
            write: False: read alone, see the class.
        """
        (state,) = self._unroll(inputs.unsqueeze(1), state, write)
        return self.output(self._result(state)), state

    @_in_its_own_dtype
    def write(self, inputs: Tensor, state: DNCState | None = None) -> DNCState:
        """`forward` without its outputs: the last state."""
        state = self.initial_state(len(inputs)) if state is None else state
        return [state, *self._unroll(inputs, state)][-1]

    @_in_its_own_dtype
    def read(self, inputs: Tensor, state: DNCState) -> Tensor:
        """Outputs (B, Q, O) of Q steps without writing, each from the same state, for (B, Q, I).

        As ``step(..., write=False)`` one by one, but all at once and without copies of the memory.
        """
        batch, queries = inputs.shape[:2]
        from_input, from_state, bias = self._controller_weights()
        gates = F.linear(inputs, from_input, bias)
        gates = gates + F.linear(self._result(state), from_state).unsqueeze(1)
        hidden, _ = self._control(gates, state.cell.unsqueeze(1))
        xi = self._parse(self.interface(hidden))
        _, vectors = self._read(xi, state)
        vectors = vectors.reshape(batch, queries, self.num_read_heads * self.word_size)
        return self.output(torch.cat([vectors, hidden], dim=-1))

    def _unroll(self, inputs: Tensor, state: DNCState, write: bool = True) -> Iterator[DNCState]:
        """The state after each step."""
        from_input, from_state, bias = self._controller_weights()
        gates = _SharedLinear(from_state, F.linear(inputs.transpose(0, 1), from_input, bias))
        bias = self.interface.bias.expand(inputs.shape[1], inputs.shape[0], -1)
        interface = _SharedLinear(self.interface.weight, bias)
        for _ in range(inputs.shape[1]):
            hidden, cell = self._control(gates(self._result(state)), state.cell)
            xi = self._parse(interface(hidden))
            if write:
                state = self._write(xi, state)
            weights, vectors = self._read(xi, state)
            state = state._replace(
                read_weights=weights, read_vectors=vectors, hidden=hidden, cell=cell
            )
            yield state

    def _controller_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """The LSTM's weights for the input, for what `_result` returns, and its bias."""
        of = self.controller
        size = self.num_read_heads * self.word_size
        from_input, from_read = of.weight_ih.split((of.input_size - size, size), dim=1)
        from_state = torch.cat([from_read, of.weight_hh], dim=1)
        return from_input, from_state, of.bias_ih + of.bias_hh

    @staticmethod
    def _control(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """h and cell of an LSTM from what its gates see, ordered as in nn.LSTMCell."""
        gate_in, forget, update, out = gates.chunk(4, dim=-1)
        cell = torch.addcmul(forget.sigmoid() * cell, gate_in.sigmoid(), update.tanh())
        return out.sigmoid() * cell.tanh(), cell

    @staticmethod
    def _result(state: DNCState) -> Tensor:
        """(B, R W + H): what the output and the next step's gates are linear in."""
        return torch.cat([state.read_vectors.flatten(1), state.hidden], dim=-1)

    def _parse(self, interface: Tensor) -> _Interface:
        heads, words = self.num_read_heads, self.word_size
        keys, strengths, vector, gates, modes = interface.split(self._pieces, dim=-1)
        write_key, read_keys = self._scaled(keys, strengths).split((1, heads), dim=-2)
        erase, free, allocation, write = gates.sigmoid().split((words, heads, 1, 1), dim=-1)
        modes = modes.unflatten(-1, (heads, 3)).softmax(-1)
        return _Interface(write_key, read_keys, vector, erase, free, allocation, write, modes)

    def _scaled(self, keys: Tensor, strengths: Tensor) -> Tensor:
        """(..., J, W): keys (..., J W) by their strengths (..., J), squashed, over their norms."""
        keys = keys.unflatten(-1, (-1, self.word_size))
        strengths = 1 + F.softplus(strengths)  # oneplus
        scale = strengths * (keys.square().sum(-1) + self.eps).rsqrt()
        return keys * scale.unsqueeze(-1)

    def _lookup(self, keys: Tensor, memory: Tensor) -> Tensor:
        """C(M, k, beta) for scaled keys: (B, J, W) to (B, J, N)."""
        inverse_norms = (memory.square().sum(-1) + self.eps).rsqrt()
        return (keys @ memory.mT * inverse_norms.unsqueeze(1)).softmax(-1)

    def _allocate(self, usage: Tensor) -> Tensor:
        """a (B, N): the least used slots, as far as they are free."""
        usage, order = (self.eps + (1 - self.eps) * usage).sort(dim=-1, stable=True)
        logs = usage.log()
        allocation = (1 - usage) * (logs.cumsum(-1) - logs).exp()
        return torch.zeros_like(usage).scatter(-1, order, allocation)

    def _write(self, xi: _Interface, state: DNCState) -> DNCState:
        one = state.usage.new_ones(())
        kept = torch.addcmul(one, xi.free_gates.unsqueeze(-1), state.read_weights, value=-1)
        retention = reduce(torch.mul, kept.unbind(1))  # psi
        # u + w - u w = 1 + (1 - w)(u - 1)
        usage = torch.lerp(state.usage, one, state.write_weights) * retention

        content = self._lookup(xi.write_key, state.memory).squeeze(1)
        weights = xi.write_gate * torch.lerp(content, self._allocate(usage), xi.allocation_gate)
        column, row = weights.unsqueeze(-1), weights.unsqueeze(-2)
        # M (1 - w e') + w v' = M + w (v' - e' M)
        change = torch.addcmul(
            xi.write_vector.unsqueeze(1), xi.erase.unsqueeze(1), state.memory, value=-1
        )
        memory = torch.addcmul(state.memory, column, change)
        # (1 - w_i - w_j) L_ij + w_i p_j
        link = torch.lerp(state.link, state.precedence.unsqueeze(-2), column)
        link = torch.addcmul(link, row, state.link, value=-1) * self._outside_diagonal
        precedence = torch.addcmul(weights, 1 - weights.sum(-1, keepdim=True), state.precedence)
        return state._replace(
            memory=memory, usage=usage, precedence=precedence, link=link, write_weights=weights
        )

    def _read(self, xi: _Interface, state: DNCState) -> tuple[Tensor, Tensor]:
        """Weights (B, J, N) and vectors (B, J, W) of J = R heads, or of Q steps' Q R."""
        keys, modes = xi.read_keys.flatten(1, -2), xi.read_modes.flatten(1, -2)
        content = self._lookup(keys, state.memory)
        before, after = state.read_weights @ state.link, state.read_weights @ state.link.mT
        if (repeats := keys.shape[1] // self.num_read_heads) != 1:
            before, after = before.repeat(1, repeats, 1), after.repeat(1, repeats, 1)
        to_before, to_content, to_after = modes.split(1, dim=-1)
        weights = torch.addcmul(to_before * before, to_content, content)
        weights = torch.addcmul(weights, to_after, after)
        return weights, weights @ state.memory
