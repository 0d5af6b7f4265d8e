"""Stationary dynamics: a memory that drifts back to mean zero and covariance Sigma between writes.

Before step t ``M <- a_t M + sqrt(1 - a_t^2) N`` with ``N ~ MN(0, Sigma, I)``, hence
``R <- a R; U <- a^2 U + (1 - a^2) Sigma``. `Stationary` conditions on a chunk of steps at once and
has the adjoint of that in closed form. Nothing is divided by a product of retentions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import cholesky, running_product, sum_from, symmetric

CHUNK = 16  # steps per system


def move(mean, cov, retention, stationary_cov):
    """mean and cov (B, ...) after the dynamics of one step; ``retention`` is (B,)."""
    a = retention[:, None, None]
    moved = (1 - a) * (1 + a)  # 1 - a^2 without its rounding
    if stationary_cov is None:
        noise = torch.diag_embed(moved[:, :, 0].expand(cov.shape[:2]))
    else:
        noise = moved * stationary_cov
    return a * mean, a * a * cov + noise


class Stationary:
    """Conditioning on L steps at once. With ``b`` the running product of the retentions, ``G_ts``
    their product after the earlier and up to the later of s and t, and X = U - Sigma:

        S = D_b W X W' D_b + (W Sigma W') o G + V = F F'
        B = b_L D_b W X + diag(b_L / b) W Sigma       observations with the memory at the end
        P = F^-1 B,  E = F^-1 (Z - D_b W R)
        R <- b_L R + P'E,  U <- b_L^2 X + Sigma - P'P
    """

    def __init__(self, mean, cov, stationary_cov, weights, values, noise_var, retention):
        self.mean, self.stationary_cov, self.weights = mean, stationary_cov, weights
        self.retention = retention
        self.excess = cov - stationary_cov
        self.b = running_product(retention)
        self.between = _products_between(retention)  # G, its lower triangle
        self.rest = self.between[:, -1, :]  # b_L / b
        self.scaled = self.b[..., None] * weights
        self.seen = weights @ stationary_cov
        self.scaled_excess = self.scaled @ self.excess
        both = self.between + self.between.tril(-1).mT
        system = self.scaled_excess @ self.scaled.mT + both * (self.seen @ weights.mT)
        self.factor = cholesky(symmetric(system) + torch.diag_embed(noise_var))
        last = self.b[:, -1:, None]
        self.gain = self._lower(last * self.scaled_excess + self.rest[..., None] * self.seen)
        self.error = self._lower(values - self.scaled @ mean)

    def _lower(self, right):
        return torch.linalg.solve_triangular(self.factor, right, upper=False)

    def _upper(self, right):
        return torch.linalg.solve_triangular(self.factor.mT, right, upper=True)

    def posterior(self):
        last = self.b[:, -1:, None]
        mean = last * self.mean + self.gain.mT @ self.error
        cov = last * last * self.excess + self.stationary_cov - self.gain.mT @ self.gain
        return mean, symmetric(cov)

    def adjoint(self, d_mean, d_cov, d_evidence, queries=None, d_reads=None, d_var=None):
        """Adjoints of mean, cov, stationary_cov, weights, values, queries, noise_var, retention."""
        mean, excess, sigma, weights = self.mean, self.excess, self.stationary_cov, self.weights
        scaled, between, error, gain = self.scaled, self.between, self.error, self.gain
        code, last = mean.shape[-1], self.b[:, -1:, None]
        d_error = gain @ d_mean
        d_gain = error @ d_mean.mT - 2 * gain @ d_cov
        d_mean0 = last * d_mean
        d_last = _dot(d_mean, mean) + 2 * last[:, 0, 0] * _dot(d_cov, excess)
        d_excess = last * last * d_cov
        d_sigma = d_cov
        d_factor = torch.zeros_like(self.factor)
        d_between = torch.zeros_like(between)
        d_weights, d_scaled = torch.zeros_like(weights), torch.zeros_like(weights)
        d_queries = None

        if queries is not None:
            # reads = D_b Q R + A E;  variances = b^2 q'X q + q'Sigma q - |A_t|^2
            d_reads = torch.zeros_like(queries @ mean) if d_reads is None else d_reads
            slope = (torch.zeros_like(self.b) if d_var is None else d_var)[..., None]
            asked = self.b[..., None] * queries
            asked_seen, asked_excess = queries @ sigma, asked @ excess
            cross = (asked_excess @ scaled.mT + between * (asked_seen @ weights.mT)).tril()
            inside = self._lower(cross.mT).mT.tril()  # A
            d_inside = (d_reads @ error.mT - 2 * slope * inside).tril()
            d_cross = self._upper(d_inside.mT).mT.tril()
            d_factor = d_factor - d_cross.mT @ inside
            d_error = d_error + inside.mT @ d_reads
            d_asked = d_reads @ mean.mT + 2 * slope * asked_excess + d_cross @ self.scaled_excess
            d_mean0 = d_mean0 + asked.mT @ d_reads
            d_excess = d_excess + asked.mT @ (slope * asked)
            d_excess = d_excess + symmetric(asked.mT @ d_cross @ scaled)
            d_scaled = d_scaled + d_cross.mT @ asked_excess
            d_cross_between = d_cross * between
            d_queries = 2 * slope * asked_seen + d_cross_between @ self.seen
            d_weights = d_weights + d_cross_between.mT @ asked_seen
            d_sigma = (
                d_sigma
                + queries.mT @ (slope * queries)
                + symmetric(queries.mT @ d_cross_between @ weights)
            )
            d_between = d_between + d_cross * (asked_seen @ weights.mT)

        if d_evidence is not None:
            d_error = d_error - d_evidence[:, None, None] * error
            inverse = 1 / self.factor.diagonal(dim1=-2, dim2=-1)
            d_factor = d_factor - torch.diag_embed(d_evidence[:, None] * code * inverse)

        d_values = self._upper(d_error)
        d_b_gain = self._upper(d_gain)
        d_factor = (d_factor - d_values @ error.mT - d_b_gain @ gain.mT).tril()
        d_system = self._cholesky_adjoint(d_factor)

        d_scaled = d_scaled - d_values @ mean.mT + last * (d_b_gain @ excess)
        d_scaled = d_scaled + 2 * d_system @ self.scaled_excess
        d_mean0 = d_mean0 - scaled.mT @ d_values
        d_excess = d_excess + last * symmetric(scaled.mT @ d_b_gain)
        d_excess = d_excess + scaled.mT @ d_system @ scaled
        d_last = d_last + _dot(d_b_gain, self.scaled_excess)

        d_system_between = d_system * (between + between.tril(-1).mT)
        d_rest_gain = self.rest[..., None] * d_b_gain
        d_weights = d_weights + 2 * d_system_between @ self.seen + d_rest_gain @ sigma
        d_sigma = d_sigma + weights.mT @ d_system_between @ weights
        d_sigma = d_sigma + symmetric(weights.mT @ d_rest_gain)
        d_between = d_between + 2 * d_system.tril(-1) * (self.seen @ weights.mT)
        d_rest = (d_b_gain * self.seen).sum(-1)
        end = torch.nn.functional.pad(d_rest[:, None], (0, 0, between.shape[1] - 1, 0))
        d_between = d_between + end

        d_weights = d_weights + self.b[..., None] * d_scaled
        d_b = (d_scaled * weights).sum(-1)
        if queries is not None:
            d_queries = d_queries + self.b[..., None] * d_asked
            d_b = d_b + (d_asked * queries).sum(-1)
        d_b = d_b + torch.nn.functional.pad(d_last[:, None], (d_b.shape[1] - 1, 0))
        d_retention = (sum_from(d_b * self.b) + _cuts(d_between * between)) / self.retention
        d_noise = d_system.diagonal(dim1=-2, dim2=-1)
        steps = (d_weights, d_values, d_queries, d_noise, d_retention)
        return d_mean0, d_excess, d_sigma - d_excess, *steps

    def _cholesky_adjoint(self, d_factor):
        """The symmetric gradient of S from that of its factor."""
        inner = (self.factor.mT @ d_factor).tril()
        inner = inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)) / 2
        return symmetric(self._upper(self._upper(inner.mT).mT))


def stationary_adjoint(grads, mean, cov, stationary_cov, steps, noise_var, retention):
    """The adjoint of an episode, chunk by chunk: `Stationary.adjoint`'s gradients but that of
    stationary_cov last, and the state after the episode.

    ``grads`` are those of mean, cov, log evidence, reads and their variances, any of them None;
    ``steps`` weights, values and queries (None: nothing is read).
    """
    d_mean, d_cov, d_evidence, d_reads, d_var = grads
    sigma = stationary_cov
    if sigma is None:
        sigma = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device).expand_as(cov)
    cov, sigma = symmetric(cov), symmetric(sigma)
    spans = [slice(s, s + CHUNK) for s in range(0, retention.shape[1], CHUNK)]
    chunks = []
    for span in spans:
        weights, values = (x[:, span] for x in steps[:2])
        chunk = Stationary(
            mean, cov, sigma, weights, values, noise_var[:, span], retention[:, span]
        )
        mean, cov = chunk.posterior()
        chunks.append(chunk)
    d_mean = torch.zeros_like(mean) if d_mean is None else d_mean
    d_cov = torch.zeros_like(cov) if d_cov is None else symmetric(d_cov)
    d_sigma = torch.zeros_like(cov)
    parts = []
    for span, chunk in zip(reversed(spans), reversed(chunks), strict=True):
        incoming = [None if x is None else x[:, span] for x in (steps[2], d_reads, d_var)]
        d_mean, d_cov, more, *of_steps = chunk.adjoint(d_mean, d_cov, d_evidence, *incoming)
        d_sigma = d_sigma + more
        parts.append(of_steps)
    if parts:
        columns = zip(*reversed(parts), strict=True)
        of_steps = [None if c[0] is None else torch.cat(c, 1) for c in columns]
    else:
        of_steps = [None if x is None else torch.zeros_like(x) for x in (*steps, noise_var)]
        of_steps.append(torch.zeros_like(retention))
    return (d_mean, d_cov, *of_steps, d_sigma), (mean, cov)


def _products_between(x: Tensor) -> Tensor:
    """(B, L, L) with ``x_{s+1} ... x_t`` at t, s of the lower triangle, 0 above it."""
    steps = x.shape[1]
    at = torch.arange(steps, device=x.device)
    # Row j of the factors of column s is x_j where j > s: running products down the rows.
    factors = torch.where(at[:, None] > at, x[..., None], 1)
    return running_product(factors).tril()


def _cuts(x: Tensor) -> Tensor:
    """Of (B, L, L): at j the sum of ``x_ts`` over s < j <= t."""
    return sum_from(x).tril(-1).sum(-1)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum((-2, -1))
