"""bayes_write in Triton, forward: the algebra of docs/algorithms.md, one program per memory and
block of columns, chunk by chunk.

The K x K half of a chunk is done by every program of a memory; the columns are shared out (see
`_chunk`). float64 throughout but for easy float32 items, which a first
launch in float32 serves: those with ``max w'Uw / v`` of at most 16. An item too hard for Cholesky
factors in float64 takes those of a square root of its covariance (`_square_root`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._arguments import Episode, Factors, Memory, Room, Written
from ._chunk import FAILED, HARDER, TO_DO, downdate, factor_chunk, load_steps, write_columns
from ._finish import finish, no_partials
from ._launch import VARYING, Config, as_bytes, choose, empty, launch, plain, processors
from ._reads import store_variances
from ._segment_plan import Cut, plan_segments, work_of_write
from ._segments import write_in_segments
from ._sequences import are_bounds_wrong, locate
from ._square_root import load_root, square
from ._stationary import (
    chunks_before,
    factor_moving,
    move_columns,
    move_covariance,
    store_moving_variances,
)
from ._tiles import copy_matrix, copy_symmetric, store_tile

#: Hardness max w'Uw / v up to which each arithmetic is trusted, as csrc/common/policy.h.
HARD_FOR_FLOAT32_FACTORS = 16.0
HARD_FOR_FLOAT64 = 1e3  # of a float64 state
HARD_FOR_CHOLESKY = 1e11  # float64 factors of float32 data
#: Items of at most so many steps x slots x columns are done in float64 at once.
SMALL_ITEM = 4096


@triton.jit
def is_wanted(before, item, blocks):
    """Whether a program of the launch before left its part of the item to do."""
    left = 0
    if before is None:
        left = 1
    else:
        for block in range(0, blocks):
            if tl.load(before + item * blocks + block) == TO_DO:
                left += 1
    return left > 0


@triton.jit
def chunk_length(before, status, item, blocks):
    """Of an item whose forward was done by this launch's arithmetic; else at most 0."""
    length = 0
    if is_wanted(before, item, blocks):
        length = tl.load(status + item * blocks)
        for block in range(1, blocks):
            length = tl.minimum(length, tl.load(status + item * blocks + block))
    return length


