"""What a segment of steps does to whatever memory it starts from: an element of the associative
scan over time of Saerkkae and Garcia-Fernandez (Temporal Parallelization of Bayesian Smoothers,
2021), for a memory that moves. In float64.

A memory M at its start is N(A M + b, C) at its end, and what the values say of M has the precision
J and the shift eta. All five come from a write with U = 0 whose mean has the columns of b and, with
values of zero, those of A, whose errors are -H (`_stationary`, docs/algorithms.md):

    A <- b_L A - P'H,  b <- b_L b + P'E,  J += H'H,  eta += H'E

The same from the belief before a sequence is the write of its first segment: b and C are the belief
after that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._chunk import load_steps
from ._launch import VARYING
from ._reads import outer
from ._sequences import locate
from ._stationary import move_chunk, move_columns, move_covariance
from ._tiles import (
    copy_matrix,
    copy_symmetric,
    load_tile,
    multiply,
    set_identity,
    store_symmetric,
    store_tile,
)


@triton.jit
def add_evidence(
    precision, pull, of_carry, of_shift, count, K, C,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``J += H'H`` and ``eta += H'E`` of a chunk, from -H and E."""
    for i in range(0, K, N):
        for j in range(0, i + 1, N):
            x = load_tile(precision, K, 1, i, j, K, K, N, N, WORK)
            x += outer(of_carry, of_carry, i, j, count, K, L, N, WORK, PRECISION)
            store_symmetric(precision, K, x, i, j, N)
        for c in range(0, C, N):
            x = load_tile(pull, C, 1, i, c, K, C, N, N, WORK)
            h = load_tile(of_carry, 1, K, i, 0, K, count, N, L, WORK)
            e = load_tile(of_shift, C, 1, 0, c, count, C, L, N, WORK)
            x -= multiply(h, e, WORK, PRECISION)
            store_tile(pull, C, 1, x, i, c, K, C, N, N)


@triton.jit(do_not_specialize=VARYING)
def element_kernel(
    memory, episode, elements, room, outcomes,
    T, K, C, steps, sequences, segments, limit,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program for every segment but the last of an item, which has ``segments``, at the places of
    ``bounds``. ``outcomes`` become 1, or 0 where a chunk is harder than ``limit``."""
    mean, cov, stationary_cov = memory
    weights, noise_var, mask, retention, bounds, values, _queries = episode
    carry, shift, spread, pull, precision = elements
    gains, seen, of_carry, of_shift, unused, zeros = room
    program = tl.program_id(0).to(tl.int64)
    item, segment = program // (segments - 1), program % (segments - 1)
    place = item * segments + segment
    row, begins, length = locate(bounds, place, sequences * segments, T)
    base = row * T + begins
    carry += place * K * K
    shift += place * K * C
    spread += place * K * K
    pull += place * K * C
    precision += place * K * K
    gains += program * L * K
    of_carry += program * L * K
    of_shift += program * L * C
    unused += program * K * tl.maximum(K, C)
    if stationary_cov is not None:
        stationary_cov += item * K * K
        seen += program * L * K
    set_identity(carry, K, N, WORK)
    copy_matrix(None, precision, K, 0, K, K, N, N, WORK)
    copy_matrix(None, pull, K, 0, C, C, N, N, WORK)
    if segment == 0:
        copy_symmetric(cov + item * K * K, spread, K, N, WORK)
        copy_matrix(mean + item * K * C, shift, K, 0, C, C, N, N, WORK)
    else:
        copy_matrix(None, spread, K, 0, K, K, N, N, WORK)
        copy_matrix(None, shift, K, 0, C, C, N, N, WORK)
    tl.debug_barrier()
    hard = 0
    first = tl.zeros((), tl.int32)
    while (first < length) & (hard == 0):
        count = tl.minimum(steps, length - first)
        kept, v, a, b, bad = load_steps(noise_var, mask, retention, base + first, count, L)
        noise = tl.where(kept, v, 1.0)
        w = weights + (base + first) * K
        z = values + (base + first) * C
        inverse, _pivots, harder = move_chunk(
            spread, stationary_cov, w, gains, seen, kept, a, b, noise, count, limit, K,
            L, N, WORK, PRECISION,
        )  # fmt: skip
        hard = tl.where(harder | (bad > 0), 1, 0)
        if hard == 0:
            move_columns(
                shift, w, z, of_shift, gains, inverse, kept, a, b, 0, C, count, K, C,
                L, N, WORK, PRECISION, True, None, None, unused,
            )  # fmt: skip
            move_columns(
                carry, w, zeros, of_carry, gains, inverse, kept, a, b, 0, K, count, K, K,
                L, N, WORK, PRECISION, True, None, None, unused,
            )  # fmt: skip
            move_covariance(spread, stationary_cov, gains, a, b, count, K, L, N, WORK, PRECISION)
            tl.debug_barrier()
            add_evidence(precision, pull, of_carry, of_shift, count, K, C, L, N, WORK, PRECISION)
            tl.debug_barrier()
        first += count
    tl.store(outcomes + place, 1 - hard)
