"""The adjoint of a chunk of a write: of the columns of a memory, and of its covariance."""

from __future__ import annotations

import triton
import triton.language as tl

from ._reads import outer, read_weights, reverse_reads
from ._tiles import load_rows, load_sum, load_tile, multiply, store_symmetric, store_tile


@triton.jit
def reverse_columns(
    mean, grad_mean, weights, gains, inverse, errors, d_values, between, kept, product, scale,
    first_column, last_column, count, K, C, queries, grad_reads,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adjoint of a chunk for a block of columns: R and gR become those before the chunk, dZ is
    stored, ``cross = E gR'``, ``shares = dZ R'`` and, with the gradient gO of reads, ``asked =
    gO R'``; returns ``E E'`` and ``gO E'``. ``scale`` is gl."""
    cross, shares, asked = between.cross, between.shares, between.asked
    squares = tl.zeros((L, L), WORK)
    response = tl.zeros((L, L), WORK)
    if grad_reads is not None:
        inside = read_weights(queries, gains, count, K, L, N, WORK, PRECISION)
    weight = (scale * product).to(WORK)
    for c in range(first_column, last_column, N):
        e = load_tile(errors, C, 1, 0, c, count, last_column, L, N, WORK)
        squares += multiply(e, tl.trans(e), WORK, PRECISION)
        slope = -weight[:, None] * e
        if grad_reads is not None:
            o = load_tile(grad_reads, C, 1, 0, c, count, last_column, L, N, WORK)
            response += multiply(o, tl.trans(e), WORK, PRECISION)
            slope += multiply(tl.trans(inside), o, WORK, PRECISION)
        for q in range(0, K, N):
            p = load_tile(gains, K, 1, 0, q, count, K, L, N, WORK)
            g = load_tile(grad_mean, 1, C, c, q, last_column, K, N, N, WORK)
            slope += multiply(p, tl.trans(g), WORK, PRECISION)
            x = multiply(e, g, WORK, PRECISION)
            if c > first_column:
                x += load_tile(cross, K, 1, 0, q, count, K, L, N, WORK)
            store_tile(cross, K, 1, x, 0, q, count, K, L, N)
        d = multiply(tl.trans(inverse), slope, WORK, PRECISION)
        d = tl.where(kept[:, None], d, 0.0)
        store_tile(d_values, C, 1, d, 0, c, count, last_column, L, N)
        tl.debug_barrier()
        for q in range(0, K, N):
            p = load_tile(gains, 1, K, q, 0, K, count, N, L, WORK)
            r = load_tile(mean, C, 1, q, c, K, last_column, N, N, WORK)
            r -= multiply(p, e, WORK, PRECISION)
            store_tile(mean, C, 1, r, q, c, K, last_column, N, N)
            x = multiply(d, tl.trans(r), WORK, PRECISION)
            if c > first_column:
                x += load_tile(shares, K, 1, 0, q, count, K, L, N, WORK)
            store_tile(shares, K, 1, x, 0, q, count, K, L, N)
            w = load_rows(weights, K, kept, q, K, L, N, WORK)
            white = multiply(inverse, w, WORK, PRECISION)
            g = load_tile(grad_mean, C, 1, q, c, K, last_column, N, N, WORK)
            g -= multiply(tl.trans(white), slope, WORK, PRECISION)
            if grad_reads is not None:
                x = multiply(o, tl.trans(r), WORK, PRECISION)
                if c > first_column:
                    x += load_tile(asked, K, 1, 0, q, count, K, L, N, WORK)
                store_tile(asked, K, 1, x, 0, q, count, K, L, N)
                x = load_tile(queries, 1, K, q, 0, K, count, N, L, WORK)
                g += multiply(x, o, WORK, PRECISION)
            store_tile(grad_mean, C, 1, g, q, c, K, last_column, N, N)
        tl.debug_barrier()
    return squares, response


@triton.jit
def add_back(
    cov, gains, scale, count, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``U <- U scale + P'P``: the covariance before a chunk."""
    for i in range(0, K, N):
        left = load_tile(gains, 1, K, i, 0, K, count, N, L, WORK)
        for j in range(0, i + 1, N):
            right = load_tile(gains, K, 1, 0, j, count, K, L, N, WORK)
            x = load_tile(cov, K, 1, i, j, K, K, N, N, WORK)
            store_symmetric(cov, K, x * scale + multiply(left, right, WORK, PRECISION), i, j, N)


@triton.jit
def undecay(cov, grad_cov, scale, K, N: tl.constexpr, WORK: tl.constexpr):
    """``gU <- gU / scale`` and ``<gU, U>`` before it."""
    dot = tl.zeros((), tl.float64)
    for i in range(0, K, N):
        for j in range(0, K, N):
            g = load_tile(grad_cov, K, 1, i, j, K, K, N, N, WORK)
            u = load_tile(cov, K, 1, i, j, K, K, N, N, WORK)
            dot += tl.sum(tl.sum((g * u).to(tl.float64), axis=1), axis=0)
            store_tile(grad_cov, K, 1, g / scale, i, j, K, K, N, N)
    return dot


@triton.jit
def reverse_covariance(
    cov, grad_cov, weights, gains, inverse, between, room, d_weights, kept, product, scale, blocks,
    stride, count, K, C, queries, grad_var, d_queries,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adjoint of a chunk for the covariance before it: gU becomes that before the chunk, dW is
    stored; returns the gradient of the noise n, the diagonal of ``E E'`` and, with ``queries``,
    the gradient of the logarithms of b that divide the variances of the reads."""
    cross, shares, squares, asked, responses, _dots = between
    slopes, left_room, rest, moved, mixed = room
    at = tl.arange(0, L)
    diagonal = at[:, None] == at[None, :]
    later = at[:, None] >= at[None, :]
    d_logs = tl.zeros((L,), tl.float64)
    d_noise = tl.zeros((L,), tl.float64)
    if queries is not None:
        response = tl.zeros((L, L), WORK)
        if responses is not None:
            response = load_sum(responses, stride // K * L, blocks, L, 0, count, L, L, L, WORK)
            response = tl.where(later, response, 0.0)
        if grad_var is not None:
            d_logs = tl.load(grad_var + at, mask=at < count, other=0.0).to(tl.float64) / product
        spread, d_noise = reverse_reads(
            cov, weights, queries, gains, inverse, asked, response, d_logs.to(WORK), rest, moved,
            mixed, d_queries, kept, blocks, stride, count, K, L, N, WORK, PRECISION,
        )  # fmt: skip
        d_logs *= -spread
    # J' gU J with J' = I - Y'P, a side at a time: both at once would cancel twice.
    inner = tl.zeros((L, L), WORK)  # P gU P'
    gained = tl.zeros((L, L), WORK)  # P N'
    for j in range(0, K, N):
        x = tl.zeros((L, N), WORK)
        for q in range(0, K, N):
            p = load_tile(gains, K, 1, 0, q, count, K, L, N, WORK)
            x += multiply(p, load_tile(grad_cov, K, 1, q, j, K, K, N, N, WORK), WORK, PRECISION)
        store_tile(slopes, K, 1, x, 0, j, count, K, L, N)
        p = load_tile(gains, 1, K, j, 0, K, count, N, L, WORK)
        inner += multiply(x, p, WORK, PRECISION)
        n = load_sum(cross, stride, blocks, K, j, count, K, L, N, WORK)
        gained += multiply(tl.trans(p), tl.trans(n), WORK, PRECISION)
    e = load_sum(squares, stride // K * L, blocks, L, 0, count, L, L, L, WORK)
    inside = (at < count)[:, None] & (at < count)[None, :]
    b = tl.where(later, product[:, None], product[None, :]).to(WORK)
    evidence = (0.5 * scale).to(WORK) * (b * e - tl.where(diagonal, C, 0.0).to(WORK))
    evidence = tl.where(inside, evidence, 0.0)
    system = inner - (gained + tl.trans(gained)) * 0.5 + evidence  # the adjoint of S, whitened
    back = tl.trans(inverse)
    left = multiply(back, system, WORK, PRECISION)
    d_noise += tl.sum((left * back).to(tl.float64), axis=1)
    left *= 2
    tl.debug_barrier()
    for i in range(0, K, N):
        white = multiply(inverse, load_rows(weights, K, kept, i, K, L, N, WORK), WORK, PRECISION)
        h = tl.zeros((N, L), WORK)
        for j in range(0, K, N):
            x = load_tile(grad_cov, K, 1, i, j, K, K, N, N, WORK)
            slope = load_tile(slopes, K, 1, 0, j, count, K, L, N, WORK)
            x -= multiply(tl.trans(white), slope, WORK, PRECISION)
            store_tile(grad_cov, K, 1, x, i, j, K, K, N, N)
            h += multiply(x, load_tile(gains, 1, K, j, 0, K, count, N, L, WORK), WORK, PRECISION)
        tl.debug_barrier()
        for j in range(0, K, N):
            w = load_rows(weights, K, kept, j, K, L, N, WORK)
            x = load_tile(grad_cov, K, 1, i, j, K, K, N, N, WORK)
            x -= multiply(h, multiply(inverse, w, WORK, PRECISION), WORK, PRECISION)
            store_tile(grad_cov, K, 1, x, i, j, K, K, N, N)
        n = load_sum(cross, stride, blocks, K, i, count, K, L, N, WORK)
        slope = load_tile(slopes, K, 1, 0, i, count, K, L, N, WORK)
        x = multiply(tl.trans(inverse), n - 2 * slope, WORK, PRECISION)
        store_tile(left_room, K, 1, x, 0, i, count, K, L, N)
        n += multiply(evidence - tl.trans(gained), white, WORK, PRECISION)
        store_tile(cross, K, 1, n, 0, i, count, K, L, N)
    tl.debug_barrier()
    for i in range(0, K, N):
        white_i = multiply(inverse, load_rows(weights, K, kept, i, K, L, N, WORK), WORK, PRECISION)
        m_i = load_tile(cross, K, 1, 0, i, count, K, L, N, WORK)
        for j in range(0, i + 1, N):
            white_j = multiply(
                inverse, load_rows(weights, K, kept, j, K, L, N, WORK), WORK, PRECISION
            )
            m_j = load_tile(cross, K, 1, 0, j, count, K, L, N, WORK)
            x = load_tile(grad_cov, K, 1, i, j, K, K, N, N, WORK)
            y = load_tile(grad_cov, K, 1, j, i, K, K, N, N, WORK)
            x += multiply(tl.trans(white_i), m_j, WORK, PRECISION)
            y += multiply(tl.trans(white_j), m_i, WORK, PRECISION)
            if queries is not None:
                x += outer(rest, mixed, i, j, count, K, L, N, WORK, PRECISION)
                y += outer(rest, mixed, j, i, count, K, L, N, WORK, PRECISION)
            store_symmetric(grad_cov, K, (x + tl.trans(y)) * 0.5, i, j, N)
        d = -load_sum(shares, stride, blocks, K, i, count, K, L, N, WORK)
        # P, not Y U: the latter loses digits where little is left of w'U w.
        p = load_tile(gains, K, 1, 0, i, count, K, L, N, WORK)
        d += multiply(left, p, WORK, PRECISION)
        if queries is not None:
            d += load_tile(moved, K, 1, 0, i, count, K, L, N, WORK)
        for q in range(0, K, N):
            x = load_tile(left_room, K, 1, 0, q, count, K, L, N, WORK)
            d += multiply(x, load_tile(cov, K, 1, q, i, K, K, N, N, WORK), WORK, PRECISION)
        d = tl.where(kept[:, None], d, 0.0)
        store_tile(d_weights, K, 1, d, 0, i, count, K, L, N)
    tl.debug_barrier()
    return d_noise, tl.sum(tl.where(diagonal, e, 0.0).to(tl.float64), axis=1), d_logs
