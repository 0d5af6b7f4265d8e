"""causal_scan: a write with a read after every step.

The rivals do not compute the log evidence, which ours returns besides. In every form the Cholesky
factor of a chunk conditions in order, so that causal reads are masked products: with P = F^-1 W U
and E = F^-1 (Z - W R), ``reads = Q R + tril(Q P') E``.
"""

from __future__ import annotations

import torch

from kanerva_ext import ops, reference

from .spec import (
    FORWARD,
    Operator,
    Rival,
    Shape,
    cholesky,
    compiled,
    inverse_from_factor,
    random_state,
    random_steps,
)

SHAPES = tuple(
    Shape(*s)
    for s in (
        (16, 32, 32, 100),
        (8, 2048, 64, 64),
        (32, 512, 64, 64),
        (1, 8192, 64, 64),
        (16, 512, 128, 128),
        (4, 512, 256, 256),
    )
)


def inputs(shape: Shape, generator: torch.Generator):
    """Keys of length about one and noise variance around one, where every form is accurate."""
    mean, cov = random_state(shape, generator)
    weights, queries = (
        random_steps(shape, shape.slots, generator) / shape.slots**0.5 for _ in range(2)
    )
    values = random_steps(shape, shape.code, generator)
    noise_var = 0.5 + torch.rand(weights.shape[:2], generator=generator, dtype=torch.float64)
    return mean, cov, weights, values, queries, noise_var


def kanerva(*args):
    return ops.causal_scan(*args)[:4]


def definition(*args):
    return reference.causal_scan(*args)[:4]


# ------------------------------------------------------------------------------ step by step


def steps(mean, cov, weights, values, queries, noise_var):
    reads, read_var = [], []
    for w, z, q, v in zip(
        *(x.unbind(1) for x in (weights, values, queries, noise_var)), strict=True
    ):
        c = torch.bmm(cov, w[..., None])
        s = torch.bmm(w[:, None], c) + v[:, None, None]
        error = z[:, None] - torch.bmm(w[:, None], mean)
        mean = mean + torch.bmm(c, error / s)
        cov = cov - torch.bmm(c, c.mT / s)
        reads.append(torch.bmm(q[:, None], mean)[:, 0])
        read_var.append(torch.bmm(torch.bmm(q[:, None], cov), q[..., None])[:, 0, 0])
    return torch.stack(reads, 1), torch.stack(read_var, 1), mean, cov


def steps_inplace(mean, cov, weights, values, queries, noise_var):
    mean, cov = mean.clone(), cov.clone()
    reads, read_var = torch.empty_like(values), torch.empty_like(noise_var)
    both = torch.cat([weights[:, :, None], queries[:, :, None]], 2)
    for t in range(weights.shape[1]):
        w, q = both[:, t, :1], both[:, t, 1:]
        c = torch.bmm(w, cov)
        s = torch.bmm(c, w.mT) + noise_var[:, t, None, None]
        scaled = (c / s).mT
        mean.baddbmm_(scaled, torch.baddbmm(values[:, t, None], w, mean, alpha=-1))
        cov.baddbmm_(scaled, c, alpha=-1)
        reads[:, t] = torch.bmm(q, mean)[:, 0]
        read_var[:, t] = torch.bmm(torch.bmm(q, cov), q.mT)[:, 0, 0]
    return reads, read_var, mean, cov


# ---------------------------------------------------------------------------- chunk by chunk


def _chunk_solve(mean, cov, w, z, q, v):
    cross = torch.bmm(w, cov)
    factor = cholesky(torch.bmm(cross, w.mT) + torch.diag_embed(v))
    gains = torch.linalg.solve_triangular(factor, cross, upper=False)
    errors = torch.linalg.solve_triangular(factor, torch.baddbmm(z, w, mean, alpha=-1), upper=False)
    inside = torch.bmm(q, gains.mT).tril()
    reads = torch.baddbmm(torch.bmm(q, mean), inside, errors)
    read_var = (torch.bmm(q, cov) * q).sum(-1) - (inside * inside).sum(-1)
    mean = torch.baddbmm(mean, gains.mT, errors)
    return reads, read_var, mean, torch.baddbmm(cov, gains.mT, gains, alpha=-1)


