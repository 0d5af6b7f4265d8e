"""solve_addresses in Triton, and the kernels of recall: ``w = (R R' + ridge I)^-1 R z``.

A first program per memory forms and factorises the smaller of two equal systems, K x K or, for a
code narrower than the memory, ``w = R (R'R + ridge I)^-1 z``; then one program per memory and tile
of queries solves with it and, where a covariance is given, reads. float64 throughout, since the
condition is the square of the memory's, and with one step of refinement for a float64 state.
Backward uses the same system: with ``gW`` and, wide, ``Y = A^-1 gW``, ``dZ = Y R``, ``E = Z - W
R``, it is ``dR = Y'E - W'dZ``; narrow, with ``X = Z A^-1`` and ``dZ = gW R A^-1``, ``dR = (gW - dZ
R')'X - W'dZ``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._finish import finish, no_partials
from ._launch import VARYING, Config, choose, empty, launch, plain
from ._spd import factorise, solve
from ._tiles import (
    add_product,
    copy_matrix,
    count_nan,
    load_tile,
    nan_if,
    store_symmetric,
    store_tile,
)
from .read import (
    address_gradient,
    count_state_nan,
    covariance_gradient,
    mean_gradient,
    read_tile,
)

LARGEST_FUSED_SYSTEM = 64  # unknowns up to which one program forms its system as well


@triton.jit
def form_rows(
    mean, rs, cs, ridge, system, i, n, m,
    N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows i to i + N of ``X X' + ridge I`` for X (n x m), and the columns that mirror them."""
    at = tl.arange(0, N)
    for j in range(0, i + 1, N):
        same = (i + at)[:, None] == (j + at)[None, :]
        x = tl.where(same, ridge, 0.0).to(WORK)
        x = add_product(x, mean, rs, cs, mean, cs, rs, i, j, n, n, m, N, N, N, WORK, PRECISION)
        store_symmetric(system, n, x, i, j, N)


