"""A chunk of a write from a square root of the covariance, ``U = S S'``, by Potter's update step by
step: nothing is squared and nothing subtracted from U. It holds where the Cholesky factor of a
chunk's system loses all digits (Grewal and Andrews, Kalman Filtering, ch. 7).

``root`` holds S (K x K) and, behind it, room for K x N more.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._spd import factorise
from ._tiles import (
    add_product,
    copy_symmetric,
    load_rows,
    load_tile,
    multiply,
    store_symmetric,
    store_tile,
)


@triton.jit
def load_root(cov, root, K, epsilon, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr):
    """``root`` of ``cov``; returns how many pivots are not positive. A covariance that the rounding
    of its own dtype (``epsilon``) made indefinite gets that rounding added to its diagonal."""
    failures = tl.full((), 1, tl.int32)
    at = tl.arange(0, N)
    diagonal = at[:, None] == at[None, :]
    for attempt in range(0, 2):
        if failures > 0:
            copy_symmetric(cov, root, K, N, WORK)
            tl.debug_barrier()
            if attempt > 0:
                largest = tl.zeros((), WORK)
                for i in range(0, K, N):
                    x = load_tile(root, K, 1, i, i, K, K, N, N, WORK)
                    x = tl.where(diagonal, x, 0.0)
                    largest = tl.maximum(largest, tl.max(tl.max(x, axis=1), axis=0))
                more = 2.0 * K * epsilon * largest
                for i in range(0, K, N):
                    x = load_tile(root, K, 1, i, i, K, K, N, N, WORK)
                    x = tl.where(diagonal, x + more, x)
                    store_tile(root, K, 1, x, i, i, K, K, N, N)
                tl.debug_barrier()
            failures, _ = factorise(root, root + K * K, K, N, WORK, PRECISION)
    for i in range(0, K, N):
        for j in range(i, K, N):
            x = load_tile(root, K, 1, i, j, K, K, N, N, WORK)
            x = tl.where((i + at)[:, None] >= (j + at)[None, :], x, 0.0)
            store_tile(root, K, 1, x, i, j, K, K, N, N)
    tl.debug_barrier()
    return failures


@triton.jit
def square(root, cov, K, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr):
    """``cov = S S'``, exactly symmetric."""
    for i in range(0, K, N):
        for j in range(0, i + 1, N):
            x = tl.zeros((N, N), WORK)
            x = add_product(
                x, root, K, 1, root, 1, K, i, j, K, K, K, N, N, N, WORK, PRECISION
            )  # fmt: skip
            store_symmetric(cov, K, x, i, j, N)


@triton.jit
def load_vector(ptr, start, n, N: tl.constexpr, WORK: tl.constexpr):
    at = start + tl.arange(0, N)
    return tl.load(ptr + at, mask=at < n, other=0.0).to(WORK)


@triton.jit
def project(root, weights, slots, K, N: tl.constexpr, WORK: tl.constexpr):
    """``phi = S'w``, behind S; returns ``|phi|^2 = w'U w``. ``slots`` is K, or 0 where w counts as
    zero."""
    at = tl.arange(0, N)
    energy = tl.zeros((), WORK)
    for j in range(0, K, N):
        x = tl.zeros((N,), WORK)
        for i in range(0, K, N):
            w = load_vector(weights, i, slots, N, WORK)
            x += tl.sum(load_tile(root, K, 1, i, j, K, K, N, N, WORK) * w[:, None], axis=0)
        tl.store(root + K * K + j + at, x, mask=j + at < K)
        energy += tl.sum(x * x, axis=0)
    return energy


@triton.jit
def step(root, weights, slots, gain, noise, K, N: tl.constexpr, WORK: tl.constexpr):
    """One step with noise n: ``phi = S'w, s = |phi|^2 + n``, ``gain = S phi / sqrt(s)`` and
    ``S -= gain phi' / (sqrt(s) + sqrt(n))``; returns s. ``slots`` as in `project`. Synchronised
    before and after."""
    phi = root + K * K
    at = tl.arange(0, N)
    s = project(root, weights, slots, K, N, WORK) + noise
    tl.debug_barrier()
    for i in range(0, K, N):
        g = tl.zeros((N,), WORK)
        for j in range(0, K, N):
            x = load_vector(phi, j, K, N, WORK)
            g += tl.sum(load_tile(root, K, 1, i, j, K, K, N, N, WORK) * x[None, :], axis=1)
        tl.store(gain + i + at, g / tl.sqrt(s), mask=i + at < K)
    tl.debug_barrier()
    factor = 1.0 / (tl.sqrt(s) + tl.sqrt(noise))
    for i in range(0, K, N):
        g = load_vector(gain, i, K, N, WORK) * factor
        for j in range(0, K, N):
            x = load_vector(phi, j, K, N, WORK)
            r = load_tile(root, K, 1, i, j, K, K, N, N, WORK) - g[:, None] * x[None, :]
            store_tile(root, K, 1, r, i, j, K, K, N, N)
    tl.debug_barrier()
    return s


@triton.jit
def invert_lower(f, n, N: tl.constexpr, WORK: tl.constexpr):
    """F^-1 of a lower triangular F; rows from n on are those of the identity."""
    at = tl.arange(0, N)
    row, column = at[:, None], at[None, :]
    inverse = tl.where(row == column, 1.0, 0.0).to(WORK)
    for i in range(0, n):
        line = tl.sum(tl.where(row == i, f, 0.0), axis=0)
        pivot = tl.sum(tl.where(at == i, line, 0.0), axis=0)
        before = tl.where(at < i, line, 0.0)
        x = tl.where(at == i, 1.0, 0.0) - tl.sum(before[:, None] * inverse, axis=0)
        inverse = tl.where(row == i, (x / pivot)[None, :], inverse)
    return inverse


@triton.jit
def write_chunk_sqrt(
    root, weights, gains, kept, noise, scale, count, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr, queries=None,
):  # fmt: skip
    """As `write_chunk`, from the root and with the root updated. ``noise`` is scaled by the decay
    inside the chunk, of which the covariance gets ``scale`` = 1 / b at its end. Returns F^-1, the
    squared diagonal of F and, of every query q, ``q'U q`` times b after its step. Synchronised
    before and after."""
    at = tl.arange(0, L)
    spread = tl.zeros((L,), WORK)
    pivots = tl.full((L,), 1.0, WORK)
    for t in range(0, count):
        here = at == t
        slots = tl.sum(tl.where(here & kept, K, 0), axis=0)
        n = tl.sum(tl.where(here, noise, 0.0), axis=0).to(WORK)
        s = step(root, weights + t * K, slots, gains + t * K, n, K, N, WORK)
        pivots = tl.where(here, s, pivots)
        if queries is not None:
            spread = tl.where(here, project(root, queries + t * K, K, K, N, WORK), spread)
    f = tl.zeros((L, L), WORK)
    for j in range(0, K, N):
        w = load_rows(weights, K, kept, j, K, L, N, WORK)
        p = load_tile(gains, 1, K, j, 0, K, count, N, L, WORK)
        f += multiply(w, p, WORK, PRECISION)
    f = tl.where(at[:, None] == at[None, :], tl.sqrt(pivots)[:, None], f)
    if scale != 1.0:
        for i in range(0, K, N):
            for j in range(0, K, N):
                x = load_tile(root, K, 1, i, j, K, K, N, N, WORK) * tl.sqrt(scale)
                store_tile(root, K, 1, x, i, j, K, K, N, N)
        tl.debug_barrier()
    return invert_lower(f, count, L, WORK), pivots, spread
