"""Sums over steps, their triangular factors, and the posterior from either; all in plain PyTorch.

With U0 = L0 L0' the belief is whitened: steps of weight ``s_t`` (1 over their noise variance) add
``S = L0' (sum s w w') L0`` to the identity, ``N = b I + S = F'F``, and
``h = L0' sum s w (z - R0'w)'`` is what they say of the mean. Then ``U = T T'`` with
``T = L0 F^-1`` and ``R = R0 + T y``, ``y = F^-T h``. F and y come from the sums, or by QR from the
steps' own factors, which does not square the condition number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _backend
from ..reference._common import symmetric
from ._collectives import unpack_triangle

# Elsewhere than on a CPU with the library, products of PyTorch's stand for its parts.
_HAS_KERNELS = torch._C._dispatch_has_kernel_for_dispatch_key("kanerva::episode_sums", "CPU")

# As the compiled write has them (csrc/common/policy.h): the largest diagonal of S up to which sums
# serve, by the state's dtype; from how many slots and up to which condition number float32 does.
HARD = {torch.float32: 1e10, torch.float64: 1e4}
CANCELLED = {torch.float32: 1e8, torch.float64: 1e4}  # of the evidence, before and after
MANY_SLOTS, EASY = 256, 64.0
BLOCK_NUMBERS = 2**22  # of a block of steps: what is cast at a time
WIDE = torch.float64


class Posterior(NamedTuple):
    """A belief by its factors; what stands in the gradients too. float64, or float32 where sums
    in float32 served.

    Attributes:
        mean: R, (B, K, C).
        root: T, (B, K, K): U = T T'.
        factor: F, (B, K, K), upper triangular.
        solved: y, (B, K, C).
        gained: S, (B, K, K).
    """

    mean: Tensor
    root: Tensor
    factor: Tensor
    solved: Tensor
    gained: Tensor

    @property
    def cov(self) -> Tensor:
        return symmetric(self.root @ self.root.mT)

    def log_det(self) -> Tensor:
        """ln det N, (B,)."""
        return 2 * self.factor.diagonal(dim1=-2, dim2=-1).to(WIDE).abs().log().sum(-1)

    def merge(self, other: Posterior, here: Tensor) -> Posterior:
        """``other``, which holds the items flagged by ``here`` (B,), in the place of those."""
        merged = []
        for mine, theirs in zip(self, other, strict=True):
            mine = mine.clone()
            mine[here] = theirs
            merged.append(mine)
        return Posterior(*merged)


class Summed(NamedTuple):
    """A belief by the sums it is made of: its factors are made when gradients want them.

    Attributes:
        mean, cov: R and U, in the state's dtype.
        triangle: (B, K (K + 1) / 2), float64: the rows of G from the diagonal on.
        h: H, (B, K, C), float64.
    """

    mean: Tensor
    cov: Tensor
    triangle: Tensor
    h: Tensor


def compiled_posterior(
    mean: Tensor,
    cov: Tensor,
    triangle: Tensor,
    h: Tensor,
    square: Tensor,
    dtype: torch.dtype,
    always: bool,
) -> tuple[Summed, Tensor, Tensor] | None:
    """The posterior of sums by the library, ln det N (B,), and ``square`` (B,) less what the
    memory explains of it; in the arithmetic of ``dtype``. The last two are NaN for items that are
    too hard for it: beyond `EASY` in float32, or beyond `HARD`, unless ``always``. None: no
    library."""
    if not _is_compiled(mean.device):
        return None
    # Contiguous, whatever the strides of the prior are: the library writes whole rows.
    outputs = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (mean, cov))
    summed = Summed(*outputs, triangle, h)
    terms = torch.ops.kanerva.posterior_of_sums(
        *summed[:2], mean, cov, triangle, h, square, dtype == torch.float32, always
    )
    return summed, *terms.unbind(-1)


def factored(
    mean: Tensor, prior_root: Tensor, summed: Summed, dtype: torch.dtype = WIDE
) -> tuple[Posterior, Tensor]:
    """The same belief by its factors, in an arithmetic, and what the memory explains, (B,), of the
    sum of squares of the values."""
    g = unpack_triangle(summed.triangle, mean.shape[1])
    posterior = from_sums(*(x.to(dtype) for x in (mean, prior_root, g, summed.h)))
    # |Z - W R0|^2 = |Z|^2 - <R0, H> - <R0, H - G R0>, and |y|^2 comes off as well.
    explained = posterior.solved.to(WIDE).square().sum((1, 2))
    if mean.any():
        explained = explained + (mean * (2 * summed.h - g @ mean)).sum((1, 2))
    return posterior, explained


def root_of(cov: Tensor) -> Tensor:
    """L0, lower triangular; NaN where there is none.

    Writes at tiny noise leave a covariance that its own dtype's rounding makes indefinite: it is
    taken with that rounding on its diagonal, as the compiled write does.
    """
    wide = symmetric(cov.to(WIDE))
    factor, info = torch.linalg.cholesky_ex(wide)
    if info.any():
        diagonal = wide.diagonal(dim1=-2, dim2=-1)
        slack = 2 * cov.shape[-1] * torch.finfo(cov.dtype).eps * diagonal.amax(-1, keepdim=True)
        slack = torch.where((info != 0)[:, None], slack, 0).expand_as(diagonal)
        factor, info = torch.linalg.cholesky_ex(wide + torch.diag_embed(slack))
    return torch.where((info == 0)[:, None, None], factor, torch.nan)


def blocks(steps: int, batch: int, width: int) -> list[slice]:
    """The steps in blocks that hold about as many numbers each, whatever the sizes."""
    size = max(64, BLOCK_NUMBERS // max(batch * width, 1))
    return [slice(start, start + size) for start in range(0, steps, size)]


def products(
    weights: Tensor, values: Tensor, scale: Tensor, dtype: torch.dtype, with_g: bool = True
) -> tuple[Tensor | None, Tensor, Tensor]:
    """``sum s w w'`` (None unless ``with_g``; of which the upper triangle counts), ``sum s w z'``
    and ``sum s |z|^2``, (B,) float64: in the arithmetic of ``dtype``, added up in it or in
    float64."""
    batch, steps, slots = weights.shape
    code = values.shape[-1]
    if _is_compiled(weights.device):
        g = weights.new_empty(batch, slots, slots, dtype=dtype) if with_g else None
        h = weights.new_empty(batch, slots, code, dtype=dtype)
        energy = torch.ops.kanerva.episode_sums(g, h, weights, values, scale)
        return g, h, energy
    g = scale.new_zeros(batch, slots, slots) if with_g else None
    h, energy = scale.new_zeros(batch, slots, code), scale.new_zeros(batch)
    width = max(slots // 4, 64)
    same = uniform(scale)
    for span in blocks(steps, batch, slots + code):
        rows, codes = weights[:, span].to(dtype), values[:, span].to(dtype)
        scaled = rows.mT if same else (rows * scale[:, span, None].to(dtype)).mT
        if g is not None:
            for start in range(0, slots, width):  # the upper triangle, by blocks of columns
                columns = slice(start, start + width)
                g[:, : start + width, columns] += scaled[:, : start + width] @ rows[:, :, columns]
        h += scaled @ codes
        energy += (torch.einsum("btc,btc->bt", codes, codes) * scale[:, span]).sum(-1)
    if same:
        factor = scale[:, :1, None]
        g, h = None if g is None else factor * g, factor * h
    return g, h, energy


def _is_compiled(device: torch.device) -> bool:
    """Whether the CPU's library serves, and nobody asked for another backend."""
    if device.type != "cpu" or not _HAS_KERNELS:
        return False
    return not _backend.must_choose or _backend.choose("auto", device) == "native"


