"""statistics in Triton: ``shift = U^-1 R`` and ``precision = U^-1``, a map that is its own inverse.

A first program per memory factorises the covariance, in float64; then one program per memory and
panel of columns solves for the columns of ``F^-1 I`` and of the shift, and one per memory and tile
of slots forms the precision as ``F^-T F^-1``, exactly symmetric. Backward is products alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._finish import finish, no_partials
from ._launch import VARYING, choose, empty, launch, plain
from ._spd import factorise, solve, solve_lower
from ._tiles import (
    add_product,
    copy_symmetric,
    count_nan,
    load_symmetric,
    load_tile,
    multiply,
    nan_if,
    store_symmetric,
    store_tile,
)


@triton.jit(do_not_specialize=VARYING)
def factor_kernel(
    first, second, factor, inverse, log_dets, K,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Factors of the covariances ``first`` (B, K, K) and then, if given, ``second``; ln det, or
    NaN."""
    program = tl.program_id(0).to(tl.int64)
    factor += program * K * K
    if second is None:
        copy_symmetric(first + program * K * K, factor, K, N, WORK)
    else:
        item = program // 2
        if program % 2 == 0:
            copy_symmetric(first + item * K * K, factor, K, N, WORK)
        else:
            copy_symmetric(second + item * K * K, factor, K, N, WORK)
    tl.debug_barrier()
    failures, log_det = factorise(factor, inverse + program * K * N, K, N, WORK, PRECISION)
    tl.store(log_dets + program, log_det + nan_if(failures))


@triton.jit
def unit_panel(panel, col, K, M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr):
    """Columns col to col + M of the identity."""
    j = col + tl.arange(0, M)
    for i in range(0, K, N):
        x = tl.where((i + tl.arange(0, N))[:, None] == j[None, :], 1.0, 0.0).to(WORK)
        store_tile(panel, K, 1, x, i, 0, K, K - col, N, M)


