"""read in Triton: ``values = W R`` and ``var_t = w_t' U w_t``; one program per memory and tile of
queries forward and for dW, one per memory and tile of slots for dR and dU.

Forward in the state's dtype, backward in float64: its sums run over all queries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._finish import finish, no_partials
from ._launch import VARYING, choose, launch, plain
from ._tiles import (
    add_product,
    count_nan,
    load_symmetric,
    load_tile,
    multiply,
    nan_if,
    store_symmetric,
    store_tile,
)


@triton.jit
def read_tile(
    mean, cov, weights, values, var, first, T, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Read at the addresses of M queries from ``first``; returns how many results are NaN."""
    bad = 0
    for c in range(0, C, N):
        x = tl.zeros((M, N), WORK)
        x = add_product(
            x, weights, K, 1, mean, C, 1, first, c, T, C, K, M, N, N, WORK, PRECISION
        )  # fmt: skip
        bad += count_nan(x)
        store_tile(values, C, 1, x, first, c, T, C, M, N)
    spread = tl.zeros((M,), WORK)
    for j in range(0, K, N):
        x = tl.zeros((M, N), WORK)
        for q in range(0, K, N):
            w = load_tile(weights, K, 1, first, q, T, K, M, N, WORK)
            x += multiply(w, load_symmetric(cov, K, q, j, N, WORK), WORK, PRECISION)
        w = load_tile(weights, K, 1, first, j, T, K, M, N, WORK)
        spread += tl.sum(x * w, axis=1)
    bad += tl.sum(tl.where(spread != spread, 1, 0), axis=0)
    # Rounding must not make the variance of a positive semi-definite covariance negative.
    spread = tl.where(spread < 0.0, 0.0, spread)
    at = first + tl.arange(0, M)
    tl.store(var + at, spread, mask=at < T)
    return bad


@triton.jit
def count_state_nan(mean, cov, K, C, N: tl.constexpr):
    """How many elements of a state are NaN: what no address reads counts as well."""
    bad = 0
    for i in range(0, K, N):
        for j in range(0, C, N):
            bad += count_nan(load_tile(mean, C, 1, i, j, K, C, N, N, tl.float32))
        for j in range(0, K, N):
            bad += count_nan(load_tile(cov, K, 1, i, j, K, K, N, N, tl.float32))
    return bad


