"""forget in Triton: the write with its noise negative, chunk by chunk in float64.

With ``V - W U W' = F F', P = F^-1 W U, E = F^-1 (Z - W R)`` a chunk takes R to ``R - P'E`` and U to
``U + P'P``. These are the steps of a write from ``-U``, but for the signs of P and U, and the
functions of `bayes_write` do them. Backward is the closed form of docs/operators/forget.md, in
products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._chunk import downdate, load_steps, write_chunk, write_columns
from ._finish import finish, no_partials
from ._launch import VARYING, as_bytes, choose, empty, launch, plain
from ._tiles import (
    add_product,
    count_nan,
    load_rows,
    load_symmetric,
    load_tile,
    multiply,
    nan_if,
    store_symmetric,
    store_tile,
)
from .bayes_write import blocks_of_columns


@triton.jit(do_not_specialize=VARYING)
def forget_kernel(
    mean, cov, weights, values, noise_var, mask, mean_work, cov_work, mean_out, cov_out, gains,
    partials, T, K, C, blocks, width,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per memory and block of columns, each with a covariance of its own."""
    program = tl.program_id(0).to(tl.int64)
    item, block = program // blocks, program % blocks
    first_column = (block * width).to(tl.int32)
    last_column = tl.minimum(first_column + width, C)
    mean += item * K * C
    cov += item * K * K
    mean_work += item * K * C
    cov_work += program * K * K
    weights += item * T * K
    values += item * T * C
    gains += program * L * K
    for i in range(0, K, N):
        for j in range(0, i + 1, N):
            x = load_symmetric(cov, K, i, j, N, WORK)
            store_symmetric(cov_work, K, -x, i, j, N)
        for c in range(first_column, last_column, N):
            x = load_tile(mean, C, 1, i, c, K, last_column, N, N, WORK)
            store_tile(mean_work, C, 1, x, i, c, K, last_column, N, N)
    tl.debug_barrier()
    failures = tl.zeros((), tl.int32)
    first = tl.zeros((), tl.int32)
    while (first < T) & (failures == 0):
        count = tl.minimum(L, T - first)
        kept, v, _g, product, bad = load_steps(noise_var, mask, None, item * T + first, count, L)
        noise = tl.where(kept, v, 1.0)
        w = weights + first.to(tl.int64) * K
        z = values + first.to(tl.int64) * C
        inverse, _pivots, outcome = write_chunk(
            cov_work, w, gains, kept, noise, count, float("inf"), K, L, N, WORK, PRECISION
        )
        failures += bad + tl.where(outcome < 0, 1, 0)
        if failures == 0:
            write_columns(
                mean_work, w, z, None, gains, inverse, kept, product, first_column, last_column,
                count, K, C, L, N, WORK, PRECISION, False,
            )  # fmt: skip
            downdate(cov_work, gains, 1.0, count, K, L, N, WORK, PRECISION)
            tl.debug_barrier()
        first += count
    for i in range(0, K, N):
        for c in range(first_column, last_column, N):
            x = load_tile(mean_work, C, 1, i, c, K, last_column, N, N, WORK)
            failures += count_nan(x)
            store_tile(mean_out + item * K * C, C, 1, x, i, c, K, last_column, N, N)
        if block == 0:
            for j in range(0, K, N):
                x = -load_tile(cov_work, K, 1, i, j, K, K, N, N, WORK)
                failures += count_nan(x)
                store_tile(cov_out + item * K * K, K, 1, x, i, j, K, K, N, N)
    tl.store(partials + program, nan_if(failures))


