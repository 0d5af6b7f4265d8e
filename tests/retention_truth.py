"""A memory that drifts back to its stationary state, step by step in numpy.longdouble, and the
recursion run backwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from helpers import LD, Case, Problem, extended, problem
from scan_truth import queries_of
from torch import Tensor

PI = LD("3.14159265358979323846264338327950288")
RETENTIONS = ("gentle", "strong", "half", "mixed")
COVARIANCES = ("none", "scalar", "matrix", "rank1")
NAMES = ("reads", "read_var", "mean", "cov", "log_evidence")
GRADS = (
    *("mean", "cov", "weights", "values", "queries", "noise_var", "retention"),
    "stationary_cov",
)


class Moving(NamedTuple):
    """A problem of `helpers`, and how its memory moves."""

    case: Case
    retention: str
    stationary: str

    def __str__(self) -> str:
        return f"{self.case}-{self.retention}-{self.stationary}"


class MovingProblem(NamedTuple):
    p: Problem
    queries: Tensor
    retention: Tensor
    stationary_cov: Tensor | float | None

    def options(self, dtype=None) -> dict:
        """Of the public functions."""
        return {
            "mask": self.p.mask,
            "retention": self.retention,
            "stationary_cov": self.stationary_cov,
        }

    def matrix(self) -> Tensor:
        """The stationary covariance as (B, K, K)."""
        if isinstance(self.stationary_cov, Tensor):
            return self.stationary_cov
        scale = 1.0 if self.stationary_cov is None else self.stationary_cov
        return scale * torch.eye(self.p.cov.shape[-1]).to(self.p.cov).expand_as(self.p.cov)

    def inputs(self) -> list[Tensor]:
        """Those of `GRADS`, in its order."""
        return [*self.p[:4], self.queries, self.p.noise_var, self.retention, self.matrix()]


def moving_problem(moving: Moving, dtype: torch.dtype = torch.float64) -> MovingProblem:
    """The same numbers, rounded, in every dtype, on any device."""
    p = problem(moving.case, dtype)
    b, t, k = p.weights.shape
    generator = torch.Generator().manual_seed(7)
    with torch.device("cpu"):
        u = torch.rand(b, t, generator=generator, dtype=torch.float64)
        retention = {
            "gentle": 1 - 1e-3 * u,
            "strong": 10 ** (-3 * u),
            "half": torch.full_like(u, 0.5),
            "mixed": torch.where(u < 0.2, 10 ** (-15 * u), torch.where(u < 0.6, 1.0, 0.9)),
            "kept": torch.ones_like(u),
            "hardly": torch.full_like(u, 1e-3),
        }[moving.retention]
        root = torch.randn(b, k, k, generator=generator, dtype=torch.float64) / math.sqrt(k)
        rank1 = root[..., :1].bfloat16().double()  # products of short numbers: exact in float32
        stationary = {
            "none": None,
            "scalar": 0.25,
            "matrix": root @ root.mT + 0.1 * torch.eye(k, dtype=torch.float64),
            "rank1": rank1 @ rank1.mT,
        }[moving.stationary]
    if isinstance(stationary, Tensor):
        stationary = stationary.float().to(p.cov)
        stationary = (stationary + stationary.mT) / 2
    return MovingProblem(p, queries_of(moving.case, p), retention.float().to(p.cov), stationary)


def stacked(movings: Sequence[Moving], dtype: torch.dtype = torch.float64) -> MovingProblem:
    """Problems of one size as the items of one batch."""
    each = [moving_problem(m, dtype) for m in movings]
    parts = zip(*(m.p[:5] for m in each), strict=True)
    all_count = torch.ones(each[0].p.weights.shape[:2], dtype=torch.bool)
    mask = torch.cat([all_count if m.p.mask is None else m.p.mask for m in each])
    return MovingProblem(
        Problem(*(torch.cat(x) for x in parts), mask),
        torch.cat([m.queries for m in each]),
        torch.cat([m.retention for m in each]),
        torch.cat([m.matrix() for m in each]),
    )


def moving_scan(m: MovingProblem, number=LD, arrays=None) -> tuple[np.ndarray, ...]:
    """`NAMES`, of ``arrays`` in place of the inputs; in other dtypes for what the recursion itself
    loses there."""
    return _forward(_Steps(m, number, arrays))[0]


def moving_scan_grads(m: MovingProblem, grads: Sequence[Tensor], number=LD) -> list[np.ndarray]:
    """Gradients of `GRADS` for those of the results: of covariances symmetrised, of the stationary
    one as a matrix."""
    return moving_scan_with_grads(m, grads, number)[1]


def moving_scan_with_grads(m: MovingProblem, grads: Sequence[Tensor], number=LD):
    """Both, by one pass forward and two back."""
    steps = _Steps(m, number)
    results, kept = _forward(steps)
    return results, _backward(steps, kept, [extended(g).astype(number) for g in grads])


def random_grads(m: MovingProblem, seed: int = 3) -> list[Tensor]:
    """Of the results, the same on every device."""
    p, generator = m.p, torch.Generator().manual_seed(seed)
    steps = p.values.shape[:2]
    shapes = (p.values.shape, steps, p.mean.shape, p.cov.shape, steps[:1])
    with torch.device("cpu"):
        made = [torch.randn(s, generator=generator).double() for s in shapes]
    return [g.to(p.cov.device) for g in made]


class _Steps:
    """The arguments with items and steps in front: step t of all items is x[:, t]."""

    every = 256  # steps between states that are kept for the way back

    def __init__(self, m: MovingProblem, number, arrays=None):
        if arrays is None:
            arrays = [extended(x) for x in m.inputs()]
        arrays = [x.astype(number) for x in arrays]
        self.mean, self.cov, self.weights, self.values, self.queries = arrays[:5]
        self.noise, self.retention, self.sigma = arrays[5:]
        shape = self.weights.shape[:2]
        self.counts = np.ones(shape, bool) if m.p.mask is None else m.p.mask.cpu().numpy()
        self.two_pi = number(2 * PI)

    def take(self, t: int, state):
        """The state after step t, and what it was made of."""
        mean, cov = state
        w, a, counts = self.weights[:, t], self.retention[:, t], self.counts[:, t, None, None]
        a = a[:, None, None]
        mean, cov = a * mean, a * a * cov + (1 - a) * (1 + a) * self.sigma
        c = times(cov, w)
        s, d = dot(w, c) + self.noise[:, t], self.values[:, t] - times(transposed(mean), w)
        made = mean, cov, c, s, d
        mean = mean + outer(c, d) / s[:, None, None]
        cov = cov - outer(c, c) / s[:, None, None]
        return (np.where(counts, mean, state[0]), np.where(counts, cov, state[1])), made


def transposed(matrix):
    return np.swapaxes(matrix, -1, -2)


def times(matrix, vector):
    return (matrix @ vector[..., None])[..., 0]


def dot(x, y):
    return (x * y).sum(-1)


def outer(x, y):
    return x[..., :, None] * y[..., None, :]


def _forward(x: _Steps):
    items, steps, code = x.values.shape
    reads, read_var = np.zeros_like(x.values), np.zeros_like(x.noise)
    evidence, state, kept = np.zeros(items, x.values.dtype), (x.mean, x.cov), []
    for t in range(steps):
        if t % x.every == 0:
            kept.append(state)
        state, (_, _, _, s, d) = x.take(t, state)
        more = (dot(d, d) / s + code * np.log(x.two_pi * s)) / 2
        evidence = np.where(x.counts[:, t], evidence - more, evidence)
        q = x.queries[:, t]
        reads[:, t], read_var[:, t] = times(transposed(state[0]), q), dot(q, times(state[1], q))
    return (reads, read_var, *state, evidence), kept


def _backward(x: _Steps, kept, grads):
    g_reads, g_var, g_mean, g_cov, g_log = grads
    g_cov = (g_cov + transposed(g_cov)) / 2
    g_w, g_z, g_q, g_v, g_a, g_sigma = (
        np.zeros_like(y) for y in (x.weights, x.values, x.queries, x.noise, x.retention, x.sigma)
    )
    for block in reversed(range(len(kept))):
        first, state, tape = block * x.every, kept[block], []
        for t in range(first, min(first + x.every, x.noise.shape[1])):
            after, made = x.take(t, state)
            tape.append((t, state, made, after))
            state = after
        for t, before, made, (mean, cov) in reversed(tape):
            q, g_read, gv = x.queries[:, t], g_reads[:, t], g_var[:, t, None]
            g_q[:, t] = times(mean, g_read) + 2 * gv * times(cov, q)
            g_mean = g_mean + outer(q, g_read)
            g_cov = g_cov + gv[..., None] * outer(q, q)
            *state_grads, g_w[:, t], g_z[:, t], g_v[:, t], g_a[:, t], more = _step_back(
                x, t, before, made, g_mean, g_cov, g_log
            )
            g_sigma = g_sigma + more
            g_mean, g_cov = state_grads
    return [g_mean, g_cov, g_w, g_z, g_q, g_v, g_a, g_sigma]


def _step_back(x: _Steps, t: int, before, made, g_mean, g_cov, g_log):
    """Gradients of the mean and covariance before step t, of its address, value, noise, retention
    and stationary covariance; of a step that does not count, those after it and zeros."""
    mean, cov, c, s, d = made
    w, a, counts = x.weights[:, t], x.retention[:, t], x.counts[:, t]
    by_s, log = s[:, None], g_log[:, None]
    g_d = times(transposed(g_mean), c) / by_s - log * d / by_s
    g_c = times(g_mean, d) / by_s - 2 * times(g_cov, c) / by_s
    g_s = (dot(c, times(g_cov, c)) - dot(c, times(g_mean, d))) / s**2
    g_s = g_s - g_log / 2 * (d.shape[-1] / s - dot(d, d) / s**2)
    g_c = g_c + g_s[:, None] * w
    g_w = g_s[:, None] * c + times(cov, g_c) - times(mean, g_d)
    moved_mean = g_mean - outer(w, g_d)
    moved_cov = g_cov + (outer(g_c, w) + outer(w, g_c)) / 2
    g_a = (moved_mean * before[0]).sum((1, 2))
    g_a = g_a + 2 * a * (moved_cov * (before[1] - x.sigma)).sum((1, 2))
    a, here = a[:, None, None], counts[:, None, None]
    return (
        np.where(here, a * moved_mean, g_mean),
        np.where(here, a * a * moved_cov, g_cov),
        np.where(counts[:, None], g_w, 0),
        np.where(counts[:, None], g_d, 0),
        np.where(counts, g_s, 0),
        np.where(counts, g_a, 0),
        np.where(here, (1 - a) * (1 + a) * moved_cov, 0),
    )
