"""bayes_write: the posterior mean and covariance of an episode.

The rivals do not compute the log evidence, which ours returns besides.
"""

from __future__ import annotations

import torch

from kanerva_ext import ops, reference

from . import bayes_write_block as block
from . import bayes_write_steps as steps
from .bayes_write_adjoint import Gain, Inverse, closed
from .spec import (
    FORWARD,
    FORWARD_BACKWARD,
    Operator,
    Rival,
    Shape,
    compiled,
    random_state,
    random_steps,
)


def inputs(shape: Shape, generator: torch.Generator):
    """Addresses of length about one and noise variance around one.

    Every float32 form is accurate there, so that no fast rival drops out.
    """
    mean, cov = random_state(shape, generator)
    weights = random_steps(shape, shape.slots, generator) / shape.slots**0.5
    values = random_steps(shape, shape.code, generator)
    noise_var = 0.5 + torch.rand(weights.shape[:2], generator=generator, dtype=torch.float64)
    return mean, cov, weights, values, noise_var


def kanerva(mean, cov, weights, values, noise_var):
    return ops.bayes_write(mean, cov, weights, values, noise_var)[:2]


def definition(mean, cov, weights, values, noise_var):
    return reference.bayes_write(mean, cov, weights, values, noise_var)[:2]


def _recursion_fits(shape: Shape, direction: str) -> bool:
    """Autograd keeps the state of every step: at most a gigabyte of it."""
    batch, length, slots, code = shape
    return direction == "forward" or 4 * batch * length * slots * (slots + code) < 1 << 30


def _short(shape: Shape, direction: str) -> bool:
    """One factor for the episode costs T^3."""
    return shape.steps <= 256


def _longer_than(length: int):
    return lambda shape, direction: shape.steps > length


def _information_fits(shape: Shape, direction: str) -> bool:
    return shape.steps >= shape.slots


def _rivals():
    recursion = {"family": "steps", "fits": _recursion_fits}
    yield Rival("steps_einsum", steps.einsum, **recursion)
    yield Rival("steps_bmm", steps.bmm, FORWARD_BACKWARD, **recursion)
    yield Rival("steps_bmm_inplace", steps.bmm_inplace, FORWARD, **recursion)
    yield Rival("steps_addcmul", steps.addcmul, FORWARD_BACKWARD, **recursion)
    yield Rival("steps_joint", steps.joint, FORWARD_BACKWARD, **recursion)
    yield Rival("steps_joint_inplace", steps.joint_inplace, FORWARD, **recursion)
    yield Rival("steps_joint_addcmul", steps.joint_addcmul_inplace, FORWARD, **recursion)
    for form in (block.solve, block.joint, block.gain, block.whiten, block.inverse):
        yield Rival(form.__name__, form, fits=_short)
    for length in (32, 64, 128):
        fits = _longer_than(length)
        yield Rival(f"gain_chunk{length}", block.gain_inplace(length), FORWARD, fits=fits)
        yield Rival(f"joint_chunk{length}", block.joint_inplace(length), FORWARD, fits=fits)
        half = block.joint_inplace(length, half=True)
        yield Rival(f"joint_half_chunk{length}", half, FORWARD, fits=fits)
        for form in (block.gain, block.solve):
            chunks = block.chunked(form, length)
            name = f"{form.__name__}_chunk{length}"
            yield Rival(name, chunks, FORWARD_BACKWARD, fits=fits)
        yield Rival(
            f"closed(gain_chunk{length})",
            closed(block.gain_inplace(length)),
            FORWARD_BACKWARD,
            "closed",
            fits,
        )
    for form in (
        block.information,
        block.information_products,
        block.information_centered,
        block.information_whitened,
    ):
        yield Rival(form.__name__, form, fits=_information_fits)
    for form in (block.information, block.information_products):
        yield Rival(
            f"closed({form.__name__})",
            closed(form),
            FORWARD_BACKWARD,
            "closed",
            _information_fits,
        )
    yield Rival("closed(gain)", Gain.apply, FORWARD_BACKWARD, "closed", _short)
    yield Rival("closed(inverse)", Inverse.apply, FORWARD_BACKWARD, "closed", _short)
    yield compiled(Rival("solve", block.solve))
    yield compiled(Rival("gain", block.gain))
    yield compiled(Rival("closed(gain)", Gain.apply, FORWARD_BACKWARD))
    yield compiled(Rival("gain_chunk32", block.chunked(block.gain, 32), fits=_longer_than(32)))
    yield compiled(Rival("steps_joint", steps.joint), max_steps=32)


OPERATOR = Operator("bayes_write", inputs, kanerva, block.solve, definition, tuple(_rivals()))
