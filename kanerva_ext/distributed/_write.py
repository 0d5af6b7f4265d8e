"""The exact write of what all processes hold, by one all-reduce of sums."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _checks
from .._state import MemoryState
from ..ops.bayes_write import OPERATOR, bayes_write
from ..reference._common import has_nan, poison, symmetric
from . import _statistics as stats
from ._collectives import Group, check_loss, check_plain, pack, recorded, unpack_triangle
from ._statistics import WIDE, Posterior, Summed

METHODS = ("auto", "information", "sqrt")
# Numbers of a block of K x C sums from which on it is sent by itself: for fewer, a second pass over
# the addresses takes longer than what it hides.
COLUMN_BLOCK = 2**20
_SPECS = OPERATOR.args[:6]  # no decay: a sum has no order


def write(
    state: MemoryState | tuple[Tensor, Tensor],
    weights: Tensor,
    values: Tensor,
    noise_var: float | Tensor,
    *,
    mask: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    loss: str = "same",
    method: str = "auto",
    check: bool = False,
) -> tuple[MemoryState, Tensor]:
    """Exact posterior of a memory after writing what all processes of a group hold.

    Every rank has the same state and some of the steps, any number of them, also none. Each gets
    what `kanerva_ext.ops.bayes_write` gives for the steps of all, in any order: a posterior is a
    sum of sufficient statistics (Wu et al., The Kanerva Machine, ICLR 2018, section 3.3).

    One all-reduce of K (K + 1) / 2 + K C + 1 float64 numbers for each memory, of which the wide
    part is sent while the rank still multiplies. No more steps than slots, in all, are gathered
    instead. The result is the same on all ranks, bit for bit, and again for as many ranks.

    Args:
        state: `MemoryState` or (mean, cov): (B, K, C) and (B, K, K), float32 or float64, the same
            on every rank, of which sums are compared; B stands for any leading dimensions, those
            of all arguments broadcast.
        weights: (B, T, K), this rank's addresses; T may differ from rank to rank.
        values: (B, T, C), its codes.
        noise_var: observation noise variance, > 0: a float, 0-d, or (B, T).
        mask: (B, T) bool; a False step is skipped exactly.
        group: of processes; None: all.
        loss: what `backward` begins with on each rank. ``"same"``: the same loss everywhere, a
            function of the results; nothing is sent, and each rank's tensors get the gradients
            that one process would compute (a 0-d noise_var those of this rank's steps).
            ``"sum"``: a loss of its own, the sum of which is meant; one more all-reduce, as large
            as the first. The gradients of ``state`` are then a share each, 1 / P of the whole, so
            that adding up over the ranks, as DistributedDataParallel does, gives the whole. Every
            rank must call `backward`.
        method: ``"information"`` (sums), ``"sqrt"`` (triangular factors, merged in log2 P rounds,
            for extreme conditioning) or ``"auto"``, which begins with sums and goes on with
            factors for the items whose sums show that they would lose digits.
        check: raise for batch items that become NaN.

    Returns:
        `MemoryState` and log evidence (B,) in nats, of all ranks' steps, in the state's dtype. An
        item whose noise is not positive or that holds a NaN on any rank is NaN on all of them.

    Raises:
        TypeError, ValueError: an argument, as `bayes_write`, or a DTensor; another rank's call
            or state differs, or, with ``"sum"``, whether it records gradients.
        RuntimeError: no process group; other versions of PyTorch or kanerva_ext on another rank;
            another rank refused its arguments, has ended or does not answer in time.

    >>> import torch
    >>> import torch.distributed as dist
    >>> from kanerva_ext import distributed
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> prior = torch.zeros(1, 2, 3), torch.eye(2)[None]
    >>> weights, values = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[4.0, 2.0, 0.0]]])
    >>> state, log_evidence = distributed.write(prior, weights, values, 1.0)
    >>> state.mean.round(decimals=3)
    tensor([[[2., 1., 0.],
             [0., 0., 0.]]])
    >>> dist.destroy_process_group()
    """
    members = Group("distributed.write", group)
    args = batch = error = None
    words: tuple[str, ...] = ()
    try:
        check_loss(members.op, loss)
        _checks.check_choice(members.op, "method", method, METHODS)
        mean, cov = as_state(members.op, state)
        given = (mean, cov, weights, values, noise_var, mask)
        check_plain(members.op, _SPECS, given)
        args, batch = _checks.prepare(members.op, _SPECS, given)
        sizes = "x".join(map(str, args[0].shape))
        words = (f"state {sizes} {args[0].dtype}", f"loss {loss}", f"method {method}")
        words += (args[0].device.type, *([recorded(args)] if loss == "sum" else []))
    except (TypeError, ValueError) as refused:
        error = refused
    steps = 0 if error is not None else args[2].shape[1]
    agreement = members.announce(words, error, steps, [] if error is not None else args[:2])
    if error is not None:
        agreement.wait()
    # Fewer steps than slots: they are less to send than their sums, and lose no digits.
    slots = mean.shape[-2]
    if method != "information" and steps <= slots and sum(agreement.wait()) <= slots:
        if args[5] is None:  # another rank may have one
            args[5] = torch.ones_like(args[4], dtype=torch.bool)
        *gathered, mask = gather_steps(members, agreement.wait(), loss, args[0].dtype, *args[2:])
        results = bayes_write(*args[:2], *gathered, mask=mask != 0)
    else:
        results = _Write.apply(agreement, members, loss, method, *args)
    results = _checks.finish(members.op, _SPECS, args, batch, check, results)
    return MemoryState(*results[:2]), results[2]


def as_state(op: str, state) -> tuple[Tensor, Tensor]:
    if not isinstance(state, tuple | list) or len(state) != 2:
        raise TypeError(f"{op}: state must be a MemoryState or (mean, cov), got {_kind(state)}")
    return tuple(state)


def _kind(value) -> str:
    return f"{type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple) else "")


class Steps(NamedTuple):
    """This rank's steps; masked ones have weight 0, and no NaN."""

    weights: Tensor
    values: Tensor
    noise: Tensor  # float64
    scale: Tensor  # 1 / noise, 0 where masked, NaN where the noise is not positive; expanded alike
    counts: Tensor  # bool


