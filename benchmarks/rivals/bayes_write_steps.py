"""The write as a recursion over its steps (`kanerva_ext.reference`), in several PyTorch dialects.

With c = U w, s = w'c + v, d = z - R'w: ``R += c d'/s``, ``U -= c c'/s``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def einsum(mean, cov, weights, values, noise_var):
    """As it is usually written."""
    for t in range(weights.shape[1]):
        w, z, v = weights[:, t], values[:, t], noise_var[:, t]
        c = torch.einsum("bij,bj->bi", cov, w)
        gain = c / (torch.einsum("bi,bi->b", w, c) + v)[:, None]
        error = z - torch.einsum("bij,bi->bj", mean, w)
        mean = mean + torch.einsum("bi,bj->bij", gain, error)
        cov = cov - torch.einsum("bi,bj->bij", gain, c)
    return mean, cov


def bmm(mean, cov, weights, values, noise_var):
    """Matrix products with their sums fused in."""
    for w, z, v in _rows(weights, values, noise_var[..., None]):
        c = torch.bmm(w, cov)
        gain = c / torch.baddbmm(v, c, w.mT)
        error = torch.baddbmm(z, w, mean, alpha=-1)
        mean = torch.baddbmm(mean, gain.mT, error)
        cov = torch.baddbmm(cov, gain.mT, c, alpha=-1)
    return mean, cov


def bmm_inplace(mean, cov, weights, values, noise_var):
    mean, cov = mean.clone(), cov.clone()
    for w, z, v in _rows(weights, values, noise_var[..., None]):
        c = torch.bmm(w, cov)
        gain = (c / torch.baddbmm(v, c, w.mT)).mT
        mean.baddbmm_(gain, torch.baddbmm(z, w, mean, alpha=-1))
        cov.baddbmm_(gain, c, alpha=-1)
    return mean, cov


def addcmul(mean, cov, weights, values, noise_var):
    """The updates as broadcast products instead of matrix products of depth one."""
    for w, z, v in _rows(weights, values, noise_var[..., None]):
        c = torch.bmm(w, cov)
        gain = (c / torch.baddbmm(v, c, w.mT)).mT
        mean = torch.addcmul(mean, gain, torch.baddbmm(z, w, mean, alpha=-1))
        cov = torch.addcmul(cov, gain, c, value=-1)
    return mean, cov


def joint(mean, cov, weights, values, noise_var):
    """[U | R] is one matrix: four operators a step."""
    slots = cov.shape[-1]
    state = torch.cat([cov, mean], -1)
    for w, z, v in _rows(weights, _padded(values, slots), noise_var[..., None]):
        q = torch.baddbmm(z, w, state)  # [c' | -d']
        gain = q[..., :slots] / torch.baddbmm(v, q[..., :slots], w.mT)
        state = torch.baddbmm(state, gain.mT, q, alpha=-1)
    return state[..., slots:], state[..., :slots]


def joint_inplace(mean, cov, weights, values, noise_var):
    slots = cov.shape[-1]
    state = torch.cat([cov, mean], -1)
    for w, z, v in _rows(weights, _padded(values, slots), noise_var[..., None]):
        q = torch.baddbmm(z, w, state)
        gain = q[..., :slots] / torch.baddbmm(v, q[..., :slots], w.mT)
        state.baddbmm_(gain.mT, q, alpha=-1)
    return state[..., slots:], state[..., :slots]


def joint_addcmul_inplace(mean, cov, weights, values, noise_var):
    slots = cov.shape[-1]
    state = torch.cat([cov, mean], -1)
    for w, z, v in _rows(weights, _padded(values, slots), noise_var[..., None]):
        q = torch.baddbmm(z, w, state)
        gain = q[..., :slots] / torch.baddbmm(v, q[..., :slots], w.mT)
        state.addcmul_(gain.mT, q, value=-1)
    return state[..., slots:], state[..., :slots]


def _rows(*tensors: Tensor):
    """Step by step, each (B, 1, size)."""
    return zip(*(x.split(1, 1) for x in tensors), strict=True)


def _padded(values: Tensor, slots: int) -> Tensor:
    """[0 | -Z], the constant part of [c' | -d']."""
    return torch.nn.functional.pad(values.neg(), (slots, 0))