@triton.jit(do_not_specialize=VARYING)
def steps_kernel(
    grad_mean, grad_cov, mean, cov, weights, values, noise_var, mask, room, inner, d_weights,
    d_values, d_noise, partials, splits, T, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of M steps: what is in `StepsRoom` and the gradients of the arguments by step."""
    address, residual, gains, value_slopes, half = room
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    first = (tile * M).to(tl.int32)
    count = tl.minimum(M, T - first)
    start = item * T + first
    mean += item * K * C
    cov += item * K * K
    weights += start * K
    values += start * C
    address += start * K
    residual += start * C
    gains += start * K
    value_slopes += start * C
    half += start * K
    inner += start * K
    d_weights += start * K
    d_values += start * C
    if grad_mean is not None:
        grad_mean += item * K * C
    if grad_cov is not None:
        grad_cov += item * K * K
    kept, v, _g, _product, bad = load_steps(noise_var, mask, None, start, count, M)
    scale = (-1.0 / tl.where(kept, v, 1.0))[:, None]
    for j in range(0, K, N):
        store_tile(
            address, K, 1, load_rows(weights, K, kept, j, K, M, N, WORK), 0, j, count, K, M, N
        )  # fmt: skip
        x = tl.zeros((M, N), WORK)
        for q in range(0, K, N):
            w = load_rows(weights, K, kept, q, K, M, N, WORK)
            u = load_symmetric(cov, K, q, j, N, WORK)
            if tile == 0:
                bad += count_nan(u)
            x += multiply(w, u, WORK, PRECISION)
        store_tile(gains, K, 1, x * scale, 0, j, count, K, M, N)
    for c in range(0, C, N):
        x = load_rows(values, C, kept, c, C, M, N, WORK)
        for q in range(0, K, N):
            w = load_rows(weights, K, kept, q, K, M, N, WORK)
            r = load_tile(mean, C, 1, q, c, K, C, N, N, WORK)
            if tile == 0:
                bad += count_nan(r)
            x -= multiply(w, r, WORK, PRECISION)
        store_tile(residual, C, 1, x * scale, 0, c, count, C, M, N)
    tl.debug_barrier()
    d_n = tl.zeros((M,), WORK)
    for c in range(0, C, N):
        x = tl.zeros((M, N), WORK)
        if grad_mean is not None:
            x = add_product(
                x, gains, K, 1, grad_mean, C, 1, 0, c, count, C, K, M, N, N, WORK, PRECISION
            )  # fmt: skip
        d_n += tl.sum(x * load_tile(residual, C, 1, 0, c, count, C, M, N, WORK), axis=1)
        store_tile(value_slopes, C, 1, x, 0, c, count, C, M, N)
        store_tile(d_values, C, 1, x, 0, c, count, C, M, N)
    for j in range(0, K, N):
        x = tl.zeros((M, N), WORK)
        if grad_cov is not None:
            for q in range(0, K, N):
                g = load_tile(gains, K, 1, 0, q, count, K, M, N, WORK)
                x += multiply(g, load_symmetric(grad_cov, K, q, j, N, WORK), WORK, PRECISION)
        d_n -= tl.sum(x * load_tile(gains, K, 1, 0, j, count, K, M, N, WORK), axis=1)
        store_tile(half, K, 1, x, 0, j, count, K, M, N)
        x = -2.0 * x
        if grad_mean is not None:
            x = add_product(
                x, residual, C, 1, grad_mean, 1, C, 0, j, count, K, C, M, N, N, WORK, PRECISION
            )  # fmt: skip
        store_tile(inner, K, 1, x, 0, j, count, K, M, N)
    tl.debug_barrier()
    for j in range(0, K, N):
        x = tl.zeros((M, N), WORK)
        for c in range(0, C, N):
            left = load_tile(value_slopes, C, 1, 0, c, count, C, M, N, WORK)
            r = load_tile(mean, 1, C, c, j, C, K, N, N, WORK)
            x -= multiply(left, r, WORK, PRECISION)
        for q in range(0, K, N):
            left = load_tile(inner, K, 1, 0, q, count, K, M, N, WORK)
            x += multiply(left, load_symmetric(cov, K, q, j, N, WORK), WORK, PRECISION)
        store_tile(d_weights, K, 1, x, 0, j, count, K, M, N)
    at = tl.arange(0, M)
    tl.store(d_noise + start + at, d_n, mask=at < count)
    tl.store(partials + program, nan_if(bad))


@triton.jit(do_not_specialize=VARYING)
def slots_kernel(
    grad_mean, grad_cov, address, value_slopes, half, d_mean, mean_slope, one_side, splits, T, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of slots of ``dR = gR - W'dZ`` (also in float64, as ``mean_slope``) and of
    ``one_side = gU - W' half``."""
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    i = (tile * N).to(tl.int32)
    address += item * T * K
    if grad_mean is not None:
        for c in range(0, C, N):
            x = -load_tile(grad_mean + item * K * C, C, 1, i, c, K, C, N, N, WORK)
            right = value_slopes + item * T * C
            x = -add_product(
                x, address, 1, K, right, C, 1, i, c, K, C, T, N, N, M, WORK, PRECISION
            )  # fmt: skip
            store_tile(mean_slope + item * K * C, C, 1, x, i, c, K, C, N, N)
            store_tile(d_mean + item * K * C, C, 1, x, i, c, K, C, N, N)
    if grad_cov is not None:
        for j in range(0, K, N):
            x = -load_symmetric(grad_cov + item * K * K, K, i, j, N, WORK)
            right = half + item * T * K
            x = -add_product(
                x, address, 1, K, right, K, 1, i, j, K, K, T, N, N, M, WORK, PRECISION
            )  # fmt: skip
            store_tile(one_side + item * K * K, K, 1, x, i, j, K, K, N, N)


@triton.jit(do_not_specialize=VARYING)
def other_side_kernel(
    grad_mean, grad_cov, residual, gains, mean_slope, one_side, other, splits, T, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of M steps: ``other = A dR' - G one_side'``."""
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    first = (tile * M).to(tl.int32)
    for j in range(0, K, N):
        x = tl.zeros((M, N), WORK)
        if grad_cov is not None:
            left, right = gains + item * T * K, one_side + item * K * K
            x = -add_product(
                x, left, K, 1, right, 1, K, first, j, T, K, K, M, N, N, WORK, PRECISION
            )  # fmt: skip
        if grad_mean is not None:
            left, right = residual + item * T * C, mean_slope + item * K * C
            x = add_product(
                x, left, C, 1, right, 1, C, first, j, T, K, C, M, N, N, WORK, PRECISION
            )  # fmt: skip
        store_tile(other + item * T * K, K, 1, x, first, j, T, K, M, N)


@triton.jit(do_not_specialize=VARYING)
def covariance_kernel(
    grad_cov, address, one_side, other, d_cov, splits, T, K,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of ``dU = sym(one_side + other' W)`` up to the diagonal, and their mirrors."""
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    i = (tile * N).to(tl.int32)
    address += item * T * K
    other += item * T * K
    for j in range(0, i + 1, N):
        x = tl.zeros((N, N), WORK)
        if grad_cov is not None:
            x = load_symmetric(one_side + item * K * K, K, i, j, N, WORK) * 2.0
        x = add_product(x, other, 1, K, address, K, 1, i, j, K, K, T, N, N, M, WORK, PRECISION)
        x = add_product(x, address, 1, K, other, K, 1, i, j, K, K, T, N, N, M, WORK, PRECISION)
        store_symmetric(d_cov + item * K * K, K, 0.5 * x, i, j, N)


class StepsRoom(NamedTuple):
    """W (zero where masked), A, G, dZ and G gU."""

    address: Tensor
    residual: Tensor
    gains: Tensor
    value_slopes: Tensor
    half: Tensor


def forget(
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    noise_var: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``kanerva::forget``."""
    inputs = [plain(x) for x in (mean, cov, weights, values, noise_var)]
    (batch, slots, code), episode = mean.shape, weights.shape[1]
    mean_out, cov_out = torch.empty_like(inputs[0]), torch.empty_like(inputs[1])
    config = choose(slots, torch.float64)
    blocks, width = blocks_of_columns(mean)
    partials = no_partials(mean, blocks)
    launch(
        forget_kernel, batch * blocks, config, *inputs, as_bytes(mask),
        mean_work=mean_out if mean.dtype == torch.float64 else empty(mean, *mean.shape),
        cov_work=empty(mean, batch, blocks, slots, slots), mean_out=mean_out, cov_out=cov_out,
        gains=empty(mean, batch, blocks, config.steps, slots), partials=partials, T=episode,
        K=slots, C=code, blocks=blocks, width=width, **config.constants(torch.float64, "L"),
    )  # fmt: skip
    finish(partials, mean_out, cov_out)
    return mean_out, cov_out


def forget_backward(
    grad_mean: Tensor | None,
    grad_cov: Tensor | None,
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    noise_var: Tensor,
    mask: Tensor | None,
    rest_mean: Tensor,
    rest_cov: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``kanerva::forget_backward``: gradients of mean, cov, weights, values and noise_var."""
    grads = plain(grad_mean), plain(grad_cov)
    inputs = [plain(x) for x in (rest_mean, rest_cov, weights, values, noise_var)]
    (batch, slots, code), episode = mean.shape, weights.shape[1]
    config = choose(slots, torch.float64)
    constants = config.constants(torch.float64)
    out = [torch.empty_like(x) for x in inputs]
    if grad_mean is None:
        out[0].zero_()
    address, gains, half, inner = (empty(mean, batch, episode, slots) for _ in range(4))
    residual, value_slopes = (empty(mean, batch, episode, code) for _ in range(2))
    mean_slope, one_side = empty(mean, *mean.shape), empty(mean, *cov.shape)
    splits, tiles = max(1, triton.cdiv(episode, config.steps)), triton.cdiv(slots, config.size)
    partials = no_partials(mean, splits)
    launch(
        steps_kernel, batch * splits, config, *grads, *inputs, as_bytes(mask),
        room=StepsRoom(address, residual, gains, value_slopes, half), inner=inner,
        d_weights=out[2], d_values=out[3], d_noise=out[4], partials=partials, splits=splits,
        T=episode, K=slots, C=code, **constants,
    )  # fmt: skip
    launch(
        slots_kernel, batch * tiles, config, *grads, address, value_slopes, half, out[0],
        mean_slope, one_side, tiles, episode, slots, code, **constants,
    )  # fmt: skip
    other = inner
    launch(
        other_side_kernel, batch * splits, config, *grads, residual, gains, mean_slope, one_side,
        other, splits, episode, slots, code, **constants,
    )  # fmt: skip
    launch(
        covariance_kernel, batch * tiles, config, grads[1], address, one_side, other, out[1],
        tiles, episode, slots, **constants,
    )  # fmt: skip
    finish(partials, *out)
    return tuple(out)