def counted(weights, values, noise_var, mask) -> Steps:
    if mask is None and noise_var.shape[1] and noise_var.stride(1) == 0:
        noise = noise_var[:, :1].to(WIDE).expand(noise_var.shape)
        scale = torch.where(noise[:, :1] > 0, noise[:, :1].reciprocal(), torch.nan)
        counts = torch.ones((), dtype=torch.bool, device=noise.device).expand(noise.shape)
        return Steps(weights, values, noise, scale.expand(noise.shape), counts)
    noise = noise_var.to(WIDE)
    counts = torch.ones_like(noise, dtype=torch.bool) if mask is None else mask
    scale = torch.where(noise > 0, noise.reciprocal(), torch.nan)
    if mask is not None:
        weights = torch.where(mask[..., None], weights, 0)
        values = torch.where(mask[..., None], values, 0)
        scale = torch.where(mask, scale, 0)
    return Steps(weights, values, noise, scale, counts)


def gather_steps(members, counts, loss, dtype, *parts):
    """All ranks' steps in the order of the ranks, of parts (B, T, ...); None stays."""
    given = [x for x in parts if x is not None]
    rows = [(x if x.dim() == 3 else x[..., None]).to(dtype) for x in given]
    widths = [x.shape[-1] for x in rows]
    rows = _Gather.apply(members, counts, loss, torch.cat(rows, -1))
    found = iter(rows.split(widths, -1))
    whole = (None if x is None else next(found) for x in parts)
    return [
        x if x is None or part.dim() == 3 else x[..., 0]
        for x, part in zip(whole, parts, strict=True)
    ]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, members, counts, loss, rows):
        ctx.members, ctx.counts, ctx.loss = members, counts, loss
        padded = rows.new_zeros(rows.shape[0], max(counts), rows.shape[-1])
        padded[:, : rows.shape[1]] = rows
        each = members.all_gather(padded)
        return torch.cat([x[:, :n] for x, n in zip(each, counts, strict=True)], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if ctx.loss == "sum":
            grad = ctx.members.sum(grad.clone())
        return None, None, None, grad.split(ctx.counts, 1)[ctx.members.rank]


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx, agreement, members, loss, method, mean, cov, weights, values, noise_var, mask):
        dtype = mean.dtype
        steps = counted(weights, values, noise_var, mask)
        # ln of the noise and the count, as the scalar of the sums has them.
        logs = torch.where(steps.counts, (2 * math.pi * steps.noise).log(), 0).sum(-1)
        logs = logs * mean.shape[-1]
        work = _Work(members, agreement, mean, cov, steps, logs)
        if method == "sqrt":
            everything = torch.ones_like(logs, dtype=torch.bool)
            posterior, evidence = work.by_factors(everything)
        else:
            posterior, evidence = work.by_sums(method == "auto")
        results = posterior.mean, posterior.cov, evidence
        bad = has_nan(results[0], results[1], evidence[:, None])
        ctx.members, ctx.loss, ctx.kind = members, loss, type(posterior)
        ctx.save_for_backward(mean, cov, weights, values, noise_var, mask, bad, *posterior)
        ctx.dtypes = tuple(x.dtype for x in (mean, cov, weights, values, noise_var))
        return tuple(r.to(dtype) for r in poison(bad, *results))

    @staticmethod
    @once_differentiable
    def backward(ctx, g_mean, g_cov, g_evidence):
        mean, cov, weights, values, noise_var, mask, bad, *rest = ctx.saved_tensors
        members, prior_root = ctx.members, stats.root_of(cov)
        posterior = ctx.kind(*rest)
        if isinstance(posterior, Summed):
            posterior, _ = stats.factored(mean.to(WIDE), prior_root, posterior)
        posterior = Posterior(*(x.to(WIDE) for x in posterior))
        g_mean, g_evidence = g_mean.to(WIDE), g_evidence.to(WIDE)
        g_cov = symmetric(g_cov.to(WIDE))
        slots, code = g_mean.shape[1:]
        if ctx.loss == "sum":
            sizes = slots * (slots + 1) // 2, slots * code, 1
            packed = members.sum(pack(g_cov, g_mean, g_evidence[:, None]))
            triangle, g_mean, g_evidence = packed.split(sizes, 1)
            g_cov, g_mean = unpack_triangle(triangle, slots), g_mean.view(-1, slots, code)
            g_evidence = g_evidence[:, 0]
        d_mean, d_cov = _state_gradients(prior_root, posterior, g_mean, g_cov, g_evidence)
        if ctx.loss == "sum":
            d_mean, d_cov = d_mean / members.size, d_cov / members.size
        steps = counted(weights, values, noise_var, mask)
        per_step = _step_gradients(steps, posterior, g_mean, g_cov, g_evidence)
        if mask is not None:
            per_step = [
                torch.where(mask if g.dim() == 2 else mask[..., None], g, 0) for g in per_step
            ]
        grads = poison(bad, d_mean, d_cov, *per_step)
        grads = (g.to(t) for g, t in zip(grads, ctx.dtypes, strict=True))
        return None, None, None, None, *grads, None


