"""adaptive_write in Triton, backward: the recursion's adjoint, from the last step to the first.

The forward is run again, for a float64 state at the addresses that it found, and keeps c = Uw, d =
z - R'w and what it takes to have s. Then one program per memory goes back: it takes the state
before a step from that after it by adding and subtracting what the step did, and the inverse of the
system with it (`change_system` with ``-s``).

A step is a chain: the address of iteration i solves the system of the mean that the update of
iteration i - 1 made, the first one that of the memory itself. So are its adjoints: from the
gradients of c, d and s of an update to that of its address w (gw), through the solve that gave w
(with ``y = A^-1 gw`` and ``q = X'y`` for the mean X that it was for), to the update before.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._arguments import (
    Adapted,
    AdaptedGradients,
    Adaptive,
    AdaptiveGradients,
    History,
    Inverse,
    Memory,
)
from ._finish import finish, no_partials
from ._launch import as_bytes, empty, launch, plain
from ._square_root import load_vector
from ._tiles import copy_matrix, copy_symmetric, nan_if
from .adaptive_write import (
    ROWS,
    VARYING_HERE,
    adaptive_write_kernel,
    add_outer,
    change_system,
    combine,
    invert_system,
    plan,
    product,
    update_inverse,
)

#: Vectors in the room of an item: six of the solves, y, q, an error, gradients and sums of them.
REVERSE_ROWS = tl.constexpr(14)


@triton.jit
def dot(x, y, n, N: tl.constexpr, WORK: tl.constexpr):
    result = tl.zeros((), WORK)
    for i in range(0, n, N):
        result += tl.sum(load_vector(x, i, n, N, WORK) * load_vector(y, i, n, N, WORK), axis=0)
    return result


@triton.jit
def sum_rows(x, count, out, n, N: tl.constexpr, WORK: tl.constexpr):
    """The sum of ``count`` rows of n numbers; zeros if there are none."""
    for i in range(0, n, N):
        r = tl.zeros((N,), WORK)
        for row in range(0, count):
            r += load_vector(x + row * n, i, n, N, WORK)
        at = i + tl.arange(0, N)
        tl.store(out + at, r, mask=at < n)


@triton.jit
def undo_step(
    mean, cov, ridge, c, d, s, energy, square, system, root, diagonal, room, S, K, C, age,
    WIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """State and inverse before a step from those after it; returns the age of the inverse, of which
    0 says that there is none, and how many pivots were not positive."""
    failures = 0
    if WIDE:
        rs, cs, n, m = C, 1, K, C
    else:
        rs, cs, n, m = 1, C, C, K
    if age > 0:
        if WIDE:
            _alpha, _beta, hq, hg, k, safe = change_system(
                mean, rs, cs, system, n, m, c, d, energy, -s, 0.0, None, room, S, N, WORK
            )
        else:
            _alpha, _beta, hq, hg, k, safe = change_system(
                mean, rs, cs, system, n, m, d, c, square, -s, 0.0, None, room, S, N, WORK
            )
        if safe & (age < tl.maximum(n, 32)):
            update_inverse(system, n, hq, hg, k, room, S, N, WORK)
            age += 1
        else:
            age = 0
    add_outer(mean, C, K, C, c, -1.0 / s, d, 1.0, N, WORK)
    add_outer(cov, K, K, K, c, 1.0 / tl.sqrt(s), c, 1.0 / tl.sqrt(s), N, WORK)
    if age == 0:
        failures += invert_system(
            mean, rs, cs, ridge, system, root, diagonal, n, m, M, N, WORK, PRECISION
        )
        age += 1
    return age, failures


@triton.jit
def solve_adjoint(
    mean, ridge, system, d_w, c, e, s, energy, square, i, y, q, room, S, K, C,
    WIDE: tl.constexpr, ITERATE: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    """``y = (X X' + ridge I)^-1 d_w`` and ``q = X'y`` for the mean X = R, or R + c e' / s unless i
    is 0."""
    x, base, to_q, to_g, room_y = room, room + S, room + 3 * S, room + 4 * S, room + 5 * S
    alpha = s * 0.0
    beta = s * 0.0
    share = s * 0.0
    if ITERATE:  # the last iteration comes first, so that the room holds numbers when i is 0
        share = tl.where(i > 0, 1.0 / s, 0.0)
    if WIDE:
        if ITERATE:
            product(system, K, 1, K, K, d_w, base, N, WORK)
            if i > 0:
                alpha, beta, _hq, _hg, _k, _safe = change_system(
                    mean, C, 1, system, K, C, c, e, energy, s, 0.0, base, room, S, N, WORK
                )
            along = share * combine(y, K, base, 1.0, to_q, alpha, N, WORK, to_g, beta, c)
            product(mean, 1, C, C, K, y, q, N, WORK, 1.0, e, along)
        else:
            product(system, K, 1, K, K, d_w, y, N, WORK)
            product(mean, 1, C, C, K, y, q, N, WORK)
    elif ITERATE:
        along = share * dot(c, d_w, K, N, WORK)
        product(mean, 1, C, C, K, d_w, x, N, WORK, 1.0, e, along)
        product(system, C, 1, C, C, x, base, N, WORK)
        if i > 0:
            alpha, beta, _hq, _hg, _k, _safe = change_system(
                mean, 1, C, system, C, K, e, c, square, s, 0.0, base, room, S, N, WORK
            )
        along = share * combine(q, C, base, 1.0, to_q, alpha, N, WORK, to_g, beta, e)
        product(mean, C, 1, K, C, q, room_y, N, WORK, -1.0 / ridge, d_w, 1.0 / ridge)
        combine(y, K, room_y, 1.0, c, -along / ridge, N, WORK)
    else:
        product(mean, 1, C, C, K, d_w, x, N, WORK)
        product(system, C, 1, C, C, x, q, N, WORK)
        product(mean, C, 1, K, C, q, y, N, WORK, -1.0 / ridge, d_w, 1.0 / ridge)


@triton.jit(do_not_specialize=VARYING_HERE)
def reverse_kernel(
    grads, noise_var, ridge, mask, memory, evidence, history, inverse, room, shares, slopes, out,
    partials, T, K, C, S, iterations, WIDE: tl.constexpr, ITERATE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From the final state in ``memory``, which becomes the first; ``slopes`` is the gradient of
    it. The partial is the gradient of the ridge."""
    grad_mean, grad_cov, grad_weights, grad_step_kl, grad_evidence = grads
    mean, cov = memory.mean, memory.cov
    iterates, products, errors, totals = history
    system, root, diagonal = inverse
    mean_slope, cov_slope = slopes.mean, slopes.cov
    d_mean, d_cov, d_values, d_noise = out
    item = tl.program_id(0).to(tl.int64)
    mean += item * K * C
    cov += item * K * K
    iterates += item * T * iterations * K
    products += item * T * iterations * K
    errors += item * T * iterations * C
    totals += item * T * iterations * 3
    room += item * REVERSE_ROWS * S
    shares += item * iterations * C
    mean_slope += item * K * C
    cov_slope += item * K * K
    d_values += item * T * C
    d_noise += item * T
    n = K if WIDE else C
    system += item * n * n
    root += item * n * n
    diagonal += item * n * N
    if grad_mean is not None:
        grad_mean += item * K * C
    copy_matrix(grad_mean, mean_slope, K, 0, C, C, N, N, WORK)
    if grad_cov is not None:
        copy_symmetric(grad_cov + item * K * K, cov_slope, K, N, WORK)
    else:
        copy_matrix(None, cov_slope, K, 0, K, K, N, N, WORK)
    tl.debug_barrier()
    x, y, q, error_of_mean = room, room + 6 * S, room + 7 * S, room + 8 * S
    d_c, d_d, d_w = room + 9 * S, room + 10 * S, room + 11 * S
    start, half = room + 12 * S, room + 13 * S
    value = tl.load(ridge + item).to(WORK)
    d_ridge = tl.load(evidence + item) * 0.0  # NaN where the forward failed
    failures = tl.where(d_ridge == 0.0, 0, 1)
    gl = tl.zeros((), WORK)
    if grad_evidence is not None:
        gl = tl.load(grad_evidence + item).to(WORK)
    age = tl.zeros((), tl.int32)
    left = tl.zeros((), tl.int32) + T
    while (left > 0) & (failures == 0):
        left -= 1
        step = left.to(tl.int64)
        kept = left >= 0
        if mask is not None:
            kept = tl.load(mask + item * T + step) != 0
        d_v = tl.zeros((), WORK)
        count = 0
        if kept:
            count = iterations
            row = step * iterations + iterations - 1
            w, c, d = iterates + row * K, products + row * K, errors + row * C
            h, energy = tl.load(totals + row * 3), tl.load(totals + row * 3 + 1)
            v = tl.load(noise_var + item * T + step).to(WORK)
            s = h + v
            age, failed = undo_step(
                mean, cov, value, c, d, s, energy, tl.load(totals + row * 3 + 2), system, root,
                diagonal, room, S, K, C, age, WIDE, M, N, WORK, PRECISION,
            )  # fmt: skip
            failures += failed
            gk = tl.zeros((), WORK)
            if grad_step_kl is not None:
                gk = tl.load(grad_step_kl + item * T + step).to(WORK)
            # The update of the memory: gradients of its d, c and s.
            product(
                mean_slope, 1, C, C, K, c, d_d, N, WORK, 1.0 / s, d, gk * h / (s * s) - gl / s
            )  # fmt: skip
            _square, cn = product(mean_slope, C, 1, K, C, d, x, N, WORK, 1.0 / s, other=c)
            _square, ce = product(cov_slope, K, 1, K, K, c, half, N, WORK, other=c)
            d_s = (ce / s - cn) / s - 0.5 * gl * (C - energy / s) / s
            d_s += 0.5 * gk * (energy * (s - 2.0 * h) / s + C * h) / (s * s)
            d_v = d_s - 0.5 * gk * (energy / s + C * h / v) / s
            combine(d_c, K, x, 1.0, half, -2.0 / s, N, WORK, w, d_s)
            if grad_weights is not None:
                g = grad_weights + (item * T + step) * K
                combine(start, K, c, d_s, g, 1.0, N, WORK)
            else:
                combine(start, K, c, d_s, None, 0.0, N, WORK)
            for back in range(0, iterations):
                i = iterations - 1 - back
                row = step * iterations + i
                w, error, share = iterates + row * K, errors + row * C, shares + i * C
                # From the update to its address; what it leaves to gR comes below.
                product(cov, K, 1, K, K, d_c, half, N, WORK, y=start)
                product(mean, C, 1, K, C, d_d, d_w, N, WORK, -1.0, half)
                add_outer(cov_slope, K, K, K, d_c, 0.5, w, 1.0, N, WORK, w, 0.5, d_c)
                # From the address through the mean of the update before it, if there is one.
                if i > 0:
                    row -= 1
                c, e = products + row * K, errors + row * C
                s = tl.load(totals + row * 3) + v
                solve_adjoint(
                    mean, value, system, d_w, c, e, s, tl.load(totals + row * 3 + 1),
                    tl.load(totals + row * 3 + 2), i, y, q, room, S, K, C, WIDE, ITERATE, N, WORK,
                )  # fmt: skip
                wc = tl.zeros((), WORK)
                if ITERATE:
                    if i > 0:
                        wc = dot(w, c, K, N, WORK) / s
                        combine(error_of_mean, C, error, 1.0, e, -wc, N, WORK)
                        error = error_of_mean
                combine(share, C, q, 1.0, d_d, 1.0, N, WORK)
                add_outer(mean_slope, C, K, C, y, 1.0, error, 1.0, N, WORK, w, -1.0, share)
                d_ridge -= dot(y, w, K, N, WORK)
                if ITERATE:
                    if i > 0:
                        # To that update, by ``dX = y error' - w q'``.
                        yc = dot(y, c, K, N, WORK) / s
                        ed = dot(error, e, C, N, WORK) / s
                        qd = dot(q, e, C, N, WORK) / s
                        d_s = wc * qd - yc * ed
                        d_v += d_s
                        combine(d_c, K, y, ed, w, -qd, N, WORK, iterates + row * K, d_s)
                        combine(d_d, C, error, yc, q, -wc, N, WORK)
                        combine(start, K, c, d_s, None, 0.0, N, WORK)
        sum_rows(shares, count, d_values + step * C, C, N, WORK)
        tl.store(d_noise + step, d_v)
        tl.debug_barrier()
    if d_mean is not None:
        copy_matrix(mean_slope, d_mean + item * K * C, K, 0, C, C, N, N, WORK)
    copy_symmetric(cov_slope, d_cov + item * K * K, K, N, WORK)
    tl.store(partials + item, d_ridge + nan_if(failures))


def adaptive_write_backward(
    grad_mean: Tensor | None,
    grad_cov: Tensor | None,
    grad_weights: Tensor | None,
    grad_step_kl: Tensor | None,
    grad_log_evidence: Tensor | None,
    mean: Tensor,
    cov: Tensor,
    values: Tensor,
    noise_var: Tensor,
    ridge: Tensor,
    mask: Tensor | None,
    num_iters: int,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``kanerva::adaptive_write_backward``: gradients of mean, cov, values, noise_var and ridge."""
    grads = [plain(g) for g in (grad_mean, grad_cov, grad_weights, grad_step_kl, grad_log_evidence)]
    inputs = [plain(x) for x in (mean, cov, values, noise_var, ridge)]
    mask, weights = as_bytes(mask), plain(weights)
    (batch, slots, code), episode = mean.shape, values.shape[1]
    chosen, iterate = plan(mean), num_iters > 1
    # What rounding an address to float32 does to d, the gradient of a small ridge magnifies.
    given = mean.dtype == torch.float64
    solve = iterate or not given
    memory = Memory(empty(mean, *mean.shape), empty(mean, *cov.shape))
    inverse, widths = chosen.inverse(mean), (slots, slots, code, 3)
    history = History(*(empty(mean, batch, episode, num_iters, width) for width in widths))
    length = chosen.length
    sizes = {"T": episode, "K": slots, "C": code, "S": length, "iterations": num_iters}
    evidence, partials = no_partials(mean, 1), no_partials(mean, 1)
    launch(
        adaptive_write_kernel, batch, chosen.config, Adaptive(*inputs, mask),
        Adapted(None, None, weights if given else None, None), memory,
        inverse if solve else Inverse(), history, empty(mean, batch, ROWS.value, length), evidence,
        SOLVE=solve, SAVE=True, **sizes, **chosen.constants(),
    )  # fmt: skip
    out = [torch.empty_like(x) for x in inputs]
    direct = mean.dtype == torch.float64
    slopes = Memory(out[0] if direct else empty(mean, *mean.shape), empty(mean, *cov.shape))
    launch(
        reverse_kernel, batch, chosen.config, AdaptedGradients(*grads), *inputs[3:], mask, memory,
        evidence, history, inverse, empty(mean, batch, REVERSE_ROWS.value, length),
        empty(mean, batch, num_iters, code), slopes,
        AdaptiveGradients(None if direct else out[0], *out[1:4]), partials, ITERATE=iterate,
        **sizes, **chosen.constants(),
    )  # fmt: skip
    finish(partials, *out[:4], total=out[4])
    return tuple(out)
