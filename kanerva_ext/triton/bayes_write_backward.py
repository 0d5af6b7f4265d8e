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
from ._finish import finish, no_partials
from ._launch import VARYING, as_bytes, choose, empty, launch, plain
from ._reads import outer, read_weights, reverse_reads
from ._sequences import locate
from ._tiles import (
    copy_matrix,
    copy_symmetric,
    load_rows,
    load_sum,
    load_tile,
    multiply,
    store_symmetric,
    store_tile,
)
from .bayes_write import (
    SMALL_ITEM,
    Pass,
    blocks_of_columns,
    chunk_length,
    load_steps,
    passes,
    room_for_root,
    write_kernel,
)
from .stationary_backward import reverse_moving

#: Bytes that splitting a memory by columns may cost; without it, they are taken once.
WORKSPACE = 2**28


@triton.jit
def reverse_columns(
    mean, grad_mean, weights, gains, inverse, errors, d_values, between, kept, product, scale,
    first_column, last_column, count, K, C, queries, grad_reads,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adjoint of a chunk for a block of columns: R and gR become those before the chunk, dZ is
    stored, ``cross = E gR'``, ``shares = dZ R'`` and, with the gradient gO of reads, ``asked =
    gO R'``; returns ``E E'`` and ``gO E'``. ``scale`` is gl."""
    cross, shares, asked = between.cross, between.shares, between.asked
    squares = tl.zeros((L, L), WORK)
    response = tl.zeros((L, L), WORK)
    if grad_reads is not None:
        inside = read_weights(queries, gains, count, K, L, N, WORK, PRECISION)
    weight = (scale * product).to(WORK)
    for c in range(first_column, last_column, N):
        e = load_tile(errors, C, 1, 0, c, count, last_column, L, N, WORK)
        squares += multiply(e, tl.trans(e), WORK, PRECISION)
        slope = -weight[:, None] * e
        if grad_reads is not None:
            o = load_tile(grad_reads, C, 1, 0, c, count, last_column, L, N, WORK)
            response += multiply(o, tl.trans(e), WORK, PRECISION)
            slope += multiply(tl.trans(inside), o, WORK, PRECISION)
        for q in range(0, K, N):
            p = load_tile(gains, K, 1, 0, q, count, K, L, N, WORK)
            g = load_tile(grad_mean, 1, C, c, q, last_column, K, N, N, WORK)
            slope += multiply(p, tl.trans(g), WORK, PRECISION)
            x = multiply(e, g, WORK, PRECISION)
            if c > first_column:
                x += load_tile(cross, K, 1, 0, q, count, K, L, N, WORK)
            store_tile(cross, K, 1, x, 0, q, count, K, L, N)
        d = multiply(tl.trans(inverse), slope, WORK, PRECISION)
        d = tl.where(kept[:, None], d, 0.0)
        store_tile(d_values, C, 1, d, 0, c, count, last_column, L, N)
        tl.debug_barrier()
        for q in range(0, K, N):
            p = load_tile(gains, 1, K, q, 0, K, count, N, L, WORK)
            r = load_tile(mean, C, 1, q, c, K, last_column, N, N, WORK)
            r -= multiply(p, e, WORK, PRECISION)
            store_tile(mean, C, 1, r, q, c, K, last_column, N, N)
            x = multiply(d, tl.trans(r), WORK, PRECISION)
            if c > first_column:
                x += load_tile(shares, K, 1, 0, q, count, K, L, N, WORK)
            store_tile(shares, K, 1, x, 0, q, count, K, L, N)
            w = load_rows(weights, K, kept, q, K, L, N, WORK)
            white = multiply(inverse, w, WORK, PRECISION)
            g = load_tile(grad_mean, C, 1, q, c, K, last_column, N, N, WORK)
            g -= multiply(tl.trans(white), slope, WORK, PRECISION)
            if grad_reads is not None:
                x = multiply(o, tl.trans(r), WORK, PRECISION)
                if c > first_column:
                    x += load_tile(asked, K, 1, 0, q, count, K, L, N, WORK)
                store_tile(asked, K, 1, x, 0, q, count, K, L, N)
                x = load_tile(queries, 1, K, q, 0, K, count, N, L, WORK)
                g += multiply(x, o, WORK, PRECISION)
            store_tile(grad_mean, C, 1, g, q, c, K, last_column, N, N)
        tl.debug_barrier()
    return squares, response


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


@triton.jit
def add_back(
    cov, gains, scale, count, K,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``U <- U scale + P'P``: the covariance before a chunk."""
    for i in range(0, K, N):
        left = load_tile(gains, 1, K, i, 0, K, count, N, L, WORK)
        for j in range(0, i + 1, N):
            right = load_tile(gains, K, 1, 0, j, count, K, L, N, WORK)
            x = load_tile(cov, K, 1, i, j, K, K, N, N, WORK)
            store_symmetric(cov, K, x * scale + multiply(left, right, WORK, PRECISION), i, j, N)


@triton.jit
def undecay(cov, grad_cov, scale, K, N: tl.constexpr, WORK: tl.constexpr):
    """``gU <- gU / scale`` and ``<gU, U>`` before it."""
    dot = tl.zeros((), tl.float64)
    for i in range(0, K, N):
        for j in range(0, K, N):
            g = load_tile(grad_cov, K, 1, i, j, K, K, N, N, WORK)
            u = load_tile(cov, K, 1, i, j, K, K, N, N, WORK)
            dot += tl.sum(tl.sum((g * u).to(tl.float64), axis=1), axis=0)
            store_tile(grad_cov, K, 1, g / scale, i, j, K, K, N, N)
    return dot


@triton.jit
def reverse_covariance(
    cov, grad_cov, weights, gains, inverse, between, room, d_weights, kept, product, scale, blocks,
    stride, count, K, C, queries, grad_var, d_queries,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adjoint of a chunk for the covariance before it: gU becomes that before the chunk, dW is
    stored; returns the gradient of the noise n, the diagonal of ``E E'`` and, with ``queries``,
    the gradient of the logarithms of b that divide the variances of the reads."""
    cross, shares, squares, asked, responses, _dots = between
    slopes, left_room, rest, moved, mixed = room
    at = tl.arange(0, L)
    diagonal = at[:, None] == at[None, :]
    later = at[:, None] >= at[None, :]
    d_logs = tl.zeros((L,), tl.float64)
    d_noise = tl.zeros((L,), tl.float64)
    if queries is not None:
        response = tl.zeros((L, L), WORK)
        if responses is not None:
            response = load_sum(responses, stride // K * L, blocks, L, 0, count, L, L, L, WORK)
            response = tl.where(later, response, 0.0)
        if grad_var is not None:
            d_logs = tl.load(grad_var + at, mask=at < count, other=0.0).to(tl.float64) / product
        spread, d_noise = reverse_reads(
            cov, weights, queries, gains, inverse, asked, response, d_logs.to(WORK), rest, moved,
            mixed, d_queries, kept, blocks, stride, count, K, L, N, WORK, PRECISION,
        )  # fmt: skip
        d_logs *= -spread
    # J' gU J with J' = I - Y'P, a side at a time: both at once would cancel twice.
    inner = tl.zeros((L, L), WORK)  # P gU P'
    gained = tl.zeros((L, L), WORK)  # P N'
    for j in range(0, K, N):
        x = tl.zeros((L, N), WORK)
        for q in range(0, K, N):
            p = load_tile(gains, K, 1, 0, q, count, K, L, N, WORK)
            x += multiply(p, load_tile(grad_cov, K, 1, q, j, K, K, N, N, WORK), WORK, PRECISION)
        store_tile(slopes, K, 1, x, 0, j, count, K, L, N)
        p = load_tile(gains, 1, K, j, 0, K, count, N, L, WORK)
        inner += multiply(x, p, WORK, PRECISION)
        n = load_sum(cross, stride, blocks, K, j, count, K, L, N, WORK)
        gained += multiply(tl.trans(p), tl.trans(n), WORK, PRECISION)
    e = load_sum(squares, stride // K * L, blocks, L, 0, count, L, L, L, WORK)
    inside = (at < count)[:, None] & (at < count)[None, :]
    b = tl.where(later, product[:, None], product[None, :]).to(WORK)
    evidence = (0.5 * scale).to(WORK) * (b * e - tl.where(diagonal, C, 0.0).to(WORK))
    evidence = tl.where(inside, evidence, 0.0)
    system = inner - (gained + tl.trans(gained)) * 0.5 + evidence  # the adjoint of S, whitened
    back = tl.trans(inverse)
    left = multiply(back, system, WORK, PRECISION)
    d_noise += tl.sum((left * back).to(tl.float64), axis=1)
    left *= 2
    tl.debug_barrier()
    for i in range(0, K, N):
        white = multiply(inverse, load_rows(weights, K, kept, i, K, L, N, WORK), WORK, PRECISION)
        h = tl.zeros((N, L), WORK)
        for j in range(0, K, N):
            x = load_tile(grad_cov, K, 1, i, j, K, K, N, N, WORK)
            slope = load_tile(slopes, K, 1, 0, j, count, K, L, N, WORK)
            x -= multiply(tl.trans(white), slope, WORK, PRECISION)
            store_tile(grad_cov, K, 1, x, i, j, K, K, N, N)
            h += multiply(x, load_tile(gains, 1, K, j, 0, K, count, N, L, WORK), WORK, PRECISION)
        tl.debug_barrier()
        for j in range(0, K, N):
            w = load_rows(weights, K, kept, j, K, L, N, WORK)
            x = load_tile(grad_cov, K, 1, i, j, K, K, N, N, WORK)
            x -= multiply(h, multiply(inverse, w, WORK, PRECISION), WORK, PRECISION)
            store_tile(grad_cov, K, 1, x, i, j, K, K, N, N)
        n = load_sum(cross, stride, blocks, K, i, count, K, L, N, WORK)
        slope = load_tile(slopes, K, 1, 0, i, count, K, L, N, WORK)
        x = multiply(tl.trans(inverse), n - 2 * slope, WORK, PRECISION)
        store_tile(left_room, K, 1, x, 0, i, count, K, L, N)
        n += multiply(evidence - tl.trans(gained), white, WORK, PRECISION)
        store_tile(cross, K, 1, n, 0, i, count, K, L, N)
    tl.debug_barrier()
    for i in range(0, K, N):
        white_i = multiply(inverse, load_rows(weights, K, kept, i, K, L, N, WORK), WORK, PRECISION)
        m_i = load_tile(cross, K, 1, 0, i, count, K, L, N, WORK)
        for j in range(0, i + 1, N):
            white_j = multiply(
                inverse, load_rows(weights, K, kept, j, K, L, N, WORK), WORK, PRECISION
            )
            m_j = load_tile(cross, K, 1, 0, j, count, K, L, N, WORK)
            x = load_tile(grad_cov, K, 1, i, j, K, K, N, N, WORK)
            y = load_tile(grad_cov, K, 1, j, i, K, K, N, N, WORK)
            x += multiply(tl.trans(white_i), m_j, WORK, PRECISION)
            y += multiply(tl.trans(white_j), m_i, WORK, PRECISION)
            if queries is not None:
                x += outer(rest, mixed, i, j, count, K, L, N, WORK, PRECISION)
                y += outer(rest, mixed, j, i, count, K, L, N, WORK, PRECISION)
            store_symmetric(grad_cov, K, (x + tl.trans(y)) * 0.5, i, j, N)
        d = -load_sum(shares, stride, blocks, K, i, count, K, L, N, WORK)
        # P, not Y U: the latter loses digits where little is left of w'U w.
        p = load_tile(gains, K, 1, 0, i, count, K, L, N, WORK)
        d += multiply(left, p, WORK, PRECISION)
        if queries is not None:
            d += load_tile(moved, K, 1, 0, i, count, K, L, N, WORK)
        for q in range(0, K, N):
            x = load_tile(left_room, K, 1, 0, q, count, K, L, N, WORK)
            d += multiply(x, load_tile(cov, K, 1, q, i, K, K, N, N, WORK), WORK, PRECISION)
        d = tl.where(kept[:, None], d, 0.0)
        store_tile(d_weights, K, 1, d, 0, i, count, K, L, N)
    tl.debug_barrier()
    return d_noise, tl.sum(tl.where(diagonal, e, 0.0).to(tl.float64), axis=1), d_logs


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
    queries, grad_reads, grad_var = reads = tuple(plain(x) for x in reads)
    mask, decay = as_bytes(mask), plain(dynamics[0])
    (batch, slots, code), (rows, episode, _) = mean.shape, weights.shape
    # Four arrays of all steps and slots for each block of columns.
    most = WORKSPACE // max(1, 4 * 8 * rows * episode * slots)
    split = blocks, width = blocks_of_columns(mean, most)
    if dynamics[1] is not None:
        (plan,) = plans
        grads = grad_mean, grad_cov, grad_evidence
        out, moved, d_queries, partials = reverse_moving(
            grads, inputs, mask, dynamics[1:], plan, split, reads, bounds, sequences
        )
        return out, [None, *moved], d_queries, partials
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
