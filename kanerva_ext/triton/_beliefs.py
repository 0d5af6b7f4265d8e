"""The beliefs between the segments of a sequence of a memory that moves, and the gradients of them.
In float64.

An element (`_elements`) takes a belief R, U = F F', with I + F'J F = G G', V = F G'^-1 and
x = eta - J R, to

    R <- A (R + V V'x) + b,  U <- A V (A V)' + C

and gradients of the belief after it, with T = A - A V V'J and y = x - J V V'x, to what comes
through the one before it, T'gR and T'gU T + sym(T'gR y').
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._launch import VARYING
from ._sequences import locate
from ._spd import factorise, solve_lower
from ._tiles import (
    add_product,
    copy_matrix,
    copy_symmetric,
    load_tile,
    set_identity,
    store_symmetric,
    store_tile,
)


@triton.jit
def store_product(
    out, plus, sign, a, a_rs, a_cs, b, b_rs, b_cs, m, n, k,
    N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``out = plus + sign a b`` (m x n) of a (m x k) and b (k x n); None is no ``plus``."""
    for i in range(0, m, N):
        for j in range(0, n, N):
            x = tl.zeros((N, N), WORK)
            x = add_product(
                x, a, a_rs, a_cs, b, b_rs, b_cs, i, j, m, n, k, N, N, N, WORK, PRECISION
            )
            x *= sign
            if plus is not None:
                x += load_tile(plus, n, 1, i, j, m, n, N, N, WORK)
            store_tile(out, n, 1, x, i, j, m, n, N, N)


