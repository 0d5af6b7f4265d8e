"""The gradient of a write, or of a scan, of a memory that moves, in Triton: closed form per chunk,
from the last to the first, in float64.

The forward is run again and keeps G, F^-1, E (`_stationary`) and the states before every chunk:
going back from those after it would divide by what is left of them. In the notation of
`_stationary`, with Y = F^-1 D_b W, W~ = D_b W, Q~ = D_b Q, P = D G, N~ = E gR', B = tril(gO E'),
Delta = B - 2 gv A, V = F^-T and

    I = gl/2 (E E' - C I) + sym((P gU - N~) P') + A' gv A - sym(A'B),  T = N~ - 2 P gU,
    M = b_L T + Delta'Q~,  dS = V I V',  dB = V T,  dA = Delta V',

the gradients are (csrc/cpu/stationary_adjoint.h)

    dZ = D^ = V P gR - gl V E + V A'gO,  dv = diag(dS)
    dW = D_b (V (M + 2 I Y) U - D^ R') + (2 (N o dS) W + D_n dB + (N o dA)'Q) Sigma,  n_t = N_Lt
    dQ = D_b (Delta Y U + 2 gv Q~ U + gO R') + ((N o dA) W + 2 h gv Q) Sigma
    gR <- b_L gR - W~'D^ + Q~'gO,  gU <- J'gU J + sym(Y'(N~ J + gl/2 (E E' - C I) Y))
        + sym((Q~ - A Y)'(gv (Q~ - A Y) + B Y)),  J = b_L - P'Y
    dSigma += h_L gU + sym(W'((N o dS) W + D_n dB + (N o dA)'Q)) + Q'h gv Q

and those of the retentions sums over what each of the b_t and g_ts gets.
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
    MovingState,
    Room,
    Slopes,
    Written,
)
from ._chunk import FAILED, load_steps
from ._finish import no_partials
from ._launch import VARYING, choose, empty, launch
from ._reads import read_weights
from ._segment_plan import Cut, plan_segments, work_of_adjoint
from ._segments import reverse_in_segments
from ._sequences import locate
from ._stationary import chunks_before, last_of, last_row, products_between
from ._stationary_adjoint import ROOMS, reverse_moving_covariance
from ._tiles import copy_matrix, copy_symmetric, load_rows, load_tile, multiply, store_tile
from .bayes_write import (
    Pass,
    blocks_of_columns,
    chunk_length,
    of_programs,
    symmetric,
    write_kernel,
)


@triton.jit
def reverse_moving_columns(
    mean, grad_mean, weights, gains, inverse, errors, d_values, between, kept, a, b, scale,
    first_column, last_column, count, K, C, queries, grad_reads,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adjoint of a chunk for a block of columns, with the ``mean`` before it: gR becomes that
    before the chunk, dZ = D^ is stored, ``cross`` = E gR', ``shares`` = D^ R' and, with the
    gradient gO of reads, ``asked`` = gO R'; returns E E', gO E' and <gR, R>."""
    cross, shares, asked = between.cross, between.shares, between.asked
    squares = tl.zeros((L, L), WORK)
    response = tl.zeros((L, L), WORK)
    dot = tl.zeros((), tl.float64)
    moves = products_between(a, L)
    rest = last_row(moves, count, L).to(WORK)[:, None]
    last = last_of(b, count, L).to(WORK)
    factor = b.to(WORK)
    if grad_reads is not None:
        inside = read_weights(queries, gains, count, K, L, N, WORK, PRECISION)
        inside *= moves.to(WORK)
    for c in range(first_column, last_column, N):
        e = load_tile(errors, C, 1, 0, c, count, last_column, L, N, WORK)
        squares += multiply(e, tl.trans(e), WORK, PRECISION)
        slope = -scale.to(WORK) * e
        if grad_reads is not None:
            o = load_tile(grad_reads, C, 1, 0, c, count, last_column, L, N, WORK)
            response += multiply(o, tl.trans(e), WORK, PRECISION)
            slope += multiply(tl.trans(inside), o, WORK, PRECISION)
        for q in range(0, K, N):
            p = load_tile(gains, K, 1, 0, q, count, K, L, N, WORK) * rest
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
            r = load_tile(mean, C, 1, q, c, K, last_column, N, N, WORK)
            g = load_tile(grad_mean, C, 1, q, c, K, last_column, N, N, WORK)
            dot += tl.sum(tl.sum((g * r).to(tl.float64), axis=1), axis=0)
            x = multiply(d, tl.trans(r), WORK, PRECISION)
            if c > first_column:
                x += load_tile(shares, K, 1, 0, q, count, K, L, N, WORK)
            store_tile(shares, K, 1, x, 0, q, count, K, L, N)
            w = load_rows(weights, K, kept, q, K, L, N, WORK) * factor[:, None]
            g = g * last - multiply(tl.trans(w), d, WORK, PRECISION)
            if grad_reads is not None:
                x = multiply(o, tl.trans(r), WORK, PRECISION)
                if c > first_column:
                    x += load_tile(asked, K, 1, 0, q, count, K, L, N, WORK)
                store_tile(asked, K, 1, x, 0, q, count, K, L, N)
                x = load_tile(queries, 1, K, q, 0, K, count, N, L, WORK) * factor[None, :]
                g += multiply(x, o, WORK, PRECISION)
            store_tile(grad_mean, C, 1, g, q, c, K, last_column, N, N)
        tl.debug_barrier()
    return squares, response, dot


