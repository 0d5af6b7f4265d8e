"""The reads of a chunk of a causal scan, and their adjoint: docs/operators/causal_scan.md.
``queries`` (Q), ``gains`` (P) and all else here begin at the chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._tiles import load_rows, load_tile, multiply, store_tile


@triton.jit
def read_weights(
    queries, gains, count, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``A = tril(Q P')``: what each query takes from the steps up to its own."""
    at = tl.arange(0, L)
    x = tl.zeros((L, L), WORK)
    for j in range(0, K, N):
        q = load_tile(queries, K, 1, 0, j, count, K, L, N, WORK)
        p = load_tile(gains, 1, K, j, 0, K, count, N, L, WORK)
        x += multiply(q, p, WORK, PRECISION)
    return tl.where(at[:, None] >= at[None, :], x, 0.0)


@triton.jit
def times_cov(
    cov, queries, j, count, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Columns of Q U from j, and those of Q."""
    x = tl.zeros((L, N), WORK)
    for i in range(0, K, N):
        q = load_tile(queries, K, 1, 0, i, count, K, L, N, WORK)
        x += multiply(q, load_tile(cov, K, 1, i, j, K, K, N, N, WORK), WORK, PRECISION)
    return x, load_tile(queries, K, 1, 0, j, count, K, L, N, WORK)


@triton.jit
def store_variances(
    cov, queries, gains, spread, product, variances, count, attempt, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``(q'U q - |A_t|^2) / b_t`` with the covariance before the chunk or, in the second attempt,
    from the ``spread`` that the root gave at every step."""
    at = tl.arange(0, L)
    if attempt == 0:
        spread = tl.zeros((L,), WORK)
        for j in range(0, K, N):
            x, q = times_cov(cov, queries, j, count, K, L, N, WORK, PRECISION)
            spread += tl.sum(x * q, axis=1)
        inside = read_weights(queries, gains, count, K, L, N, WORK, PRECISION)
        spread -= tl.sum(inside * inside, axis=1)
    spread = tl.where(spread < 0.0, 0.0, spread).to(tl.float64) / product
    tl.store(variances + at, spread, mask=at < count)


@triton.jit
def outer(
    a, b, i, j, count, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The tile at (i, j) of a'b for a chunk's rows a and b."""
    left = load_tile(a, 1, K, i, 0, K, count, N, L, WORK)
    return multiply(left, load_tile(b, K, 1, 0, j, count, K, L, N, WORK), WORK, PRECISION)


@triton.jit
def reverse_reads(
    cov, weights, queries, gains, inverse, asked, response, slope, rest, moved, mixed, d_queries,
    kept, blocks, stride, count, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """With ``response`` B and ``slope`` h: stores dQ, ``rest`` Q~, ``mixed`` = h Q~ + B Y and
    ``moved``, what dW gets but for ``D R'``; returns the variances of the reads times b, and what
    the gradient of the noise gets."""
    back = tl.trans(inverse)
    inside = read_weights(queries, gains, count, K, L, N, WORK, PRECISION)
    answered = multiply(tl.trans(inside), response, WORK, PRECISION)
    x = multiply(tl.trans(inside), slope[:, None] * inside, WORK, PRECISION)
    x = multiply(back, x - (answered + tl.trans(answered)) * 0.5, WORK, PRECISION)
    d_noise = tl.sum((x * back).to(tl.float64), axis=1)
    # 2 I^ P + (B - 2 h A)'Q U without what cancels: -A'B P + (B - 2 h A)'(Q U - A P).
    answered = multiply(back, answered, WORK, PRECISION)
    turned = response - 2 * slope[:, None] * inside
    turned = multiply(back, tl.trans(turned), WORK, PRECISION)
    spread = -tl.sum(inside * inside, axis=1)
    for j in range(0, K, N):
        qu, q = times_cov(cov, queries, j, count, K, L, N, WORK, PRECISION)
        spread += tl.sum(qu * q, axis=1)
        p = load_tile(gains, K, 1, 0, j, count, K, L, N, WORK)
        qu -= multiply(inside, p, WORK, PRECISION)
        d = multiply(turned, qu, WORK, PRECISION) - multiply(answered, p, WORK, PRECISION)
        store_tile(moved, K, 1, d, 0, j, count, K, L, N)
        d = 2 * slope[:, None] * qu + multiply(response, p, WORK, PRECISION)
        if asked is not None:
            for block in range(0, blocks):
                d += load_tile(asked + block * stride, K, 1, 0, j, count, K, L, N, WORK)
        store_tile(d_queries, K, 1, d, 0, j, count, K, L, N)
        w = load_rows(weights, K, kept, j, K, L, N, WORK)
        white = multiply(inverse, w, WORK, PRECISION)
        q -= multiply(inside, white, WORK, PRECISION)
        store_tile(rest, K, 1, q, 0, j, count, K, L, N)
        q = slope[:, None] * q + multiply(response, white, WORK, PRECISION)
        store_tile(mixed, K, 1, q, 0, j, count, K, L, N)
    return tl.where(spread < 0.0, 0.0, spread), d_noise