@triton.jit
def store_symmetric_product(
    out, plus, a, a_rs, a_cs, b, b_rs, b_cs, K,
    N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``out = plus + a b`` (K x K), which is symmetric, exactly so."""
    for i in range(0, K, N):
        for j in range(0, i + 1, N):
            x = load_tile(plus, K, 1, i, j, K, K, N, N, WORK)
            x = add_product(
                x, a, a_rs, a_cs, b, b_rs, b_cs, i, j, K, K, K, N, N, N, WORK, PRECISION
            )
            store_symmetric(out, K, x, i, j, N)


@triton.jit
def condition(
    cov, precision, room, limit, K,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """V' into the second square of ``room``; returns whether a pivot is not positive, or a slot has
    more than ``limit`` times the precision with all others known than it has without: J is a sum,
    with errors of J_ij of the size of the root of J_ii J_jj. Synchronised before and after."""
    size = K * (K + N)
    root = room
    across = room + size  # F', then V'
    said = room + 2 * size  # J F
    system = room + 3 * size
    at = tl.arange(0, N)
    copy_matrix(cov, root, K, 0, K, K, N, N, WORK)
    tl.debug_barrier()
    hard, _ = factorise(root, root + K * K, K, N, WORK, PRECISION)
    for i in range(0, K, N):
        for j in range(0, K, N):
            x = load_tile(root, 1, K, i, j, K, K, N, N, WORK)
            x = tl.where((j + at)[None, :] >= (i + at)[:, None], x, 0.0)
            store_tile(across, K, 1, x, i, j, K, K, N, N)
    set_identity(system, K, N, WORK)
    tl.debug_barrier()
    store_product(said, None, 1.0, precision, K, 1, across, 1, K, K, K, K, N, WORK, PRECISION)
    tl.debug_barrier()
    store_symmetric_product(system, system, across, K, 1, said, K, 1, K, N, WORK, PRECISION)
    tl.debug_barrier()
    failures, _ = factorise(system, system + K * K, K, N, WORK, PRECISION)
    hard += failures
    for j in range(0, K, M):
        solve_lower(
            system, system + K * K, across + j, K, 1, K, tl.minimum(M, K - j), N, M, WORK, PRECISION
        )
    for j in range(0, K, N):
        known = tl.zeros((N,), WORK)
        for i in range(0, K, N):
            x = load_tile(across, K, 1, i, j, K, K, N, N, WORK)
            known += tl.sum(x * x, axis=0)
        alone = tl.load(precision + (j + at) * (K + 1), mask=j + at < K, other=0.0)
        hard += tl.sum(tl.where(known * alone <= limit, 0, 1), axis=0)
    return hard


@triton.jit
def apply_element(
    elements, beliefs, place, room, limit, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The belief after the segment at ``place`` from the one before it and, where there is room for
    it, the adjoint; returns whether that is too hard. Synchronised before and after."""
    carry, shift, spread, pull, precision = elements
    mean, cov, through, turn = beliefs
    square, panel = place * K * K, place * K * C
    carry += square
    precision += square
    mean += panel
    cov += square
    size = K * (K + N)
    across, moved, back = room + size, room + 2 * size, room + 3 * size  # V', A V, V'J
    left = room + 4 * size  # x
    seen = left + K * C  # V'x
    turned = seen + K * C  # R + V V'x
    hard = condition(cov, precision, room, limit, K, M, N, WORK, PRECISION)
    store_product(
        left, pull + panel, -1.0, precision, K, 1, mean, C, 1, K, C, K, N, WORK, PRECISION
    )
    store_product(moved, None, 1.0, carry, K, 1, across, 1, K, K, K, K, N, WORK, PRECISION)
    tl.debug_barrier()
    store_product(seen, None, 1.0, across, K, 1, left, C, 1, K, C, K, N, WORK, PRECISION)
    tl.debug_barrier()
    store_product(turned, mean, 1.0, across, 1, K, seen, C, 1, K, C, K, N, WORK, PRECISION)
    tl.debug_barrier()
    mean += K * C
    cov += K * K
    store_product(mean, shift + panel, 1.0, carry, K, 1, turned, C, 1, K, C, K, N, WORK, PRECISION)
    store_symmetric_product(cov, spread + square, moved, K, 1, moved, 1, K, K, N, WORK, PRECISION)
    if through is not None:
        store_product(back, None, 1.0, across, K, 1, precision, K, 1, K, K, K, N, WORK, PRECISION)
        tl.debug_barrier()
        store_product(
            through + square, carry, -1.0, moved, K, 1, back, K, 1, K, K, K, N, WORK, PRECISION
        )
        store_product(turn + panel, left, -1.0, back, 1, K, seen, C, 1, K, C, K, N, WORK, PRECISION)
    tl.debug_barrier()
    return hard


@triton.jit
def pass_belief(beliefs, place, K, C, N: tl.constexpr, WORK: tl.constexpr):
    """As `apply_element`, through a segment of no steps."""
    mean, cov, through, turn = beliefs
    square, panel = place * K * K, place * K * C
    copy_matrix(cov + square, cov + square + K * K, K, 0, K, K, N, N, WORK)
    copy_matrix(mean + panel, mean + panel + K * C, K, 0, C, C, N, N, WORK)
    if through is not None:
        set_identity(through + square, K, N, WORK)
        copy_matrix(None, turn + panel, K, 0, C, C, N, N, WORK)
    tl.debug_barrier()


@triton.jit(do_not_specialize=VARYING)
def belief_kernel(
    mean, cov, elements, beliefs, room, bounds, outcomes, done, T, K, C, sequences, segments, least,
    limit,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program for every item: the beliefs before its segments, and 0 for each of them in ``done``
    or, where an element was too hard or there are fewer than two segments of ``least`` steps, 1.
    """
    item = tl.program_id(0).to(tl.int64)
    place = item * segments
    _row, begins, _count = locate(bounds, place, sequences * segments, T)
    _row, ends, count = locate(bounds, place + segments - 1, sequences * segments, T)
    hard = tl.where(ends + count - begins < 2 * least, 1, 0)
    for i in range(0, segments - 1):
        hard += 1 - tl.load(outcomes + place + i)
    if hard == 0:
        room += item * K * (4 * (K + N) + 3 * C)
        square, panel = place * K * K, place * K * C
        copy_symmetric(cov + item * K * K, beliefs.cov + square, K, N, WORK)
        copy_matrix(mean + item * K * C, beliefs.mean + panel, K, 0, C, C, N, N, WORK)
        of_first = elements.spread + square
        copy_matrix(of_first, beliefs.cov + square + K * K, K, 0, K, K, N, N, WORK)
        of_first = elements.shift + panel
        copy_matrix(of_first, beliefs.mean + panel + K * C, K, 0, C, C, N, N, WORK)
        tl.debug_barrier()
        i = tl.full((), 1, tl.int32)
        while (i < segments - 1) & (hard == 0):
            _row, begins, count = locate(bounds, place + i, sequences * segments, T)
            if count > 0:
                hard = apply_element(
                    elements, beliefs, place + i, room, limit, K, C, M, N, WORK, PRECISION
                )
            else:
                pass_belief(beliefs, place + i, K, C, N, WORK)
            i += 1
    for i in range(0, segments):
        tl.store(done + place + i, tl.where(hard > 0, 1, 0))


@triton.jit(do_not_specialize=VARYING)
def gradient_kernel(
    alone, into, beliefs, room, done, K, C, segments,
    N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``into``, gradients of the beliefs after all segments but the last of an item, from those
    that each segment ``alone`` gives of the belief before it; the last one's are of all."""
    item = tl.program_id(0).to(tl.int64)
    last = (item + 1) * segments - 1
    square, panel = last * K * K, last * K * C
    if tl.load(done + last) == 0:
        room += item * K * (K + C)
        moved = room + K * K
        of_square, of_panel = into.cov + square - K * K, into.mean + panel - K * C
        copy_matrix(alone.cov + square, of_square, K, 0, K, K, N, N, WORK)
        copy_matrix(alone.mean + panel, of_panel, K, 0, C, C, N, N, WORK)
        tl.debug_barrier()
        for _i in range(2, segments):
            square -= K * K
            panel -= K * C
            through, turn = beliefs.through + square, beliefs.turn + panel
            g_mean, g_cov = into.mean + panel, into.cov + square
            store_product(
                moved, None, 1.0, through, 1, K, g_mean, C, 1, K, C, K, N, WORK, PRECISION
            )
            store_product(room, None, 1.0, g_cov, K, 1, through, K, 1, K, K, K, N, WORK, PRECISION)
            tl.debug_barrier()
            copy_sum(g_mean - K * C, alone.mean + panel, moved, K, C, N, WORK)
            g_cov -= K * K
            for r in range(0, K, N):
                for c in range(0, r + 1, N):
                    x = load_tile(alone.cov + square, K, 1, r, c, K, K, N, N, WORK)
                    x = add_product(
                        x, through, 1, K, room, K, 1, r, c, K, K, K, N, N, N, WORK, PRECISION
                    )
                    y = tl.zeros((N, N), WORK)
                    y = add_product(
                        y, moved, C, 1, turn, 1, C, r, c, K, K, C, N, N, N, WORK, PRECISION
                    )
                    y = add_product(
                        y, turn, C, 1, moved, 1, C, r, c, K, K, C, N, N, N, WORK, PRECISION
                    )
                    store_symmetric(g_cov, K, x + 0.5 * y, r, c, N)
            tl.debug_barrier()


@triton.jit
def copy_sum(out, a, b, rows, cols, N: tl.constexpr, WORK: tl.constexpr):
    for i in range(0, rows, N):
        for j in range(0, cols, N):
            x = load_tile(a, cols, 1, i, j, rows, cols, N, N, WORK)
            x += load_tile(b, cols, 1, i, j, rows, cols, N, N, WORK)
            store_tile(out, cols, 1, x, i, j, rows, cols, N, N)


def room_for_beliefs(slots: int, code: int, size: int) -> int:
    """Numbers that an item's program works in."""
    return slots * (4 * (slots + size) + 3 * code)
