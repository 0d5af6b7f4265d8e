"""The Dynamic Kanerva write, with a full solve at every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._common import full_precision, has_nan, poison, sum_of_no_steps, symmetric, wide
from .solve_addresses import solve_addresses, solve_addresses_backward


@full_precision
def adaptive_write(
    mean: Tensor,
    cov: Tensor,
    values: Tensor,
    noise_var: Tensor,
    ridge: Tensor,
    mask: Tensor | None = None,
    num_iters: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``kanerva::adaptive_write`` one step at a time.

    Each step solves ``w = (R R' + ridge I)^-1 R z`` and makes the update of `bayes_write` with it;
    each further iteration solves against the updated mean and updates the old memory again. The
    KL of a step, with ``h = w'Uw``, ``s = h + v`` and ``d = z - R'w``, is
    ``(|d|^2 h/s^2 - C h/s + C ln(s/v)) / 2``.
    """
    values = values.to(mean.dtype)
    bad = ~(noise_var > 0)
    bad = (bad if mask is None else bad & mask).any(1) | ~(ridge > 0)
    if mask is not None:
        values = torch.where(mask[..., None], values, 0)
        noise_var = torch.where(mask, noise_var, 1)
    slots, code = mean.shape[1:]
    mean, cov = mean.clone(), symmetric(cov)
    log_evidence = sum_of_no_steps(mean, cov, values, noise_var)
    start = log_evidence[:, None]
    all_weights, kls = [start[..., None].expand(-1, 0, slots)], [start[:, :0]]
    for t in range(values.shape[1]):
        z, v = values[:, t], noise_var[:, t]
        next_mean = mean
        for _ in range(num_iters):
            w = solve_addresses(next_mean, z[:, None], ridge)[:, 0]
            c = (cov @ w[..., None])[..., 0]
            h = (w * c).sum(-1)
            s = h + v
            d = z - (w[:, None] @ mean)[:, 0]
            scale = s.sqrt()[:, None]
            g, e = c / scale, d / scale
            next_mean = mean + g[:, :, None] * e[:, None, :]
        next_cov = cov - g[:, :, None] * g[:, None, :]
        energy = (e * e).sum(-1)
        kl = (energy * (h / s) + code * ((s / v).log() - h / s)) / 2
        term = -(energy + code * (2 * math.pi * s).log()) / 2
        if mask is not None:
            keep = mask[:, t]
            next_mean = torch.where(keep[:, None, None], next_mean, mean)
            next_cov = torch.where(keep[:, None, None], next_cov, cov)
            w = torch.where(keep[:, None], w, 0)
            kl, term = torch.where(keep, kl, 0), torch.where(keep, term, 0)
        mean, cov, log_evidence = next_mean, next_cov, log_evidence + term
        all_weights.append(w[:, None])
        kls.append(kl[:, None])
    weights, step_kl = torch.cat(all_weights, 1), torch.cat(kls, 1)
    bad = bad | has_nan(mean, cov, weights, step_kl, log_evidence[:, None])
    return poison(bad, mean, cov, weights, step_kl, log_evidence)


