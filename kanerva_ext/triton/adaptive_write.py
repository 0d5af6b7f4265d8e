"""adaptive_write in Triton, forward: one program per memory does the whole episode, step by step,
in float64.

The inverse of the smaller system, ``A = X X' + ridge I`` with X (n x m) the mean R or its
transpose, is kept up to date. A write makes X into ``X + g o' / s``, with g and o the vectors c =
Uw and d = z - R'w or the other way round, and with ``q = X o, Q = A^-1 q, G = A^-1 g`` it becomes

    A^-1 + ((g.G / s) Q Q' - (1 + b) (Q G' + G Q') - (e / s) G G') / (s D)

where ``b = q.G / s, e = |o|^2 - q.Q, D = (1 + b)^2 + e g.G / s^2`` is the ratio of determinants,
in which nothing is negative but b. It is factorised afresh after a while, and where D cancels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._arguments import Adapted, Adaptive, History, Inverse, Memory
from ._finish import finish, no_partials
from ._launch import VARYING, Config, as_bytes, choose, empty, launch, plain
from ._spd import factorise, solve_lower
from ._square_root import load_vector
from ._tiles import (
    add_product,
    copy_matrix,
    copy_symmetric,
    load_tile,
    store_symmetric,
    store_tile,
)
from .solve_addresses import form_rows
from .statistics import unit_panel

VARYING_HERE = (*VARYING, "iterations")

#: Vectors in the room of a write: x, y, q, Q, G of the helpers, then the first solution, a later
#: one, an address in full precision, w, c and d.
ROWS = tl.constexpr(11)


@triton.jit
def product(
    a, rs, cs, n, m, x, out, N: tl.constexpr, WORK: tl.constexpr,
    factor=1.0, y=None, share=1.0, other=None,
):  # fmt: skip
    """``out = factor a x + share y`` for a (n x m); returns ``|out|^2`` and ``out.other``.
    Synchronised before and after, as everything here."""
    at = tl.arange(0, N)
    square = tl.zeros((), WORK)
    dot = tl.zeros((), WORK)
    for i in range(0, n, N):
        sums = tl.zeros((N, N), WORK)
        for j in range(0, m, N):
            right = load_vector(x, j, m, N, WORK)
            sums += load_tile(a, rs, cs, i, j, n, m, N, N, WORK) * right[None, :]
        r = tl.sum(sums, axis=1) * factor
        if y is not None:
            r += share * load_vector(y, i, n, N, WORK)
        if other is not None:
            dot += tl.sum(r * load_vector(other, i, n, N, WORK), axis=0)
        square += tl.sum(r * r, axis=0)
        tl.store(out + i + at, r, mask=i + at < n)
    tl.debug_barrier()
    return square, dot


@triton.jit
def combine(
    out, n, x, a, y, b, N: tl.constexpr, WORK: tl.constexpr, z=None, c=0.0, other=None
):  # fmt: skip
    """``out = a x + b y + c z``, none of which it may replace; returns ``out.other``."""
    at = tl.arange(0, N)
    dot = tl.zeros((), WORK)
    for i in range(0, n, N):
        r = a * load_vector(x, i, n, N, WORK)
        if y is not None:
            r += b * load_vector(y, i, n, N, WORK)
        if z is not None:
            r += c * load_vector(z, i, n, N, WORK)
        if other is not None:
            dot += tl.sum(r * load_vector(other, i, n, N, WORK), axis=0)
        tl.store(out + i + at, r, mask=i + at < n)
    tl.debug_barrier()
    return dot


@triton.jit
def add_outer(
    a, ld, n, m, x, fx, y, fy, N: tl.constexpr, WORK: tl.constexpr, x2=None, fx2=0.0, y2=None
):  # fmt: skip
    """``a += (fx x) (fy y)' + (fx2 x2) y2'``: symmetric bit by bit where the factors are."""
    for i in range(0, n, N):
        left = load_vector(x, i, n, N, WORK) * fx
        if x2 is not None:
            left2 = load_vector(x2, i, n, N, WORK) * fx2
        for j in range(0, m, N):
            right = load_vector(y, j, m, N, WORK) * fy
            r = load_tile(a, ld, 1, i, j, n, m, N, N, WORK)
            r += left[:, None] * right[None, :]
            if x2 is not None:
                r += left2[:, None] * load_vector(y2, j, m, N, WORK)[None, :]
            store_tile(a, ld, 1, r, i, j, n, m, N, N)
    tl.debug_barrier()


@triton.jit
def invert_system(
    mean, rs, cs, ridge, system, root, diagonal, n, m,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``system = (X X' + ridge I)^-1`` from its factor, exactly symmetric; returns how many pivots
    are not positive."""
    for i in range(0, n, N):
        form_rows(mean, rs, cs, ridge, system, i, n, m, N, WORK, PRECISION)
    tl.debug_barrier()
    failures, _ = factorise(system, diagonal, n, N, WORK, PRECISION)
    for j in range(0, n, M):
        unit_panel(root + j, j, n, M, N, WORK)
        tl.debug_barrier()
        width = tl.minimum(M, n - j)
        solve_lower(system, diagonal, root + j, n, 1, n, width, N, M, WORK, PRECISION)
    for i in range(0, n, N):
        for j in range(0, i + 1, N):
            x = tl.zeros((N, N), WORK)
            x = add_product(
                x, root, 1, n, root, n, 1, i, j, n, n, n, N, N, N, WORK, PRECISION
            )  # fmt: skip
            store_symmetric(system, n, x, i, j, N)
    tl.debug_barrier()
    return failures


