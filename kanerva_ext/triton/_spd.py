"""Symmetric positive definite systems of any size: factors in tiles, and solves with them.

``a`` (n x n, in place) gets the Cholesky factor F, with anything above its diagonal, and
``inverse`` (n x N) the inverses of the tiles on it, so that everything is a product of tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._tiles import count_not_positive, invert_factor, load_tile, multiply, store_tile


@triton.jit
def factorise(a, inverse, n, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr):
    """How many pivots are not positive, and ln det. Synchronised before and after."""
    failures = 0
    log_det = tl.zeros((), tl.float64)
    at = tl.arange(0, N)
    for k in range(0, n, N):
        s = load_tile(a, n, 1, k, k, n, n, N, N, WORK)
        outside = (k + at >= n)[:, None] & (at[:, None] == at[None, :])
        s = tl.where(outside, 1.0, s)
        v, pivots, upper = invert_factor(s, tl.minimum(N, n - k), N, WORK)
        failures += count_not_positive(pivots)
        log_det += tl.sum(tl.log(pivots.to(tl.float64)), axis=0)
        store_tile(inverse, N, 1, v, k, 0, n, N, N, N)
        store_tile(a, n, 1, tl.trans(upper), k, k, n, n, N, N)
        for i in range(k + N, n, N):
            x = load_tile(a, n, 1, i, k, n, n, N, N, WORK)
            store_tile(a, n, 1, multiply(x, tl.trans(v), WORK, PRECISION), i, k, n, n, N, N)
        tl.debug_barrier()
        for j in range(k + N, n, N):
            right = load_tile(a, 1, n, k, j, n, n, N, N, WORK)
            for i in range(j, n, N):
                left = load_tile(a, n, 1, i, k, n, n, N, N, WORK)
                x = load_tile(a, n, 1, i, j, n, n, N, N, WORK)
                store_tile(a, n, 1, x - multiply(left, right, WORK, PRECISION), i, j, n, n, N, N)
        tl.debug_barrier()
    return failures, log_det


@triton.jit
def solve_lower(
    a,
    inverse,
    x,
    rs,
    cs,
    n,
    m,
    N: tl.constexpr,
    M: tl.constexpr,
    WORK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``x <- F^-1 x`` for a panel of m <= M columns, in place. Synchronised before and after."""
    for i in range(0, n, N):
        right = load_tile(x, rs, cs, i, 0, n, m, N, M, WORK)
        for j in range(0, i, N):
            left = load_tile(a, n, 1, i, j, n, n, N, N, WORK)
            right -= multiply(left, load_tile(x, rs, cs, j, 0, n, m, N, M, WORK), WORK, PRECISION)
        diagonal = load_tile(inverse, N, 1, i, 0, n, N, N, N, WORK)
        store_tile(x, rs, cs, multiply(diagonal, right, WORK, PRECISION), i, 0, n, m, N, M)
        tl.debug_barrier()


@triton.jit
def solve_upper(
    a,
    inverse,
    x,
    rs,
    cs,
    n,
    m,
    N: tl.constexpr,
    M: tl.constexpr,
    WORK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``x <- F^-T x`` for a panel of m <= M columns, in place. Synchronised before and after."""
    blocks = (n + N - 1) // N
    for block in range(0, blocks):
        i = (blocks - 1 - block) * N
        right = load_tile(x, rs, cs, i, 0, n, m, N, M, WORK)
        for j in range(i + N, n, N):
            left = load_tile(a, 1, n, i, j, n, n, N, N, WORK)
            right -= multiply(left, load_tile(x, rs, cs, j, 0, n, m, N, M, WORK), WORK, PRECISION)
        diagonal = load_tile(inverse, 1, N, 0, i, N, n, N, N, WORK)
        store_tile(x, rs, cs, multiply(diagonal, right, WORK, PRECISION), i, 0, n, m, N, M)
        tl.debug_barrier()


@triton.jit
def solve(
    a,
    inverse,
    x,
    rs,
    cs,
    n,
    m,
    N: tl.constexpr,
    M: tl.constexpr,
    WORK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``x <- (F F')^-1 x``, as `solve_lower`."""
    solve_lower(a, inverse, x, rs, cs, n, m, N, M, WORK, PRECISION)
    solve_upper(a, inverse, x, rs, cs, n, m, N, M, WORK, PRECISION)
