"""The write with a read at every step, as the recursion, and its closed-form adjoint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._common import full_precision, has_nan, poison, sum_from, sum_of_no_steps, symmetric, wide
from ._stationary import move
from .bayes_write import (
    CHUNK,
    Chunk,
    bad_items,
    keep_masked,
    moving_backward,
    skip_masked,
    write_step,
)


@full_precision
def causal_scan(
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    queries: Tensor,
    noise_var: Tensor,
    mask: Tensor | None = None,
    decay: Tensor | None = None,
    retention: Tensor | None = None,
    stationary_cov: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_size: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``kanerva::causal_scan`` one step at a time (``chunk_size`` is accepted and ignored)."""
    if cu_seqlens is not None:

        def call(mean, cov, stationary_cov, *steps):
            return causal_scan(mean, cov, *steps, stationary_cov)

        return _by_sequence(
            call,
            cu_seqlens,
            (mean, cov, stationary_cov),
            (weights, values, queries, noise_var, mask, decay, retention),
        )
    bad = bad_items(noise_var, mask, decay, retention)
    weights, values, noise_var, decay = skip_masked(
        weights.to(mean.dtype), values.to(mean.dtype), noise_var, mask, decay
    )
    retention = keep_masked(retention, mask)
    stationary_cov = None if stationary_cov is None else symmetric(stationary_cov)
    queries = queries.to(mean.dtype)
    code = mean.shape[-1]
    mean, cov = mean.clone(), symmetric(cov)
    log_evidence = sum_of_no_steps(mean, cov, weights, values, noise_var)
    start = sum_of_no_steps(mean, cov, queries)[:, None]
    reads, read_var = [start[..., None].expand(-1, 0, code)], [start[:, :0]]
    for t in range(weights.shape[1]):
        if retention is not None:
            mean, cov = move(mean, cov, retention[:, t], stationary_cov)
        mean, cov, term = write_step(mean, cov, weights, values, noise_var, mask, decay, t)
        log_evidence = log_evidence + term
        q = queries[:, t]
        reads.append(q[:, None] @ mean)
        read_var.append(((cov @ q[..., None])[..., 0] * q).sum(-1, keepdim=True))
    reads, read_var = torch.cat(reads, 1), torch.cat(read_var, 1)
    bad = bad | has_nan(mean, cov, log_evidence[:, None])
    return poison(bad, reads, read_var, mean, cov, log_evidence)


@full_precision
def causal_scan_backward(
    grad_reads: Tensor | None,
    grad_read_var: Tensor | None,
    grad_mean: Tensor | None,
    grad_cov: Tensor | None,
    grad_log_evidence: Tensor | None,
    mean: Tensor,
    cov: Tensor,
    weights: Tensor,
    values: Tensor,
    queries: Tensor,
    noise_var: Tensor,
    mask: Tensor | None = None,
    decay: Tensor | None = None,
    retention: Tensor | None = None,
    stationary_cov: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_size: int = 0,
) -> tuple[Tensor, ...]:
    """Gradients of mean, cov (symmetrised), weights, values, queries, noise_var, decay, retention
    and stationary_cov (symmetrised).

    The adjoint of each chunk is that of the write (`bayes_write_backward`) plus that of its reads,
    `_read_adjoint`: it is linear in the incoming gradients. The gradient of an absent argument is
    an empty tensor.
    """
    if cu_seqlens is not None:
        steps = (weights, values, queries, noise_var)

        def call(grad_mean, grad_cov, grad_log, mean, cov, sigma, grad_reads, grad_var, *steps):
            grads = causal_scan_backward(
                grad_reads, grad_var, grad_mean, grad_cov, grad_log, mean, cov, *steps, sigma
            )
            return *grads[2:8], *grads[:2], grads[8]

        *steps, d_mean, d_cov, d_sigma = _by_sequence(
            call,
            cu_seqlens,
            (grad_mean, grad_cov, grad_log_evidence, mean, cov, stationary_cov),
            (grad_reads, grad_read_var, *steps, mask, decay, retention),
            per_step=6,
        )
        return d_mean, d_cov, *steps, d_sigma
    if retention is not None:
        grads = (grad_mean, grad_cov, grad_log_evidence, grad_reads, grad_read_var)
        steps = (weights, values, queries, noise_var, mask, retention)
        return moving_backward(grads, mean, cov, stationary_cov, *steps)
    dtype = wide(mean)
    inputs = (mean, cov, weights, values, queries, noise_var, mean)
    bad = bad_items(noise_var, mask, decay) | has_nan(queries)
    mean, cov, weights, values, queries = (
        x.to(dtype) for x in (mean, cov, weights, values, queries)
    )
    noise_var, decay = noise_var.to(dtype), None if decay is None else decay.to(dtype)
    weights, values, noise_var, decay = skip_masked(weights, values, noise_var, mask, decay)
    grad_reads, grad_read_var = (
        None if g is None else g.to(dtype) for g in (grad_reads, grad_read_var)
    )

    spans = [slice(s, s + CHUNK) for s in range(0, weights.shape[1], CHUNK)]
    chunks, cov_after = [], []
    cov = symmetric(cov)
    for span in spans:
        per_step = (weights, values, noise_var, decay)
        chunk = Chunk(mean, cov, *(None if x is None else x[:, span] for x in per_step))
        mean, cov = chunk.posterior()
        chunks.append(chunk)
        cov_after.append(cov)

    d_mean = torch.zeros_like(mean) if grad_mean is None else grad_mean.to(dtype)
    d_cov = torch.zeros_like(cov) if grad_cov is None else symmetric(grad_cov.to(dtype))
    d_evidence = None if grad_log_evidence is None else grad_log_evidence.to(dtype)
    parts = []
    for span, chunk, after in zip(
        reversed(spans), reversed(chunks), reversed(cov_after), strict=True
    ):
        incoming = [None if g is None else g[:, span] for g in (grad_reads, grad_read_var)]
        d_mean, d_cov, *steps = chunk.adjoint(d_mean, d_cov, d_evidence, after)
        more_mean, more_cov, d_queries, *more = _read_adjoint(chunk, queries[:, span], *incoming)
        d_mean, d_cov = d_mean + more_mean, d_cov + more_cov
        steps = [a + b for a, b in zip(steps, more, strict=True)]
        parts.append((*steps[:2], d_queries, *steps[2:]))
    if parts:
        steps = [torch.cat(p, 1) for p in zip(*reversed(parts), strict=True)]
    else:
        steps = [torch.zeros_like(x) for x in (weights, values, queries, noise_var, noise_var)]
    if mask is not None:
        for i in (0, 1, 3, 4):  # the queries of masked steps are answered
            steps[i] = steps[i].masked_fill(~(mask if i > 2 else mask[..., None]), 0)
    if decay is None:
        steps[-1] = noise_var.new_zeros(0)
    grads = [d_mean, d_cov, *steps]
    last = 7 if decay is not None else 6
    grads[:last] = poison(bad | has_nan(mean, cov), *grads[:last])
    absent = inputs[0].new_zeros(0)
    return *(g.to(x.dtype) for g, x in zip(grads, inputs, strict=True)), absent, absent.clone()


