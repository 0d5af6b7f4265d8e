"""memory_kl in Triton: ``1/2 [C tr(U0^-1 U) + tr(D' U0^-1 D) - K C - C (ln|U| - ln|U0|)]``.

A program per covariance factorises it, in float64 (`factor_kernel` of statistics); then one program
per memory and panel of columns solves ``F0^-1 [F, R - R0]`` and leaves its sum of squares. Backward
forms both inverses, and products of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._finish import finish, no_partials
from ._launch import VARYING, choose, empty, launch, plain
from ._spd import solve, solve_lower
from ._tiles import (
    add_product,
    load_symmetric,
    load_tile,
    multiply,
    nan_if,
    store_symmetric,
    store_tile,
)
from .statistics import factor_kernel, unit_panel


@triton.jit
def load_difference(a, b, i, j, K, C, N: tl.constexpr, M: tl.constexpr, WORK: tl.constexpr):
    return load_tile(a, C, 1, i, j, K, C, N, M, WORK) - load_tile(b, C, 1, i, j, K, C, N, M, WORK)


@triton.jit(do_not_specialize=VARYING)
def spread_kernel(
    mean, prior_mean, factor, inverse, log_dets, panels, partials, splits, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The share of a panel in the divergence; the first panel adds what no panel holds."""
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, (program % splits).to(tl.int32)
    panels += program * K * M
    mean += item * K * C
    prior_mean += item * K * C
    own, prior = 2 * item, 2 * item + 1
    of_factor = (K + M - 1) // M
    for i in range(0, K, N):
        if tile < of_factor:
            rows = (i + tl.arange(0, N))[:, None]
            cols = (tile * M + tl.arange(0, M))[None, :]
            x = load_tile(factor + own * K * K, K, 1, i, tile * M, K, K, N, M, WORK)
            store_tile(panels, M, 1, tl.where(rows >= cols, x, 0.0), i, 0, K, M, N, M)
        else:
            x = load_difference(mean, prior_mean, i, (tile - of_factor) * M, K, C, N, M, WORK)
            store_tile(panels, M, 1, x, i, 0, K, M, N, M)
    tl.debug_barrier()
    solve_lower(
        factor + prior * K * K, inverse + prior * K * N, panels, M, 1, K, M, N, M, WORK, PRECISION
    )
    squares = tl.zeros((), tl.float64)
    for i in range(0, K, N):
        x = load_tile(panels, M, 1, i, 0, K, M, N, M, WORK)
        squares += tl.sum(tl.sum(x * x, axis=1), axis=0)
    if tile < of_factor:
        squares *= C
    if tile == 0:
        squares += C * (tl.load(log_dets + prior) - tl.load(log_dets + own) - K)
    tl.store(partials + program, 0.5 * squares)