@triton.jit(do_not_specialize=VARYING)
def write_kernel(
    memory, episode, factors, room, out, before,
    T, K, C, blocks, width, steps, sequences, limit, epsilon,
    L: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
    SAVE: tl.constexpr, LAST: tl.constexpr, MOVES: tl.constexpr,
):  # fmt: skip
    """The items that the launch ``before`` left to do, or all of them; ``status`` becomes the
    length of chunks that served, TO_DO or FAILED.

    With SAVE, the gains P (T x K), F^-1 (T x L) and E (T x C) are kept for the gradient, and the
    final state stays in ``mean_work`` and ``cov_work``. LAST: nothing is left for a later launch;
    what is too hard starts again from a square root, as everything does with a negative limit.
    With ``queries``, the reads after every step and their ``variances`` are stored.

    MOVES: ``decay`` holds retentions (`_stationary`); what is too hard goes step by step, and with
    SAVE the states before every chunk are kept.
    """
    mean, cov, stationary_cov = memory
    weights, noise_var, mask, decay, bounds, values, queries = episode
    gains, inverses, errors = factors
    mean_work, cov_work, root, seen, mean_states, cov_states = room
    evidence, status, mean_out, cov_out, reads, variances = out
    program = tl.program_id(0).to(tl.int64)
    item, block = program // blocks, program % blocks
    if is_wanted(before, item, blocks):
        first_column = (block * width).to(tl.int32)
        last_column = tl.minimum(first_column + width, C)
        # Each program has a covariance of its own, a block of columns of the common mean.
        mean_work += item * K * C
        cov_work += program * K * K
        mean += item * K * C
        cov += item * K * K
        row, begins, length = locate(bounds, item, sequences, T)
        base = row * T + begins
        weights += base * K
        values += base * C
        if SAVE:
            line = (row * blocks + block) * T + begins
            gains += line * K
            inverses += line * L
            errors += base * C
        else:
            gains += program * L * K
        begin, attempts = 0, 1
        if MOVES:
            if stationary_cov is not None:
                stationary_cov += item * K * K
                seen += program * L * K
            if SAVE:
                chunks = chunks_before(item, row, begins, sequences, steps, T)
                mean_states += chunks * K * C
                cov_states += chunks * K * K
        if LAST:
            if not MOVES:
                root += program * K * (K + N)
            attempts = 2
            if limit < 0.0:
                begin = 1
        outcome = HARDER
        if are_bounds_wrong(bounds, sequences):
            outcome = FAILED
        squares = tl.zeros((), tl.float64)
        logs = tl.zeros((), tl.float64)
        for attempt in range(begin, attempts):
            if outcome == HARDER:
                outcome = TO_DO
                squares = tl.zeros((), tl.float64)
                logs = tl.zeros((), tl.float64)
                if MOVES:
                    copy_symmetric(cov, cov_work, K, N, WORK)
                elif attempt == 0:
                    copy_symmetric(cov, cov_work, K, N, WORK)
                elif LAST:
                    if load_root(cov, root, K, epsilon, N, WORK, PRECISION) > 0:
                        outcome = FAILED
                copy_matrix(mean, mean_work, K, first_column, last_column, C, N, N, WORK)
                tl.debug_barrier()
                first = tl.zeros((), tl.int32)
                while (first < length) & (outcome == TO_DO):
                    count = tl.minimum(steps, length - first)
                    kept, v, g, product, bad = load_steps(
                        noise_var, mask, decay, base + first, count, L
                    )
                    b = product
                    if MOVES:
                        product = tl.full((L,), 1.0, tl.float64)
                    noise = tl.where(kept, v * product, 1.0)
                    w = weights + first.to(tl.int64) * K
                    z = values + first.to(tl.int64) * C
                    p, e, q, r = gains, errors, queries, reads
                    if queries is not None:
                        q = queries + (base + first) * K
                        r = reads + (base + first) * C
                    if SAVE:
                        p = gains + first.to(tl.int64) * K
                        e = errors + first.to(tl.int64) * C
                    at = tl.arange(0, L)
                    scale = 1.0 / tl.sum(tl.where(at == count - 1, product, 0.0), axis=0)
                    if MOVES:
                        r_before = mean_states
                        if SAVE:
                            chunk = (first // steps).to(tl.int64)
                            r_before = mean_states + chunk * K * C
                            if block == 0:
                                u_before = cov_states + chunk * K * K
                                copy_matrix(cov_work, u_before, K, 0, K, K, N, N, WORK)
                                tl.debug_barrier()
                        inverse, pivots, harder, spread = factor_moving(
                            cov_work, stationary_cov, w, p, seen, kept, g, b, noise, count, limit,
                            attempt, K, L, N, WORK, PRECISION, LAST, q,
                        )  # fmt: skip
                        if harder:
                            outcome = HARDER
                            if attempt > 0:
                                outcome = FAILED
                    else:
                        inverse, pivots, outcome, spread = factor_chunk(
                            cov_work, root, w, p, kept, noise, scale, count, limit, attempt, K,
                            L, N, WORK, PRECISION, LAST, q,
                        )  # fmt: skip
                    if bad > 0:
                        outcome = FAILED
                    if outcome == TO_DO:
                        if SAVE:
                            start = inverses + first.to(tl.int64) * L
                            store_tile(start, L, 1, inverse, 0, 0, count, L, L, L)
                        if MOVES:
                            squares += move_columns(
                                mean_work, w, z, e, p, inverse, kept, g, b, first_column,
                                last_column, count, K, C, L, N, WORK, PRECISION, SAVE, q, r,
                                r_before,
                            )  # fmt: skip
                        else:
                            squares += write_columns(
                                mean_work, w, z, e, p, inverse, kept, product, first_column,
                                last_column, count, K, C, L, N, WORK, PRECISION, SAVE, q, r,
                            )  # fmt: skip
                        if queries is not None:
                            if block == 0:
                                to = variances + base + first
                                if MOVES:
                                    store_moving_variances(
                                        cov_work, stationary_cov, q, p, spread, g, b, to, count,
                                        attempt, K, L, N, WORK, PRECISION,
                                    )  # fmt: skip
                                else:
                                    store_variances(
                                        cov_work, q, p, spread, product, to, count, attempt, K,
                                        L, N, WORK, PRECISION,
                                    )  # fmt: skip
                        terms = tl.log(pivots.to(tl.float64)) - tl.log(product)
                        logs += tl.sum(tl.where(kept, terms + 1.8378770664093453, 0.0), axis=0)
                        if attempt == 0:
                            if MOVES:
                                move_covariance(
                                    cov_work, stationary_cov, p, g, b, count, K,
                                    L, N, WORK, PRECISION,
                                )  # fmt: skip
                            else:
                                downdate(
                                    cov_work, p, scale.to(WORK), count, K, L, N, WORK, PRECISION
                                )
                        tl.debug_barrier()
                    first += count
                if LAST and not MOVES:
                    if attempt == 1:
                        square(root, cov_work, K, N, WORK, PRECISION)
                        tl.debug_barrier()
        columns = (last_column - first_column).to(tl.float64)
        total = -0.5 * (squares + columns * logs)
        if (total < float("inf")) & (total > float("-inf")):
            if outcome == TO_DO:
                outcome = steps
        elif outcome == TO_DO:
            outcome = HARDER
        if outcome == HARDER:
            outcome = FAILED if LAST else TO_DO
        tl.store(status + program, outcome)
        if outcome != TO_DO:
            tl.store(evidence + program, tl.where(outcome > 0, total, float("nan")))
            if mean_out is not None:
                mean_out += item * K * C
                copy_matrix(mean_work, mean_out, K, first_column, last_column, C, N, N, WORK)
                if block == 0:
                    copy_matrix(cov_work, cov_out + item * K * K, K, 0, K, K, N, N, WORK)


class Pass(NamedTuple):
    """One launch of the write, which does what the launch before left to do."""

    work: torch.dtype  # arithmetic
    steps: int  # length of chunks
    limit: float  # hardness up to which Cholesky factors serve
    last: bool = True  # what is harder takes square roots, and is not left to another launch

    def arguments(self, cov: Tensor) -> dict:
        """What the kernel is told of it."""
        epsilon = torch.finfo(cov.dtype).eps
        return {"steps": self.steps, "limit": self.limit, "epsilon": epsilon, "LAST": self.last}


def passes(
    mean: Tensor, slots: int, *, small: bool, method: str, moves: bool = False
) -> list[Pass]:
    """The launches, in order."""
    if moves:  # chunks that write over the memory several times cost digits
        longest = max(16, 2 * slots)
        plans = passes(mean, slots, small=small, method=method)
        return [plan._replace(steps=min(plan.steps, longest)) for plan in plans]
    narrow = mean.dtype == torch.float32
    limit = HARD_FOR_CHOLESKY if narrow else HARD_FOR_FLOAT64
    robust = Pass(torch.float64, choose(slots, torch.float64).steps, limit)
    if method == "sqrt":
        return [robust._replace(limit=-1.0)]  # no hardness is that low
    if small or not narrow:
        return [robust]
    steps = choose(slots, torch.float32).steps
    return [Pass(torch.float32, steps, HARD_FOR_FLOAT32_FACTORS, last=False), robust]


def blocks_of_columns(mean: Tensor, most: int = 2**31) -> tuple[int, int]:
    """How many programs, ``most`` at most, share the columns of a memory, and columns of each."""
    batch, slots, code = mean.shape
    size = choose(slots, torch.float32).size  # the largest of those that may be used
    tiles = triton.cdiv(code, size)
    blocks = max(1, min(tiles, most, processors(mean.device) // max(batch, 1)))
    share = triton.cdiv(tiles, blocks)
    return triton.cdiv(tiles, share), share * size


def write(
    inputs: list[Tensor],
    mask: Tensor | None,
    decay: Tensor | None,
    plans: list[Pass],
    mean_out: Tensor,
    cov_out: Tensor,
    reads: tuple[Tensor | None, ...] = (None, None, None),
    bounds: Tensor | None = None,
    sequences: int = 1,
    dynamics: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """By the `passes`, a long sequence of a memory that moves in segments; returns the partials of
    log_evidence. ``reads`` are queries and where their values and variances go, ``dynamics``
    retention and stationary_cov."""
    mean, cov, weights, values, noise_var = inputs
    retention, sigma = dynamics[0], symmetric(dynamics[1])
    moves = retention is not None
    memory, changes = Memory(mean, cov, sigma), plain(retention if moves else decay)
    episode = Episode(weights, noise_var, as_bytes(mask), changes, bounds, values, reads[0])
    args = memory, episode, plans, (mean_out, cov_out), reads, sequences
    if moves:
        cut = segments_of(*args[:3], sequences)
        if cut.count > 1:
            return write_in_segments(start, *args, cut)
    return start(*args, moves=moves)


def segments_of(memory: Memory, episode: Episode, plans: list[Pass], sequences: int) -> Cut:
    (_, slots, code), (_, steps, _) = memory.mean.shape, episode.weights.shape
    if plans[-1].limit < 0.0:
        return Cut()
    columns = min(blocks_of_columns(memory.mean)[1], code), code
    reads, identity = episode.queries is not None, memory.stationary_cov is None
    work = work_of_write(slots, columns, plans[0].steps, reads=reads, identity=identity)
    return plan_segments(memory.mean, steps, sequences, work, adjoint=False)


def start(
    memory: Memory,
    episode: Episode,
    plans: list[Pass],
    out: tuple[Tensor, Tensor],
    reads: tuple[Tensor | None, ...],
    sequences: int,
    done: Tensor | None = None,
    *,
    moves: bool,
) -> Tensor:
    """Launch each of the `passes`, for items that are not ``done`` (B,); of others the partials,
    too, stay as they are."""
    mean, cov, sigma = memory
    _, values_out, variances = reads
    (batch, slots, code), steps = mean.shape, episode.weights.shape[1]
    blocks, width = blocks_of_columns(mean)
    partials = no_partials(mean, blocks)
    before = of_programs(done, blocks)
    for plan in plans:
        work, config = plan.work, choose(slots, plan.work)
        direct = work == out[0].dtype and blocks == 1
        left = before is not None and not plan.last
        status = before.clone() if left else empty(mean, batch, blocks, dtype=torch.int32)
        chunk = batch, blocks, config.steps, slots
        work_room = Room(
            out[0] if direct else empty(mean, *mean.shape, dtype=work),
            out[1] if direct else empty(mean, batch, blocks, slots, slots, dtype=work),
            room_for_root(mean, blocks, config) if plan.last and not moves else None,
            None if sigma is None else empty(mean, *chunk, dtype=work),
        )
        copies = (None, None) if direct else out
        launch(
            write_kernel, batch * blocks, config, memory, episode,
            Factors(empty(mean, *chunk, dtype=work)), work_room,
            Written(partials, status, *copies, values_out, variances), before, T=steps, K=slots,
            C=code, blocks=blocks, width=width, sequences=sequences, SAVE=False, MOVES=moves,
            **plan.arguments(cov), **config.constants(work, "L"),
        )  # fmt: skip
        before = status
    return partials


def of_programs(done: Tensor | None, blocks: int) -> Tensor | None:
    """What `is_wanted` takes of items that are done."""
    return None if done is None else done[:, None].expand(-1, blocks).contiguous()


def symmetric(stationary_cov: Tensor | None) -> Tensor | None:
    """As the kernels take it."""
    if stationary_cov is None:
        return None
    return ((stationary_cov + stationary_cov.mT) / 2).contiguous()


def room_for_root(mean: Tensor, blocks: int, config: Config) -> Tensor:
    batch, slots, _ = mean.shape
    return empty(mean, batch, blocks, slots, slots + config.size)


def bayes_write(
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    noise_var: Tensor,
    mask: Tensor | None = None,
    decay: Tensor | None = None,
    retention: Tensor | None = None,
    stationary_cov: Tensor | None = None,
    method: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """``kanerva::bayes_write``. ``method="sqrt"`` starts from a square root, of a memory that moves
    step by step; all others begin with Cholesky factors of chunks."""
    inputs = [plain(x) for x in (mean, cov, weights, values, noise_var)]
    (batch, slots, code), episode = mean.shape, weights.shape[1]
    mean_out, cov_out = torch.empty_like(inputs[0]), torch.empty_like(inputs[1])
    evidence = empty(mean, batch, dtype=mean.dtype)
    small = episode * slots * code <= SMALL_ITEM
    plans = passes(mean, slots, small=small, method=method, moves=retention is not None)
    dynamics = retention, stationary_cov
    partials = write(inputs, mask, decay, plans, mean_out, cov_out, dynamics=dynamics)
    finish(partials, mean_out, cov_out, total=evidence)
    return mean_out, cov_out, evidence
