"""Linear maps under which texts that mean the same are alike: canonical correlations."""

from __future__ import annotations

import torch
from torch import Tensor

#: Part of its mean variance that is added to that of every direction.
SHRINKAGE = 1e-3


def aligned(told: Tensor, asked: Tensor, size: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """(weight, bias) for told and for asked, and the correlations, float64.

    The directions of both that are most correlated (Hotelling, Relations Between Two Sets of
    Variates, Biometrika 1936), each of variance 1 times its correlation: what differs between the
    two though they mean the same gets no weight.

    Args:
        told, asked: (N, H), rows that belong together.
        size: S, directions that are kept; beyond H they are zero.
    """
    told, asked = told.double(), asked.double()
    centred = [x - x.mean(0) for x in (told, asked)]
    whites = [_whitening(x) for x in centred]
    first, second = (x @ white for x, white in zip(centred, whites, strict=True))
    left, correlation, right = torch.linalg.svd(first.mT @ second / len(told))
    correlation = correlation.clamp(max=1)
    out = []
    for rows, white, directions in zip((told, asked), whites, (left.mT, right), strict=True):
        weight = torch.zeros(size, told.shape[-1]).to(told)
        kept = correlation[:size, None] * (directions @ white)[:size]
        weight[: len(kept)] = kept
        out.append((weight, -(weight @ rows.mean(0))))
    return out, correlation


def _whitening(centred: Tensor) -> Tensor:
    cov = centred.mT @ centred / len(centred)
    values, vectors = torch.linalg.eigh(cov)
    least = SHRINKAGE * values.mean().clamp(min=torch.finfo(values.dtype).tiny)
    return vectors @ (vectors / (values.clamp(min=0) + least).sqrt()).mT
