"""The write by one Cholesky factor for many steps, or by sums over the whole episode.

With X = W U and S = X W' + diag(v) = F F': ``R += X' S^-1 (Z - W R)``, ``U -= X' S^-1 X``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .spec import add_diagonal_, cholesky, inverse_from_factor, right_solve


def solve(mean, cov, weights, values, noise_var):
    """One solve with [X | D] as right-hand sides: the textbook form."""
    slots = cov.shape[-1]
    cross, factor = _system(cov, weights, noise_var)
    error = torch.baddbmm(values, weights, mean, alpha=-1)
    solved = torch.cholesky_solve(torch.cat([cross, error], -1), factor)
    mean = torch.baddbmm(mean, cross.mT, solved[..., slots:])
    return mean, torch.baddbmm(cov, cross.mT, solved[..., :slots], alpha=-1)


def joint(mean, cov, weights, values, noise_var):
    """[U | R] as one matrix, and half a solve: three wide operators."""
    slots = cov.shape[-1]
    state = torch.cat([cov, mean], -1)
    system = torch.bmm(weights, state)
    system[..., slots:].sub_(values)
    cross = system[..., :slots]
    factor = cholesky(add_diagonal_(torch.bmm(cross, weights.mT), noise_var))
    white = torch.linalg.solve_triangular(factor.mT, system.mT, upper=True, left=False)
    state = torch.baddbmm(state, white[:, :slots], white.mT, alpha=-1)
    return state[..., slots:], state[..., :slots]


def gain(mean, cov, weights, values, noise_var):
    """Solve for the K columns of X alone, from the right: the gain serves mean and covariance."""
    cross, factor = _system(cov, weights, noise_var)
    gain = right_solve(cross.mT, factor)
    error = torch.baddbmm(values, weights, mean, alpha=-1)
    return torch.baddbmm(mean, gain, error), torch.baddbmm(cov, gain, cross, alpha=-1)


def whiten(mean, cov, weights, values, noise_var):
    """F^-1 X and F^-1 D: two half solves, and a symmetric product for the covariance."""
    cross, factor = _system(cov, weights, noise_var)
    error = torch.baddbmm(values, weights, mean, alpha=-1)
    white = torch.linalg.solve_triangular(factor.mT, cross.mT, upper=True, left=False)
    error = torch.linalg.solve_triangular(factor.mT, error.mT, upper=True, left=False)
    return torch.baddbmm(mean, white, error.mT), torch.baddbmm(cov, white, white.mT, alpha=-1)


def inverse(mean, cov, weights, values, noise_var):
    """S^-1 explicitly: all else is matrix products, which are threaded over the batch."""
    cross, factor = _system(cov, weights, noise_var)
    gain = torch.bmm(inverse_from_factor(factor), cross).mT
    error = torch.baddbmm(values, weights, mean, alpha=-1)
    return torch.baddbmm(mean, gain, error), torch.baddbmm(cov, gain, cross, alpha=-1)


def chunked(form: Callable, length: int) -> Callable:
    """``form`` in chunks of ``length`` steps, in order."""

    def write(mean, cov, weights, values, noise_var):
        for steps in _chunks(length, weights, values, noise_var):
            mean, cov = form(mean, cov, *steps)
        return mean, cov

    return write


def gain_inplace(length: int) -> Callable:
    """`gain` in chunks that update one copy of the state."""

    def write(mean, cov, weights, values, noise_var):
        mean, cov = mean.clone(), cov.clone()
        for w, z, v in zip(
            *(x.split(length, 1) for x in (weights, values, noise_var)), strict=True
        ):
            cross, factor = _system(cov, w, v)
            gain = right_solve(cross.mT, factor)
            mean.baddbmm_(gain, torch.baddbmm(z, w, mean, alpha=-1))
            cov.baddbmm_(gain, cross, alpha=-1)
        return mean, cov

    return write


def joint_inplace(length: int, half: bool = False) -> Callable:
    """[U | R] in one buffer; solve for the gain, or (``half``) whiten everything."""

    def write(mean, cov, weights, values, noise_var):
        slots = cov.shape[-1]
        state = torch.cat([cov, mean], -1)
        for w, z, v in zip(
            *(x.split(length, 1) for x in (weights, values, noise_var)), strict=True
        ):
            system = torch.bmm(w, state)  # [X | -D]
            system[..., slots:].sub_(z)
            cross = system[..., :slots]
            factor = cholesky(add_diagonal_(torch.bmm(cross, w.mT), v))
            if half:
                white = torch.linalg.solve_triangular(factor.mT, system.mT, upper=True, left=False)
                state.baddbmm_(white[:, :slots], white.mT, alpha=-1)
            else:
                state.baddbmm_(right_solve(cross.mT, factor), system, alpha=-1)
        return state[..., slots:], state[..., :slots]

    return write


def information(mean, cov, weights, values, noise_var):
    """Precisions add up: N = U^-1 + W'V^-1 W, R = N^-1 (U^-1 R + W'V^-1 Z). Cheapest for T > K."""
    scaled = (weights / noise_var[..., None]).mT
    precision = torch.cholesky_inverse(cholesky(cov))
    cov = torch.cholesky_inverse(cholesky(torch.baddbmm(precision, scaled, weights)))
    return torch.bmm(cov, torch.baddbmm(torch.bmm(precision, mean), scaled, values)), cov


def information_products(mean, cov, weights, values, noise_var):
    """The same, inverses by triangular solves and products."""
    scaled = (weights / noise_var[..., None]).mT
    precision = inverse_from_factor(cholesky(cov))
    cov = inverse_from_factor(cholesky(torch.baddbmm(precision, scaled, weights)))
    return torch.bmm(cov, torch.baddbmm(torch.bmm(precision, mean), scaled, values)), cov


def information_centered(mean, cov, weights, values, noise_var):
    """The update of the mean from the innovations: more accurate, and no product U^-1 R."""
    scaled = (weights / noise_var[..., None]).mT
    precision = torch.cholesky_inverse(cholesky(cov))
    cov = torch.cholesky_inverse(cholesky(torch.baddbmm(precision, scaled, weights)))
    error = torch.baddbmm(values, weights, mean, alpha=-1)
    return torch.baddbmm(mean, cov, torch.bmm(scaled, error)), cov


def information_whitened(mean, cov, weights, values, noise_var):
    """With U = L L': N = I + L'W'V^-1 W L = M M', so U^-1 is never formed."""
    root = cholesky(cov)
    white = torch.bmm(weights, root)
    scaled = 1 / noise_var[..., None]
    system = torch.bmm((white * scaled).mT, white)
    system.diagonal(dim1=-2, dim2=-1).add_(1)
    root = torch.linalg.solve_triangular(cholesky(system), root.mT, upper=False)
    cov = torch.bmm(root.mT, root)
    error = torch.baddbmm(values, weights, mean, alpha=-1)
    return torch.baddbmm(mean, cov, torch.bmm((weights * scaled).mT, error)), cov


def _chunks(length, *tensors):
    return zip(*(x.split(length, 1) for x in tensors), strict=True)


def _system(cov, weights, noise_var):
    cross = torch.bmm(weights, cov)
    return cross, cholesky(add_diagonal_(torch.bmm(cross, weights.mT), noise_var))
