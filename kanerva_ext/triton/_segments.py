"""One long sequence of a memory that moves by many programs: its steps in segments, all of which go
on at once as soon as the beliefs between them are known (docs/algorithms.md; csrc/cuda/
stationary_segments.cuh).

A segment is an item of its own, of a packed sequence (`_sequences`). Elements of all segments but
the last are made at once (`_elements`), and give the beliefs one after another (`_beliefs`).
Gradients go the same way back: those of the beliefs between segments from a reversal of every
segment with none coming in, and then every segment again. Items of which an element, or a segment,
was too hard are done by the chain of chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ._arguments import Beliefs, ElementRoom, Elements, Episode, Gradients, Memory, Slopes
from ._beliefs import belief_kernel, gradient_kernel, room_for_beliefs
from ._elements import element_kernel
from ._launch import Config, choose, empty, launch
from ._segment_plan import Cut, cut_kernel

#: The largest precision that a segment adds to a slot, times the slot's variance after it, up to
#: which segments serve a state of float32, and of float64, as csrc/common/policy.h.
HARD_SEGMENT32 = 1e8
HARD_SEGMENT64 = 64.0


class Segments(NamedTuple):
    """Of every item: its segments as items of their own, and which are done, or not to be done."""

    count: int
    sequences: int  # of a row of steps
    memory: Memory  # before every segment
    bounds: Tensor
    done: Tensor  # (items count)
    beliefs: Beliefs

    def each(self, of_items: Tensor | None) -> Tensor | None:
        """Once for every segment."""
        if of_items is None:
            return None
        shape = len(of_items), self.count, *of_items.shape[1:]
        return of_items[:, None].expand(shape).reshape(-1, *shape[2:]).contiguous()

    def of_items(self, of_segments: Tensor) -> Tensor:
        return of_segments.view(-1, self.count, *of_segments.shape[1:])

    def without(self, index: int) -> Tensor:
        """``done``, and so is this one of every item."""
        done = self.done.clone()
        self.of_items(done)[:, index].fill_(1)
        return done

    def finished(self, partials: Tensor) -> tuple[Tensor, Tensor]:
        """Items that are done, as ``before`` of a launch wants them, and the sums of their
        partials, of which a NaN says that the item is not."""
        total = self.of_items(partials).sum((1, 2))
        right = (self.of_items(self.done)[:, 0] == 0) & ~total.isnan()
        return right.to(torch.int32), total


def find_beliefs(
    memory: Memory, episode: Episode, steps: int, limit: float, sequences: int, cut: Cut,
    *, adjoint: bool = False,
) -> Segments:  # fmt: skip
    """In chunks of ``steps`` no harder than ``limit``."""
    mean, cov, sigma = memory
    (items, slots, code), length, count = mean.shape, episode.weights.shape[1], cut.count
    places, work = items * count, torch.float64
    bounds = empty(mean, sequences * count + 2, dtype=torch.int64)
    cutting = {"T": length, "sequences": sequences, "segments": count}
    launch(
        cut_kernel, 1, Config(16, 16, 4), episode.bounds, bounds, least=cut.least, N=1024, **cutting
    )
    config = choose(slots, work)

    def square():
        return empty(mean, places, slots, slots)

    def panel():
        return empty(mean, places, slots, code)

    elements = Elements(square(), panel(), square(), panel(), square())
    outcomes, done = (empty(mean, places, dtype=torch.int32) for _ in range(2))
    programs = items * (count - 1)
    rows = programs, config.steps, slots
    room = ElementRoom(
        empty(mean, *rows),
        None if sigma is None else empty(mean, *rows),
        empty(mean, *rows),
        empty(mean, *rows[:2], code),
        empty(mean, programs, slots, max(slots, code)),
        empty(mean, *rows[1:]).zero_(),
    )
    launch(
        element_kernel, programs, config, memory,
        episode._replace(bounds=bounds, queries=None), elements, room,
        outcomes, K=slots, C=code, steps=steps, limit=limit, **cutting,
        **config.constants(work, "L"),
    )  # fmt: skip
    beliefs = Beliefs(panel(), square())
    if adjoint:
        beliefs = beliefs._replace(through=square(), turn=panel())
    hardest = HARD_SEGMENT64 if mean.dtype == torch.float64 else HARD_SEGMENT32
    launch(
        belief_kernel, items, config, mean, cov, elements, beliefs,
        empty(mean, items, room_for_beliefs(slots, code, config.size)), bounds, outcomes, done,
        K=slots, C=code, least=cut.least, limit=hardest, **cutting, **config.constants(work),
    )  # fmt: skip
    segments = Segments(count, sequences * count, memory, bounds, done, beliefs)
    return segments._replace(memory=Memory(beliefs.mean, beliefs.cov, segments.each(sigma)))


def chain_gradients(segments: Segments, alone: Memory, into: Memory) -> None:
    """``into``, gradients of the beliefs after segments, from those before each ``alone``."""
    places, slots, code = alone.mean.shape
    items = places // segments.count
    config = choose(slots, torch.float64)
    constants = config.constants(torch.float64)
    del constants["M"]
    launch(
        gradient_kernel, items, config, alone, into, segments.beliefs,
        empty(alone.mean, items, slots * (slots + code)), segments.done, K=slots, C=code,
        segments=segments.count, **constants,
    )  # fmt: skip


def write_in_segments(
    start: Callable[..., Tensor], memory: Memory, episode: Episode, plans: list,
    out: tuple[Tensor, Tensor], reads: tuple[Tensor | None, ...], sequences: int, cut: Cut,
) -> Tensor:  # fmt: skip
    """As ``start``, which is `bayes_write.start`."""
    robust = plans[-1]
    segments = find_beliefs(memory, episode, robust.steps, robust.limit, sequences, cut)
    beliefs = segments.beliefs
    after = torch.empty_like(beliefs.mean), torch.empty_like(beliefs.cov)
    partials = start(
        segments.memory, episode._replace(bounds=segments.bounds), plans, after, reads,
        segments.sequences, segments.done, moves=True,
    )  # fmt: skip
    done, total = segments.finished(partials)
    for to, of_segments in zip(out, after, strict=True):
        to.copy_(segments.of_items(of_segments)[:, -1])
    chain = start(memory, episode, plans, out, reads, sequences, done, moves=True)
    total = torch.nn.functional.pad(total[:, None], (0, chain.shape[1] - 1))
    return torch.where(done[:, None] > 0, total, chain)


def reverse_in_segments(
    reversal: Callable, grads: Gradients, memory: Memory, episode: Episode, plan, most: int,
    sequences: int, d_mean: Tensor, d_values: Tensor, slopes: Slopes, cut: Cut,
) -> Tensor:  # fmt: skip
    """The gradients by two of ``reversal``, which is `stationary_backward.Reversal`; which items
    are done."""
    segments = find_beliefs(memory, episode, plan.steps, plan.limit, sequences, cut, adjoint=True)
    every = reversal(
        segments.memory, episode._replace(bounds=segments.bounds), plan, most, segments.sequences,
        with_reads=grads.reads is not None, done=segments.done,
    )  # fmt: skip
    beliefs = segments.beliefs
    alone = Memory(torch.empty_like(beliefs.mean), torch.empty_like(beliefs.cov))
    into = Memory(torch.zeros_like(beliefs.mean), torch.zeros_like(beliefs.cov))
    for to, grad in zip(into, grads[:2], strict=False):
        if grad is not None:
            segments.of_items(to)[:, -1] = grad
    incoming = grads._replace(mean=into.mean, cov=into.cov, evidence=segments.each(grads.evidence))
    sigma = segments.memory.stationary_cov
    d_sigma = None if sigma is None else torch.empty_like(sigma, dtype=alone.cov.dtype)
    of_each = slopes._replace(cov=alone.cov, stationary_cov=d_sigma)
    every.run(incoming, alone.mean, d_values, of_each, segments.without(0))
    chain_gradients(segments, alone, into)
    every.run(incoming, alone.mean, d_values, of_each, segments.without(-1))
    d_mean.copy_(segments.of_items(alone.mean)[:, 0])
    slopes.cov.copy_(segments.of_items(alone.cov)[:, 0])
    if d_sigma is not None:
        slopes.stationary_cov.copy_(segments.of_items(d_sigma).sum(1))
    return segments.finished(every.partials)[0]