@triton.jit
def change_system(
    mean, rs, cs, system, n, m, g, o, energy, s, tau, base, room, S,
    N: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    """What ``X + g o' / s`` makes of A^-1, with ``energy`` = |o|^2. The vectors Q and G are kept in
    the room; returned are

    alpha, beta: ``A^-1 r`` of the changed A is ``base + alpha Q + beta G``, where ``base`` was
    ``A^-1 (r - tau g)`` before;
    hq, hg, k: ``A^-1`` becomes ``A^-1 + h h' - k^2 G G'`` with ``h = hq Q + hg G``;
    safe: whether not too many digits cancel for that.
    """
    at = tl.arange(0, N)
    q, to_q, to_g = room + 2 * S, room + 3 * S, room + 4 * S
    product(mean, rs, cs, n, m, o, q, N, WORK)
    qq = tl.zeros((), WORK)
    qg = tl.zeros((), WORK)
    gg = tl.zeros((), WORK)
    qr = tl.zeros((), WORK)
    gr = tl.zeros((), WORK)
    for i in range(0, n, N):
        sums_q = tl.zeros((N, N), WORK)
        sums_g = tl.zeros((N, N), WORK)
        for j in range(0, n, N):
            x = load_tile(system, n, 1, i, j, n, n, N, N, WORK)
            sums_q += x * load_vector(q, j, n, N, WORK)[None, :]
            sums_g += x * load_vector(g, j, n, N, WORK)[None, :]
        x_q, x_g = tl.sum(sums_q, axis=1), tl.sum(sums_g, axis=1)
        tl.store(to_q + i + at, x_q, mask=i + at < n)
        tl.store(to_g + i + at, x_g, mask=i + at < n)
        q_i, g_i = load_vector(q, i, n, N, WORK), load_vector(g, i, n, N, WORK)
        qq += tl.sum(q_i * x_q, axis=0)
        qg += tl.sum(q_i * x_g, axis=0)
        gg += tl.sum(g_i * x_g, axis=0)
        if base is not None:
            base_i = load_vector(base, i, n, N, WORK)
            qr += tl.sum(q_i * base_i, axis=0)
            gr += tl.sum(g_i * base_i, axis=0)
    tl.debug_barrier()
    b = qg / s
    e = energy - qq
    e = tl.where(e < 0.0, 0.0, e)
    ratio = (1.0 + b) * (1.0 + b) + e * gg / (s * s)
    size = (1.0 + tl.abs(b)) * (1.0 + tl.abs(b)) + energy * gg / (s * s)
    safe = (ratio >= 1e-4 * size) & (size < float("inf"))
    qr += tau * qg
    gr += tau * gg
    alpha = (gg / s * qr - (1.0 + b) * gr) / (s * ratio)
    beta = tau - ((1.0 + b) * qr + e / s * gr) / (s * ratio)
    scale = tl.where(gg > 0.0, 1.0 / tl.sqrt(gg * ratio), 0.0)
    k = tl.where(gg > 0.0, 1.0 / tl.sqrt(gg), 0.0)
    return alpha, beta, scale * gg / s, -scale * (1.0 + b), k, safe


@triton.jit
def update_inverse(system, n, hq, hg, k, room, S, N: tl.constexpr, WORK: tl.constexpr):
    """As `change_system` says, from the vectors that it left in the room."""
    h, to_q, to_g = room + 2 * S, room + 3 * S, room + 4 * S
    combine(h, n, to_q, hq, to_g, hg, N, WORK)
    for i in range(0, n, N):
        h_i, g_i = load_vector(h, i, n, N, WORK), load_vector(to_g, i, n, N, WORK) * k
        for j in range(0, n, N):
            h_j, g_j = load_vector(h, j, n, N, WORK), load_vector(to_g, j, n, N, WORK) * k
            r = load_tile(system, n, 1, i, j, n, n, N, N, WORK)
            r += h_i[:, None] * h_j[None, :]
            r -= g_i[:, None] * g_j[None, :]
            store_tile(system, n, 1, r, i, j, n, n, N, N)
    tl.debug_barrier()


@triton.jit
def solve_first(
    mean, z, ridge, system, base, room, S, K, C,
    WIDE: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    """``base = w = A^-1 R z``, refined once, or, if not WIDE, ``u = A^-1 z``, of which w is R u."""
    if WIDE:
        x, y, d = room, room + S, room + 2 * S
        product(mean, C, 1, K, C, z, x, N, WORK)
        product(system, K, 1, K, K, x, y, N, WORK)
        product(mean, 1, C, C, K, y, d, N, WORK, factor=-1.0, y=z)
        product(mean, C, 1, K, C, d, x, N, WORK, y=y, share=-ridge)
        product(system, K, 1, K, K, x, base, N, WORK, y=y)
    else:
        product(system, C, 1, C, C, z, base, N, WORK)


@triton.jit
def copy_vector(source, to, n, N: tl.constexpr, WORK: tl.constexpr):
    at = tl.arange(0, N)
    for i in range(0, n, N):
        tl.store(to + i + at, load_vector(source, i, n, N, WORK), mask=i + at < n)
    tl.debug_barrier()


@triton.jit
def keep_address(w, to, weights, last, K, N: tl.constexpr, WORK: tl.constexpr):
    """``to = w``; that of the last iteration in the dtype of ``weights``, where it goes as well."""
    at = tl.arange(0, N)
    for i in range(0, K, N):
        r = load_vector(w, i, K, N, WORK)
        if last:
            rounded = r.to(weights.dtype.element_ty)
            tl.store(weights + i + at, rounded, mask=i + at < K)
            r = rounded.to(WORK)
        tl.store(to + i + at, r, mask=i + at < K)
    tl.debug_barrier()


@triton.jit
def finish_matrix(source, target, rows, cols, N: tl.constexpr, WORK: tl.constexpr):
    """Copies a matrix, if there is a ``target``; returns how many elements are not finite."""
    bad = 0
    for i in range(0, rows, N):
        for j in range(0, cols, N):
            x = load_tile(source, cols, 1, i, j, rows, cols, N, N, WORK)
            bad += tl.sum(tl.sum(tl.where(x - x == 0.0, 0, 1), axis=1), axis=0)
            if target is not None:
                store_tile(target, cols, 1, x, i, j, rows, cols, N, N)
    return bad


@triton.jit(do_not_specialize=VARYING_HERE)
def adaptive_write_kernel(
    given, out, work, inverse, history, room, partials, T, K, C, S, iterations,
    WIDE: tl.constexpr, SOLVE: tl.constexpr, SAVE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The partial is the log evidence. With SAVE, w, c, d and (``totals``) w'Uw, |d|^2 and |c|^2 of
    every iteration are kept for the gradient, and the final state in ``mean_work`` and
    ``cov_work``; the last address of each step is then that in ``weights``, or is solved for, and
    not rounded, if there are none. SOLVE: there are addresses to be found."""
    mean, cov, values, noise_var, ridge, mask = given
    mean_out, cov_out, weights, step_kl = out
    mean_work, cov_work = work.mean, work.cov
    system, root, diagonal = inverse
    iterates, products, errors, totals = history
    item = tl.program_id(0).to(tl.int64)
    values += item * T * C
    if weights is not None:
        weights += item * T * K
    mean_work += item * K * C
    cov_work += item * K * K
    room += item * ROWS * S
    if SAVE:
        iterates += item * T * iterations * K
        products += item * T * iterations * K
        errors += item * T * iterations * C
        totals += item * T * iterations * 3
    if WIDE:
        rs, cs, n, m = C, 1, K, C
    else:
        rs, cs, n, m = 1, C, C, K
    if SOLVE:
        system += item * n * n
        root += item * n * n
        diagonal += item * n * N
    copy_matrix(mean + item * K * C, mean_work, K, 0, C, C, N, N, WORK)
    copy_symmetric(cov + item * K * K, cov_work, K, N, WORK)
    tl.debug_barrier()
    base, solution, raw = room + 5 * S, room + 6 * S, room + 7 * S
    value = tl.load(ridge + item).to(WORK)
    failures = tl.where((value > 0.0) & (value < float("inf")), 0, 1)
    solved = iterations
    if SAVE:
        if weights is not None:
            solved = iterations - 1
    total = tl.zeros((), tl.float64)
    age = tl.zeros((), tl.int32)  # of the inverse; 0: there is none
    t = tl.zeros((), tl.int32)
    while (t < T) & (failures == 0):
        step = t.to(tl.int64)
        kept = t < T
        if mask is not None:
            kept = tl.load(mask + item * T + step) != 0
        kl = tl.zeros((), WORK)
        if kept:
            z = values + step * C
            v = tl.load(noise_var + item * T + step).to(WORK)
            failures += tl.where((v > 0.0) & (v <= 1e300), 0, 1)
            if SOLVE:
                if age == 0:
                    failures += invert_system(
                        mean_work, rs, cs, value, system, root, diagonal, n, m, M, N, WORK,
                        PRECISION,
                    )  # fmt: skip
                    age += 1
            w, c, d = room + 8 * S, room + 9 * S, room + 10 * S
            h, s, energy = v * 0.0, v, v * 0.0
            alpha, beta, hq, hg, k, safe = h, h, h, h, h, v > 0.0
            for i in range(0, iterations):
                c_before = c
                if SAVE:
                    w = iterates + (step * iterations + i) * K
                    c = products + (step * iterations + i) * K
                    d = errors + (step * iterations + i) * C
                    c_before = c - K
                    if weights is not None:
                        if i == solved:
                            copy_vector(weights + step * K, w, K, N, WORK)
                if SOLVE:
                    if i < solved:
                        found = raw
                        along = h
                        if i == 0:
                            solve_first(
                                mean_work, z, value, system, base, room, S, K, C, WIDE, N, WORK
                            )  # fmt: skip
                            if WIDE:
                                found = base
                            else:
                                product(mean_work, C, 1, K, C, base, raw, N, WORK)
                        else:
                            to_q, to_g = room + 3 * S, room + 4 * S
                            if WIDE:
                                combine(raw, K, base, 1.0, to_q, alpha, N, WORK, to_g, beta)
                            else:
                                g = d
                                if SAVE:
                                    g = d - C
                                along = combine(
                                    solution, C, base, 1.0, to_q, alpha, N, WORK, to_g, beta, g
                                )
                                product(
                                    mean_work, C, 1, K, C, solution, raw, N, WORK, 1.0, c_before,
                                    along / s,
                                )  # fmt: skip
                        if SAVE:
                            copy_vector(found, w, K, N, WORK)
                        else:
                            last = i == iterations - 1
                            keep_address(found, w, weights + step * K, last, K, N, WORK)
                square, h = product(cov_work, K, 1, K, K, w, c, N, WORK, other=w)
                energy, along_z = product(
                    mean_work, 1, C, C, K, w, d, N, WORK, -1.0, z, other=z
                )  # fmt: skip
                s = h + v
                if SAVE:
                    at = totals + (step * iterations + i) * 3
                    tl.store(at, h)
                    tl.store(at + 1, energy)
                    tl.store(at + 2, square)
                if SOLVE:
                    if WIDE:
                        alpha, beta, hq, hg, k, safe = change_system(
                            mean_work, rs, cs, system, n, m, c, d, energy, s, along_z / s, base,
                            room, S, N, WORK,
                        )  # fmt: skip
                    else:
                        alpha, beta, hq, hg, k, safe = change_system(
                            mean_work, rs, cs, system, n, m, d, c, square, s, 0.0, base, room, S,
                            N, WORK,
                        )  # fmt: skip
            add_outer(mean_work, C, K, C, c, 1.0 / s, d, 1.0, N, WORK)
            add_outer(cov_work, K, K, K, c, -1.0 / tl.sqrt(s), c, 1.0 / tl.sqrt(s), N, WORK)
            if SOLVE:
                if safe & (age < tl.maximum(n, 32)):
                    update_inverse(system, n, hq, hg, k, room, S, N, WORK)
                    age += 1
                else:
                    age = 0
            total -= 0.5 * (energy / s + C * (tl.log(s) + 1.8378770664093453))
            kl = 0.5 * (energy * h / (s * s) + C * (tl.log(s / v) - h / s))
        elif not SAVE:
            for i in range(0, K, N):
                at = i + tl.arange(0, N)
                tl.store(weights + step * K + at, tl.zeros((N,), WORK), mask=at < K)
        if not SAVE:
            tl.store(step_kl + item * T + step, kl)
        t += 1
    tl.debug_barrier()
    if mean_out is not None:
        mean_out += item * K * C
        cov_out += item * K * K
    failures += finish_matrix(mean_work, mean_out, K, C, N, WORK)
    failures += finish_matrix(cov_work, cov_out, K, K, N, WORK)
    if (failures == 0) & (total - total == 0.0):
        tl.store(partials + item, total)
    else:
        tl.store(partials + item, float("nan"))


class Plan(NamedTuple):
    """The tiles of an item and the smaller of its two systems."""

    config: Config
    wide: bool
    n: int
    length: int  # of a vector in the room

    def constants(self) -> dict:
        return {"WIDE": self.wide, **self.config.constants(torch.float64)}

    def inverse(self, mean: Tensor) -> Inverse:
        widths = (self.n, self.n, self.config.size)
        return Inverse(*(empty(mean, len(mean), self.n, width) for width in widths))


def plan(mean: Tensor) -> Plan:
    _, slots, code = mean.shape
    largest = max(slots, code)
    return Plan(choose(largest, torch.float64), slots <= code, min(slots, code), largest)


def adaptive_write(
    mean: Tensor,
    cov: Tensor,
    values: Tensor,
    noise_var: Tensor,
    ridge: Tensor,
    mask: Tensor | None = None,
    num_iters: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``kanerva::adaptive_write``: mean, cov, weights, step_kl and log_evidence."""
    inputs = [plain(x) for x in (mean, cov, values, noise_var, ridge)]
    (batch, slots, code), episode = mean.shape, values.shape[1]
    chosen = plan(mean)
    mean_out, cov_out = torch.empty_like(inputs[0]), torch.empty_like(inputs[1])
    weights, step_kl = mean.new_empty(batch, episode, slots), mean.new_empty(batch, episode)
    evidence, partials = mean.new_empty(batch), no_partials(mean, 1)
    direct = mean.dtype == torch.float64
    work = Memory(mean_out, cov_out)
    if not direct:
        work = Memory(empty(mean, *mean.shape), empty(mean, *cov.shape))
    launch(
        adaptive_write_kernel, batch, chosen.config, Adaptive(*inputs, as_bytes(mask)),
        Adapted(*((None, None) if direct else (mean_out, cov_out)), weights, step_kl), work,
        chosen.inverse(mean), History(), empty(mean, batch, ROWS.value, chosen.length), partials,
        T=episode, K=slots, C=code, S=chosen.length, iterations=num_iters, SOLVE=True, SAVE=False,
        **chosen.constants(),
    )  # fmt: skip
    finish(partials, mean_out, cov_out, weights, step_kl, total=evidence)
    return mean_out, cov_out, weights, step_kl, evidence
