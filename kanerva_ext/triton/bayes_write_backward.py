"""bayes_write in Triton, backward: the closed-form adjoint of docs/operators/bayes_write.md, chunk
by chunk from the last to the first.

The forward is run again and keeps P, F^-1 and E of every chunk. The states before a chunk then come
from those after it by adding back what it took, ``U + P'P`` and ``R - P'E``, in which nothing
cancels. The columns go first (`columns_kernel`), since the adjoint of the mean does not depend on
that of the covariance; what they leave of ``E gR'``, ``E E'`` and ``dZ R'`` is all that the
covariance (`covariance_kernel`, one program per memory) takes from them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._arguments import (
    Between,
    Episode,
    Factors,
    Gradients,
    Memory,
    ReverseRoom,
    Room,
    Slopes,
    Written,
)
from ._chunk import load_steps
from ._chunk_adjoint import add_back, reverse_columns, reverse_covariance, undecay
from ._finish import finish, no_partials
from ._launch import VARYING, as_bytes, choose, empty, launch, plain
from ._sequences import locate
from ._tiles import copy_matrix, copy_symmetric, load_tile, store_tile
from .bayes_write import (
    SMALL_ITEM,
    Pass,
    blocks_of_columns,
    chunk_length,
    passes,
    room_for_root,
    write_kernel,
)
from .stationary_backward import reverse_moving

#: Bytes that splitting a memory by columns may cost; without it, they are taken once.
WORKSPACE = 2**28


@triton.jit(do_not_specialize=VARYING)
def columns_kernel(
    grads, episode, factors, between, mean, grad_mean, d_values, d_mean, before, status,
    T, K, C, blocks, width, sequences,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``grad_mean`` is worked out from that of ``grads``; ``d_mean`` is for a copy of it."""
    grad_mean_in, grad_evidence, grad_reads = grads.mean, grads.evidence, grads.reads
    weights, noise_var, mask, decay, bounds, _values, queries = episode
    gains, inverses, errors = factors
    cross, shares, squares, asked, responses, _dots = between
    program = tl.program_id(0).to(tl.int64)
    item, block = program // blocks, program % blocks
    steps = chunk_length(before, status, item, blocks)
    if steps > 0:
        first_column = (block * width).to(tl.int32)
        last_column = tl.minimum(first_column + width, C)
        scale = tl.zeros((), tl.float64)
        if grad_evidence is not None:
            scale = tl.load(grad_evidence + item).to(tl.float64)
        mean += item * K * C
        grad_mean += item * K * C
        row, begins, length = locate(bounds, item, sequences, T)
        base = row * T + begins
        weights += base * K
        errors += base * C
        d_values += base * C
        room = (row * blocks + block) * T + begins
        gains += room * K
        inverses += room * L
        cross += room * K
        shares += room * K
        squares += room * L
        if grad_reads is not None:
            grad_reads += base * C
            queries += base * K
            asked += room * K
            responses += room * L
        if grad_mean_in is not None:
            grad_mean_in += item * K * C
        copy_matrix(grad_mean_in, grad_mean, K, first_column, last_column, C, N, N, WORK)
        tl.debug_barrier()
        chunks = (length + steps - 1) // steps
        for chunk in range(0, chunks):
            first = (chunks - 1 - chunk) * steps
            count = tl.minimum(steps, length - first)
            kept, _v, _g, product, _bad = load_steps(noise_var, mask, decay, base + first, count, L)
            start = first.to(tl.int64)
            q, o, a = queries, grad_reads, asked
            if grad_reads is not None:
                q = queries + start * K
                o = grad_reads + start * C
                a = asked + start * K
            inverse = load_tile(inverses + start * L, L, 1, 0, 0, count, L, L, L, WORK)
            x, response = reverse_columns(
                mean, grad_mean, weights + start * K, gains + start * K, inverse,
                errors + start * C, d_values + start * C,
                Between(cross + start * K, shares + start * K, None, a), kept, product, scale,
                first_column, last_column, count, K, C, q, o, L, N, WORK, PRECISION,
            )  # fmt: skip
            store_tile(squares + start * L, L, 1, x, 0, 0, count, L, L, L)
            if grad_reads is not None:
                store_tile(responses + start * L, L, 1, response, 0, 0, count, L, L, L)
        if d_mean is not None:
            d_mean += item * K * C
            copy_matrix(grad_mean, d_mean, K, first_column, last_column, C, N, N, WORK)