@full_precision
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
    mask: Tensor | None = None,
    num_iters: int = 1,
    weights: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of mean, cov (symmetrised), values, noise_var and ridge: the recursion again, and
    each step's adjoint in reverse. ``weights``, which compiled kernels use, is not needed.

    With c, h, s, d as in `adaptive_write` and the gradients gR, gU after the step, gl, gk of the
    log evidence and the step's KL: ``gd = gR'c/s + (gk h/s - gl) d/s``,
    ``gs = c'gU c/s^2 - c'gR d/s^2 + (gl (|d|^2/s - C) + gk (C + C h/s - 2 |d|^2 h/s^2)) / (2s)``,
    ``gh = gs + gk (|d|^2/s - C) / (2s)``, ``gc = gR d/s - 2 gU c/s + gh w``, and then
    ``gw += gh c + U gc - R gd`` goes through the solve.
    """
    dtype = wide(mean)
    inputs = (mean, cov, values, noise_var, ridge)
    dtypes = [x.dtype for x in inputs]
    mean, cov, values, noise_var, ridge = (x.to(dtype) for x in inputs)
    (batch, slots, code), steps = mean.shape, values.shape[1]
    bad = ~(noise_var > 0)
    bad = (bad if mask is None else bad & mask).any(1) | ~(ridge > 0)
    g_weights, g_kl, g_log = (
        mean.new_zeros(shape) if g is None else g.to(dtype)
        for g, shape in (
            (grad_weights, (batch, steps, slots)),
            (grad_step_kl, (batch, steps)),
            (grad_log_evidence, (batch,)),
        )
    )
    g_log = g_log[:, None].expand(batch, steps)
    if mask is not None:  # a code of zero has an address of zero, and changes nothing
        values, g_weights = (torch.where(mask[..., None], x, 0) for x in (values, g_weights))
        noise_var = torch.where(mask, noise_var, 1)
        g_kl, g_log = torch.where(mask, g_kl, 0), torch.where(mask, g_log, 0)

    tape, cov = [], symmetric(cov)
    for t in range(steps):
        rounds, next_mean = [], mean
        for _ in range(num_iters):
            w = solve_addresses(next_mean, values[:, t, None], ridge)[:, 0]
            c = _times(cov, w)
            h = (w * c).sum(-1, keepdim=True)
            d = values[:, t] - _times(mean.mT, w)
            rounds.append((next_mean, w, c, h, d))
            s = h + noise_var[:, t, None]
            next_mean = mean + _outer(c / s, d)
        tape.append((mean, cov, rounds))
        scaled = c / s.sqrt()
        mean, cov = next_mean, cov - _outer(scaled, scaled)
        bad = bad | has_nan(w)
    bad = bad | has_nan(mean, cov)

    d_mean = torch.zeros_like(mean) if grad_mean is None else grad_mean.to(dtype)
    d_cov = torch.zeros_like(cov) if grad_cov is None else symmetric(grad_cov.to(dtype))
    d_values, d_noise, d_ridge = [], [], torch.zeros_like(ridge)
    for t in reversed(range(steps)):
        mean, cov, rounds = tape[t]
        z, v = values[:, t], noise_var[:, t, None]
        # Only the last round's address gives the covariance and the results.
        gw, gk, gl = g_weights[:, t], g_kl[:, t, None], g_log[:, t, None]
        g_mean, before_mean = d_mean, torch.zeros_like(mean)
        g_cov, before_cov = d_cov, d_cov
        gz, gv = torch.zeros_like(z), -gk * code / (2 * v)
        for solved, w, c, h, d in reversed(rounds):
            s = h + v
            energy = (d * d).sum(-1, keepdim=True) / s
            from_mean, from_cov = _times(g_mean, d) / s, _times(g_cov, c) / s
            gs = (c * (from_cov - from_mean)).sum(-1, keepdim=True)
            gs = gs + gl / 2 * (energy - code) + gk / 2 * (code + (code - 2 * energy) * h / s)
            gs = gs / s
            gh = gs + gk / 2 * (energy - code) / s
            gd = (_times(g_mean.mT, c) + (gk * h / s - gl) * d) / s
            gc = from_mean - 2 * from_cov + gh * w
            gw = gw + gh * c + _times(cov, gc) - _times(mean, gd)
            before_mean = before_mean + g_mean - _outer(w, gd)
            before_cov = before_cov + symmetric(_outer(gc, w))
            g_mean, g_query, g_ridge = solve_addresses_backward(
                gw[:, None], solved, z[:, None], ridge, w[:, None]
            )
            gz, gv, d_ridge = gz + gd + g_query[:, 0], gv + gs, d_ridge + g_ridge
            g_cov = torch.zeros_like(cov)
            gw, gk, gl = torch.zeros_like(gw), torch.zeros_like(gk), torch.zeros_like(gl)
        d_mean, d_cov = before_mean + g_mean, before_cov
        d_values.insert(0, gz)
        d_noise.insert(0, gv[:, 0])
    empty = steps == 0
    grads = (
        d_mean,
        d_cov,
        torch.zeros_like(values) if empty else torch.stack(d_values, 1),
        torch.zeros_like(noise_var) if empty else torch.stack(d_noise, 1),
        d_ridge,
    )
    return tuple(g.to(t) for g, t in zip(poison(bad, *grads), dtypes, strict=True))


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[:, :, None] * b[:, None, :]