@triton.jit(do_not_specialize=VARYING)
def moving_columns_kernel(
    grads, episode, factors, between, states, grad_mean, d_values, d_mean, status,
    T, K, C, blocks, width, steps, sequences,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``states`` are the means before every chunk, ``dots`` (chunks, blocks) <gR, R> there."""
    grad_mean_in, grad_evidence, grad_reads = grads.mean, grads.evidence, grads.reads
    weights, noise_var, mask, retention, bounds, _values, queries = episode
    gains, inverses, errors = factors
    cross, shares, squares, asked, responses, dots = between
    program = tl.program_id(0).to(tl.int64)
    item, block = program // blocks, program % blocks
    if chunk_length(None, status, item, blocks) > 0:
        first_column = (block * width).to(tl.int32)
        last_column = tl.minimum(first_column + width, C)
        scale = tl.zeros((), tl.float64)
        if grad_evidence is not None:
            scale = tl.load(grad_evidence + item).to(tl.float64)
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
        kept_before = chunks_before(item, row, begins, sequences, steps, T)
        states += kept_before * K * C
        dots += kept_before * blocks + block
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
            index = chunks - 1 - chunk
            first = index * steps
            count = tl.minimum(steps, length - first)
            kept, _v, a, b, _bad = load_steps(noise_var, mask, retention, base + first, count, L)
            start = first.to(tl.int64)
            q, o, s = queries, grad_reads, asked
            if grad_reads is not None:
                q = queries + start * K
                o = grad_reads + start * C
                s = asked + start * K
            inverse = load_tile(inverses + start * L, L, 1, 0, 0, count, L, L, L, WORK)
            x, response, dot = reverse_moving_columns(
                states + index.to(tl.int64) * K * C, grad_mean, weights + start * K,
                gains + start * K, inverse, errors + start * C, d_values + start * C,
                Between(cross + start * K, shares + start * K, None, s), kept, a, b, scale,
                first_column, last_column, count, K, C, q, o, L, N, WORK, PRECISION,
            )  # fmt: skip
            store_tile(squares + start * L, L, 1, x, 0, 0, count, L, L, L)
            tl.store(dots + index.to(tl.int64) * blocks, dot)
            if grad_reads is not None:
                store_tile(responses + start * L, L, 1, response, 0, 0, count, L, L, L)
        if d_mean is not None:
            d_mean += item * K * C
            copy_matrix(grad_mean, d_mean, K, first_column, last_column, C, N, N, WORK)


@triton.jit(do_not_specialize=VARYING)
def moving_covariance_kernel(
    grads, episode, factors, between, state, out, status, T, K, C, blocks, steps, sequences,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
    ROOMS: tl.constexpr,
):  # fmt: skip
    """``state.cov`` are the covariances before every chunk; ``state.grad_cov`` is worked out from
    that of ``grads``."""
    grad_cov_in, grad_evidence, grad_var = grads.cov, grads.evidence, grads.var
    weights, noise_var, mask, retention, bounds, _values, queries = episode
    gains, inverses = factors.gains, factors.inverses
    cross, shares, squares, asked, responses, dots = between
    states, grad_cov, sigma, d_sigma, room = state
    d_weights, d_noise, d_retention, d_queries, d_cov, d_stationary_cov = out
    item = tl.program_id(0).to(tl.int64)
    if chunk_length(None, status, item, blocks) > 0:
        scale = tl.zeros((), tl.float64)
        if grad_evidence is not None:
            scale = tl.load(grad_evidence + item).to(tl.float64)
        stride = (T * K).to(tl.int64)
        row, begins, length = locate(bounds, item, sequences, T)
        step_0 = row * T + begins
        start_0 = row * blocks * T + begins
        gains += start_0 * K
        inverses += start_0 * L
        cross += start_0 * K
        shares += start_0 * K
        squares += start_0 * L
        grad_cov += item * K * K
        weights += step_0 * K
        d_weights += step_0 * K
        kept_before = chunks_before(item, row, begins, sequences, steps, T)
        states += kept_before * K * K
        dots += kept_before * blocks
        room += item * ROOMS * L * K
        if sigma is not None:
            sigma += item * K * K
            d_sigma += item * K * K
            copy_matrix(None, d_sigma, K, 0, K, K, N, N, WORK)
        if grad_cov_in is not None:
            copy_symmetric(grad_cov_in + item * K * K, grad_cov, K, N, WORK)
        else:
            copy_matrix(None, grad_cov, K, 0, K, K, N, N, WORK)
        tl.debug_barrier()
        at = tl.arange(0, L)
        chunks = (length + steps - 1) // steps
        for chunk in range(0, chunks):
            index = (chunks - 1 - chunk).to(tl.int64)
            start = index * steps
            count = tl.minimum(steps, length - start).to(tl.int32)
            base = step_0 + start
            kept, _v, a, b, _bad = load_steps(noise_var, mask, retention, base, count, L)
            dot = tl.zeros((), tl.float64)
            for block in range(0, blocks):
                dot += tl.load(dots + index * blocks + block)
            q, h, o, s, d = queries, grad_var, asked, responses, d_queries
            if queries is not None:
                q = queries + base * K
                d = d_queries + base * K
            if grad_var is not None:
                h = grad_var + base
            if responses is not None:
                o = asked + (start_0 + start) * K
                s = responses + (start_0 + start) * L
            d_n, d_a = reverse_moving_covariance(
                MovingState(states + index * K * K, grad_cov, sigma, d_sigma, room),
                weights + start * K, Factors(gains + start * K, inverses + start * L),
                Between(cross + start * K, shares + start * K, squares + start * L, o, s),
                d_weights + start * K, kept, a, b, scale, dot, blocks, stride, count, K, C, q, h,
                d, L, N, WORK, PRECISION,
            )  # fmt: skip
            within = at < count
            tl.store(d_noise + base + at, tl.where(kept, d_n, 0.0), mask=within)
            tl.store(d_retention + base + at, tl.where(kept, d_a, 0.0), mask=within)
        if d_cov is not None:
            copy_matrix(grad_cov, d_cov + item * K * K, K, 0, K, K, N, N, WORK)
            if sigma is not None:
                d_stationary_cov += item * K * K
                copy_matrix(d_sigma, d_stationary_cov, K, 0, K, K, N, N, WORK)


class Reversal:
    """A write of a memory that moves, run again for the way back through its chunks, of items that
    are not ``done`` (B,). ``partials`` are NaN where one failed; nothing of others is written."""

    def __init__(
        self, memory: Memory, episode: Episode, plan: Pass, most: int, sequences: int,
        *, with_reads: bool, done: Tensor | None = None,
    ):  # fmt: skip
        """With up to ``most`` blocks of columns, and, if ``with_reads``, gradients of reads."""
        self.memory, self.plan = memory, plan
        self.asking = episode._replace(values=None)
        mean, cov, sigma = memory
        (batch, slots, code), (rows, steps, _) = mean.shape, episode.weights.shape
        blocks, width = blocks_of_columns(mean, most)
        self.config = config = choose(slots, plan.work)
        L, self.constants = config.steps, config.constants(plan.work, "L")
        self.programs, self.width = batch * blocks, width
        self.sizes = {
            "T": steps, "K": slots, "C": code, "blocks": blocks, "sequences": sequences,
            "steps": plan.steps,
        }  # fmt: skip
        chunks = rows * (steps // plan.steps + sequences)
        self.mean_states = self.room(chunks, slots, code)
        self.cov_states = self.room(chunks, slots, slots)
        gains, cross, shares = (self.room(rows, blocks, steps, slots) for _ in range(3))
        inverses, squares = (self.room(rows, blocks, steps, L) for _ in range(2))
        asked = responses = None
        if with_reads:
            asked, responses = self.room(*cross.shape), self.room(*squares.shape)
        self.factors = Factors(gains, inverses, self.room(rows, steps, code))
        dots = self.room(chunks, blocks)
        self.between = Between(cross, shares, squares, asked, responses, dots)
        self.partials = no_partials(mean, blocks)
        self.status = empty(mean, batch, blocks, dtype=torch.int32)
        seen = None if sigma is None else self.room(batch, blocks, L, slots)
        work_room = self.room(batch, slots, code), self.room(batch, blocks, slots, slots)
        launch(
            write_kernel, self.programs, config, memory, episode._replace(queries=None),
            self.factors, Room(*work_room, None, seen, self.mean_states, self.cov_states),
            Written(self.partials, self.status), of_programs(done, blocks), width=width, SAVE=True,
            MOVES=True, **(self.sizes | plan.arguments(cov)), **self.constants,
        )  # fmt: skip

    def room(self, *shape: int) -> Tensor:
        return empty(self.memory.mean, *shape, dtype=self.plan.work)

    def run(
        self, grads: Gradients, d_mean: Tensor, d_values: Tensor, slopes: Slopes,
        done: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Stores the gradients, ``slopes`` those of the covariance, of the items that are not
        ``done``."""
        sigma, slots = self.memory.stationary_cov, self.sizes["K"]
        direct = d_mean.dtype == self.plan.work
        grad_mean, grad_cov = (x if direct else self.room(*x.shape) for x in (d_mean, slopes.cov))
        d_sigma = slopes.stationary_cov
        if d_sigma is not None and not direct:
            d_sigma = self.room(*d_sigma.shape)
        status = self.status
        if done is not None:
            status = status.masked_fill(done[:, None] > 0, FAILED.value)
        launch(
            moving_columns_kernel, self.programs, self.config,
            grads._replace(cov=None, var=None), self.asking, self.factors, self.between,
            self.mean_states, grad_mean, d_values, None if direct else d_mean, status,
            width=self.width, **self.sizes, **self.constants,
        )  # fmt: skip
        room = self.room(len(d_mean), ROOMS, self.config.steps, slots)
        launch(
            moving_covariance_kernel, len(d_mean), self.config,
            grads._replace(mean=None, reads=None), self.asking,
            self.factors._replace(errors=None), self.between,
            MovingState(self.cov_states, grad_cov, sigma, d_sigma, room),
            slopes._replace(cov=None if direct else slopes.cov), status, ROOMS=ROOMS,
            **self.sizes, **self.constants,
        )  # fmt: skip


def reverse_moving(
    grads: Gradients,
    inputs: list[Tensor],
    mask: Tensor | None,
    dynamics: tuple[Tensor, Tensor | None],
    plan: Pass,
    most: int,
    queries: Tensor | None,
    bounds: Tensor | None = None,
    sequences: int = 1,
) -> tuple[list[Tensor], list[Tensor | None], Tensor | None, Tensor]:
    """Gradients of ``inputs``, of ``dynamics`` (retention and stationary_cov) and of queries, and
    partials that are NaN where an item failed; with up to ``most`` blocks of columns."""
    mean, cov, weights, values, noise_var = inputs
    retention, sigma = dynamics[0].contiguous(), symmetric(dynamics[1])
    memory = Memory(mean, cov, sigma)
    episode = Episode(weights, noise_var, mask, retention, bounds, values, queries)
    d_mean, d_cov, d_weights, d_values, d_noise = out = [torch.empty_like(x) for x in inputs]
    d_retention = torch.empty_like(retention)
    d_queries, d_sigma = (None if x is None else torch.empty_like(x) for x in (queries, sigma))
    slopes = Slopes(d_weights, d_noise, d_retention, d_queries, d_cov, d_sigma)
    with_reads = grads.reads is not None
    args = memory, episode, plan, most, sequences
    cut, done = segments_of_adjoint(memory, episode, plan, sequences), None
    if cut.count > 1:
        done = reverse_in_segments(Reversal, grads, *args, d_mean, d_values, slopes, cut)
    chain = Reversal(*args, with_reads=with_reads, done=done)
    chain.run(grads, d_mean, d_values, slopes, done)
    partials = chain.partials
    if done is not None:
        partials = partials.masked_fill(done[:, None] > 0, 0.0)
    return out, [d_retention, d_sigma], d_queries, partials


def segments_of_adjoint(memory: Memory, episode: Episode, plan: Pass, sequences: int) -> Cut:
    if plan.limit < 0.0:
        return Cut()
    (_, slots, code), (_, steps, _) = memory.mean.shape, episode.weights.shape
    work = work_of_adjoint(slots, code, reads=episode.queries is not None)
    return plan_segments(memory.mean, steps, sequences, work, adjoint=True)
