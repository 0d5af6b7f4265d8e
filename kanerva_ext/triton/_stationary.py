"""A chunk of a write into a memory that moves (retention): docs/algorithms.md.

With a_t the retentions, b_t their running product, ``between`` g_ts that of those after s up to t,
h_t = 1 - b_t^2 and, symmetric, N_ts = g_ts h_s for s <= t:

    S = b b' o (W U W') + N o (W Sigma W') + V = F F',  E = F^-1 (Z - D_b W R)
    G = D_b F^-1 D_b W U + (F^-1 o N) W Sigma

Row t of G is the covariance of e_t with the memory as it stands after step t; P of the docs, that
with the memory at the end, is ``rest`` g_Lt times it. So with D = diag(rest)

    R <- b_L R + G'D E,  U <- b_L^2 U + h_L Sigma - G'D^2 G
    reads = D_b Q R + A E with A = g o (Q G'),  var_t = b_t^2 q'U q + h_t q'Sigma q - |A_t|^2

and nothing is divided by b. Where Cholesky factors would lose too much, the rows of G and with them
F come from the recursion, step by step (`move_chunk_by_steps`). Without ``sigma`` Sigma is the
identity.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._reads import read_weights, times_cov
from ._square_root import invert_lower, load_vector
from ._tiles import (
    add_product,
    count_not_positive,
    invert_factor,
    load_rows,
    load_symmetric,
    load_tile,
    multiply,
    store_symmetric,
    store_tile,
)


@triton.jit
def products_between(a, L: tl.constexpr):
    """g_ts at row t; zero above the diagonal."""
    at = tl.arange(0, L)
    g = tl.cumprod(tl.where(at[:, None] > at[None, :], a[:, None], 1.0), axis=0)
    return tl.where(at[:, None] >= at[None, :], g, 0.0)


@triton.jit
def forgotten(a, between):
    """h_t, as a sum in which nothing cancels."""
    return tl.sum(between * between * ((1.0 - a) * (1.0 + a))[None, :], axis=1)


@triton.jit
def last_row(x, count, L: tl.constexpr):
    return tl.sum(tl.where((tl.arange(0, L) == count - 1)[:, None], x, 0.0), axis=0)


@triton.jit
def last_of(x, count, L: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, L) == count - 1, x, 0.0), axis=0)


@triton.jit
def diagonal_of(x, L: tl.constexpr):
    at = tl.arange(0, L)
    return tl.sum(tl.where(at[:, None] == at[None, :], x, 0.0), axis=1)


@triton.jit
def moved_tile(cov, sigma, keep, fresh, i, j, K, N: tl.constexpr, WORK: tl.constexpr):
    """The tile at (i, j) of ``keep U + fresh Sigma``, symmetric if both are."""
    x = load_tile(cov, K, 1, i, j, K, K, N, N, WORK) * keep.to(WORK)
    if sigma is None:
        at = tl.arange(0, N)
        x += tl.where((i + at)[:, None] == (j + at)[None, :], fresh, 0.0).to(WORK)
    else:
        x += load_symmetric(sigma, K, i, j, N, WORK) * fresh.to(WORK)
    return x


@triton.jit
def load_seen(
    seen, sigma, weights, kept, j, count, K, L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr
):
    """Columns of W Sigma from j, which `see_weights` left in ``seen``."""
    if sigma is None:
        x = load_rows(weights, K, kept, j, K, L, N, WORK)
    else:
        x = load_tile(seen, K, 1, 0, j, count, K, L, N, WORK)
    return x


@triton.jit
def see_weights(
    cov, sigma, weights, moved, seen, kept, count, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``moved`` = W U and ``seen`` = W Sigma; returns W U W' and W Sigma W'. Not synchronised."""
    prior = tl.zeros((L, L), WORK)
    settled = tl.zeros((L, L), WORK)
    for j in range(0, K, N):
        x = tl.zeros((L, N), WORK)
        y = tl.zeros((L, N), WORK)
        for q in range(0, K, N):
            w = load_rows(weights, K, kept, q, K, L, N, WORK)
            x += multiply(w, load_tile(cov, K, 1, q, j, K, K, N, N, WORK), WORK, PRECISION)
            if sigma is not None:
                y += multiply(w, load_symmetric(sigma, K, q, j, N, WORK), WORK, PRECISION)
        w = load_rows(weights, K, kept, j, K, L, N, WORK)
        store_tile(moved, K, 1, x, 0, j, count, K, L, N)
        prior += multiply(x, tl.trans(w), WORK, PRECISION)
        if sigma is None:
            settled += multiply(w, tl.trans(w), WORK, PRECISION)
        else:
            store_tile(seen, K, 1, y, 0, j, count, K, L, N)
            settled += multiply(y, tl.trans(w), WORK, PRECISION)
    return prior, settled