@triton.jit(do_not_specialize=VARYING)
def solve_kernel(
    mean, factor, inverse, root, shift, panels, log_dets, partials, splits, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A panel of M columns of ``root = F^-1``, or of the shift."""
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, (program % splits).to(tl.int32)
    factor += item * K * K
    inverse += item * K * N
    of_root = (K + M - 1) // M
    bad = 0
    if tile < of_root:
        panel = root + item * K * K + tile * M
        unit_panel(panel, tile * M, K, M, N, WORK)
        tl.debug_barrier()
        width = tl.minimum(M, K - tile * M)
        solve_lower(factor, inverse, panel, K, 1, K, width, N, M, WORK, PRECISION)
    else:
        panels += program * K * M
        col = (tile - of_root) * M
        for i in range(0, K, N):
            x = load_tile(mean + item * K * C, C, 1, i, col, K, C, N, M, WORK)
            store_tile(panels, M, 1, x, i, 0, K, M, N, M)
        tl.debug_barrier()
        solve(factor, inverse, panels, M, 1, K, M, N, M, WORK, PRECISION)
        for i in range(0, K, N):
            x = load_tile(panels, M, 1, i, 0, K, M, N, M, WORK)
            bad += count_nan(x)
            store_tile(shift + item * K * C, C, 1, x, i, col, K, C, N, M)
    failed = tl.load(log_dets + item)
    tl.store(partials + program, nan_if(bad) + tl.where(failed != failed, failed, 0.0))


@triton.jit(do_not_specialize=VARYING)
def precision_kernel(
    root, precision, splits, K,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of ``F^-T F^-1`` up to the diagonal, and the columns that mirror them."""
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    i = (tile * N).to(tl.int32)
    root += item * K * K
    for j in range(0, i + 1, N):
        x = tl.zeros((N, N), WORK)
        for q in range(i, K, N):  # F^-1 is zero above its diagonal
            left = load_tile(root, 1, K, i, q, K, K, N, N, WORK)
            right = load_tile(root, K, 1, q, j, K, K, N, N, WORK)
            x += multiply(left, right, WORK, PRECISION)
        store_symmetric(precision + item * K * K, K, x, i, j, N)


@triton.jit(do_not_specialize=VARYING)
def product_kernel(
    grad_shift, grad_precision, shift, precision, d_mean, work, half, partials, splits, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of slots of ``dR = P gS`` (also in float64, as ``work``) and of ``half = P gP``."""
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    i = (tile * N).to(tl.int32)
    precision += item * K * K
    bad = 0
    for c in range(0, C, N):
        bad += count_nan(load_tile(shift + item * K * C, C, 1, i, c, K, C, N, N, WORK))
        x = tl.zeros((N, N), WORK)
        if grad_shift is not None:
            right = grad_shift + item * K * C
            x = add_product(
                x, precision, K, 1, right, C, 1, i, c, K, C, K, N, N, N, WORK, PRECISION
            )  # fmt: skip
        store_tile(work + item * K * C, C, 1, x, i, c, K, C, N, N)
        store_tile(d_mean + item * K * C, C, 1, x, i, c, K, C, N, N)
    for j in range(0, K, N):
        bad += count_nan(load_tile(precision, K, 1, i, j, K, K, N, N, WORK))
        if grad_precision is not None:
            x = tl.zeros((N, N), WORK)
            for q in range(0, K, N):
                left = load_symmetric(precision, K, i, q, N, WORK)
                right = load_symmetric(grad_precision + item * K * K, K, q, j, N, WORK)
                x += multiply(left, right, WORK, PRECISION)
            store_tile(half + item * K * K, K, 1, x, i, j, K, K, N, N)
    tl.store(partials + program, nan_if(bad))


@triton.jit(do_not_specialize=VARYING)
def covariance_kernel(
    shift, precision, work, half, d_cov, splits, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of ``dU = -sym(dR shift') - half P`` up to the diagonal, and their mirrors."""
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    i = (tile * N).to(tl.int32)
    work += item * K * C
    shift += item * K * C
    precision += item * K * K
    for j in range(0, i + 1, N):
        x = tl.zeros((N, N), WORK)
        x = add_product(x, work, C, 1, shift, 1, C, i, j, K, K, C, N, N, N, WORK, PRECISION)
        x = add_product(x, shift, C, 1, work, 1, C, i, j, K, K, C, N, N, N, WORK, PRECISION)
        x = -0.5 * x
        if half is not None:
            for q in range(0, K, N):
                left = load_tile(half + item * K * K, K, 1, i, q, K, K, N, N, WORK)
                right = load_symmetric(precision, K, q, j, N, WORK)
                x -= multiply(left, right, WORK, PRECISION)
        store_symmetric(d_cov + item * K * K, K, x, i, j, N)


def statistics(mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """``kanerva::statistics``: shift and precision."""
    mean, cov = plain(mean), plain(cov)
    batch, slots, code = mean.shape
    config = choose(slots, torch.float64)
    constants = config.constants(torch.float64)
    factor, inverse = empty(mean, batch, slots, slots), empty(mean, batch, slots, config.size)
    root, log_dets = torch.empty_like(factor), empty(mean, batch)
    shift, precision = torch.empty_like(mean), torch.empty_like(cov)
    splits = triton.cdiv(slots, config.steps) + triton.cdiv(code, config.steps)
    partials = no_partials(mean, splits)
    launch(
        factor_kernel, batch, config, cov, None, factor, inverse, log_dets, slots, **constants
    )  # fmt: skip
    launch(
        solve_kernel, batch * splits, config, mean, factor, inverse, root, shift,
        empty(mean, batch, splits, slots, config.steps), log_dets, partials, splits, slots, code,
        **constants,
    )  # fmt: skip
    tiles = triton.cdiv(slots, config.size)
    launch(precision_kernel, batch * tiles, config, root, precision, tiles, slots, **constants)
    finish(partials, shift, precision)
    return shift, precision


def statistics_backward(
    grad_shift: Tensor | None,
    grad_precision: Tensor | None,
    mean: Tensor,
    cov: Tensor,
    shift: Tensor,
    precision: Tensor,
) -> tuple[Tensor, Tensor]:
    """``kanerva::statistics_backward``."""
    grad_shift, grad_precision = plain(grad_shift), plain(grad_precision)
    shift, precision = plain(shift), plain(precision)
    batch, slots, code = mean.shape
    config = choose(slots, torch.float64)
    constants = config.constants(torch.float64)
    d_mean, d_cov = torch.empty_like(shift), torch.empty_like(precision)
    work = empty(mean, *mean.shape)
    half = None if grad_precision is None else empty(mean, *cov.shape)
    tiles = triton.cdiv(slots, config.size)
    partials = no_partials(mean, tiles)
    launch(
        product_kernel, batch * tiles, config, grad_shift, grad_precision, shift, precision,
        d_mean, work, half, partials, tiles, slots, code, **constants,
    )  # fmt: skip
    launch(
        covariance_kernel, batch * tiles, config, shift, precision, work, half, d_cov, tiles,
        slots, code, **constants,
    )  # fmt: skip
    finish(partials, d_mean, d_cov)
    return d_mean, d_cov
