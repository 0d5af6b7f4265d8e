"""A chunk of a write: its factors, and what they do to a memory's columns and covariance."""

from __future__ import annotations

import triton
import triton.language as tl

from ._reads import read_weights
from ._square_root import write_chunk_sqrt
from ._tiles import (
    add_product,
    count_not_positive,
    invert_factor,
    load_rows,
    load_tile,
    multiply,
    store_symmetric,
    store_tile,
)

TO_DO, HARDER, FAILED = tl.constexpr(0), tl.constexpr(-1), tl.constexpr(-2)


@triton.jit
def load_steps(noise_var, mask, decay, start, count, L: tl.constexpr):
    """Of ``count`` steps from ``start``: which are kept, noise, decay, its running product, and how
    many of those kept have a noise or a decay out of its domain."""
    t = tl.arange(0, L)
    kept = t < count
    if mask is not None:
        kept = kept & (tl.load(mask + start + t, mask=kept, other=0) != 0)
    v = tl.load(noise_var + start + t, mask=kept, other=1.0).to(tl.float64)
    g = tl.full((L,), 1.0, tl.float64)
    if decay is not None:
        g = tl.load(decay + start + t, mask=kept, other=1.0).to(tl.float64)
    valid = (v > 0.0) & (v <= 1e300) & (g > 0.0) & (g <= 1.0)
    return kept, v, g, tl.cumprod(g, axis=0), tl.sum(tl.where(valid, 0, 1), axis=0)


@triton.jit
def write_chunk(
    cov, weights, gains, kept, noise, count, limit, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a chunk with noise n: ``X = W U; S = X W' + diag(n) = F F'``; returns F^-1, the squared
    diagonal of F, and the outcome. ``gains`` (count x K) becomes ``F^-1 X``. Synchronised."""
    at = tl.arange(0, L)
    s = tl.where(at[:, None] == at[None, :], noise[:, None], 0.0).to(WORK)
    for j in range(0, K, N):
        x = tl.zeros((L, N), WORK)
        for q in range(0, K, N):
            w = load_rows(weights, K, kept, q, K, L, N, WORK)
            x += multiply(w, load_tile(cov, K, 1, q, j, K, K, N, N, WORK), WORK, PRECISION)
        store_tile(gains, K, 1, x, 0, j, count, K, L, N)
        w = load_rows(weights, K, kept, j, K, L, N, WORK)
        s += multiply(x, tl.trans(w), WORK, PRECISION)
    diagonal = tl.sum(tl.where(at[:, None] == at[None, :], s, 0.0), axis=0)
    hardness = diagonal.to(tl.float64) / noise - 1.0
    outcome = TO_DO
    if tl.sum(tl.where(hardness <= limit, 0, 1), axis=0) > 0:
        outcome = HARDER
    inverse, pivots, _ = invert_factor(s, count, L, WORK)
    if count_not_positive(pivots) > 0:
        outcome = HARDER
    tl.debug_barrier()
    for j in range(0, K, N):
        x = load_tile(gains, K, 1, 0, j, count, K, L, N, WORK)
        store_tile(gains, K, 1, multiply(inverse, x, WORK, PRECISION), 0, j, count, K, L, N)
    tl.debug_barrier()
    return inverse, pivots, outcome


@triton.jit
def factor_chunk(
    cov, root, weights, gains, kept, noise, scale, count, limit, attempt, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
    ROBUST: tl.constexpr, queries=None,
):  # fmt: skip
    """`write_chunk` or, in the second attempt, `write_chunk_sqrt`."""
    spread = tl.zeros((L,), WORK)
    if not ROBUST:
        inverse, pivots, outcome = write_chunk(
            cov, weights, gains, kept, noise, count, limit, K, L, N, WORK, PRECISION
        )
    elif attempt == 0:
        inverse, pivots, outcome = write_chunk(
            cov, weights, gains, kept, noise, count, limit, K, L, N, WORK, PRECISION
        )
    else:
        inverse, pivots, spread = write_chunk_sqrt(
            root, weights, gains, kept, noise, scale.to(WORK), count, K, L, N, WORK, PRECISION,
            queries,
        )  # fmt: skip
        outcome = TO_DO
        if count_not_positive(pivots) > 0:
            outcome = FAILED
    return inverse, pivots, outcome, spread


@triton.jit
def write_columns(
    mean, weights, values, errors, gains, inverse, kept, product, first_column, last_column, count,
    K, C,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
    SAVE: tl.constexpr, queries=None, reads=None,
):  # fmt: skip
    """``E = F^-1 (Z - W R); R += P'E`` for a block of columns; returns ``sum b |E|^2``. With
    ``queries``, the reads ``Q R + A E`` are stored."""
    squares = tl.zeros((), tl.float64)
    if queries is not None:
        inside = read_weights(queries, gains, count, K, L, N, WORK, PRECISION)
    for c in range(first_column, last_column, N):
        d = load_rows(values, C, kept, c, last_column, L, N, WORK)
        for q in range(0, K, N):
            w = load_rows(weights, K, kept, q, K, L, N, WORK)
            r = load_tile(mean, C, 1, q, c, K, last_column, N, N, WORK)
            d -= multiply(w, r, WORK, PRECISION)
        e = multiply(inverse, d, WORK, PRECISION)
        if SAVE:
            store_tile(errors, C, 1, e, 0, c, count, last_column, L, N)
        wide = e.to(tl.float64)
        squares += tl.sum(tl.sum(wide * wide, axis=1) * product, axis=0)
        if queries is not None:
            x = multiply(inside, e, WORK, PRECISION)
            x = add_product(
                x, queries, K, 1, mean, C, 1, 0, c, count, last_column, K, L, N, N, WORK, PRECISION
            )  # fmt: skip
            store_tile(reads, C, 1, x, 0, c, count, last_column, L, N)
        tl.debug_barrier()
        for q in range(0, K, N):
            p = load_tile(gains, 1, K, q, 0, K, count, N, L, WORK)
            r = load_tile(mean, C, 1, q, c, K, last_column, N, N, WORK)
            r += multiply(p, e, WORK, PRECISION)
            store_tile(mean, C, 1, r, q, c, K, last_column, N, N)
    return squares


@triton.jit
def downdate(
    cov,
    gains,
    scale,
    count,
    K,
    L: tl.constexpr,
    N: tl.constexpr,
    WORK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``U <- (U - P'P) scale``, exactly symmetric."""
    for i in range(0, K, N):
        left = load_tile(gains, 1, K, i, 0, K, count, N, L, WORK)
        for j in range(0, i + 1, N):
            right = load_tile(gains, K, 1, 0, j, count, K, L, N, WORK)
            x = load_tile(cov, K, 1, i, j, K, K, N, N, WORK)
            x = (x - multiply(left, right, WORK, PRECISION)) * scale
            store_symmetric(cov, K, x, i, j, N)
