"""The exact write as the step-by-step recursion, and its closed-form adjoint."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._common import (
    cholesky,
    full_precision,
    has_nan,
    poison,
    running_product,
    sum_from,
    sum_of_no_steps,
    symmetric,
    wide,
)
from ._stationary import move, stationary_adjoint

CHUNK = 16  # steps per system in the adjoint; longer ones lose digits where noise is tiny


@full_precision
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
    """``kanerva::bayes_write`` one step at a time (``method`` is accepted and ignored).

    Each step is ``c = U w; s = w'c + v; d = z - R'w``, then ``R += g e'`` and ``U -= g g'`` with
    ``g = c / sqrt(s)`` and ``e = d / sqrt(s)``. The form ``g g'`` keeps U exactly symmetric.
    With ``retention`` the memory moves before each step (`_stationary.move`).
    """
    bad = bad_items(noise_var, mask, decay, retention)
    weights, values, noise_var, decay = skip_masked(
        weights.to(mean.dtype), values.to(mean.dtype), noise_var, mask, decay
    )
    retention = keep_masked(retention, mask)
    stationary_cov = None if stationary_cov is None else symmetric(stationary_cov)
    mean, cov = mean.clone(), symmetric(cov)
    log_evidence = sum_of_no_steps(mean, cov, weights, values, noise_var)
    for t in range(weights.shape[1]):
        if retention is not None:
            mean, cov = move(mean, cov, retention[:, t], stationary_cov)
        mean, cov, term = write_step(mean, cov, weights, values, noise_var, mask, decay, t)
        log_evidence = log_evidence + term
    return poison(bad | has_nan(mean, cov, log_evidence[:, None]), mean, cov, log_evidence)


def write_step(mean, cov, weights, values, noise_var, mask, decay, t: int):
    """mean and cov after step t, and its term of the log evidence; masked steps are neutral."""
    if decay is not None:
        cov = cov / decay[:, t, None, None]
    w, v = weights[:, t], noise_var[:, t]
    c = (cov @ w[..., None])[..., 0]
    s = (w * c).sum(-1) + v
    scale = s.sqrt()[:, None]
    g = c / scale
    e = (values[:, t] - (w[:, None] @ mean)[:, 0]) / scale
    mean = mean + g[:, :, None] * e[:, None, :]
    cov = cov - g[:, :, None] * g[:, None, :]
    term = (e * e).sum(-1) + mean.shape[-1] * (2 * math.pi * s).log()
    if mask is not None:
        term = torch.where(mask[:, t], term, 0)
    return mean, cov, -term / 2


@full_precision
def bayes_write_backward(
    grad_mean: Tensor | None,
    grad_cov: Tensor | None,
    grad_log_evidence: Tensor | None,
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
    posterior_mean: Tensor | None = None,
    posterior_cov: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of mean, cov (symmetrised), weights, values, noise_var, decay, retention and
    stationary_cov (symmetrised).

    The episode is cut into chunks; the states at their starts come from the chunked forward pass
    (exact conditioning by a Cholesky factor), the adjoints from `Chunk.adjoint` in reverse.
    The gradient of an absent argument is an empty tensor. The posterior, which compiled kernels
    use, is not needed here.
    """
    if retention is not None:
        steps = (weights, values, None, noise_var, mask, retention)
        grads = (grad_mean, grad_cov, grad_log_evidence, None, None)
        d_mean, d_cov, d_weights, d_values, _, *rest = moving_backward(
            grads, mean, cov, stationary_cov, *steps
        )
        return d_mean, d_cov, d_weights, d_values, *rest
    dtype = wide(mean)
    inputs = (mean, cov, weights, values, noise_var, decay)
    bad = bad_items(noise_var, mask, decay)
    mean, cov, weights, values = (x.to(dtype) for x in (mean, cov, weights, values))
    noise_var, decay = noise_var.to(dtype), None if decay is None else decay.to(dtype)
    weights, values, noise_var, decay = skip_masked(weights, values, noise_var, mask, decay)

    chunks, states = [], []
    mean, cov = mean, symmetric(cov)
    for start in range(0, weights.shape[1], CHUNK):
        span = slice(start, start + CHUNK)
        chunk = Chunk(
            mean,
            cov,
            weights[:, span],
            values[:, span],
            noise_var[:, span],
            None if decay is None else decay[:, span],
        )
        chunks.append(chunk)
        mean, cov = chunk.posterior()
        states.append((mean, cov))

    d_mean = torch.zeros_like(mean) if grad_mean is None else grad_mean.to(dtype)
    d_cov = torch.zeros_like(cov) if grad_cov is None else symmetric(grad_cov.to(dtype))
    d_evidence = None if grad_log_evidence is None else grad_log_evidence.to(dtype)
    parts = []
    for chunk, (_, cov_after) in zip(reversed(chunks), reversed(states), strict=True):
        d_mean, d_cov, *steps = chunk.adjoint(d_mean, d_cov, d_evidence, cov_after)
        parts.append(steps)
    if parts:
        steps = [torch.cat(p, 1) for p in zip(*reversed(parts), strict=True)]
    else:
        steps = [torch.zeros_like(x) for x in (weights, values, noise_var, noise_var)]
    if mask is not None:
        steps = [s.masked_fill(~_per_step(mask, s), 0) for s in steps]
    if decay is None:
        steps[-1] = noise_var.new_zeros(0)
    grads = [d_mean, d_cov, *steps]
    last = 6 if decay is not None else 5
    grads[:last] = poison(bad | has_nan(mean, cov), *grads[:last])
    dtypes = [x.dtype for x in inputs[:5]] + [inputs[0].dtype]
    absent = inputs[0].new_zeros(0)
    return *(g.to(t) for g, t in zip(grads, dtypes, strict=True)), absent, absent.clone()


