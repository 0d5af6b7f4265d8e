"""Device functions shared by the kernels: tiles of matrices in memory, products, small factors.

A matrix is a pointer with a row and a column stride; a transposed one has them swapped. One program
works on a memory; what it writes and reads again lies in global memory (in practice in the caches),
with a barrier between. Every product states its precision, see `_launch.Config`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(
    ptr, rs, cs, row, col, rows, cols, R: tl.constexpr, C: tl.constexpr, WORK: tl.constexpr
):
    """Elements [row, row + R) x [col, col + C), zero outside ``rows`` x ``cols``."""
    i = (row + tl.arange(0, R)).to(tl.int64)
    j = (col + tl.arange(0, C)).to(tl.int64)
    inside = (i < rows)[:, None] & (j < cols)[None, :]
    return tl.load(ptr + i[:, None] * rs + j[None, :] * cs, mask=inside, other=0.0).to(WORK)


@triton.jit
def store_tile(ptr, rs, cs, x, row, col, rows, cols, R: tl.constexpr, C: tl.constexpr):
    i = (row + tl.arange(0, R)).to(tl.int64)
    j = (col + tl.arange(0, C)).to(tl.int64)
    inside = (i < rows)[:, None] & (j < cols)[None, :]
    tl.store(ptr + i[:, None] * rs + j[None, :] * cs, x, mask=inside)


@triton.jit
def load_rows(ptr, ld, kept, col, cols, R: tl.constexpr, C: tl.constexpr, WORK: tl.constexpr):
    """Rows 0 to R, zero where they are not ``kept``, whatever they hold in memory."""
    i = tl.arange(0, R).to(tl.int64)
    j = (col + tl.arange(0, C)).to(tl.int64)
    inside = kept[:, None] & (j < cols)[None, :]
    return tl.load(ptr + i[:, None] * ld + j[None, :], mask=inside, other=0.0).to(WORK)


@triton.jit
def load_sum(
    ptr, stride, blocks, ld, col, count, cols, L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr
):
    """The sum over the blocks of columns of a tile of a chunk's rows."""
    x = tl.zeros((L, N), WORK)
    for block in range(0, blocks):
        x += load_tile(ptr + block * stride, ld, 1, 0, col, count, cols, L, N, WORK)
    return x


@triton.jit
def multiply(a, b, WORK: tl.constexpr, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=WORK)


@triton.jit
def add_product(
    x, a, a_rs, a_cs, b, b_rs, b_cs, i, j, m, n, k,
    M: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, WORK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``x`` plus the M x N tile at (i, j) of the product of a (m x k) and b (k x n)."""
    for q in range(0, k, Q):
        left = load_tile(a, a_rs, a_cs, i, q, m, k, M, Q, WORK)
        right = load_tile(b, b_rs, b_cs, q, j, k, n, Q, N, WORK)
        x += multiply(left, right, WORK, PRECISION)
    return x


@triton.jit
def load_symmetric(ptr, n, i, j, N: tl.constexpr, WORK: tl.constexpr):
    """The tile at (i, j) of the symmetric part of an n x n matrix."""
    x = load_tile(ptr, n, 1, i, j, n, n, N, N, WORK)
    y = load_tile(ptr, 1, n, i, j, n, n, N, N, WORK)
    return (x + y) * 0.5


@triton.jit
def store_symmetric(ptr, n, x, i, j, N: tl.constexpr):
    """``x`` at (i, j) and its transpose at (j, i), so that the matrix is exactly symmetric."""
    y = tl.trans(x)
    if i == j:
        x = (x + y) * 0.5
        y = x
    store_tile(ptr, n, 1, x, i, j, n, n, N, N)
    store_tile(ptr, n, 1, y, j, i, n, n, N, N)


@triton.jit
def copy_symmetric(source, target, n, N: tl.constexpr, WORK: tl.constexpr):
    for i in range(0, n, N):
        for j in range(0, i + 1, N):
            store_symmetric(target, n, load_symmetric(source, n, i, j, N, WORK), i, j, N)


@triton.jit
def copy_matrix(
    source, target, rows, first, last, ld, R: tl.constexpr, C: tl.constexpr, WORK: tl.constexpr
):
    """Columns [first, last) of a matrix of ``ld`` columns; zeros where there is no source."""
    for i in range(0, rows, R):
        for j in range(first, last, C):
            x = tl.zeros((R, C), WORK)
            if source is not None:
                x = load_tile(source, ld, 1, i, j, rows, last, R, C, WORK)
            store_tile(target, ld, 1, x, i, j, rows, last, R, C)


@triton.jit
def set_identity(target, n, N: tl.constexpr, WORK: tl.constexpr):
    at = tl.arange(0, N)
    for i in range(0, n, N):
        for j in range(0, n, N):
            x = tl.where((i + at)[:, None] == (j + at)[None, :], 1.0, 0.0).to(WORK)
            store_tile(target, n, 1, x, i, j, n, n, N, N)


@triton.jit
def fill(ptr, value, count, N: tl.constexpr):
    for start in range(0, count, N):
        i = (start + tl.arange(0, N)).to(tl.int64)
        tl.store(ptr + i, value, mask=i < count)


@triton.jit
def count_nan(x):
    return tl.sum(tl.sum(tl.where(x != x, 1, 0), axis=1), axis=0)


@triton.jit
def nan_if(count):
    """A float64 partial: NaN if anything was counted, else zero."""
    return tl.where(count > 0, tl.full((), float("nan"), tl.float64), 0.0)


@triton.jit
def invert_factor(s, n, N: tl.constexpr, WORK: tl.constexpr):
    """F^-1 (lower triangular), the squared diagonal of F and F', for ``s = F F'``, N x N elements.

    Rows from n on must be those of the identity. Where a pivot is not positive, what follows means
    nothing: look at the pivots. One tile holds both: s on and above its diagonal, the inverse of
    the unit factor below.
    """
    at = tl.arange(0, N)
    row, column = at[:, None], at[None, :]
    upper = column >= row
    s = tl.where(upper, s, 0.0)
    pivots = tl.full((N,), 1.0, WORK)
    for j in range(0, n):
        here = at == j
        line = tl.sum(tl.where(row == j, s, 0.0), axis=0)
        pivot = tl.sum(tl.where(here, line, 0.0), axis=0)
        factor = tl.where(at > j, line / pivot, 0.0)
        line = tl.where(here, 1.0, line)
        s -= tl.where(upper | (column <= j), factor[:, None] * line[None, :], 0.0)
        pivots = tl.where(here, pivot, pivots)
    scale = (1.0 / tl.sqrt(pivots))[:, None]
    inverse = tl.where(upper, tl.where(row == column, 1.0, 0.0).to(WORK), s)
    return inverse * scale, pivots, tl.where(upper, s * scale, 0.0)


@triton.jit
def count_not_positive(pivots):
    return tl.sum(tl.where((pivots > 0.0) & (pivots < float("inf")), 0, 1), axis=0)
