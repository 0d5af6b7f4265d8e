"""What kernels take together, by name: Triton unpacks a named tuple when it compiles, to the same
code as so many parameters, and binds it in less time (see `_launch.launch`).

No number is in one: Triton would compile anew for those that `VARYING` says it need not, since
``do_not_specialize`` does not reach into tuples.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Memory(NamedTuple):
    mean: Tensor
    cov: Tensor
    #: What a memory that moves tends to; None is the identity.
    stationary_cov: Tensor | None = None


class Episode(NamedTuple):
    """What a write takes of every step."""

    weights: Tensor
    noise_var: Tensor
    mask: Tensor | None
    decay: Tensor | None  # of a memory that moves, its retentions
    bounds: Tensor | None  # see `_sequences`
    values: Tensor | None = None
    queries: Tensor | None = None


class Factors(NamedTuple):
    """Of chunks: the gains P (G where the memory moves) and, kept for the gradient, F^-1 and E."""

    gains: Tensor
    inverses: Tensor | None = None
    errors: Tensor | None = None


class Room(NamedTuple):
    """Where a write works; the states before every chunk are kept where the memory moves."""

    mean: Tensor
    cov: Tensor
    root: Tensor | None = None
    seen: Tensor | None = None
    mean_states: Tensor | None = None
    cov_states: Tensor | None = None


class Written(NamedTuple):
    """Results of a write; the state is None where it stays in the `Room`."""

    evidence: Tensor
    status: Tensor
    mean: Tensor | None = None
    cov: Tensor | None = None
    reads: Tensor | None = None
    variances: Tensor | None = None


class Gradients(NamedTuple):
    """Those that come in, as far as a kernel needs them."""

    mean: Tensor | None = None
    cov: Tensor | None = None
    evidence: Tensor | None = None
    reads: Tensor | None = None
    var: Tensor | None = None


class Between(NamedTuple):
    """What the adjoint of the columns leaves to that of the covariance: ``E gR'``, ``dZ R'``,
    ``E E'`` and, of reads, ``gO R'`` and ``gO E'``; where the memory moves, <gR, R>."""

    cross: Tensor
    shares: Tensor
    squares: Tensor
    asked: Tensor | None = None
    responses: Tensor | None = None
    dots: Tensor | None = None


class Slopes(NamedTuple):
    """Gradients of the covariance, step by step: results."""

    weights: Tensor
    noise_var: Tensor
    decay: Tensor | None
    queries: Tensor | None
    cov: Tensor | None  # None where it stays where it was worked out
    stationary_cov: Tensor | None = None


class ReverseRoom(NamedTuple):
    """Of a chunk's steps and slots, for the adjoint of the covariance."""

    slopes: Tensor
    left: Tensor
    rest: Tensor | None = None
    moved: Tensor | None = None
    mixed: Tensor | None = None


class MovingState(NamedTuple):
    """Covariances of a memory that moves, their gradients and a room for their adjoint."""

    cov: Tensor
    grad_cov: Tensor
    stationary_cov: Tensor | None
    d_stationary_cov: Tensor | None
    room: Tensor


class Adaptive(NamedTuple):
    """What an adaptive write is given."""

    mean: Tensor
    cov: Tensor
    values: Tensor
    noise_var: Tensor
    ridge: Tensor
    mask: Tensor | None


class Adapted(NamedTuple):
    """Results of an adaptive write, but ``weights`` where they are given; the state is None where
    it stays in the memory that was worked on."""

    mean: Tensor | None
    cov: Tensor | None
    weights: Tensor | None
    step_kl: Tensor | None


class Inverse(NamedTuple):
    """Room for that of a system, for F^-1 and for the tiles on the diagonal of that."""

    system: Tensor | None = None
    root: Tensor | None = None
    diagonal: Tensor | None = None


class History(NamedTuple):
    """Of every iteration of an adaptive write, for the gradient: w, c, d, and of w'Uw, |d|^2 and
    |c|^2 each."""

    iterates: Tensor | None = None
    products: Tensor | None = None
    errors: Tensor | None = None
    totals: Tensor | None = None


class AdaptedGradients(NamedTuple):
    """Gradients of the results of an adaptive write."""

    mean: Tensor | None
    cov: Tensor | None
    weights: Tensor | None
    step_kl: Tensor | None
    evidence: Tensor | None


class AdaptiveGradients(NamedTuple):
    """Gradients of the arguments of an adaptive write; that of the mean is None where it stays in
    the slopes."""

    mean: Tensor | None
    cov: Tensor
    values: Tensor
    noise_var: Tensor


class Elements(NamedTuple):
    """What segments do to the memory at their start: A, b, C, eta and J of `_elements`."""

    carry: Tensor
    shift: Tensor
    spread: Tensor
    pull: Tensor
    precision: Tensor


class ElementRoom(NamedTuple):
    """Of a chunk's steps by slots, but for errors of the shift and for states before a chunk."""

    gains: Tensor
    seen: Tensor | None
    of_carry: Tensor
    of_shift: Tensor
    unused: Tensor
    zeros: Tensor  # of one chunk: the values of the carry


class Beliefs(NamedTuple):
    """Before segments; for the gradient, T and y of `_beliefs`."""

    mean: Tensor
    cov: Tensor
    through: Tensor | None = None
    turn: Tensor | None = None