def _chunk_joint(mean, cov, w, z, q, v):
    """[U | R] as one matrix and [W; Q] as another; F^-1 explicitly: all else is wide products."""
    slots, length = cov.shape[-1], w.shape[1]
    state = torch.cat([cov, mean], -1)
    wide = torch.bmm(torch.cat([w, q], 1), state)
    cross, asked = wide[:, :length], wide[:, length:]
    factor = cholesky(torch.bmm(cross[..., :slots], w.mT) + torch.diag_embed(v))
    eye = torch.eye(length, dtype=w.dtype, device=w.device).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
    pad = torch.cat([torch.zeros_like(w), z], -1)
    white = torch.bmm(inverse, cross - pad)  # [P | -E]
    gains = white[..., :slots]
    inside = torch.bmm(q, gains.mT).tril()
    reads = torch.baddbmm(asked[..., slots:], inside, white[..., slots:], alpha=-1)
    read_var = (asked[..., :slots] * q).sum(-1) - (inside * inside).sum(-1)
    state = torch.baddbmm(state, gains.mT, white, alpha=-1)
    return reads, read_var, state[..., slots:], state[..., :slots]


def chunked(form, length: int):
    """``form`` in chunks of ``length`` steps, in order."""

    def scan(mean, cov, *steps):
        reads, read_var = [], []
        for chunk in zip(*(x.split(length, 1) for x in steps), strict=True):
            read, var, mean, cov = form(mean, cov, *chunk)
            reads.append(read)
            read_var.append(var)
        return torch.cat(reads, 1), torch.cat(read_var, 1), mean, cov

    return scan


# ------------------------------------------------------------------------- all chunks at once


def parallel(length: int):
    """The states before all chunks from prefix sums of W'V^-1 W and W'V^-1 Z, one factorisation
    each; then all chunks at once."""

    def scan(mean, cov, weights, values, queries, noise_var):
        batch, steps = weights.shape[:2]
        count = steps // length
        w, z, q = (x.unflatten(1, (count, length)) for x in (weights, values, queries))
        v = noise_var.unflatten(1, (count, length))
        scaled = (w / v[..., None]).mT
        precision = inverse_from_factor(cholesky(cov))[:, None]
        shift = torch.matmul(precision, mean[:, None])
        precision = torch.cat([precision, scaled @ w], 1).cumsum(1)
        shift = torch.cat([shift, scaled @ z], 1).cumsum(1)
        covs = inverse_from_factor(cholesky(precision).flatten(0, 1)).unflatten(0, (batch, -1))
        means = covs @ shift
        before = [x[:, :-1].flatten(0, 1) for x in (means, covs)]
        reads, read_var, *_ = _chunk_solve(*before, *(x.flatten(0, 1) for x in (w, z, q, v)))
        reads = reads.unflatten(0, (batch, count)).flatten(1, 2)
        return reads, read_var.unflatten(0, (batch, count)).flatten(1, 2), means[:, -1], covs[:, -1]

    return scan


def _steps_fit(shape: Shape, direction: str) -> bool:
    """Autograd keeps the state of every step: at most a gigabyte of it."""
    batch, length, slots, code = shape
    states = 8 * batch * length * slots * (slots + code)
    return length <= 2048 and (direction == "forward" or states < 1 << 30)


def _fits(length: int):
    return lambda shape, direction: shape.steps % length == 0


def _rivals():
    yield Rival("steps", steps, family="steps", fits=_steps_fit)
    yield Rival("steps_inplace", steps_inplace, FORWARD, "steps", _steps_fit)
    for length in (16, 32, 64, 128):
        for name, form in (("solve", _chunk_solve), ("joint", _chunk_joint)):
            yield Rival(f"{name}_chunk{length}", chunked(form, length), fits=_fits(length))
        yield Rival(f"parallel_chunk{length}", parallel(length), fits=_fits(length))
    for length in (64, 128):
        chunks = Rival(f"joint_chunk{length}", chunked(_chunk_joint, length), fits=_fits(length))
        yield compiled(chunks, max_steps=32 * length)
        yield compiled(
            Rival(f"parallel_chunk{length}", parallel(length), fits=_fits(length)), 1 << 16
        )


OPERATOR = Operator(
    "causal_scan",
    inputs,
    kanerva,
    chunked(_chunk_solve, 64),
    definition,
    tuple(_rivals()),
    shapes=SHAPES,
)