def moving_backward(
    grads, mean, cov, stationary_cov, weights, values, queries, noise_var, mask, retention
):
    """The gradients where the memory moves, as `causal_scan_backward` gives them, None for those
    of ``queries`` without any; ``grads`` as in `stationary_adjoint`."""
    dtype = wide(mean)
    bad = bad_items(noise_var, mask, None, retention)
    inputs = (mean, cov, weights, values, queries, noise_var, mean, mean, mean)
    tensors = (mean, cov, stationary_cov, weights, values, queries, noise_var, retention, *grads)
    tensors = [None if x is None else x.to(dtype) for x in tensors]
    mean, cov, sigma, weights, values, queries, noise_var, retention, *grads = tensors
    if queries is not None:
        bad = bad | has_nan(queries)
    weights, values, noise_var, _ = skip_masked(weights, values, noise_var, mask, None)
    results, state = stationary_adjoint(
        grads,
        *(mean, cov, sigma),
        (weights, values, queries),
        noise_var,
        keep_masked(retention, mask),
    )
    d_mean, d_cov, *steps, d_sigma = results
    if mask is not None:
        for i in (0, 1, 3, 4):  # the queries of masked steps are answered
            steps[i] = steps[i].masked_fill(~_per_step(mask, steps[i]), 0)
    absent = mean.new_zeros(0)
    results = [d_mean, d_cov, *steps[:4], absent, steps[4], d_sigma]
    bad = bad | has_nan(*state)
    for i, result in enumerate(results):
        if result is None:
            continue
        if i == 8 and stationary_cov is None:
            result = absent.clone()
        elif i != 6:
            (result,) = poison(bad, result)
        results[i] = result.to(inputs[i].dtype)
    return tuple(results)