@triton.jit
def move_chunk(
    cov, sigma, weights, gains, seen, kept, a, b, noise, count, limit, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """F^-1, the squared diagonal of F, and whether it is harder than ``limit``; ``gains`` becomes
    G. In float32 that is by the noise, which bounds what is lost; in float64 by the pivots, which
    a memory that moves keeps large however small the noise. Synchronised."""
    at = tl.arange(0, L)
    prior, settled = see_weights(
        cov, sigma, weights, gains, seen, kept, count, K, L, N, WORK, PRECISION
    )
    between = products_between(a, L)
    renewal = between * forgotten(a, between)[None, :]
    renewal = tl.where(at[:, None] >= at[None, :], renewal, tl.trans(renewal)).to(WORK)
    factor = b.to(WORK)
    s = factor[:, None] * factor[None, :] * prior + renewal * settled
    before = diagonal_of(s, L).to(tl.float64)
    s += tl.where(at[:, None] == at[None, :], noise[:, None], 0.0).to(WORK)
    inverse, pivots, _ = invert_factor(s, count, L, WORK)
    if tl.float32 == WORK:
        hardness = before / noise
    else:
        hardness = tl.maximum(before, diagonal_of(settled, L)) / pivots
    harder = tl.sum(tl.where(hardness <= limit, 0, 1), axis=0) + count_not_positive(pivots)
    by_prior = factor[:, None] * inverse * factor[None, :]
    by_sigma = inverse * renewal
    tl.debug_barrier()
    for j in range(0, K, N):
        x = load_tile(gains, K, 1, 0, j, count, K, L, N, WORK)
        y = load_seen(seen, sigma, weights, kept, j, count, K, L, N, WORK)
        x = multiply(by_prior, x, WORK, PRECISION) + multiply(by_sigma, y, WORK, PRECISION)
        store_tile(gains, K, 1, x, 0, j, count, K, L, N)
    tl.debug_barrier()
    return inverse, pivots, harder > 0


@triton.jit
def move_chunk_by_steps(
    cov, sigma, weights, gains, kept, a, noise, count, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr, queries=None,
):  # fmt: skip
    """As `move_chunk`, by the recursion, with ``cov`` updated; also ``q'U q`` of every query after
    its step. Synchronised before and after."""
    at = tl.arange(0, N)
    pivots = tl.full((L,), 1.0, WORK)
    spread = tl.zeros((L,), WORK)
    for t in range(0, count):
        here = tl.arange(0, L) == t
        slots = tl.sum(tl.where(here & kept, K, 0), axis=0)
        a_t = tl.sum(tl.where(here, a, 0.0), axis=0)
        s = tl.sum(tl.where(here, noise, 0.0), axis=0).to(WORK)
        w = weights + t * K
        gain = gains + t * K
        for i in range(0, K, N):
            c = tl.zeros((N,), WORK)
            for j in range(0, K, N):
                x = moved_tile(cov, sigma, a_t * a_t, (1.0 - a_t) * (1.0 + a_t), i, j, K, N, WORK)
                store_tile(cov, K, 1, x, i, j, K, K, N, N)
                c += tl.sum(x * load_vector(w, j, slots, N, WORK)[None, :], axis=1)
            tl.store(gain + i + at, c, mask=i + at < K)
            s += tl.sum(c * load_vector(w, i, slots, N, WORK), axis=0)
        tl.debug_barrier()
        root = tl.sqrt(s)
        energy = tl.zeros((), WORK)
        for i in range(0, K, N):
            left = load_vector(gain, i, K, N, WORK) / root
            asked = tl.zeros((N,), WORK)
            for j in range(0, K, N):
                right = load_vector(gain, j, K, N, WORK) / root
                x = load_tile(cov, K, 1, i, j, K, K, N, N, WORK) - left[:, None] * right[None, :]
                store_tile(cov, K, 1, x, i, j, K, K, N, N)
                if queries is not None:
                    q = load_vector(queries + t * K, j, K, N, WORK)
                    asked += tl.sum(x * q[None, :], axis=1)
            if queries is not None:
                energy += tl.sum(asked * load_vector(queries + t * K, i, K, N, WORK), axis=0)
        tl.debug_barrier()
        for i in range(0, K, N):
            x = load_vector(gain, i, K, N, WORK) / root
            tl.store(gain + i + at, x, mask=i + at < K)
        tl.debug_barrier()
        pivots = tl.where(here, s, pivots)
        spread = tl.where(here, energy, spread)
    f = tl.zeros((L, L), WORK)
    for j in range(0, K, N):
        w = load_rows(weights, K, kept, j, K, L, N, WORK)
        p = load_tile(gains, 1, K, j, 0, K, count, N, L, WORK)
        f += multiply(w, p, WORK, PRECISION)
    f *= products_between(a, L).to(WORK)
    step = tl.arange(0, L)
    f = tl.where(step[:, None] == step[None, :], tl.sqrt(pivots)[:, None], f)
    return invert_lower(f, count, L, WORK), pivots, spread


@triton.jit
def factor_moving(
    cov, sigma, weights, gains, seen, kept, a, b, noise, count, limit, attempt, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
    ROBUST: tl.constexpr, queries=None,
):  # fmt: skip
    """`move_chunk` or, in the second attempt, `move_chunk_by_steps`; whether it must be tried
    otherwise is for the caller to say."""
    spread = tl.zeros((L,), WORK)
    if not ROBUST:
        inverse, pivots, harder = move_chunk(
            cov, sigma, weights, gains, seen, kept, a, b, noise, count, limit, K,
            L, N, WORK, PRECISION,
        )  # fmt: skip
    elif attempt == 0:
        inverse, pivots, harder = move_chunk(
            cov, sigma, weights, gains, seen, kept, a, b, noise, count, limit, K,
            L, N, WORK, PRECISION,
        )  # fmt: skip
    else:
        inverse, pivots, spread = move_chunk_by_steps(
            cov, sigma, weights, gains, kept, a, noise, count, K, L, N, WORK, PRECISION, queries
        )
        harder = count_not_positive(pivots) > 0
    return inverse, pivots, harder, spread


@triton.jit
def move_columns(
    mean, weights, values, errors, gains, inverse, kept, a, b, first_column, last_column, count,
    K, C,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
    SAVE: tl.constexpr, queries=None, reads=None, states=None,
):  # fmt: skip
    """E and R of a block of columns; returns ``sum |E|^2``. With ``queries`` the reads are stored;
    with SAVE, E and, in ``states``, R as it was."""
    squares = tl.zeros((), tl.float64)
    between = products_between(a, L)
    rest = last_row(between, count, L).to(WORK)
    last = last_of(b, count, L).to(WORK)
    factor = b.to(WORK)[:, None]
    if queries is not None:
        inside = read_weights(queries, gains, count, K, L, N, WORK, PRECISION)
        inside *= between.to(WORK)
    for c in range(first_column, last_column, N):
        x = tl.zeros((L, N), WORK)
        for q in range(0, K, N):
            w = load_rows(weights, K, kept, q, K, L, N, WORK)
            r = load_tile(mean, C, 1, q, c, K, last_column, N, N, WORK)
            if SAVE:
                store_tile(states, C, 1, r, q, c, K, last_column, N, N)
            x += multiply(w, r, WORK, PRECISION)
        d = load_rows(values, C, kept, c, last_column, L, N, WORK) - factor * x
        e = multiply(inverse, d, WORK, PRECISION)
        if SAVE:
            store_tile(errors, C, 1, e, 0, c, count, last_column, L, N)
        wide = e.to(tl.float64)
        squares += tl.sum(tl.sum(wide * wide, axis=1), axis=0)
        if queries is not None:
            x = tl.zeros((L, N), WORK)
            x = add_product(
                x, queries, K, 1, mean, C, 1, 0, c, count, last_column, K, L, N, N, WORK, PRECISION
            )  # fmt: skip
            x = factor * x + multiply(inside, e, WORK, PRECISION)
            store_tile(reads, C, 1, x, 0, c, count, last_column, L, N)
        tl.debug_barrier()
        e *= rest[:, None]
        for q in range(0, K, N):
            p = load_tile(gains, 1, K, q, 0, K, count, N, L, WORK)
            r = load_tile(mean, C, 1, q, c, K, last_column, N, N, WORK)
            r = r * last + multiply(p, e, WORK, PRECISION)
            store_tile(mean, C, 1, r, q, c, K, last_column, N, N)
    return squares


@triton.jit
def store_moving_variances(
    cov, sigma, queries, gains, spread, a, b, variances, count, attempt, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The variances of the reads, with the covariance before the chunk or, in the second attempt,
    from the ``spread`` that the recursion gave at every step."""
    at = tl.arange(0, L)
    if attempt == 0:
        spread = tl.zeros((L,), WORK)
        settled = tl.zeros((L,), WORK)
        for j in range(0, K, N):
            x, q = times_cov(cov, queries, j, count, K, L, N, WORK, PRECISION)
            spread += tl.sum(x * q, axis=1)
            if sigma is not None:
                x, q = times_cov(sigma, queries, j, count, K, L, N, WORK, PRECISION)
                settled += tl.sum(x * q, axis=1)
            else:
                settled += tl.sum(q * q, axis=1)
        between = products_between(a, L)
        inside = read_weights(queries, gains, count, K, L, N, WORK, PRECISION)
        inside *= between.to(WORK)
        spread = (b * b).to(WORK) * spread + forgotten(a, between).to(WORK) * settled
        spread -= tl.sum(inside * inside, axis=1)
    tl.store(variances + at, tl.where(spread < 0.0, 0.0, spread), mask=at < count)


@triton.jit
def move_covariance(
    cov, sigma, gains, a, b, count, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``U <- b_L^2 U + h_L Sigma - G'D^2 G``, exactly symmetric."""
    between = products_between(a, L)
    rest = last_row(between, count, L).to(WORK)
    last = last_of(b, count, L)
    fresh = last_of(forgotten(a, between), count, L)
    for i in range(0, K, N):
        left = load_tile(gains, 1, K, i, 0, K, count, N, L, WORK) * rest[None, :]
        for j in range(0, i + 1, N):
            right = load_tile(gains, K, 1, 0, j, count, K, L, N, WORK) * rest[:, None]
            x = moved_tile(cov, sigma, last * last, fresh, i, j, K, N, WORK)
            store_symmetric(cov, K, x - multiply(left, right, WORK, PRECISION), i, j, N)


@triton.jit
def chunks_before(item, row, begins, sequences, steps, T):
    """Where an item keeps the states before its chunks (int64), of ``T // steps + sequences`` for
    each row: chunks of sequences before it are at most those of as many steps, and one each."""
    return row * (T // steps + sequences) + begins // steps + item % sequences
