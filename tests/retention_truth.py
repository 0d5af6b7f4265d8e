"""A memory that drifts back to its stationary state, step by step in numpy.longdouble, and the
recursion run backwards."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from helpers import LD, Case, Problem, extended, problem, step_back
from scan_truth import queries_of
from torch import Tensor

RETENTIONS = ("gentle", "strong", "half", "mixed")
COVARIANCES = ("none", "scalar", "matrix", "rank1")


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


def moving_scan(m: MovingProblem) -> tuple[np.ndarray, ...]:
    """reads, read_var, mean, cov, log_evidence."""
    items = [_forward(*_item(m, i))[0] for i in range(len(m.p.mean))]
    return tuple(np.stack(x) for x in zip(*items, strict=True))


def moving_scan_grads(m: MovingProblem, grads: list[Tensor]) -> list[np.ndarray]:
    """Gradients of mean, cov (symmetrised), weights, values, queries, noise_var, retention and
    stationary_cov as a matrix (symmetrised)."""
    items = [_backward(*_item(m, i), [extended(g[i]) for g in grads]) for i in range(len(m.p.mean))]
    return [np.stack(x) for x in zip(*items, strict=True)]


def _item(m: MovingProblem, i: int):
    p = m.p.item(i)
    arrays = [extended(x[0]) for x in (*p[:5], m.queries[i : i + 1], m.retention[i : i + 1])]
    counts = np.ones(len(arrays[2]), bool) if p.mask is None else p.mask[0].cpu().numpy()
    return arrays, extended(m.matrix()[i]), counts


def _forward(arrays, sigma, counts):
    mean, cov, weights, values, noise, queries, retention = arrays
    code, evidence, tape, pi = mean.shape[1], LD(0), [], LD(math.pi)
    reads, read_var = np.zeros((len(weights), code), LD), np.zeros(len(weights), LD)
    for t, (w, a) in enumerate(zip(weights, retention, strict=True)):
        step = before = None
        if counts[t]:
            before = mean, cov
            mean, cov = a * mean, a * a * cov + (1 - a * a) * sigma
            c = cov @ w
            s, d = w @ c + noise[t], values[t] - mean.T @ w
            step = (cov, mean, c, s, d)
            mean, cov = mean + np.outer(c, d) / s, cov - np.outer(c, c) / s
            evidence = evidence - (d @ d / s + code * np.log(2 * pi * s)) / 2
        tape.append((before, step, mean, cov))
        reads[t], read_var[t] = queries[t] @ mean, queries[t] @ cov @ queries[t]
    return (reads, read_var, mean, cov, evidence), tape


def _backward(arrays, sigma, counts, grads):
    _, tape = _forward(arrays, sigma, counts)
    _, _, weights, values, noise, queries, retention = arrays
    g_reads, g_var, g_mean, g_cov, g_log = grads
    g_cov = (g_cov + g_cov.T) / 2
    g_w, g_z, g_q, g_v, g_a, g_sigma = (
        np.zeros_like(x) for x in (weights, values, queries, noise, retention, sigma)
    )
    for t in reversed(range(len(weights))):
        before, step, mean, cov = tape[t]
        q = queries[t]
        g_q[t] = mean @ g_reads[t] + 2 * g_var[t] * (cov @ q)
        g_mean = g_mean + np.outer(q, g_reads[t])
        g_cov = g_cov + g_var[t] * np.outer(q, q)
        if step is None:
            continue
        g_mean, g_cov, g_w[t], g_z[t], g_v[t], _ = step_back(
            step, weights[t], LD(1), g_mean, g_cov, g_log
        )
        a = retention[t]
        g_a[t] = (g_mean * before[0]).sum() + 2 * a * (g_cov * (before[1] - sigma)).sum()
        g_sigma = g_sigma + (1 - a * a) * g_cov
        g_mean, g_cov = a * g_mean, a * a * g_cov
    return g_mean, g_cov, g_w, g_z, g_q, g_v, g_a, g_sigma
