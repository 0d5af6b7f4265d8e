"""Addresses solved against a memory whose columns are split over processes, as DTensors.

``(R R' + ridge I)^-1 R z`` needs sums over all columns, one all-reduce of R R' and R z. An adaptive
write solves an address at every step; it needs no more than the inner products of the memory's
rows and the codes, whatever the number of columns. A triangular factor of these, found once, is a
memory and an episode of few columns that have the same addresses.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor, Replicate, Shard

from .. import ops
from ..ops import _library
from ..reference._common import cholesky, has_nan, poison, solve
from ._collectives import Group, pack, unpack_triangle
from ._statistics import WIDE


class _Mesh:
    """The mesh of the arguments of a call, and how they lie on it."""

    def __init__(self, name: str, tensors: dict[str, Tensor], wide: tuple[str, ...]) -> None:
        self.name = name
        found = [x for x in tensors.values() if isinstance(x, DTensor)]
        self.mesh = found[0].device_mesh
        plain = [n for n, x in tensors.items() if x is not None and not isinstance(x, DTensor)]
        if plain:
            raise TypeError(f"{name}: {plain[0]} must be a DTensor as the others are")
        self.columns = [
            i
            for i in range(self.mesh.ndim)
            if any(tensors[w].placements[i] == Shard(2) for w in wide)
        ]
        if len(self.columns) != 1:
            raise ValueError(
                f"{name}: the columns must be split over one dimension of the mesh, got "
                f"{len(self.columns)}"
            )
        self.batch = [
            any(x.placements[i] == Shard(0) for x in found) for i in range(self.mesh.ndim)
        ]
        for argument, x in tensors.items():
            self._check(argument, x, argument in wide)

    def _check(self, argument: str, tensor: DTensor | None, is_wide: bool) -> None:
        for placement in () if tensor is None else tensor.placements:
            may = [Replicate(), Shard(0), *([Shard(2)] if is_wide else [])]
            if placement not in may and not placement.is_partial():
                raise ValueError(
                    f"{self.name}: {argument} must be placed as "
                    f"{' or '.join(map(str, may))}, got {placement}"
                )

    def placements(self, is_wide: bool) -> list:
        along = [Shard(0) if batch else Replicate() for batch in self.batch]
        along[self.columns[0]] = Shard(2) if is_wide else Replicate()
        return along

    def local(self, tensor: DTensor, is_wide: bool = False) -> Tensor:
        """This rank's part; its gradient is all of it, wherever it is the same."""
        placements = self.placements(is_wide)
        return tensor.redistribute(placements=placements).to_local(grad_placements=placements)

    def everywhere(self, tensor: Tensor) -> DTensor:
        """What all ranks along the columns have."""
        return DTensor.from_local(tensor, self.mesh, self.placements(False), run_check=False)

    def group(self) -> Group:
        return Group(self.name, self.mesh.get_group(self.columns[0]))


def _split_columns(*tensors) -> bool:
    return any(isinstance(x, DTensor) and Shard(2) in x.placements for x in tensors)


def solve_addresses(mean, queries, ridge):
    if not _split_columns(mean, queries):
        return NotImplemented
    named = {"mean": mean, "queries": queries, "ridge": ridge}
    mesh = _Mesh("solve_addresses", named, ("mean", "queries"))
    parts = mesh.local(mean, True), mesh.local(queries, True), mesh.local(ridge)
    return mesh.everywhere(_Solve.apply(mesh.group(), *parts))


def recall(mean, cov, queries, ridge):
    if not _split_columns(mean, queries):
        return NotImplemented
    named = {"mean": mean, "cov": cov, "queries": queries, "ridge": ridge}
    _Mesh("recall", named, ("mean", "queries"))
    weights = solve_addresses(mean, queries, ridge)
    return *ops.read(mean, cov, weights), weights