class _Work:
    """The reductions of one write."""

    def __init__(self, members, agreement, mean, cov, steps, logs) -> None:
        self.members, self.agreement, self.steps, self.logs = members, agreement, steps, logs
        self.state, self.dtype = (mean, cov), mean.dtype

    @functools.cached_property
    def mean(self) -> Tensor:
        return self.state[0].to(WIDE)

    @functools.cached_property
    def prior_root(self) -> Tensor:
        return stats.root_of(self.state[1])

    def by_sums(self, may_change: bool) -> tuple[Posterior | Summed, Tensor]:
        """The sums, in float32 where they are many and turn out easy; then, if ``may_change``, the
        factors of the items that would lose digits."""
        slots = self.state[0].shape[1]
        if may_change and self.dtype == torch.float32 and slots >= stats.MANY_SLOTS:
            posterior, evidence, hard, _ = self._posterior(torch.float32, False)
            if not self.members.any(hard.any()[None]).item():
                return posterior, evidence
        posterior, evidence, hard, cancelled = self._posterior(WIDE, not may_change)
        if not may_change:
            return posterior, evidence
        hard = self.members.any(hard | (cancelled > stats.CANCELLED[self.dtype]))
        if hard.any():
            if isinstance(posterior, Summed):
                posterior, _ = stats.factored(self.mean, self.prior_root, posterior)
            better, terms = self.by_factors(hard)
            posterior, evidence = posterior.merge(better, hard), evidence.clone()
            evidence[hard] = terms
        return posterior, evidence

    def _posterior(
        self, dtype: torch.dtype, always: bool
    ) -> tuple[Posterior | Summed, Tensor, Tensor, Tensor]:
        """Posterior and evidence by sums in the arithmetic of ``dtype``, which items are too hard
        for it, and by how much the evidence's terms exceed it."""
        triangle, h, scalar = self._sums(dtype)
        code = h.shape[-1]
        found = stats.compiled_posterior(*self.state, triangle, h, scalar, dtype, always)
        if found is not None:
            posterior, log_det, left = found
            hard = log_det.isnan()
        if found is None or (dtype == WIDE and hard.any()):
            summed = Summed(*self.state, triangle, h)
            posterior, explained = stats.factored(self.mean, self.prior_root, summed, dtype)
            log_det, left = posterior.log_det(), scalar - explained
            if dtype == WIDE:
                hard = stats.largest(posterior.gained) > stats.HARD[self.dtype]
            else:
                hard = ~(stats.condition(posterior.factor) <= stats.EASY)
        evidence = -(left + code * log_det) / 2
        terms = scalar.abs() + (scalar - left).abs()
        return posterior, evidence, hard, torch.where(terms > 0, terms / evidence.abs(), 0)

    def _sums(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Of all ranks: G's triangle, H, and the scalar of the evidence."""
        steps, members = self.steps, self.members
        batch, slots, code = self.state[0].shape
        scalar, waits = self.logs, []
        parts = _column_parts(slots, code, members.size)
        for i, columns in enumerate(parts):
            g, h, energy = stats.products(
                steps.weights, steps.values[..., columns], steps.scale, dtype, with_g=i == 0
            )
            scalar = scalar + energy
            if i == 0:
                self._agree()
            last = [scalar[:, None]] if i == len(parts) - 1 else []
            waits.append(members.start_sum(pack(g, h, *last, dtype=WIDE)))
        numbers = [wait() for wait in waits]
        numbers = numbers[0] if len(numbers) == 1 else torch.cat(numbers, 1)
        size = slots * (slots + 1) // 2
        widths = [columns.stop - columns.start for columns in parts]
        blocks = numbers[:, size:-1].split([slots * width for width in widths], 1)
        blocks = [x.view(batch, slots, n) for x, n in zip(blocks, widths, strict=True)]
        h = blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1)
        return numbers[:, :size], h, numbers[:, -1]

    def by_factors(self, items: Tensor) -> tuple[Posterior, Tensor]:
        """Of the items flagged: merged factors, rank by rank in order, and so alike everywhere."""
        self._agree()
        mean, prior_root = self.mean[items], self.prior_root[items]
        steps = Steps(*(x[items] for x in self.steps))
        factor, right, residual = stats.steps_factor(mean, *steps[:2], steps.scale)
        slots = mean.shape[1]

        def merge(earlier, later):
            factor, *rest = stats.merge_factors(
                *((unpack_triangle(x[0], slots, mirror=False), *x[1:]) for x in (earlier, later))
            )
            return pack(factor), *rest

        own = pack(factor), right, residual + self.logs[items]
        _, total = self.members.scan(own, merge, tuple(torch.zeros_like(x) for x in own))
        flat = torch.cat([x.flatten(1) if x.dim() > 1 else x[:, None] for x in total], 1)
        flat = self.members.broadcast(flat.contiguous(), self.members.size - 1)
        triangle, right, residual = flat.split([x.shape[1:].numel() for x in own], 1)
        factor = unpack_triangle(triangle, slots, mirror=False)
        posterior, more = stats.from_factors(mean, prior_root, factor, right.view_as(mean))
        code = mean.shape[-1]
        evidence = -(residual[:, 0] + more + code * posterior.log_det()) / 2
        return posterior, evidence

    def _agree(self) -> None:
        """Before anything is sent whose size depends on the arguments."""
        if self.agreement is not None:
            self.agreement.wait()
            self.agreement = None