def uniform(scale: Tensor) -> bool:
    """Whether all steps of an item have one weight, which was expanded: the rows stay as they
    are and the sums are multiplied."""
    return scale.shape[1] > 0 and scale.stride(1) == 0


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix of which the upper triangle is right."""
    return upper.triu() + upper.triu(1).mT


def from_sums(
    mean: Tensor, prior_root: Tensor, g: Tensor, h: Tensor, kept: Tensor | None = None
) -> Posterior:
    """The posterior of sums G = ``sum s w w'`` and H = ``sum s w z'``, all of one dtype; ``kept``
    (B,) is b, what decay leaves of the prior's precision."""
    right = h - g @ mean if mean.any() else h
    scales = _diagonal(prior_root)
    if scales is None:
        gained, right = symmetric(prior_root.mT @ g @ prior_root), prior_root.mT @ right
    else:
        gained, right = scales * g * scales.mT, scales * right
    return from_whitened(mean, prior_root, gained, right, kept)


def _diagonal(prior_root: Tensor) -> Tensor | None:
    """(B, K, 1) of roots that are diagonal, as that of a memory that nobody wrote to."""
    diagonal = prior_root.diagonal(dim1=-2, dim2=-1)
    return diagonal[..., None] if torch.equal(torch.diag_embed(diagonal), prior_root) else None