@triton.jit(do_not_specialize=VARYING)
def inverse_kernel(
    mean, prior_mean, factor, inverse, precision, scaled, log_dets, partials, splits, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A panel of columns of both inverses, ``precision`` (B, 2, K, K), or of ``U0^-1 (R - R0)``,
    ``scaled``."""
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, (program % splits).to(tl.int32)
    own, prior = 2 * item, 2 * item + 1
    of_factor = (K + M - 1) // M
    if tile < 2 * of_factor:
        which = own + tile % 2
        col = tile // 2 * M
        panel = precision + which * K * K + col
        unit_panel(panel, col, K, M, N, WORK)
        tl.debug_barrier()
        solve(
            factor + which * K * K, inverse + which * K * N, panel, K, 1, K,
            tl.minimum(M, K - col), N, M, WORK, PRECISION,
        )  # fmt: skip
    else:
        col = (tile - 2 * of_factor) * M
        panel = scaled + item * K * C + col
        for i in range(0, K, N):
            x = load_difference(
                mean + item * K * C, prior_mean + item * K * C, i, col, K, C, N, M, WORK
            )
            store_tile(panel, C, 1, x, i, 0, K, C - col, N, M)
        tl.debug_barrier()
        solve(
            factor + prior * K * K, inverse + prior * K * N, panel, C, 1, K,
            tl.minimum(M, C - col), N, M, WORK, PRECISION,
        )  # fmt: skip
    failed = tl.load(log_dets + own) + tl.load(log_dets + prior)
    tl.store(partials + program, nan_if(tl.where(failed != failed, 1, 0)))


@triton.jit(do_not_specialize=VARYING)
def half_kernel(
    cov, precision, half, splits, K,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of slots of ``half = U0^-1 U``."""
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    i = (tile * N).to(tl.int32)
    left = precision + (2 * item + 1) * K * K
    for j in range(0, K, N):
        x = tl.zeros((N, N), WORK)
        for q in range(0, K, N):
            right = load_symmetric(cov + item * K * K, K, q, j, N, WORK)
            x += multiply(load_tile(left, K, 1, i, q, K, K, N, N, WORK), right, WORK, PRECISION)
        store_tile(half + item * K * K, K, 1, x, i, j, K, K, N, N)


@triton.jit(do_not_specialize=VARYING)
def gradient_kernel(
    grad, precision, scaled, half, d_mean, d_cov, d_prior_mean, d_prior_cov, splits, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of slots of all gradients; of the covariances' up to the diagonal, and mirrored."""
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    i = (tile * N).to(tl.int32)
    scale = tl.load(grad + item).to(WORK)
    own = precision + 2 * item * K * K
    prior = own + K * K
    half += item * K * K
    scaled += item * K * C
    for c in range(0, C, N):
        x = scale * load_tile(scaled, C, 1, i, c, K, C, N, N, WORK)
        store_tile(d_mean + item * K * C, C, 1, x, i, c, K, C, N, N)
        store_tile(d_prior_mean + item * K * C, C, 1, -x, i, c, K, C, N, N)
    for j in range(0, i + 1, N):
        p = load_symmetric(own, K, i, j, N, WORK)
        p0 = load_symmetric(prior, K, i, j, N, WORK)
        store_symmetric(d_cov + item * K * K, K, 0.5 * scale * C * (p0 - p), i, j, N)
        x = tl.zeros((N, N), WORK)
        x = add_product(x, half, K, 1, prior, K, 1, i, j, K, K, K, N, N, N, WORK, PRECISION)
        y = tl.zeros((N, N), WORK)
        y = add_product(y, prior, 1, K, half, 1, K, i, j, K, K, K, N, N, N, WORK, PRECISION)
        z = tl.zeros((N, N), WORK)
        z = add_product(z, scaled, C, 1, scaled, 1, C, i, j, K, K, C, N, N, N, WORK, PRECISION)
        x = 0.5 * scale * (C * (p0 - (x + y) * 0.5) - z)
        store_symmetric(d_prior_cov + item * K * K, K, x, i, j, N)


def factor_both(cov: Tensor, prior_cov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors (B, 2, K, K) of both covariances, inverses of their diagonal tiles, ln det."""
    batch, slots = cov.shape[:2]
    config = choose(slots, torch.float64)
    factor, log_dets = empty(cov, batch, 2, slots, slots), empty(cov, batch, 2)
    inverse = empty(cov, batch, 2, slots, config.size)
    launch(
        factor_kernel, 2 * batch, config, cov, prior_cov, factor, inverse, log_dets, slots,
        **config.constants(torch.float64),
    )  # fmt: skip
    return factor, inverse, log_dets


def memory_kl(mean: Tensor, cov: Tensor, prior_mean: Tensor, prior_cov: Tensor) -> Tensor:
    """``kanerva::memory_kl``."""
    mean, cov, prior_mean, prior_cov = (plain(x) for x in (mean, cov, prior_mean, prior_cov))
    batch, slots, code = mean.shape
    config = choose(slots, torch.float64)
    factor, inverse, log_dets = factor_both(cov, prior_cov)
    splits = triton.cdiv(slots, config.steps) + triton.cdiv(code, config.steps)
    partials, kl = no_partials(mean, splits), mean.new_empty(batch)
    launch(
        spread_kernel, batch * splits, config, mean, prior_mean, factor, inverse, log_dets,
        empty(mean, batch, splits, slots, config.steps), partials, splits, slots, code,
        **config.constants(torch.float64),
    )  # fmt: skip
    finish(partials, total=kl)
    return kl


def memory_kl_backward(
    grad: Tensor, mean: Tensor, cov: Tensor, prior_mean: Tensor, prior_cov: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``kanerva::memory_kl_backward``."""
    grad = plain(grad)
    mean, cov, prior_mean, prior_cov = (plain(x) for x in (mean, cov, prior_mean, prior_cov))
    batch, slots, code = mean.shape
    config = choose(slots, torch.float64)
    constants = config.constants(torch.float64)
    factor, inverse, log_dets = factor_both(cov, prior_cov)
    splits = 2 * triton.cdiv(slots, config.steps) + triton.cdiv(code, config.steps)
    partials = no_partials(mean, splits)
    precision, scaled = torch.empty_like(factor), empty(mean, batch, slots, code)
    launch(
        inverse_kernel, batch * splits, config, mean, prior_mean, factor, inverse, precision,
        scaled, log_dets, partials, splits, slots, code, **constants,
    )  # fmt: skip
    tiles, half = triton.cdiv(slots, config.size), empty(mean, batch, slots, slots)
    launch(half_kernel, batch * tiles, config, cov, precision, half, tiles, slots, **constants)
    out = tuple(torch.empty_like(x) for x in (mean, cov, prior_mean, prior_cov))
    launch(
        gradient_kernel, batch * tiles, config, grad, precision, scaled, half, *out, tiles, slots,
        code, **constants,
    )  # fmt: skip
    finish(partials, *out)
    return out
