"""causal_scan step by step in numpy.longdouble, and the recursion run backwards."""

from __future__ import annotations

import math

import numpy as np
import torch
from helpers import LD, Case, Problem, extended, problem, step_back
from torch import Tensor


def queries_of(case: Case, p: Problem) -> Tensor:
    """Half of them what was just written at, which a hard step leaves little variance of."""
    generator = torch.Generator().manual_seed(2)
    with torch.device("cpu"):
        other = torch.randn(p.weights.shape, generator=generator) / math.sqrt(case.slots)
    other = other.to(p.weights)
    every_other = torch.arange(case.steps, device=other.device)[:, None] % 2 == 0
    return torch.where(every_other, p.weights, other)


def scan_problem(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Problem, Tensor]:
    p = problem(case, dtype)
    return p, queries_of(case, p)


def scan(p: Problem, queries: Tensor) -> tuple[np.ndarray, ...]:
    """reads, read_var, mean, cov, log_evidence."""
    items = [_forward(p.item(i), queries[i])[0] for i in range(len(p.mean))]
    return tuple(np.stack(x) for x in zip(*items, strict=True))


def scan_grads(p: Problem, queries: Tensor, grads: list[Tensor]) -> list[np.ndarray]:
    """Gradients of mean, cov (symmetrised), weights, values, queries, noise_var and decay, for the
    incoming gradients of the results of `scan`."""
    items = [
        _backward(p.item(i), queries[i], [extended(g[i]) for g in grads])
        for i in range(len(p.mean))
    ]
    return [np.stack(x) for x in zip(*items, strict=True)]


def _inputs(p: Problem):
    mean, cov, weights, values, noise = (extended(x[0]) for x in p[:5])
    decay = np.ones(len(weights), LD) if p.decay is None else extended(p.decay[0])
    counts = np.ones(len(weights), bool) if p.mask is None else p.mask[0].cpu().numpy()
    return mean, cov, weights, values, noise, decay, counts


def _forward(p: Problem, queries: Tensor):
    mean, cov, weights, values, noise, decay, counts = _inputs(p)
    queries = extended(queries)
    code, evidence, tape, pi = mean.shape[1], LD(0), [], LD(math.pi)
    reads, read_var = np.zeros((len(weights), code), LD), np.zeros(len(weights), LD)
    for t in range(len(weights)):
        step = None
        if counts[t]:
            cov = cov / decay[t]
            w, c = weights[t], cov @ weights[t]
            s, d = w @ c + noise[t], values[t] - mean.T @ w
            step = (cov, mean, c, s, d)
            mean, cov = mean + np.outer(c, d) / s, cov - np.outer(c, c) / s
            evidence = evidence - (d @ d / s + code * np.log(2 * pi * s)) / 2
        tape.append((step, mean, cov))
        reads[t], read_var[t] = queries[t] @ mean, queries[t] @ cov @ queries[t]
    return (reads, read_var, mean, cov, evidence), tape


def _backward(p: Problem, queries: Tensor, grads: list[np.ndarray]):
    _, tape = _forward(p, queries)
    weights, values, noise, decay = _inputs(p)[2:6]
    queries = extended(queries)
    g_reads, g_var, g_mean, g_cov, g_log = grads
    g_cov = (g_cov + g_cov.T) / 2
    g_w, g_z, g_q = (np.zeros_like(x) for x in (weights, values, queries))
    g_v, g_decay = np.zeros_like(noise), np.zeros_like(decay)
    for t in reversed(range(len(weights))):
        step, mean, cov = tape[t]
        q = queries[t]
        g_q[t] = mean @ g_reads[t] + 2 * g_var[t] * (cov @ q)
        g_mean = g_mean + np.outer(q, g_reads[t])
        g_cov = g_cov + g_var[t] * np.outer(q, q)
        if step is None:
            continue
        g_mean, g_cov, g_w[t], g_z[t], g_v[t], g_decay[t] = step_back(
            step, weights[t], decay[t], g_mean, g_cov, g_log
        )
    return g_mean, g_cov, g_w, g_z, g_q, g_v, g_decay
