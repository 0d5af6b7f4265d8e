"""The write with a read at every step, of a sequence that is split over processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _checks
from ..ops.causal_scan import OPERATOR, _default_state
from ..ops.causal_scan import causal_scan as scan_here
from ..reference._common import poison, running_product, symmetric
from . import _statistics as stats
from ._collectives import Group, check_loss, check_plain, pack, recorded, unpack_triangle
from ._statistics import WIDE, Posterior
from ._write import gather_steps

_SPECS = OPERATOR.args[:8]  # up to decay
_IN_FLOAT32 = 1e4  # what has been gained, up to which a float32 state is handed on as such


def causal_scan(
    mean: Tensor | None,
    cov: Tensor | None,
    weights: Tensor,
    values: Tensor,
    queries: Tensor,
    noise_var: float | Tensor,
    *,
    mask: Tensor | None = None,
    decay: float | Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    loss: str = "same",
    check: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`kanerva_ext.ops.causal_scan` of a sequence whose steps lie on the ranks, one part after the
    other.

    A rank sums up its steps, a scan over the ranks in ceil(log2 P) + 1 rounds tells each the
    belief that it begins with, and it goes through its steps from there: exact, whatever the
    number of ranks. A round sends K (K + 1) / 2 + K C + 1 float64 numbers for each memory. There is
    no ``retention`` and no ``cu_seqlens``.

    Args:
        mean, cov: the belief before the first step of rank 0, the same on every rank; None as
            there.
        weights, values, queries, noise_var, mask, decay: this rank's steps, as there; T may
            differ from rank to rank, also be 0. A 0-d number gets the gradient of these steps.
        group: of processes; None: all.
        loss: as in `write`, of the results that are the same everywhere: mean, cov and
            log_evidence. Those of a rank's own steps, reads and read_var, have its own loss in
            either case, and the sum of these is meant. Every rank must call `backward`, which
            scans the other way.
        check: raise for batch items that become NaN.

    Returns:
        reads (B, T, C) and read_var (B, T) of this rank's steps; mean and cov after the last step
        of the last rank, and log_evidence (B,) of all steps, on every rank alike.

    Raises:
        TypeError, ValueError, RuntimeError: as `write`, with either ``loss``.
    """
    members = Group("distributed.causal_scan", group)
    args = batch = error = None
    words: tuple[str, ...] = ()
    try:
        check_loss(members.op, loss)
        if mean is None or cov is None:
            mean, cov = _default_state(mean, cov, weights, values, None)
        given = (mean, cov, weights, values, queries, noise_var, mask, decay)
        check_plain(members.op, _SPECS, given)
        args, batch = _checks.prepare(members.op, _SPECS, given)
        sizes = "x".join(map(str, args[0].shape))
        words = (f"state {sizes} {args[0].dtype}", f"loss {loss}", args[0].device.type)
        words += (recorded(args),)
    except (TypeError, ValueError) as refused:
        error = refused
    steps, state = (0, []) if error is not None else (args[2].shape[1], args[:2])
    counts = members.announce(words, error, steps, state).wait()
    # Fewer steps than slots: they are less to send than their sums, and lose no digits.
    few = sum(counts) <= args[0].shape[1]
    results = _scan_all(members, counts, loss, *args) if few else _scan(members, loss, *args)
    return _checks.finish(members.op, _SPECS, args, batch, check, results)


def _scan_all(members, counts, loss, mean, cov, weights, values, queries, noise_var, mask, decay):
    """Every rank goes through all steps and keeps its own."""
    if mask is None:  # another rank may have one
        mask = torch.ones_like(noise_var, dtype=torch.bool)
    decay = torch.ones_like(noise_var) if decay is None else decay
    mean, cov = _Shared.apply(members, loss, mean, cov)
    steps = (weights, values, queries, noise_var, mask, decay)
    *steps, mask, decay = gather_steps(members, counts, "sum", mean.dtype, *steps)
    reads, read_var, *rest = scan_here(mean, cov, *steps, mask=mask != 0, decay=decay)
    start = sum(counts[: members.rank])
    own = slice(start, start + counts[members.rank])
    return reads[:, own], read_var[:, own], *_Once.apply(members, loss, *rest)