def adaptive_write(mean, cov, values, noise_var, ridge, mask, num_iters):
    if not _split_columns(mean, values):
        return NotImplemented
    named = {"mean": mean, "cov": cov, "values": values, "noise_var": noise_var}
    named |= {"ridge": ridge, "mask": mask}
    mesh = _Mesh("adaptive_write", named, ("mean", "values"))
    slots, code = mean.shape[1:]
    steps = mesh.local(values, True)
    own_mask = None if mask is None else mesh.local(mask)
    if mask is not None:
        steps = torch.where(own_mask[..., None], steps, 0)
    rows = torch.cat([mesh.local(mean, True), steps.to(mean.dtype)], 1)
    few = _Coordinates.apply(mesh.group(), rows).to(mean.dtype)
    prior, noise = mesh.local(cov), mesh.local(noise_var)
    own = few[:, :slots], prior, few[:, slots:], noise, mesh.local(ridge)
    *_, weights, step_kl = ops.adaptive_write(*own, num_iters=num_iters, mask=own_mask)
    step_kl = step_kl + (code - few.shape[-1]) / 2 * _kl_of_a_column(
        prior, weights, noise, own_mask
    )
    weights, step_kl = mesh.everywhere(weights), mesh.everywhere(step_kl)
    posterior, cov, evidence = ops.bayes_write(mean, cov, weights, values, noise_var, mask=mask)
    return posterior, cov, weights, step_kl, evidence


def _kl_of_a_column(cov: Tensor, weights: Tensor, noise: Tensor, mask: Tensor | None) -> Tensor:
    """``ln(s / v) - h / s`` with ``h = w'Uw`` before each step and ``s = h + v``: the step's KL
    holds half of it for every column."""
    before = torch.cat([weights[:, 1:], weights[:, :1]], 1)
    zeros = weights.new_zeros(*weights.shape[:2], 1)
    nothing = weights.new_zeros(len(weights), weights.shape[-1], 1)
    h = ops.causal_scan(nothing, cov, weights, zeros, before, noise, mask=mask)[1]
    first = ((weights[:, :1] @ cov) * weights[:, :1]).sum(-1)
    h = torch.cat([first, h[:, :-1]], 1)[:, : weights.shape[1]]
    safe = noise if mask is None else torch.where(mask, noise, 1)
    term = torch.log1p(h / safe) - h / (h + safe)
    return term if mask is None else torch.where(mask, term, 0)


class _Solve(torch.autograd.Function):
    """Addresses, of this rank's columns of the memory and the queries."""

    @staticmethod
    def forward(ctx, members, mean, queries, ridge):
        rows, asked = mean.to(WIDE), queries.to(WIDE)
        slots = mean.shape[1]
        products = pack(rows @ rows.mT, rows @ asked.mT)
        products = members.sum(products)
        size = slots * (slots + 1) // 2
        gram = unpack_triangle(products[:, :size], slots)
        eye = torch.eye(slots, dtype=WIDE, device=mean.device)
        factor = cholesky(gram + ridge.to(WIDE)[:, None, None] * eye)
        right = products[:, size:].reshape(len(mean), slots, queries.shape[1])
        weights = solve(factor, right).mT
        bad = ~(ridge > 0) | has_nan(gram, weights)
        weights = poison(bad, weights)[0]
        ctx.save_for_backward(mean, queries, ridge, factor, weights, bad)
        return weights.to(mean.dtype).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        mean, queries, ridge, factor, weights, bad = ctx.saved_tensors
        rows, asked = mean.to(WIDE), queries.to(WIDE)
        y = solve(factor, grad.to(WIDE).mT).mT
        d_mean = y.mT @ (asked - weights @ rows) - weights.mT @ (y @ rows)
        grads = poison(bad, d_mean, y @ rows, -(y * weights).sum((1, 2)))
        dtypes = mean.dtype, queries.dtype, ridge.dtype
        return None, *(g.to(t) for g, t in zip(grads, dtypes, strict=True))


class _Coordinates(torch.autograd.Function):
    """(B, M, D) of rows (B, M, C / P): all ranks' columns together, turned so that the first D,
    the smaller of M and C, hold them. The inner products of the rows stay."""

    @staticmethod
    def forward(ctx, members, rows):
        own, upper = torch.linalg.qr(rows.to(WIDE).mT)
        sizes = members.all_gather(torch.tensor([upper.shape[1]], device=members.device))
        sizes = sizes.flatten().tolist()
        padded = upper.new_zeros(len(upper), max(sizes), upper.shape[-1])
        padded[:, : upper.shape[1]] = upper
        each = members.all_gather(padded)
        stacked = torch.cat([x[:, :n] for x, n in zip(each, sizes, strict=True)], 1)
        turned, whole = torch.linalg.qr(stacked)
        ctx.save_for_backward(own @ turned.split(sizes, 1)[members.rank])
        ctx.dtype = rows.dtype
        return whole.mT.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (turned,) = ctx.saved_tensors
        return None, (grad @ turned.mT).to(ctx.dtype)


def register() -> None:
    for function in (solve_addresses, recall, adaptive_write):
        _library.SPLIT[function.__name__] = function