@triton.jit(do_not_specialize=VARYING)
def covariance_kernel(
    grads, episode, factors, between, cov, grad_cov, room, out, before, status,
    T, K, C, blocks, sequences,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``grad_cov`` is worked out from that of ``grads``."""
    grad_cov_in, grad_evidence, grad_var = grads.cov, grads.evidence, grads.var
    weights, noise_var, mask, decay, bounds, _values, queries = episode
    gains, inverses = factors.gains, factors.inverses
    cross, shares, squares, asked, responses, _dots = between
    slopes, left, rest, moved, mixed = room
    d_weights, d_noise, d_decay, d_queries, d_cov, _d_stationary = out
    item = tl.program_id(0).to(tl.int64)
    first_block = item * blocks
    steps = chunk_length(before, status, item, blocks)
    if steps > 0:
        scale = tl.zeros((), tl.float64)
        if grad_evidence is not None:
            scale = tl.load(grad_evidence + item).to(tl.float64)
        stride = (T * K).to(tl.int64)
        row, begins, length = locate(bounds, item, sequences, T)
        step_0 = row * T + begins
        start_0 = row * blocks * T + begins
        cov += first_block * K * K
        gains += start_0 * K
        inverses += start_0 * L
        cross += start_0 * K
        shares += start_0 * K
        squares += start_0 * L
        grad_cov += item * K * K
        weights += step_0 * K
        d_weights += step_0 * K
        if queries is not None:
            rest += item * L * K
            moved += item * L * K
            mixed += item * L * K
        slopes += item * L * K
        left += item * L * K
        if grad_cov_in is not None:
            copy_symmetric(grad_cov_in + item * K * K, grad_cov, K, N, WORK)
        else:
            copy_matrix(None, grad_cov, K, 0, K, K, N, N, WORK)
        tl.debug_barrier()
        at = tl.arange(0, L)
        chunks = (length + steps - 1) // steps
        for chunk in range(0, chunks):
            first = (chunks - 1 - chunk) * steps
            count = tl.minimum(steps, length - first)
            base = step_0 + first
            kept, v, g, product, _bad = load_steps(noise_var, mask, decay, base, count, L)
            start = first.to(tl.int64)
            p = gains + start * K
            last = tl.sum(tl.where(at == count - 1, product, 0.0), axis=0)
            dot = tl.zeros((), tl.float64)
            if decay is not None:
                dot = undecay(cov, grad_cov, last.to(WORK), K, N, WORK)
            add_back(cov, p, last.to(WORK), count, K, L, N, WORK, PRECISION)
            tl.debug_barrier()
            inverse = load_tile(inverses + start * L, L, 1, 0, 0, count, L, L, L, WORK)
            q, h, a, s, d = queries, grad_var, asked, responses, d_queries
            if queries is not None:
                q = queries + base * K
                d = d_queries + base * K
            if grad_var is not None:
                h = grad_var + base
            if responses is not None:
                a = asked + (start_0 + start) * K
                s = responses + (start_0 + start) * L
            d_n, energy, d_logs = reverse_covariance(
                cov, grad_cov, weights + start * K, p, inverse,
                Between(cross + start * K, shares + start * K, squares + start * L, a, s),
                ReverseRoom(slopes, left, rest, moved, mixed), d_weights + start * K, kept,
                product, scale, blocks, stride, count, K, C, q, h, d, L, N, WORK, PRECISION,
            )  # fmt: skip
            inside = at < count
            tl.store(d_noise + base + at, tl.where(kept, product * d_n, 0.0), mask=inside)
            if decay is not None:
                # A decay enters every product from its step on; the last one divides U.
                d_product = d_n * v - 0.5 * scale * (energy - C / product)
                # Where nothing is written, the variance of the read is still divided.
                d_product = tl.where(kept, d_product * product, 0.0) + d_logs
                since = tl.where(at[:, None] <= at[None, :], d_product[None, :], 0.0)
                d_g = (tl.sum(since, axis=1) - dot) / g
                tl.store(d_decay + base + at, tl.where(kept, d_g, 0.0), mask=inside)
        if d_cov is not None:
            copy_matrix(grad_cov, d_cov + item * K * K, K, 0, K, K, N, N, WORK)


def reverse(
    grads: tuple[Tensor | None, ...],
    inputs: list[Tensor],
    mask: Tensor | None,
    dynamics: tuple[Tensor | None, Tensor | None, Tensor | None],
    plans: list[Pass],
    reads: tuple[Tensor | None, ...] = (None, None, None),
    bounds: Tensor | None = None,
    sequences: int = 1,
) -> tuple[list[Tensor], list[Tensor | None], Tensor | None, Tensor]:
    """Gradients of ``inputs``, of ``dynamics`` (decay, retention, stationary_cov) and of queries,
    and partials that are NaN where an item failed. ``grads`` are those of mean, cov and
    log_evidence, ``reads`` queries and the gradients of their values and variances."""
    mean, cov, weights, values, noise_var = inputs
    grad_mean, grad_cov, grad_evidence = (plain(g) for g in grads)
    queries, grad_reads, grad_var = (plain(x) for x in reads)
    mask, decay = as_bytes(mask), plain(dynamics[0])
    (batch, slots, code), (rows, episode, _) = mean.shape, weights.shape
    # Four arrays of all steps and slots for each block of columns.
    most = WORKSPACE // max(1, 4 * 8 * rows * episode * slots)
    if dynamics[1] is not None:
        (plan,) = plans
        incoming = Gradients(grad_mean, grad_cov, grad_evidence, grad_reads, grad_var)
        out, moved, d_queries, partials = reverse_moving(
            incoming, inputs, mask, dynamics[1:], plan, most, queries, bounds, sequences
        )
        return out, [None, *moved], d_queries, partials
    blocks, width = blocks_of_columns(mean, most)
    out = [torch.empty_like(x) for x in inputs]
    d_queries = None if queries is None else torch.empty_like(queries)
    d_decay = None if decay is None else torch.empty_like(decay)
    partials = no_partials(mean, blocks)
    before = None
    sizes = {"T": episode, "K": slots, "C": code, "blocks": blocks, "sequences": sequences}
    every_step = Episode(weights, noise_var, mask, decay, bounds)
    asking = every_step._replace(queries=queries)
    for plan in plans:
        work, config = plan.work, choose(slots, plan.work)
        L, constants = config.steps, config.constants(work, "L")

        def room(*shape, work=work):
            return empty(mean, *shape, dtype=work)

        means, covs = room(batch, slots, code), room(batch, blocks, slots, slots)
        gains, cross, shares = (room(rows, blocks, episode, slots) for _ in range(3))
        inverses, squares = (room(rows, blocks, episode, L) for _ in range(2))
        errors = room(rows, episode, code)
        asked = responses = None
        of_reads = [None if queries is None else room(batch, L, slots) for _ in range(3)]
        if grad_reads is not None:
            asked, responses = room(*gains.shape), room(*squares.shape)
        status = empty(mean, batch, blocks, dtype=torch.int32)
        direct = work == mean.dtype
        states = out[:2] if direct else [room(*x.shape) for x in out[:2]]
        copies = (None, None) if direct else out[:2]
        between = Between(cross, shares, squares, asked, responses)
        launch(
            write_kernel, batch * blocks, config, Memory(mean, cov),
            every_step._replace(values=values), Factors(gains, inverses, errors),
            Room(means, covs, room_for_root(mean, blocks, config) if plan.last else None),
            Written(partials, status), before, width=width, SAVE=True, MOVES=False, **sizes,
            **plan.arguments(cov), **constants,
        )  # fmt: skip
        launch(
            columns_kernel, batch * blocks, config,
            Gradients(grad_mean, evidence=grad_evidence, reads=grad_reads), asking,
            Factors(gains, inverses, errors), between, means, states[0], out[3], copies[0], before,
            status, width=width, **sizes, **constants,
        )  # fmt: skip
        launch(
            covariance_kernel, batch, config,
            Gradients(cov=grad_cov, evidence=grad_evidence, var=grad_var), asking,
            Factors(gains, inverses), between, covs, states[1],
            ReverseRoom(room(batch, L, slots), room(batch, L, slots), *of_reads),
            Slopes(out[2], out[4], d_decay, d_queries, copies[1]), before, status, **sizes,
            **constants,
        )  # fmt: skip
        before = status
    return out, [d_decay, None, None], d_queries, partials


def bayes_write_backward(
    grad_mean: Tensor | None,
    grad_cov: Tensor | None,
    grad_evidence: Tensor | None,
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    noise_var: Tensor,
    mask: Tensor | None,
    decay: Tensor | None,
    retention: Tensor | None,
    stationary_cov: Tensor | None,
    method: str,
    posterior_mean: Tensor,
    posterior_cov: Tensor,
) -> tuple[Tensor, ...]:
    """``kanerva::bayes_write_backward``. Gradients of decays cancel, and are never done in
    float32, nor are those of a memory that moves."""
    (_, slots, code), episode = mean.shape, weights.shape[1]
    inputs = [plain(x) for x in (mean, cov, weights, values, noise_var)]
    dynamics = decay, retention, stationary_cov
    moves = retention is not None
    small = moves or decay is not None or episode * slots * code <= SMALL_ITEM
    plans = passes(mean, slots, small=small, method=method, moves=moves)
    out, d_dynamics, _, partials = reverse(
        (grad_mean, grad_cov, grad_evidence), inputs, mask, dynamics, plans
    )
    finish(partials, *out)
    finish(partials, *d_dynamics)
    return *out, *present(d_dynamics, mean)


def present(grads: list[Tensor | None], mean: Tensor) -> list[Tensor]:
    """With an empty tensor for each that is absent."""
    return [mean.new_empty(0) if x is None else x for x in grads]