class Chunk:
    """Conditioning on L steps at once: with S = W U0 W' + V = F F', P = F^-1 W U0 and
    E = F^-1 (Z - W R0), the posterior is (R0 + P'E, U0 - P'P). Decay is folded into the noise:
    ``b`` is its running product, V = diag(v b), and the posterior covariance is divided by b_L.
    """

    def __init__(self, mean, cov, weights, values, noise_var, decay):
        self.mean, self.cov, self.weights, self.noise_var = mean, cov, weights, noise_var
        self.decay = decay
        self.b = torch.ones_like(noise_var) if decay is None else running_product(decay)
        self.cross = weights @ cov
        system = self.cross @ weights.mT + torch.diag_embed(noise_var * self.b)
        self.factor = cholesky(symmetric(system))
        self.gain = self._lower(self.cross)
        self.error = self._lower(values - weights @ mean)

    def _lower(self, right):
        return torch.linalg.solve_triangular(self.factor, right, upper=False)

    def _upper(self, right):
        return torch.linalg.solve_triangular(self.factor.mT, right, upper=True)

    def _condition(self):
        """The posterior but for the division of its covariance by b_L."""
        mean = self.mean + self.gain.mT @ self.error
        return mean, symmetric(self.cov - self.gain.mT @ self.gain)

    def posterior(self):
        mean, cov = self._condition()
        return mean, cov if self.decay is None else cov / self.b[:, -1:, None]

    def adjoint(self, d_mean, d_cov, d_evidence, cov_after):
        """Adjoints of mean, cov, weights, values, noise_var and decay.

        With Y = F^-1 W, ``keep`` = I - Y'P is what the chunk leaves of its prior: formed once,
        since subtracting the overwritten part from each gradient would cancel where little is
        left, and from half-whitened factors, whose condition number is the square root of S's.
        """
        weights, code = self.weights, self.mean.shape[-1]
        a, g = self._upper(self.error), self._upper(self.gain)
        white = self._lower(weights)
        eye = torch.eye(weights.shape[-1], dtype=a.dtype, device=a.device)
        keep = eye - white.mT @ self.gain
        mean_after, cov_tilde = self._condition()
        d_cov_tilde = d_cov / self.b[:, -1:, None]
        g_d_cov, d_error = g @ d_cov_tilde, g @ d_mean
        d_system = g_d_cov @ g.mT - symmetric(d_error @ a.mT)
        d_weights = (a @ d_mean.mT - 2 * g_d_cov) @ cov_tilde - d_error @ mean_after.mT
        d_mean0 = keep @ d_mean
        d_cov0 = keep @ d_cov_tilde @ keep.mT + symmetric(d_mean0 @ (self.error.mT @ white))
        if d_evidence is not None:
            scale = d_evidence[:, None, None]
            steps = torch.arange(self.b.shape[1], device=self.b.device)
            inner = self.b[:, torch.maximum(steps[:, None], steps)]
            inner = inner * (self.error @ self.error.mT)
            inner = inner - code * torch.eye(len(steps), dtype=inner.dtype, device=inner.device)
            weighted = self.b[..., None] * self.error
            d_mean0 = d_mean0 + scale * (white.mT @ weighted)
            d_cov0 = d_cov0 + scale / 2 * (white.mT @ inner @ white)
            inner = scale * symmetric(self._upper(self._upper(inner).mT))
            outer = scale * self._upper(weighted)
            d_error = d_error - outer
            d_system = d_system + inner / 2
            d_weights = d_weights + inner @ self.cross + outer @ self.mean.mT
        d_noise_tilde = d_system.diagonal(dim1=-2, dim2=-1)
        d_decay = torch.zeros_like(self.b)
        if self.decay is not None:
            d_b = self.noise_var * d_noise_tilde
            if d_evidence is not None:
                energy = (self.error * self.error).sum(-1) - code / self.b
                d_b = d_b - d_evidence[:, None] / 2 * energy
            weighted = d_b * self.b
            # U is divided by b_L at the end: -<gU, U> / b_L, times b_L.
            last = -(d_cov * cov_after).sum((-2, -1))[:, None]
            tail = sum_from(weighted) + last
            d_decay = tail / self.decay
        return d_mean0, d_cov0, d_weights, d_error, self.b * d_noise_tilde, d_decay


def _per_step(mask: Tensor, tensor: Tensor) -> Tensor:
    return mask if tensor.dim() == 2 else mask[..., None]


def skip_masked(weights, values, noise_var, mask, decay):
    """Make masked steps neutral: zero address and value, unit noise, no decay."""
    if mask is None:
        return weights, values, noise_var, decay
    return (
        torch.where(mask[..., None], weights, 0),
        torch.where(mask[..., None], values, 0),
        torch.where(mask, noise_var, 1),
        None if decay is None else torch.where(mask, decay, 1),
    )


def keep_masked(retention: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """A memory does not move at masked steps."""
    if mask is None or retention is None:
        return retention
    return torch.where(mask, retention, 1)


def bad_items(
    noise_var: Tensor,
    mask: Tensor | None,
    decay: Tensor | None = None,
    retention: Tensor | None = None,
) -> Tensor:
    """(B,) bool: a step that counts has a noise variance or a decay that is not positive, or a
    retention that is not in (0, 1]."""
    bad = ~(noise_var > 0)
    if decay is not None:
        bad = bad | ~(decay > 0)
    if retention is not None:
        bad = bad | ~((retention > 0) & (retention <= 1))
    return (bad if mask is None else bad & mask).any(1)