@triton.jit(do_not_specialize=VARYING)
def read_kernel(
    mean, cov, weights, values, var, partials, splits, T, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    mean += item * K * C
    cov += item * K * K
    first = (tile * M).to(tl.int32)
    bad = 0
    if tile == 0:
        bad = count_state_nan(mean, cov, K, C, N)
    bad += read_tile(
        mean, cov, weights + item * T * K, values + item * T * C, var + item * T, first, T, K, C,
        M, N, WORK, PRECISION,
    )  # fmt: skip
    tl.store(partials + program, nan_if(bad))


@triton.jit
def address_gradient(
    x, mean, cov, weights, grad_values, grad_var, first, j, T, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``x`` plus the tile at (first, j) of ``dW = gV R' + 2 g W U``; both gradients optional."""
    if grad_values is not None:
        x = add_product(
            x, grad_values, C, 1, mean, 1, C, first, j, T, K, C, M, N, N, WORK, PRECISION
        )  # fmt: skip
    if grad_var is not None:
        at = first + tl.arange(0, M)
        g = tl.load(grad_var + at, mask=at < T, other=0.0).to(WORK)
        for q in range(0, K, N):
            w = load_tile(weights, K, 1, first, q, T, K, M, N, WORK) * (2 * g)[:, None]
            x += multiply(w, load_symmetric(cov, K, q, j, N, WORK), WORK, PRECISION)
    return x


@triton.jit
def mean_gradient(
    x, weights, grad_values, i, c, T, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``x`` plus the tile at (i, c) of ``dR = W' gV``; the gradient is optional."""
    if grad_values is not None:
        x = add_product(
            x, weights, 1, K, grad_values, C, 1, i, c, K, C, T, N, N, M, WORK, PRECISION
        )  # fmt: skip
    return x


@triton.jit
def covariance_gradient(
    weights, grad_var, d_cov, i, T, K,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Stores rows i to i + N of ``dU = sum_t g_t w_t w_t'`` and the columns that mirror them."""
    for j in range(0, i + 1, N):
        x = tl.zeros((N, N), WORK)
        if grad_var is not None:
            for t in range(0, T, M):
                at = t + tl.arange(0, M)
                g = tl.load(grad_var + at, mask=at < T, other=0.0).to(WORK)
                left = load_tile(weights, 1, K, i, t, K, T, N, M, WORK)
                right = load_tile(weights, K, 1, t, j, T, K, M, N, WORK) * g[:, None]
                x += multiply(left, right, WORK, PRECISION)
        store_symmetric(d_cov, K, x, i, j, N)


@triton.jit(do_not_specialize=VARYING)
def read_weights_kernel(
    grad_values, grad_var, mean, cov, weights, d_weights, partials, splits, T, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    first = (tile * M).to(tl.int32)
    mean += item * K * C
    cov += item * K * K
    weights += item * T * K
    if grad_values is not None:
        grad_values += item * T * C
    if grad_var is not None:
        grad_var += item * T
    bad = 0
    if tile == 0:
        bad = count_state_nan(mean, cov, K, C, N)
    for j in range(0, K, N):
        x = tl.zeros((M, N), WORK)
        x = address_gradient(
            x, mean, cov, weights, grad_values, grad_var, first, j, T, K, C, M, N, WORK, PRECISION
        )  # fmt: skip
        bad += count_nan(load_tile(weights, K, 1, first, j, T, K, M, N, WORK))
        store_tile(d_weights + item * T * K, K, 1, x, first, j, T, K, M, N)
    tl.store(partials + program, nan_if(bad))


@triton.jit(do_not_specialize=VARYING)
def read_state_kernel(
    grad_values, grad_var, weights, d_mean, d_cov, splits, T, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    i = (tile * N).to(tl.int32)
    weights += item * T * K
    if grad_values is not None:
        grad_values += item * T * C
    if grad_var is not None:
        grad_var += item * T
    for c in range(0, C, N):
        x = tl.zeros((N, N), WORK)
        x = mean_gradient(x, weights, grad_values, i, c, T, K, C, M, N, WORK, PRECISION)
        store_tile(d_mean + item * K * C, C, 1, x, i, c, K, C, N, N)
    covariance_gradient(weights, grad_var, d_cov + item * K * K, i, T, K, M, N, WORK, PRECISION)


def read(mean: Tensor, cov: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """``kanerva::read``."""
    mean, cov, weights = plain(mean), plain(cov), plain(weights)
    (batch, slots, code), queries = mean.shape, weights.shape[1]
    config = choose(slots, mean.dtype)
    values, var = mean.new_empty(batch, queries, code), mean.new_empty(batch, queries)
    splits = max(1, triton.cdiv(queries, config.steps))
    partials = no_partials(mean, splits)
    launch(
        read_kernel, batch * splits, config, mean, cov, weights, values, var, partials, splits,
        queries, slots, code, **config.constants(mean.dtype),
    )  # fmt: skip
    finish(partials, values, var)
    return values, var


def read_backward(
    grad_values: Tensor | None,
    grad_var: Tensor | None,
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """``kanerva::read_backward``."""
    grad_values, grad_var = plain(grad_values), plain(grad_var)
    mean, cov, weights = plain(mean), plain(cov), plain(weights)
    (batch, slots, code), queries = mean.shape, weights.shape[1]
    config = choose(slots, torch.float64)
    constants = config.constants(torch.float64)
    out = [torch.empty_like(x) for x in (mean, cov, weights)]
    splits = max(1, triton.cdiv(queries, config.steps))
    partials = no_partials(mean, splits)
    launch(
        read_weights_kernel, batch * splits, config, grad_values, grad_var, mean, cov, weights,
        out[2], partials, splits, queries, slots, code, **constants,
    )  # fmt: skip
    tiles = triton.cdiv(slots, config.size)
    launch(
        read_state_kernel, batch * tiles, config, grad_values, grad_var, weights, out[0], out[1],
        tiles, queries, slots, code, **constants,
    )  # fmt: skip
    finish(partials, *out)
    return tuple(out)