def _read_adjoint(chunk: Chunk, queries: Tensor, d_reads: Tensor | None, d_var: Tensor | None):
    """What the reads of a chunk add to the gradients of its mean, cov, queries, weights, values,
    noise_var and decay.

    With ``A = tril(Q P')`` the reads are ``Q R0 + A E`` and the variances, times b,
    ``diag(Q U0 Q' - A A')``. ``rest`` = Q - A Y is what the chunk leaves of each query.
    """
    mean, cov, weights = chunk.mean, chunk.cov, chunk.weights
    d_reads = torch.zeros_like(queries @ mean) if d_reads is None else d_reads
    d_var = torch.zeros_like(chunk.b) if d_var is None else d_var
    gains, errors = chunk.gain, chunk.error
    white = chunk._lower(weights)
    inside = (queries @ gains.mT).tril()
    slope = (d_var / chunk.b)[..., None]
    mixed = (d_reads @ errors.mT).tril()
    d_inside = mixed - 2 * slope * inside
    rest = queries - inside @ white
    query_cov = queries @ cov
    d_queries = d_reads @ mean.mT + 2 * slope * query_cov + d_inside @ gains
    d_mean = rest.mT @ d_reads
    d_cov = rest.mT @ (slope * rest) + symmetric(rest.mT @ mixed @ white)
    system = inside.mT @ (slope * inside) - symmetric(inside.mT @ mixed)
    d_values = chunk._upper(inside.mT @ d_reads)
    d_weights = chunk._upper(d_inside.mT @ query_cov + 2 * system @ gains) - d_values @ mean.mT
    d_noise = chunk._upper(chunk._upper(system).mT).diagonal(dim1=-2, dim2=-1)
    d_decay = torch.zeros_like(chunk.b)
    if chunk.decay is not None:
        scaled = (query_cov * queries).sum(-1) - (inside * inside).sum(-1)  # the variances times b
        d_b = chunk.noise_var * d_noise - d_var * scaled / chunk.b**2
        d_decay = sum_from(d_b * chunk.b) / chunk.decay
    return d_mean, d_cov, d_queries, d_weights, d_values, chunk.b * d_noise, d_decay


def _by_sequence(function: Callable, cu_seqlens: Tensor, states, steps, per_step: int = 2):
    """Call ``function(*states, *steps)`` for each of the packed sequences.

    ``states`` and the results after the first ``per_step`` belong to sequences: item ``g N + n``
    to the n-th of row g. Everything is NaN where the bounds do not rise from 0 to T.
    """
    count = len(cu_seqlens) - 1
    some = next(x for x in steps if x is not None)
    rows, length = some.shape[:2]
    bounds = cu_seqlens.tolist()
    valid = bounds[0] == 0 and bounds[-1] == length and bounds == sorted(bounds)
    split = [None if x is None else x.unflatten(0, (rows, count)) for x in states]
    outputs = []
    for n in range(count):
        span = slice(*bounds[n : n + 2]) if valid else slice(0, length if n == 0 else 0)
        result = function(
            *(None if x is None else x[:, n] for x in split),
            *(None if x is None else x[:, span] for x in steps),
        )
        outputs.append(result if valid else tuple(x * torch.nan for x in result))
    columns = list(zip(*outputs, strict=True))
    return (
        *(torch.cat(c, 1) if c[0].dim() > 1 else c[0] for c in columns[:per_step]),
        *(torch.stack(c, 1).flatten(0, 1) for c in columns[per_step:]),
    )