@triton.jit(do_not_specialize=VARYING)
def form_kernel(
    mean, rs, cs, ridge, system, splits, n, m,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    value = tl.load(ridge + item).to(WORK)
    system += item * n * n
    form_rows(
        mean + item * n * m, rs, cs, value, system, (tile * N).to(tl.int32), n, m, N, WORK,
        PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
def system_kernel(
    mean, rs, cs, ridge, system, inverse, partials, n, m, FORM: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64)
    system += item * n * n
    value = tl.load(ridge + item).to(WORK)
    if FORM:
        for i in range(0, n, N):
            form_rows(mean + item * n * m, rs, cs, value, system, i, n, m, N, WORK, PRECISION)
        tl.debug_barrier()
    failures, _log_det = factorise(system, inverse + item * n * N, n, N, WORK, PRECISION)
    if (value > 0.0) & (value < float("inf")):
        tl.store(partials + item, nan_if(failures))
    else:
        tl.store(partials + item, float("nan"))


@triton.jit
def solve_panel(
    mean, rs, cs, ridge, system, inverse, panel, n, m, REFINE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``x <- A^-1 x`` for the first n x M elements of ``panel``, A the system of X (n x m). REFINE
    takes another n x M and m x M elements after them. Synchronised before and after."""
    right = panel + n * M
    room = right + n * M
    if REFINE:
        copy_matrix(panel, right, n, 0, M, M, N, M, WORK)
    solve(system, inverse, panel, M, 1, n, M, N, M, WORK, PRECISION)
    if REFINE:
        for j in range(0, m, N):
            x = tl.zeros((N, M), WORK)
            x = add_product(
                x, mean, cs, rs, panel, M, 1, j, 0, m, M, n, N, M, N, WORK, PRECISION
            )  # fmt: skip
            store_tile(room, M, 1, x, j, 0, m, M, N, M)
        tl.debug_barrier()
        for i in range(0, n, N):
            x = ridge * load_tile(panel, M, 1, i, 0, n, M, N, M, WORK)
            x = add_product(x, mean, rs, cs, room, M, 1, i, 0, n, M, m, N, M, N, WORK, PRECISION)
            x = load_tile(right, M, 1, i, 0, n, M, N, M, WORK) - x
            store_tile(right, M, 1, x, i, 0, n, M, N, M)
        tl.debug_barrier()
        solve(system, inverse, right, M, 1, n, M, N, M, WORK, PRECISION)
        for i in range(0, n, N):
            x = load_tile(panel, M, 1, i, 0, n, M, N, M, WORK)
            x += load_tile(right, M, 1, i, 0, n, M, N, M, WORK)
            store_tile(panel, M, 1, x, i, 0, n, M, N, M)
        tl.debug_barrier()


@triton.jit(do_not_specialize=VARYING)
def address_kernel(
    given, rs, cs, factored, work, out, partials, splits, T, K, C, n, m,
    WIDE: tl.constexpr, REFINE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The addresses of a tile of queries; ``work`` are they in float64. With ``cov``, reads."""
    mean, cov, queries, ridge = given
    system, inverse, failed, panels = factored
    weights, values, var = out
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    first = (tile * M).to(tl.int32)
    mean += item * K * C
    queries += item * T * C
    weights += item * T * K
    work += item * T * K
    system += item * n * n
    inverse += item * n * N
    panels += program * (2 * n + m) * M
    for i in range(0, n, N):
        if WIDE:
            x = tl.zeros((N, M), WORK)
            x = add_product(
                x, mean, C, 1, queries, 1, C, i, first, K, T, C, N, M, N, WORK, PRECISION
            )  # fmt: skip
        else:
            x = load_tile(queries, 1, C, i, first, C, T, N, M, WORK)
        store_tile(panels, M, 1, x, i, 0, n, M, N, M)
    tl.debug_barrier()
    value = tl.load(ridge + item).to(WORK)
    solve_panel(
        mean, rs, cs, value, system, inverse, panels, n, m, REFINE, M, N, WORK, PRECISION
    )  # fmt: skip
    bad = 0
    for k in range(0, K, N):
        if WIDE:
            x = load_tile(panels, 1, M, 0, k, M, n, M, N, WORK)
        else:
            x = tl.zeros((M, N), WORK)
            x = add_product(
                x, panels, 1, M, mean, 1, C, 0, k, M, K, C, M, N, N, WORK, PRECISION
            )  # fmt: skip
        bad += count_nan(x)
        store_tile(work, K, 1, x, first, k, T, K, M, N)
        store_tile(weights, K, 1, x, first, k, T, K, M, N)
    if cov is not None:
        cov += item * K * K
        if tile == 0:
            bad += count_state_nan(mean, cov, K, C, N)
        tl.debug_barrier()
        bad += read_tile(
            mean, cov, work, values + item * T * C, var + item * T, first, T, K, C,
            M, N, WORK, PRECISION,
        )  # fmt: skip
    tl.store(partials + program, nan_if(bad) + tl.load(failed + item))


@triton.jit(do_not_specialize=VARYING)
def address_adjoint_kernel(
    grad_weights, grad_values, grad_var, given, rs, cs, weights, factored, room, d_queries,
    partials, splits, T, K, C, n, m, WIDE: tl.constexpr, REFINE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For a tile of queries with ``gW``: dZ (also in float64, as ``d_work``), the factors of dR
    beside it, ``slopes`` (Y, or gW - dZ R') and ``errors`` (E, or X), and, as the partial, the
    ridge's gradient, -Y.W or -dZ.X."""
    mean, cov, queries, ridge = given
    system, inverse, failed, panels = factored
    slopes, errors, d_work = room
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    first = (tile * M).to(tl.int32)
    mean += item * K * C
    queries += item * T * C
    weights += item * T * K
    slopes += item * T * K
    errors += item * T * C
    d_work += item * T * C
    d_queries += item * T * C
    system += item * n * n
    inverse += item * n * N
    panels += program * (2 * n + m) * M
    value = tl.load(ridge + item).to(WORK)
    if cov is not None:
        cov += item * K * K
    if grad_weights is not None:
        grad_weights += item * T * K
    if grad_values is not None:
        grad_values += item * T * C
    if grad_var is not None:
        grad_var += item * T
    bad = 0
    if cov is not None:
        if tile == 0:
            bad = count_state_nan(mean, cov, K, C, N)
    for k in range(0, K, N):
        x = tl.zeros((M, N), WORK)
        if grad_weights is not None:
            x = load_tile(grad_weights, K, 1, first, k, T, K, M, N, WORK)
        x = address_gradient(
            x, mean, cov, weights, grad_values, grad_var, first, k, T, K, C, M, N, WORK, PRECISION
        )  # fmt: skip
        bad += count_nan(load_tile(weights, K, 1, first, k, T, K, M, N, WORK))
        store_tile(slopes, K, 1, x, first, k, T, K, M, N)
        if WIDE:
            store_tile(panels, 1, M, x, 0, k, M, K, M, N)
    tl.debug_barrier()
    if not WIDE:
        for c in range(0, C, N):
            x = tl.zeros((M, N), WORK)
            x = add_product(
                x, slopes, K, 1, mean, C, 1, first, c, T, C, K, M, N, N, WORK, PRECISION
            )  # fmt: skip
            store_tile(panels, 1, M, x, 0, c, M, C, M, N)
        tl.debug_barrier()
    solve_panel(
        mean, rs, cs, value, system, inverse, panels, n, m, REFINE, M, N, WORK, PRECISION
    )  # fmt: skip
    if WIDE:
        for k in range(0, K, N):
            y = load_tile(panels, 1, M, 0, k, M, K, M, N, WORK)
            store_tile(slopes, K, 1, y, first, k, T, K, M, N)
        for c in range(0, C, N):
            x = tl.zeros((M, N), WORK)
            x = add_product(x, panels, 1, M, mean, C, 1, 0, c, M, C, K, M, N, N, WORK, PRECISION)
            store_tile(d_work, C, 1, x, first, c, T, C, M, N)
            x = tl.zeros((M, N), WORK)
            x = add_product(
                x, weights, K, 1, mean, C, 1, first, c, T, C, K, M, N, N, WORK, PRECISION
            )  # fmt: skip
            x = load_tile(queries, C, 1, first, c, T, C, M, N, WORK) - x
            store_tile(errors, C, 1, x, first, c, T, C, M, N)
    else:
        for k in range(0, K, N):
            x = tl.zeros((M, N), WORK)
            x = add_product(x, panels, 1, M, mean, 1, C, 0, k, M, K, C, M, N, N, WORK, PRECISION)
            x = load_tile(slopes, K, 1, first, k, T, K, M, N, WORK) - x
            store_tile(slopes, K, 1, x, first, k, T, K, M, N)
        for c in range(0, C, N):
            x = load_tile(panels, 1, M, 0, c, M, C, M, N, WORK)
            store_tile(d_work, C, 1, x, first, c, T, C, M, N)
        tl.debug_barrier()
        for c in range(0, C, N):
            x = load_tile(queries, C, 1, first, c, T, C, M, N, WORK)
            store_tile(panels, 1, M, x, 0, c, M, C, M, N)
        tl.debug_barrier()
        solve_panel(
            mean, rs, cs, value, system, inverse, panels, n, m, REFINE, M, N, WORK, PRECISION
        )  # fmt: skip
        for c in range(0, C, N):
            x = load_tile(panels, 1, M, 0, c, M, C, M, N, WORK)
            store_tile(errors, C, 1, x, first, c, T, C, M, N)
    tl.debug_barrier()
    dot = tl.zeros((), tl.float64)
    if WIDE:
        for k in range(0, K, N):
            y = load_tile(slopes, K, 1, first, k, T, K, M, N, WORK)
            w = load_tile(weights, K, 1, first, k, T, K, M, N, WORK)
            dot += tl.sum(tl.sum(y * w, axis=1), axis=0)
    for c in range(0, C, N):
        x = load_tile(d_work, C, 1, first, c, T, C, M, N, WORK)
        store_tile(d_queries, C, 1, x, first, c, T, C, M, N)
        if not WIDE:
            y = load_tile(errors, C, 1, first, c, T, C, M, N, WORK)
            dot += tl.sum(tl.sum(x * y, axis=1), axis=0)
    tl.store(partials + program, nan_if(bad) + tl.load(failed + item) - dot)


@triton.jit(do_not_specialize=VARYING)
def state_adjoint_kernel(
    grad_values, grad_var, weights, slopes, errors, d_work, d_mean, d_cov, splits, T, K, C,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of slots of ``dR = Y'E - W' dZ`` plus what a read adds, and of dU."""
    program = tl.program_id(0).to(tl.int64)
    item, tile = program // splits, program % splits
    i = (tile * N).to(tl.int32)
    weights += item * T * K
    slopes += item * T * K
    errors += item * T * C
    d_work += item * T * C
    if grad_values is not None:
        grad_values += item * T * C
    if grad_var is not None:
        grad_var += item * T
    for c in range(0, C, N):
        x = tl.zeros((N, N), WORK)
        x = -add_product(x, weights, 1, K, d_work, C, 1, i, c, K, C, T, N, N, M, WORK, PRECISION)
        x = add_product(x, slopes, 1, K, errors, C, 1, i, c, K, C, T, N, N, M, WORK, PRECISION)
        x = mean_gradient(x, weights, grad_values, i, c, T, K, C, M, N, WORK, PRECISION)
        store_tile(d_mean + item * K * C, C, 1, x, i, c, K, C, N, N)
    if d_cov is not None:
        covariance_gradient(
            weights, grad_var, d_cov + item * K * K, i, T, K, M, N, WORK, PRECISION
        )  # fmt: skip


class Given(NamedTuple):
    mean: Tensor
    cov: Tensor | None  # for reads
    queries: Tensor
    ridge: Tensor


class Factored(NamedTuple):
    """The results of `factor_system`, and room to solve with them."""

    system: Tensor
    inverse: Tensor
    failed: Tensor
    panels: Tensor


class Addressed(NamedTuple):
    weights: Tensor
    values: Tensor | None
    var: Tensor | None


class AdjointRoom(NamedTuple):
    """Y, E and dZ, which `state_adjoint_kernel` takes."""

    slopes: Tensor
    errors: Tensor
    d_work: Tensor


class System(NamedTuple):
    """``R R' + ridge I`` (wide) or ``R'R + ridge I``: X X' + ridge I for X (n x m)."""

    wide: bool
    n: int
    m: int
    strides: tuple[int, int]  # of X in the mean
    config: Config

    @property
    def arguments(self) -> dict:
        """Those of the kernels that take it."""
        rs, cs = self.strides
        constants = self.config.constants(torch.float64)
        return {"rs": rs, "cs": cs, "n": self.n, "m": self.m, "WIDE": self.wide, **constants}

    def panels(self, mean: Tensor, splits: int) -> Tensor:
        """Room for the panel of every tile of queries, and for its refinement."""
        return empty(mean, len(mean), splits, 2 * self.n + self.m, self.config.steps)


def choose_system(mean: Tensor) -> System:
    """The smaller of the two."""
    _, slots, code = mean.shape
    if slots <= code:
        return System(True, slots, code, (code, 1), choose(slots, torch.float64))
    return System(False, code, slots, (1, code), choose(code, torch.float64))


def factor_system(mean: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Its factor, the inverses of the factor's diagonal tiles, and NaN (B, 1) for the items that
    have none."""
    batch = len(mean)
    _, n, m, strides, config = choose_system(mean)
    constants = config.constants(torch.float64)
    system, inverse = empty(mean, batch, n, n), empty(mean, batch, n, config.size)
    failed = no_partials(mean, 1)
    form = n <= LARGEST_FUSED_SYSTEM
    if not form:
        tiles = triton.cdiv(n, config.size)
        launch(
            form_kernel, batch * tiles, config, mean, *strides, ridge, system, tiles, n, m,
            **constants,
        )  # fmt: skip
    launch(
        system_kernel, batch, config, mean, *strides, ridge, system, inverse, failed, n, m,
        FORM=form, **constants,
    )  # fmt: skip
    return system, inverse, failed


def address(
    mean: Tensor, cov: Tensor | None, queries: Tensor, ridge: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Addresses and, with ``cov``, what is read there: values, var and weights."""
    mean, cov, queries, ridge = plain(mean), plain(cov), plain(queries), plain(ridge)
    (batch, slots, code), count = mean.shape, queries.shape[1]
    chosen = choose_system(mean)
    system, inverse, failed = factor_system(mean, ridge)
    splits = max(1, triton.cdiv(count, chosen.config.steps))
    partials = no_partials(mean, splits)
    weights = mean.new_empty(batch, count, slots)
    work = weights if mean.dtype == torch.float64 else empty(mean, batch, count, slots)
    values = var = None
    if cov is not None:
        values, var = mean.new_empty(batch, count, code), mean.new_empty(batch, count)
    launch(
        address_kernel, batch * splits, chosen.config, given=Given(mean, cov, queries, ridge),
        factored=Factored(system, inverse, failed, chosen.panels(mean, splits)), work=work,
        out=Addressed(weights, values, var), partials=partials, splits=splits, T=count, K=slots,
        C=code,
        REFINE=mean.dtype == torch.float64, **chosen.arguments,
    )  # fmt: skip
    finish(partials, weights, values, var)
    return values, var, weights


def address_backward(
    grad_values: Tensor | None,
    grad_var: Tensor | None,
    grad_weights: Tensor | None,
    mean: Tensor,
    cov: Tensor | None,
    queries: Tensor,
    ridge: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of mean, cov, queries and ridge."""
    grads = [plain(g) for g in (grad_values, grad_var, grad_weights)]
    mean, cov, queries, ridge = plain(mean), plain(cov), plain(queries), plain(ridge)
    weights = plain(weights)
    (batch, slots, code), count = mean.shape, queries.shape[1]
    chosen = choose_system(mean)
    system, inverse, failed = factor_system(mean, ridge)
    splits = max(1, triton.cdiv(count, chosen.config.steps))
    partials = no_partials(mean, splits)
    out = [torch.empty_like(x) for x in (mean, queries, ridge)]
    d_cov = None if cov is None else torch.empty_like(cov)
    slopes, errors = empty(mean, batch, count, slots), empty(mean, batch, count, code)
    d_work = empty(mean, batch, count, code)
    launch(
        address_adjoint_kernel, batch * splits, chosen.config, grad_weights=grads[2],
        grad_values=grads[0], grad_var=grads[1], given=Given(mean, cov, queries, ridge),
        weights=weights, factored=Factored(system, inverse, failed, chosen.panels(mean, splits)),
        room=AdjointRoom(slopes, errors, d_work), d_queries=out[1], partials=partials,
        splits=splits, T=count, K=slots, C=code,
        REFINE=mean.dtype == torch.float64, **chosen.arguments,
    )  # fmt: skip
    config = choose(slots, torch.float64)
    tiles = triton.cdiv(slots, config.size)
    launch(
        state_adjoint_kernel, batch * tiles, config, *grads[:2], weights, slopes, errors, d_work,
        out[0], d_cov, tiles, count, slots, code, **config.constants(torch.float64),
    )  # fmt: skip
    finish(partials, out[0], out[1], d_cov, total=out[2])
    return out[0], d_cov, out[1], out[2]


def solve_addresses(mean: Tensor, queries: Tensor, ridge: Tensor) -> Tensor:
    """``kanerva::solve_addresses``."""
    return address(mean, None, queries, ridge)[2]


def solve_addresses_backward(
    grad_weights: Tensor, mean: Tensor, queries: Tensor, ridge: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``kanerva::solve_addresses_backward``."""
    grads = address_backward(None, None, grad_weights, mean, None, queries, ridge, weights)
    return grads[0], grads[2], grads[3]
