"""causal_step in Triton: one step of `causal_scan`, in float64, on the state's own tensors.

A chunk of one step needs no factor: `step_kernel`, one program per memory and block of columns,
changes the mean and reads; `step_cov_kernel` changes the covariance when all of them have read it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._finish import finish, no_partials
from ._launch import VARYING, as_bytes, choose, empty, launch, plain
from ._square_root import load_vector
from ._tiles import load_symmetric, load_tile, store_symmetric, store_tile
from .bayes_write import blocks_of_columns, symmetric


@triton.jit
def load_step(mask, decay, item, K):
    """How many slots the address has, none if the step is masked, and the decay."""
    slots = K
    if mask is not None:
        slots = tl.where(tl.load(mask + item) != 0, K, 0)
    g = tl.full((), 1.0, tl.float64)
    if decay is not None:
        g = tl.where(slots > 0, tl.load(decay + item).to(tl.float64), g)
    return slots, g


@triton.jit
def load_cov(cov, sigma, g, K, i, j, N: tl.constexpr, MOVES: tl.constexpr):
    """The tile at (i, j) of the covariance before the write but for the decay: with MOVES, ``g`` is
    the retention (`_stationary`)."""
    x = load_symmetric(cov, K, i, j, N, tl.float64)
    if MOVES:
        fresh = (1.0 - g) * (1.0 + g)
        if sigma is None:
            at = tl.arange(0, N)
            x = g * g * x + tl.where((i + at)[:, None] == (j + at)[None, :], fresh, 0.0)
        else:
            x = g * g * x + fresh * load_symmetric(sigma, K, i, j, N, tl.float64)
    return x


@triton.jit
def load_mean(mean, kept, i, c, last, K, C, N: tl.constexpr, MOVES: tl.constexpr):
    x = load_tile(mean, C, 1, i, c, K, last, N, N, tl.float64)
    if MOVES:
        x *= kept
    return x


@triton.jit
def load_rest(queries, weights, share, start, slots, K, N: tl.constexpr):
    """``q - share w``."""
    w = load_vector(weights, start, slots, N, tl.float64)
    return load_vector(queries, start, K, N, tl.float64) - share * w


@triton.jit(do_not_specialize=VARYING)
def step_kernel(
    mean, cov, weights, values, queries, noise_var, mask, decay, sigma, gains, reads, variances,
    partials, K, C, blocks, width, N: tl.constexpr, MOVES: tl.constexpr,
):  # fmt: skip
    """``gains`` becomes the vector g of ``U <- U / decay - g g'``. MOVES: ``decay`` holds
    retentions."""
    program = tl.program_id(0).to(tl.int64)
    item, block = program // blocks, program % blocks
    first_column = (block * width).to(tl.int32)
    last_column = tl.minimum(first_column + width, C)
    mean += item * K * C
    cov += item * K * K
    weights += item * K
    queries += item * K
    gains += program * K
    at = tl.arange(0, N)
    slots, g = load_step(mask, decay, item, K)
    divisor, kept = g, tl.full((), 1.0, tl.float64)
    if MOVES:
        divisor, kept = kept, g
        if sigma is not None:
            sigma += item * K * K
    v = tl.where(slots > 0, tl.load(noise_var + item).to(tl.float64), 1.0)
    zero = tl.zeros((), tl.float64)

    energy = zero
    share = zero  # of the observation in the read
    for i in range(0, K, N):
        y = tl.zeros((N,), tl.float64)
        for j in range(0, K, N):
            w = load_vector(weights, j, slots, N, tl.float64)
            y += tl.sum(load_cov(cov, sigma, g, K, i, j, N, MOVES) * w[None, :], axis=1)
        y = y / divisor
        tl.store(gains + i + at, y, mask=i + at < K)
        energy += tl.sum(y * load_vector(weights, i, slots, N, tl.float64), axis=0)
        share += tl.sum(y * load_vector(queries, i, K, N, tl.float64), axis=0)
    tl.debug_barrier()
    s = energy + v
    share = share / s

    squares = zero
    end = tl.where(slots > 0, last_column, 0)
    for c in range(first_column, last_column, N):
        d = load_vector(values + item * C, c, end, N, tl.float64)
        for i in range(0, K, N):
            r = load_mean(mean, kept, i, c, last_column, K, C, N, MOVES)
            d -= tl.sum(r * load_vector(weights, i, slots, N, tl.float64)[:, None], axis=0)
        squares += tl.sum(d * d, axis=0)
        x = tl.zeros((N,), tl.float64)
        for i in range(0, K, N):
            r = load_mean(mean, kept, i, c, last_column, K, C, N, MOVES)
            r += (load_vector(gains, i, K, N, tl.float64) / s)[:, None] * d[None, :]
            store_tile(mean, C, 1, r, i, c, K, last_column, N, N)
            x += tl.sum(r * load_vector(queries, i, K, N, tl.float64)[:, None], axis=0)
        tl.store(reads + item * C + c + at, x, mask=c + at < last_column)

    if block == 0:
        # q'U q - (q'c)^2 / s without the difference
        spread = v * share * share
        for i in range(0, K, N):
            x = tl.zeros((N,), tl.float64)
            for j in range(0, K, N):
                q = load_rest(queries, weights, share, j, slots, K, N)
                x += tl.sum(load_cov(cov, sigma, g, K, i, j, N, MOVES) * q[None, :], axis=1)
            q = load_rest(queries, weights, share, i, slots, K, N)
            spread += tl.sum(x * q, axis=0) / divisor
        tl.store(variances + item, tl.where(spread < 0.0, 0.0, spread))

    tl.debug_barrier()
    for i in range(0, K, N):
        y = load_vector(gains, i, K, N, tl.float64)
        tl.store(gains + i + at, y / tl.sqrt(s), mask=i + at < K)
    columns = (last_column - first_column).to(tl.float64)
    term = columns * (tl.log(s) + 1.8378770664093453)
    total = -0.5 * (squares / s + tl.where((slots > 0) | (s != s), term, 0.0))
    valid = (v > 0.0) & (v <= 1e300) & (g > 0.0) & (g <= 1.0) & (s > 0.0)
    valid = valid & (total < float("inf")) & (total > float("-inf"))
    tl.store(partials + program, tl.where(valid, total, float("nan")))


@triton.jit(do_not_specialize=VARYING)
def step_cov_kernel(
    cov, gains, mask, decay, sigma, K, blocks, splits, N: tl.constexpr, MOVES: tl.constexpr
):
    """One program per memory and row of tiles."""
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    cov += item * K * K
    gains += item * blocks * K
    _slots, g = load_step(mask, decay, item, K)
    divisor = g
    if MOVES:
        divisor = tl.full((), 1.0, tl.float64)
        if sigma is not None:
            sigma += item * K * K
    i = (tile * N).to(tl.int32)
    left = load_vector(gains, i, K, N, tl.float64)
    for j in range(0, i + 1, N):
        right = load_vector(gains, j, K, N, tl.float64)
        x = load_cov(cov, sigma, g, K, i, j, N, MOVES) / divisor
        store_symmetric(cov, K, x - left[:, None] * right[None, :], i, j, N)


def causal_step(
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    queries: Tensor,
    noise_var: Tensor,
    mask: Tensor | None = None,
    decay: Tensor | None = None,
    retention: Tensor | None = None,
    stationary_cov: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``kanerva::causal_step``: mean and cov, contiguous, become those after the step."""
    batch, slots, code = mean.shape
    steps = [plain(x) for x in (weights, values, queries, noise_var)]
    moves, sigma = retention is not None, symmetric(stationary_cov)
    mask, decay = as_bytes(mask), plain(retention if moves else decay)
    reads, variances = empty(mean, batch, code, dtype=mean.dtype), mean.new_empty(batch)
    evidence = mean.new_empty(batch)
    blocks, width = blocks_of_columns(mean)
    config = choose(slots, torch.float64)
    gains, partials = empty(mean, batch, blocks, slots), no_partials(mean, blocks)
    launch(
        step_kernel, batch * blocks, config, mean, cov, *steps, mask=mask, decay=decay,
        sigma=sigma, gains=gains, reads=reads, variances=variances, partials=partials, K=slots,
        C=code, blocks=blocks, width=width, N=config.size, MOVES=moves,
    )  # fmt: skip
    tiles = triton.cdiv(slots, config.size)
    launch(
        step_cov_kernel, batch * tiles, config, cov, gains, mask, decay, sigma, slots, blocks,
        tiles, N=config.size, MOVES=moves,
    )  # fmt: skip
    finish(partials, mean, cov, reads, variances, total=evidence)
    return reads, variances, evidence