def _column_parts(slots: int, code: int, ranks: int) -> list[slice]:
    """Two blocks of columns where the sums are wide: the first is sent while the second is made."""
    if ranks == 1 or slots * code < 2 * COLUMN_BLOCK:
        return [slice(0, code)]
    half = code // 2
    return [slice(0, half), slice(half, code)]


def _state_gradients(prior_root, posterior: Posterior, g_mean, g_cov, g_evidence):
    """``J' = U0^-1 U = L0^-T N^-1 L0'`` takes a gradient of the posterior to one of the prior."""
    code, scale = g_mean.shape[-1], g_evidence[:, None, None]
    factor = posterior.factor

    def inverse(x):
        half = torch.linalg.solve_triangular(factor.mT, x, upper=False)
        return torch.linalg.solve_triangular(factor, half, upper=True)

    def back(x):  # L0^-T x
        return torch.linalg.solve_triangular(prior_root.mT, x, upper=True)

    moved = torch.linalg.solve_triangular(factor, posterior.solved, upper=True)  # L0^-1 (R - R0)
    from_mean = inverse(prior_root.mT @ g_mean)
    d_mean = back(from_mean + scale * moved)
    inner = inverse(inverse(prior_root.mT @ g_cov @ prior_root).mT)
    inner = inner + symmetric(from_mean @ moved.mT)
    inner = inner + scale / 2 * (moved @ moved.mT - code * symmetric(inverse(posterior.gained)))
    d_cov = back(back(symmetric(inner)).mT)
    return d_mean, symmetric(d_cov)