class _Shared(torch.autograd.Function):
    """Of what every rank has: with the same loss everywhere, the gradient is the ranks' sum."""

    @staticmethod
    def forward(ctx, members, loss, *tensors):
        ctx.members, ctx.loss = members, loss
        return tuple(x.clone() for x in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        if ctx.loss == "same":
            flat = ctx.members.sum(torch.cat([g.reshape(-1) for g in grads]))
            parts = flat.split([g.numel() for g in grads])
            grads = [p.view(g.shape) for p, g in zip(parts, grads, strict=True)]
        return None, None, *grads


class _Once(torch.autograd.Function):
    """Of what every rank has and has the same gradient of: it counts on one rank."""

    @staticmethod
    def forward(ctx, members, loss, *tensors):
        ctx.here = loss == "sum" or members.rank == 0
        return tuple(x.clone() for x in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        return None, None, *(g if ctx.here else torch.zeros_like(g) for g in grads)


def _scan(members, loss, mean, cov, weights, values, queries, noise_var, mask, decay):
    dtype = mean.dtype
    scale, kept = _steps(noise_var, mask, decay)
    rows, codes = weights, values
    if mask is not None:
        rows = torch.where(mask[..., None], weights, 0)
        codes = torch.where(mask[..., None], values, 0)
    *state, last_mean, last_cov, gained = _Ends.apply(
        members, loss, mean, cov, rows, codes, scale, kept
    )
    if dtype == torch.float32 and not (gained > _IN_FLOAT32).any():
        state = [x.to(dtype) for x in state]
    own = state[0].dtype
    results = scan_here(
        *state,
        *(x if x.dtype != dtype else x.to(own) for x in (rows, codes, queries)),
        noise_var.to(own),
        mask=mask,
        decay=None if decay is None else decay.to(own),
    )
    results = *results[:2], last_mean, last_cov, results[4]
    return _Join.apply(members, loss, *(r.to(dtype) for r in results))


def _steps(noise_var, mask, decay) -> tuple[Tensor, Tensor]:
    """How much each step still counts at the end of this rank's, (B, T), 1 / noise times the decay
    that follows; and what is left then of all before (B,)."""
    noise = noise_var.to(WIDE)
    noise = noise if mask is None else torch.where(mask, noise, 1)
    scale = torch.where(noise > 0, noise.reciprocal(), torch.nan)
    left = torch.ones_like(scale)
    if decay is not None:
        decay = decay.to(WIDE)
        decay = decay if mask is None else torch.where(mask, decay, 1)
        decay = torch.where((decay > 0) & (decay <= 1), decay, torch.nan)
        left = running_product(decay.flip(1)).flip(1)
    kept = torch.cat(
        [left, scale.new_ones(len(scale), 1)], 1
    )  # from each step on, and from behind the last
    scale = scale * kept[:, 1:][:, : scale.shape[1]]
    return (scale if mask is None else torch.where(mask, scale, 0)), kept[:, 0]


def _merge(earlier, later):
    """Of (b, sums): the later steps' decay falls on the earlier sums."""
    kept = later[0]
    rest = (
        kept.view(-1, *(1,) * (a.dim() - 1)) * a + b
        for a, b in zip(earlier[1:], later[1:], strict=True)
    )
    return earlier[0] * kept, *rest


class _Ends(torch.autograd.Function):
    """The belief that a rank begins with, and that after its last step, which the last rank alone
    has a use for; the largest diagonal of what was gained before. float64."""

    @staticmethod
    def forward(ctx, members, loss, mean, cov, weights, values, scale, kept):
        wide_mean, prior_root = mean.to(WIDE), stats.root_of(cov)
        slots = mean.shape[1]
        g, h, _ = stats.products(weights, values, scale, WIDE)
        g = stats.mirrored(g)
        gained = symmetric(prior_root.mT @ g @ prior_root)
        own = kept, pack(gained), prior_root.mT @ (h - g @ wide_mean)
        neutral = torch.ones_like(kept), *(torch.zeros_like(x) for x in own[1:])
        ends = [
            stats.from_whitened(wide_mean, prior_root, unpack_triangle(x[1], slots), x[2], x[0])
            for x in members.scan(own, _merge, neutral)
        ]
        hard = members.any(stats.largest(ends[1].gained) > stats.HARD[mean.dtype])
        if hard.any():
            parts = (x[hard] for x in (wide_mean, prior_root, weights, values, scale, kept))
            better = _by_factors(members, *parts)
            ends = [e.merge(x, hard) for e, x in zip(ends, better, strict=True)]
        ctx.members, ctx.loss = members, loss
        ctx.dtypes = mean.dtype, cov.dtype
        first, last = ends
        ctx.save_for_backward(wide_mean, prior_root, weights, values, scale, kept, *first, *last)
        gained = stats.largest(first.gained)
        ctx.mark_non_differentiable(gained)
        return first.mean, first.cov, last.mean, last.cov, gained

    @staticmethod
    @once_differentiable
    def backward(ctx, g_mean, g_cov, g_last_mean, g_last_cov, _):
        mean, prior_root, weights, values, scale, kept, *rest = ctx.saved_tensors
        first, last = Posterior(*rest[:5]), Posterior(*rest[5:])
        members, slots = ctx.members, mean.shape[1]
        d_system, d_right = _whitened_gradients(prior_root, first, g_mean, symmetric(g_cov))
        after = torch.zeros_like(d_system), torch.zeros_like(d_right)
        if members.rank == members.size - 1:
            after = _whitened_gradients(prior_root, last, g_last_mean, symmetric(g_last_cov))
            d_system = d_system + kept[:, None, None] * after[0]
            d_right = d_right + kept[:, None, None] * after[1]
        own = kept, pack(d_system), d_right
        neutral = torch.ones_like(kept), pack(after[0]), after[1]
        after, whole = members.scan(own, _merge, neutral, backwards=True)
        # Rank 0 has the gradient of the belief before all steps.
        flat = torch.cat([whole[1], whole[2].flatten(1)], 1)
        flat = members.broadcast(flat.contiguous(), 0)
        d_system = unpack_triangle(flat[:, : own[1].shape[1]], slots)
        d_right = flat[:, own[1].shape[1] :].reshape(mean.shape)

        def back(x):  # L0^-T x
            return torch.linalg.solve_triangular(prior_root.mT, x, upper=True)

        d_mean, d_cov = back(d_right), -symmetric(back(back(d_system).mT))
        if ctx.loss == "sum":
            d_mean, d_cov = d_mean / members.size, d_cov / members.size
        d_system, d_right = unpack_triangle(after[1], slots), after[2]
        # What is kept multiplies all that was gained before: N and h = F'y.
        factor = first.factor
        d_kept = (d_system * (factor.mT @ factor)).sum((1, 2))
        d_kept = d_kept + (d_right * (factor.mT @ first.solved)).sum((1, 2))
        to_g, to_h = prior_root @ d_system @ prior_root.mT, prior_root @ d_right
        per_step = _step_gradients(mean, weights, values, scale, to_g, to_h)
        d_state = (g.to(t) for g, t in zip((d_mean, d_cov), ctx.dtypes, strict=True))
        return None, None, *d_state, *per_step, d_kept


def _by_factors(members, mean, prior_root, weights, values, scale, kept) -> list[Posterior]:
    slots = mean.shape[1]
    factor, right, _ = stats.steps_factor(mean, weights, values, scale)

    def merge(earlier, later):
        root = later[0].sqrt()[:, None, None]
        first = unpack_triangle(earlier[1], slots, mirror=False)
        factor, right, _ = stats.triangle(
            torch.cat([root * first, unpack_triangle(later[1], slots, mirror=False)], 1),
            torch.cat([root * earlier[2], later[2]], 1),
        )
        return earlier[0] * later[0], pack(factor), right

    own = kept, pack(factor), right
    neutral = torch.ones_like(kept), *(torch.zeros_like(x) for x in own[1:])
    return [
        stats.from_factors(
            mean, prior_root, unpack_triangle(x[1], slots, mirror=False), x[2], x[0]
        )[0]
        for x in members.scan(own, merge, neutral)
    ]


def _whitened_gradients(prior_root, posterior: Posterior, g_mean, g_cov):
    """Gradients of N and h."""
    factor = posterior.factor

    def inverse(x):
        half = torch.linalg.solve_triangular(factor.mT, x, upper=False)
        return torch.linalg.solve_triangular(factor, half, upper=True)

    moved = torch.linalg.solve_triangular(factor, posterior.solved, upper=True)  # L0^-1 (R - R0)
    d_right = inverse(prior_root.mT @ g_mean)
    d_system = -inverse(inverse(prior_root.mT @ g_cov @ prior_root).mT)
    return symmetric(d_system) - symmetric(d_right @ moved.mT), d_right


def _step_gradients(mean, weights, values, scale, to_g, to_h):
    """Gradients of the steps whose sums have the gradients ``to_g`` and ``to_h``."""
    d_weights, d_values = torch.empty_like(weights), torch.empty_like(values)
    d_scale = torch.empty_like(scale)
    batch, count, slots = weights.shape
    for span in stats.blocks(count, batch, slots + mean.shape[-1]):
        rows, s = weights[:, span].to(WIDE), scale[:, span, None]
        residual = values[:, span].to(WIDE) - rows @ mean
        through, turned = rows @ to_h, rows @ to_g
        d_values[:, span] = s * through
        d_weights[:, span] = s * (residual @ to_h.mT + 2 * turned - through @ mean.mT)
        d_scale[:, span] = (turned * rows).sum(-1) + (through * residual).sum(-1)
    return d_weights, d_values, d_scale


class _Join(torch.autograd.Function):
    """The last rank's belief and the sum of the evidence, on all; NaN on one is NaN on all."""

    @staticmethod
    def forward(ctx, members, loss, reads, read_var, mean, cov, evidence):
        ctx.members, ctx.loss = members, loss
        evidence = members.sum(evidence.clone())
        shapes = mean.shape, cov.shape
        flat = torch.cat([mean.flatten(1), cov.flatten(1)], 1)
        flat = members.broadcast(flat.contiguous(), members.size - 1)
        mean, cov = flat.split([x[1:].numel() for x in shapes], 1)
        results = reads, read_var, mean.reshape(shapes[0]), cov.reshape(shapes[1]), evidence
        bad = evidence.isnan()
        ctx.save_for_backward(bad)
        return poison(bad, *results)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_reads, g_var, g_mean, g_cov, g_evidence):
        members = ctx.members
        if ctx.loss == "sum":
            flat = torch.cat([g_mean.flatten(1), g_cov.flatten(1), g_evidence[:, None]], 1)
            sizes = g_mean.shape[1:].numel(), g_cov.shape[1:].numel(), 1
            parts = members.sum(flat).split(sizes, 1)
            g_mean, g_cov = parts[0].view_as(g_mean), parts[1].view_as(g_cov)
            g_evidence = parts[2][:, 0]
        if members.rank < members.size - 1:
            g_mean, g_cov = torch.zeros_like(g_mean), torch.zeros_like(g_cov)
        grads = poison(*ctx.saved_tensors, g_reads, g_var, g_mean, g_cov, g_evidence)
        return None, None, *grads