def from_whitened(
    mean: Tensor, prior_root: Tensor, gained: Tensor, right: Tensor, kept: Tensor | None = None
) -> Posterior:
    """The posterior of S and h."""
    eye = torch.eye(gained.shape[-1], dtype=gained.dtype, device=gained.device)
    system = gained + (eye if kept is None else kept[:, None, None] * eye)
    factor, info = torch.linalg.cholesky_ex(system, upper=True)
    factor = torch.where((info == 0)[:, None, None], factor, torch.nan)
    solved = torch.linalg.solve_triangular(factor.mT, right, upper=False)
    return _finished(mean, prior_root, factor, solved, gained)


def from_factors(
    mean: Tensor, prior_root: Tensor, factor: Tensor, right: Tensor, kept: Tensor | None = None
) -> tuple[Posterior, Tensor]:
    """The posterior of `steps_factor`'s results, and what that adds to their residual (B,)."""
    whitened = factor @ prior_root
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    eye = eye.expand_as(factor)
    prior = eye if kept is None else kept.sqrt()[:, None, None] * eye
    upper, solved, residual = triangle(
        torch.cat([prior, whitened], 1), torch.cat([torch.zeros_like(right), right], 1)
    )
    gained = symmetric(whitened.mT @ whitened)
    return _finished(mean, prior_root, upper, solved, gained), residual


def _finished(mean, prior_root, factor, solved, gained) -> Posterior:
    root = torch.linalg.solve_triangular(factor, prior_root, upper=True, left=False)
    return Posterior(mean + root @ solved, root, factor, solved, gained)


def triangle(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the least-squares problem ``matrix x = right``: the triangle F of a QR factorisation, the
    rows of ``Q' right`` that belong to it, and the sum of squares (B,) of the other rows.

    There must be as many rows as columns, or more.
    """
    slots = matrix.shape[-1]
    if len(matrix) == 0:
        return matrix[:, :slots], right[:, :slots], matrix.new_zeros(0)
    reflectors, tau = torch.geqrf(matrix)
    rotated = torch.ormqr(reflectors, tau, right, left=True, transpose=True)
    return (
        reflectors[:, :slots].triu(),
        rotated[:, :slots],
        rotated[:, slots:].square().sum((1, 2)),
    )


def merge_factors(earlier: tuple[Tensor, ...], later: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """(F, y, residual) of the steps of both."""
    factor, right, residual = triangle(
        *(torch.cat([a, b], 1) for a, b in zip(earlier[:2], later[:2], strict=True))
    )
    return factor, right, earlier[2] + later[2] + residual


def steps_factor(
    mean: Tensor, weights: Tensor, values: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """F, y and residual of the rows ``sqrt(s) w'`` with the right-hand sides
    ``sqrt(s) (z - R0'w)'``: F'F = ``sum s w w'``, F'y = ``sum s w (z - R0'w)'``."""
    batch, steps, slots = weights.shape
    code = values.shape[-1]
    total = (
        mean.new_zeros(batch, slots, slots),
        mean.new_zeros(batch, slots, code),
        mean.new_zeros(batch),
    )
    for span in blocks(steps, batch, slots + code):
        rows, scales = weights[:, span].to(WIDE), scale[:, span, None].sqrt()
        right = values[:, span].to(WIDE) - rows @ mean
        factor, solved, residual = triangle(
            torch.cat([total[0], scales * rows], 1), torch.cat([total[1], scales * right], 1)
        )
        total = factor, solved, total[2] + residual
    return total


def condition(factor: Tensor) -> Tensor:
    """An estimate of N's condition number, (B,), by the pivots of its factor."""
    pivots = factor.diagonal(dim1=-2, dim2=-1).abs()
    return (pivots.amax(-1) / pivots.amin(-1)).square()


def largest(gained: Tensor) -> Tensor:
    """The largest diagonal of S, (B,): 0 of one that is not finite, which nothing helps."""
    diagonal = gained.diagonal(dim1=-2, dim2=-1).amax(-1)
    return torch.where(diagonal.isfinite(), diagonal, 0)