def _step_gradients(steps: Steps, posterior: Posterior, g_mean, g_cov, g_evidence):
    """Gradients of weights, values and noise variances from the posterior (the adjoint of a write,
    docs/operators/bayes_write.md), with the gains ``V^-1 W U`` as ``V^-1 (W T) T'``."""
    root, mean, code = posterior.root, posterior.mean, g_mean.shape[-1]
    scale = g_evidence[:, None, None]
    cov = posterior.cov
    through = root.mT @ g_mean
    to_weights = (cov @ g_mean).mT + scale * mean.mT
    of_gains = through @ mean.mT + 2 * (root.mT @ g_cov @ cov) + scale * code * root.mT
    spread = root.mT @ g_cov @ root
    batch, count, slots = steps.weights.shape
    d_weights, d_values = torch.empty_like(steps.weights), torch.empty_like(steps.values)
    d_noise = torch.empty_like(steps.noise)
    for span in stats.blocks(count, batch, slots + code):
        weights, inverse = steps.weights[:, span].to(WIDE), steps.scale[:, span, None]
        half = weights @ root
        residual = inverse * (steps.values[:, span].to(WIDE) - weights @ mean)
        gained = inverse * (half @ through)
        d_values[:, span] = gained - scale * residual
        d_weights[:, span] = residual @ to_weights - inverse * (half @ of_gains)
        inverse = inverse[..., 0]
        inner = ((half @ spread) * half).sum(-1) * inverse.square() - (gained * residual).sum(-1)
        own = residual.square().sum(-1) - code * inverse
        own = own + code * half.square().sum(-1) * inverse.square()
        d_noise[:, span] = inner + g_evidence[:, None] / 2 * own
    return [d_weights, d_values, d_noise]
