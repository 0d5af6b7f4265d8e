"""The adjoint of a chunk of a memory that moves, for its covariance: `stationary_backward` has the
formulas."""

from __future__ import annotations

import triton
import triton.language as tl

from ._reads import outer, read_weights, times_cov
from ._stationary import (
    diagonal_of,
    forgotten,
    last_of,
    last_row,
    load_seen,
    products_between,
    see_weights,
)
from ._tiles import (
    load_rows,
    load_sum,
    load_symmetric,
    load_tile,
    multiply,
    store_symmetric,
    store_tile,
)

#: Arrays of a chunk's steps by slots that `reverse_moving_covariance` works in.
ROOMS = 6


@triton.jit
def load_response(responses, stride, blocks, count, K, L: tl.constexpr, WORK: tl.constexpr):
    """B, of all blocks of columns."""
    at = tl.arange(0, L)
    x = tl.zeros((L, L), WORK)
    if responses is not None:
        x = load_sum(responses, stride // K * L, blocks, L, 0, count, L, L, L, WORK)
        x = tl.where(at[:, None] >= at[None, :], x, 0.0)
    return x


@triton.jit
def pull_gains(
    grad_cov, gains, cross, pulled, rest, stride, blocks, count, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``pulled`` = P gU; returns sym(P gU P') and N~ P'."""
    inner = tl.zeros((L, L), WORK)
    gained = tl.zeros((L, L), WORK)
    for j in range(0, K, N):
        x = tl.zeros((L, N), WORK)
        for q in range(0, K, N):
            p = load_tile(gains, K, 1, 0, q, count, K, L, N, WORK) * rest[:, None]
            x += multiply(p, load_tile(grad_cov, K, 1, q, j, K, K, N, N, WORK), WORK, PRECISION)
        store_tile(pulled, K, 1, x, 0, j, count, K, L, N)
        p = load_tile(gains, 1, K, j, 0, K, count, N, L, WORK) * rest[None, :]
        inner += multiply(x, p, WORK, PRECISION)
        x = load_sum(cross, stride, blocks, K, j, count, K, L, N, WORK)
        gained += multiply(x, p, WORK, PRECISION)
    return (inner + tl.trans(inner)) * 0.5, gained


@triton.jit
def outer_rows(
    weights, b, i, j, kept, count, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The tile at (i, j) of W'b for a chunk's rows b."""
    w = load_rows(weights, K, kept, i, K, L, N, WORK)
    right = load_tile(b, K, 1, 0, j, count, K, L, N, WORK)
    return multiply(tl.trans(w), right, WORK, PRECISION)


@triton.jit
def reverse_moving_covariance(
    state, weights, factors, adjoints, d_weights, kept, a, b, scale, dots, blocks, stride, count,
    K, C, queries, grad_var, d_queries,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adjoint of a chunk for the covariance before it: gU becomes that before the chunk, dW
    and dQ are stored; returns the gradients of the noise and of the retentions. In ``state`` is
    the covariance before the chunk and a room of ROOMS arrays of steps by slots; ``adjoints`` is
    `Between`, ``dots`` <gR, R>."""
    cov, grad_cov, sigma, d_sigma, room = state
    gains, inverses = factors.gains, factors.inverses
    cross, shares, squares, asked, responses, _dots = adjoints
    at = tl.arange(0, L)
    later = at[:, None] >= at[None, :]
    lines = L * K
    pulled = room
    moved = room + lines
    seen = room + 2 * lines
    left = room + 3 * lines
    full = room + 4 * lines
    half = room + 5 * lines

    between = products_between(a, L)
    fresh = forgotten(a, between)
    renewed = last_of(fresh, count, L)
    between = between.to(WORK)
    rest = last_row(between, count, L)
    last = last_of(b, count, L)
    factor = b.to(WORK)
    slope = tl.zeros((L,), WORK)
    inner, gained = pull_gains(
        grad_cov, gains, cross, pulled, rest, stride, blocks, count, K, L, N, WORK, PRECISION
    )
    e = load_sum(squares, stride // K * L, blocks, L, 0, count, L, L, L, WORK)
    within = (at < count)[:, None] & (at < count)[None, :]
    e -= tl.where(at[:, None] == at[None, :], C, 0.0).to(WORK)
    e = tl.where(within, (0.5 * scale).to(WORK) * e, 0.0)
    inner += e - (gained + tl.trans(gained)) * 0.5
    # What N~ J and the evidence leave beside N~, in the place of E E'.
    tl.debug_barrier()
    store_tile(squares, L, 1, e - gained, 0, 0, count, L, L, L)
    delta = tl.zeros((L, L), WORK)
    if queries is not None:
        if grad_var is not None:
            slope = tl.load(grad_var + at, mask=at < count, other=0.0).to(WORK)
        response = load_response(responses, stride, blocks, count, K, L, WORK)
        inside = read_weights(queries, gains, count, K, L, N, WORK, PRECISION) * between
        delta = response - 2 * slope[:, None] * inside
        answered = response - slope[:, None] * inside
        answered = multiply(tl.trans(inside), answered, WORK, PRECISION)
        inner -= (answered + tl.trans(answered)) * 0.5
    inverse = load_tile(inverses, L, 1, 0, 0, count, L, L, L, WORK)
    back = tl.trans(inverse)
    system = multiply(multiply(back, inner, WORK, PRECISION), inverse, WORK, PRECISION)  # dS
    d_noise = diagonal_of(system, L)
    across = multiply(delta, inverse, WORK, PRECISION)  # dA
    renewal = between * fresh.to(WORK)[None, :]
    by_sigma = tl.where(later, renewal, tl.trans(renewal)) * system
    read_by_sigma = renewal * across
    to_end = rest * fresh.to(WORK)

    # The retentions: through ln b_t, and ``z`` through ln g_ts.
    prior, settled = see_weights(
        cov, sigma, weights, moved, seen, kept, count, K, L, N, WORK, PRECISION
    )
    tl.debug_barrier()
    both = factor[:, None] * factor[None, :]
    d_logs = tl.sum((2 * system * both * (prior - settled)).to(tl.float64), axis=1)
    z = 2 * system * between * settled
    if queries is not None:
        prior = tl.zeros((L, L), WORK)
        settled = tl.zeros((L, L), WORK)
        for j in range(0, K, N):
            q = load_tile(queries, K, 1, 0, j, count, K, L, N, WORK)
            x = load_tile(moved, K, 1, 0, j, count, K, L, N, WORK)
            prior += multiply(q, tl.trans(x), WORK, PRECISION)
            x = load_seen(seen, sigma, weights, kept, j, count, K, L, N, WORK)
            settled += multiply(q, tl.trans(x), WORK, PRECISION)
        of_logs = tl.where(later, across * both * (prior - settled), 0.0).to(tl.float64)
        d_logs += tl.sum(of_logs, axis=1) + tl.sum(of_logs, axis=0)
        z += across * between * settled
    # Of ln g_ts: the sums over all t >= j > s.
    since = tl.where(at[:, None] <= at[None, :], 1.0, 0.0).to(WORK)
    z = tl.where(at[None, :] < at[:, None], multiply(since, z, WORK, PRECISION), 0.0)
    d_between = tl.sum(z.to(tl.float64), axis=1)

    through = tl.zeros((L,), tl.float64)  # <dB, b_L b_t W (U - Sigma)>, a row at a time
    ends = tl.zeros((L,), tl.float64)  # <dB, W Sigma>
    for j in range(0, K, N):
        w = load_rows(weights, K, kept, j, K, L, N, WORK)
        t = load_sum(cross, stride, blocks, K, j, count, K, L, N, WORK)
        t -= 2 * load_tile(pulled, K, 1, 0, j, count, K, L, N, WORK)
        d = multiply(back, t, WORK, PRECISION)  # dB
        u = load_tile(moved, K, 1, 0, j, count, K, L, N, WORK)
        y = load_seen(seen, sigma, weights, kept, j, count, K, L, N, WORK)
        through += tl.sum((d * (u - y)).to(tl.float64), axis=1)
        ends += tl.sum((d * y).to(tl.float64), axis=1)
        f = multiply(by_sigma, w, WORK, PRECISION)
        h = f + to_end[:, None] * d
        m = last.to(WORK) * t
        if queries is not None:
            q = load_tile(queries, K, 1, 0, j, count, K, L, N, WORK)
            h += multiply(tl.trans(read_by_sigma), q, WORK, PRECISION)
            m += multiply(tl.trans(delta), factor[:, None] * q, WORK, PRECISION)
        store_tile(half, K, 1, h, 0, j, count, K, L, N)
        store_tile(full, K, 1, h + f, 0, j, count, K, L, N)
        y = multiply(inverse, factor[:, None] * w, WORK, PRECISION)
        y = multiply(inner, y, WORK, PRECISION)
        y = multiply(back, m + 2 * y, WORK, PRECISION)
        store_tile(left, K, 1, y, 0, j, count, K, L, N)
    through *= last * b
    d_logs += through
    tl.debug_barrier()

    for i in range(0, K, N):
        w = load_rows(weights, K, kept, i, K, L, N, WORK)
        d = load_sum(shares, stride, blocks, K, i, count, K, L, N, WORK)
        d_logs -= b * tl.sum((d * w).to(tl.float64), axis=1)
        d = -d
        y = tl.zeros((L, N), WORK)
        for q in range(0, K, N):
            x = load_tile(left, K, 1, 0, q, count, K, L, N, WORK)
            d += multiply(x, load_tile(cov, K, 1, q, i, K, K, N, N, WORK), WORK, PRECISION)
            if sigma is not None:
                x = load_tile(full, K, 1, 0, q, count, K, L, N, WORK)
                y += multiply(x, load_symmetric(sigma, K, q, i, N, WORK), WORK, PRECISION)
        if sigma is None:
            y = load_tile(full, K, 1, 0, i, count, K, L, N, WORK)
        d = tl.where(kept[:, None], factor[:, None] * d + y, 0.0)
        store_tile(d_weights, K, 1, d, 0, i, count, K, L, N)
        if queries is not None:
            u = load_tile(moved, K, 1, 0, i, count, K, L, N, WORK)
            d = multiply(inverse, factor[:, None] * u, WORK, PRECISION)
            d = multiply(delta, d, WORK, PRECISION)
            q = load_tile(queries, K, 1, 0, i, count, K, L, N, WORK)
            if asked is not None:
                x = load_sum(asked, stride, blocks, K, i, count, K, L, N, WORK)
                d_logs += b * tl.sum((x * q).to(tl.float64), axis=1)
                d += x
            y = load_seen(seen, sigma, weights, kept, i, count, K, L, N, WORK)
            d = factor[:, None] * d + multiply(read_by_sigma, y, WORK, PRECISION)
            if grad_var is not None:
                x, _ = times_cov(cov, queries, i, count, K, L, N, WORK, PRECISION)
                y = q
                if sigma is not None:
                    y, _ = times_cov(sigma, queries, i, count, K, L, N, WORK, PRECISION)
                squared = slope * factor * factor
                d += 2 * squared[:, None] * x + (2 * slope * fresh.to(WORK))[:, None] * y
                d_logs += 2 * tl.sum((squared[:, None] * (x - y) * q).to(tl.float64), axis=1)
            store_tile(d_queries, K, 1, d, 0, i, count, K, L, N)
    tl.debug_barrier()

    dot = tl.zeros((), tl.float64)  # <gU, U - Sigma>
    for i in range(0, K, N):
        for j in range(0, i + 1, N):
            g = load_tile(grad_cov, K, 1, i, j, K, K, N, N, WORK)
            u = load_tile(cov, K, 1, i, j, K, K, N, N, WORK)
            if sigma is None:
                more = tl.arange(0, N)
                u -= tl.where((i + more)[:, None] == (j + more)[None, :], 1.0, 0.0).to(WORK)
            else:
                u -= load_symmetric(sigma, K, i, j, N, WORK)
                x = outer_rows(weights, half, i, j, kept, count, K, L, N, WORK, PRECISION)
                y = outer_rows(weights, half, j, i, kept, count, K, L, N, WORK, PRECISION)
                x = renewed.to(WORK) * g + (x + tl.trans(y)) * 0.5
                if grad_var is not None:
                    q_i = load_tile(queries, 1, K, i, 0, K, count, N, L, WORK)
                    q_i *= (slope * fresh.to(WORK))[None, :]
                    q_j = load_tile(queries, K, 1, 0, j, count, K, L, N, WORK)
                    x += multiply(q_i, q_j, WORK, PRECISION)
                x += load_tile(d_sigma, K, 1, i, j, K, K, N, N, WORK)
                store_symmetric(d_sigma, K, x, i, j, N)
            of_tile = tl.sum(tl.sum((g * u).to(tl.float64), axis=1), axis=0)
            dot += tl.where(i == j, of_tile, 2 * of_tile)
    tl.debug_barrier()
    # J'gU J with J' = b_L - Y'P, a side at a time: both at once would cancel twice.
    inverse = load_tile(inverses, L, 1, 0, 0, count, L, L, L, WORK)
    gained = load_tile(squares, L, 1, 0, 0, count, L, L, L, WORK)
    for i in range(0, K, N):
        w = load_rows(weights, K, kept, i, K, L, N, WORK)
        white = multiply(inverse, factor[:, None] * w, WORK, PRECISION)
        pull = tl.zeros((N, L), WORK)
        for j in range(0, K, N):
            g = load_tile(grad_cov, K, 1, i, j, K, K, N, N, WORK) * last.to(WORK)
            y = load_tile(pulled, K, 1, 0, j, count, K, L, N, WORK)
            g -= multiply(tl.trans(white), y, WORK, PRECISION)
            store_tile(grad_cov, K, 1, g, i, j, K, K, N, N)
            p = load_tile(gains, 1, K, j, 0, K, count, N, L, WORK) * rest[None, :]
            pull += multiply(g, p, WORK, PRECISION)
        tl.debug_barrier()
        for j in range(0, K, N):
            w = load_rows(weights, K, kept, j, K, L, N, WORK)
            y = multiply(inverse, factor[:, None] * w, WORK, PRECISION)
            g = load_tile(grad_cov, K, 1, i, j, K, K, N, N, WORK) * last.to(WORK)
            g -= multiply(pull, y, WORK, PRECISION)
            store_tile(grad_cov, K, 1, g, i, j, K, K, N, N)
        # In the place of what is not needed any more: Y, N~ J, and of the reads Q~ - A Y and
        # gv (Q~ - A Y) + B Y.
        t = load_sum(cross, stride, blocks, K, i, count, K, L, N, WORK)
        t = last.to(WORK) * t + multiply(gained, white, WORK, PRECISION)
        store_tile(moved, K, 1, white, 0, i, count, K, L, N)
        store_tile(left, K, 1, t, 0, i, count, K, L, N)
        if queries is not None:
            response = load_response(responses, stride, blocks, count, K, L, WORK)
            inside = read_weights(queries, gains, count, K, L, N, WORK, PRECISION) * between
            q = load_tile(queries, K, 1, 0, i, count, K, L, N, WORK) * factor[:, None]
            q -= multiply(inside, white, WORK, PRECISION)
            store_tile(full, K, 1, q, 0, i, count, K, L, N)
            q = slope[:, None] * q + multiply(response, white, WORK, PRECISION)
            store_tile(half, K, 1, q, 0, i, count, K, L, N)
    tl.debug_barrier()
    for i in range(0, K, N):
        for j in range(0, i + 1, N):
            g = load_tile(grad_cov, K, 1, i, j, K, K, N, N, WORK)
            y = load_tile(grad_cov, K, 1, j, i, K, K, N, N, WORK)
            g += outer(moved, left, i, j, count, K, L, N, WORK, PRECISION)
            y += outer(moved, left, j, i, count, K, L, N, WORK, PRECISION)
            if queries is not None:
                g += outer(full, half, i, j, count, K, L, N, WORK, PRECISION)
                y += outer(full, half, j, i, count, K, L, N, WORK, PRECISION)
            store_symmetric(grad_cov, K, (g + tl.trans(y)) * 0.5, i, j, N)
    tl.debug_barrier()
    end = last * dots + 2 * last * last * dot + tl.sum(through, axis=0)
    d_logs += tl.where(at == count - 1, end, 0.0)
    d_logs = tl.sum(tl.where(at[:, None] <= at[None, :], d_logs[None, :], 0.0), axis=1)
    ends = tl.where(at[None, :] < at[:, None], (rest * ends)[None, :], 0.0)
    d_between += tl.where(at < count, tl.sum(ends, axis=1), 0.0)
    return d_noise, (d_logs + d_between) / a
