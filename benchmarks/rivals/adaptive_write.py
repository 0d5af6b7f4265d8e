"""adaptive_write: every address solved against the memory as it stands, then the rank-1 write.

Every rival does what a careful PyTorch user would: one or two batched products a step, mean and
covariance side by side in one matrix where that saves a call.
"""

from __future__ import annotations

import torch

from kanerva_ext import ops, reference

from .spec import (
    FORWARD,
    FORWARD_BACKWARD,
    Operator,
    Rival,
    Shape,
    add_diagonal_,
    cholesky,
    compiled,
    inverse_from_factor,
    random_state,
    random_steps,
)

BATCHED_LU = 200  # torch's batched LU is wrong from about this size on


def inputs(shape: Shape, generator: torch.Generator):
    mean, cov = random_state(shape, generator)
    values = random_steps(shape, shape.code, generator)
    noise = 0.5 + torch.rand(shape.batch, shape.steps, generator=generator, dtype=torch.float64)
    ridge = 0.5 + torch.rand(shape.batch, generator=generator, dtype=torch.float64)
    return mean, cov, values, noise, ridge


def kanerva(mean, cov, values, noise_var, ridge):
    return ops.adaptive_write(mean, cov, values, noise_var, ridge)[:3]


def definition(mean, cov, values, noise_var, ridge):
    return reference.adaptive_write(mean, cov, values, noise_var, ridge)[:3]


class Truth(torch.autograd.Function):
    """The reference with its closed-form gradient, which fits in memory at every shape."""

    @staticmethod
    def forward(ctx, *args):
        ctx.save_for_backward(*args)
        return definition(*args)

    @staticmethod
    def backward(ctx, *grads):
        return reference.adaptive_write_backward(*grads, None, None, *ctx.saved_tensors)


def system(mean, ridge):
    return torch.bmm(mean, mean.mT) + torch.diag_embed(ridge[:, None].expand(mean.shape[:2]))


def by_solve(mean, right, ridge):
    return torch.linalg.solve(system(mean, ridge), right)


def by_cholesky(mean, right, ridge):
    return torch.cholesky_solve(right, cholesky(system(mean, ridge)))


def resolving(solve):
    """A solve per step, as published code does, and the write as plain products."""

    def adaptive_write(mean, cov, values, noise_var, ridge):
        weights = []
        for z, v in zip(values.unbind(1), noise_var.unbind(1), strict=True):
            z = z[..., None]
            w = solve(mean, torch.bmm(mean, z), ridge)
            c = torch.bmm(cov, w)
            s = torch.bmm(w.mT, c) + v[:, None, None]
            d = z - torch.bmm(mean.mT, w)
            gain = c / s
            mean = torch.baddbmm(mean, gain, d.mT)
            cov = torch.baddbmm(cov, gain, c.mT, alpha=-1)
            weights.append(w)
        return mean, cov, torch.cat(weights, -1).mT

    return adaptive_write


def gram(mean, cov, values, noise_var, ridge):
    """The system kept up to date, R d being ridge w; a Cholesky factor per step."""
    weights, matrix, r = [], system(mean, ridge), ridge[:, None, None]
    for z, v in zip(values.unbind(1), noise_var.unbind(1), strict=True):
        z = z[..., None]
        w = torch.cholesky_solve(torch.bmm(mean, z), cholesky(matrix))
        c = torch.bmm(cov, w)
        gain = c / (torch.bmm(w.mT, c) + v[:, None, None])
        d = z - torch.bmm(mean.mT, w)
        p = torch.baddbmm(r * w, gain, torch.bmm(d.mT, d), alpha=0.5)
        both, turned = torch.cat([gain, p], -1), torch.cat([p, gain], -1)
        matrix = torch.baddbmm(matrix, both, turned.mT)
        mean = torch.baddbmm(mean, gain, d.mT)
        cov = torch.baddbmm(cov, gain, c.mT, alpha=-1)
        weights.append(w)
    return mean, cov, torch.cat(weights, -1).mT


def initial_inverse(mean, ridge):
    return inverse_from_factor(cholesky(add_diagonal_(torch.bmm(mean, mean.mT), ridge[:, None])))


def change_of_inverse(p_gain, images):
    """The 2 x 2 matrix of the rank-2 identity for p g' + g p', and its determinant's inverse."""
    dots = torch.bmm(p_gain.mT, images)
    a, b, c = dots[:, :1, :1], 1 + dots[:, :1, 1:], dots[:, 1:, 1:]
    core = torch.cat([torch.cat([c, -b], -1), torch.cat([-b, a], -1)], 1)
    return core / (b * b - a * c)


def inverse(mean, cov, values, noise_var, ridge):
    """The inverse kept up to date by the rank-2 identity; mean and covariance side by side."""
    code, r = mean.shape[-1], ridge[:, None, None]
    weights, inv, state = [], initial_inverse(mean, ridge), torch.cat([mean, cov], -1)
    for z, v in zip(values.unbind(1), noise_var.unbind(1), strict=True):
        z = z[:, None]
        w = torch.bmm(inv, torch.bmm(state[..., :code], z.mT))
        read = torch.bmm(w.mT, state)
        d, c = z - read[..., :code], read[..., code:]
        gain = c.mT / (torch.bmm(c, w) + v[:, None, None])
        p = r * w + 0.5 * torch.bmm(d, d.mT) * gain
        both = torch.cat([p, gain], -1)
        images = torch.bmm(inv, both)
        inv = torch.baddbmm(inv, torch.bmm(images, change_of_inverse(both, images)), images.mT)
        state = torch.baddbmm(state, gain, torch.cat([d, -c], -1))
        weights.append(w)
    return state[..., :code], state[..., code:], torch.cat(weights, -1).mT


def inverse_inplace(mean, cov, values, noise_var, ridge):
    """`inverse` in place, the products into rows of one buffer: forward only."""
    (batch, slots, code), steps = mean.shape, values.shape[1]
    r, inv, state = ridge[:, None, None], initial_inverse(mean, ridge), torch.cat([mean, cov], -1)
    weights = mean.new_empty(batch, slots, steps)
    both, row = mean.new_empty(batch, slots, 2), mean.new_empty(batch, 1, code + slots)
    r_mean = state[..., :code]
    columns = values.mT
    for t in range(steps):
        w = torch.bmm(inv, torch.bmm(r_mean, columns[..., t : t + 1]))
        torch.bmm(w.mT, state, out=row)
        d = torch.sub(values[:, t : t + 1], row[..., :code], out=row[..., :code])
        c = row[..., code:].mT
        gain = both[..., 1:].copy_(c / (torch.bmm(w.mT, c) + noise_var[:, t, None, None]))
        torch.addcmul(r * w, torch.bmm(d, d.mT), gain, value=0.5, out=both[..., :1])
        images = torch.bmm(inv, both)
        inv.baddbmm_(torch.bmm(images, change_of_inverse(both, images)), images.mT)
        row[..., code:].neg_()
        state.baddbmm_(gain, row)
        weights[..., t : t + 1] = w
    return state[..., :code], state[..., code:], weights.mT


class ClosedForm(torch.autograd.Function):
    """`inverse` with the adjoint written out, from kept steps and inverses; states are undone."""

    @staticmethod
    def forward(ctx, mean, cov, values, noise_var, ridge):
        code, r = mean.shape[-1], ridge[:, None, None]
        inv, state = initial_inverse(mean, ridge), torch.cat([mean, cov], -1)
        weights, inverses, kept = [], [], []
        for z, v in zip(values.unbind(1), noise_var.unbind(1), strict=True):
            z = z[:, None]
            w = torch.bmm(inv, torch.bmm(state[..., :code], z.mT))
            read = torch.bmm(w.mT, state)
            d, c = z - read[..., :code], read[..., code:]
            s = torch.bmm(c, w) + v[:, None, None]
            gain = c.mT / s
            both = torch.cat([r * w + 0.5 * torch.bmm(d, d.mT) * gain, gain], -1)
            images = torch.bmm(inv, both)
            step = torch.cat([d, -c], -1)
            weights.append(w)
            inverses.append(inv)
            kept.append((gain, step, s))
            inv = torch.baddbmm(inv, torch.bmm(images, change_of_inverse(both, images)), images.mT)
            state.baddbmm_(gain, step)
        ctx.kept, ctx.inverses, ctx.weights, ctx.code = kept, inverses, weights, code
        ctx.state = state
        return state[..., :code], state[..., code:], torch.cat(weights, -1).mT

    @staticmethod
    def backward(ctx, d_mean, d_cov, d_weights):
        code, state = ctx.code, ctx.state.clone()
        grad = torch.cat([d_mean, (d_cov + d_cov.mT) / 2], -1)
        d_values, d_noise, d_ridge = [], [], 0
        for t in reversed(range(len(ctx.weights))):
            w, inv, (gain, step, s) = ctx.weights[t], ctx.inverses[t], ctx.kept[t]
            state.baddbmm_(gain, step, alpha=-1)
            d, c = step[..., :code], -step[..., code:].mT
            n = torch.bmm(grad[..., :code], d.mT)
            e = torch.bmm(grad[..., code:], c)
            gd = torch.bmm(gain.mT, grad[..., :code])
            gs = torch.bmm(gain.mT, e - n) / s
            gc = (n - 2 * e) / s + gs * w
            gw = d_weights[:, t, :, None] + gs * c
            gw = gw + torch.bmm(state, torch.cat([-gd, gc.mT], -1).mT)
            y = torch.bmm(inv, gw)
            gz = gd + torch.bmm(y.mT, state[..., :code])
            half = gc / 2
            left = torch.cat([y, w], -1)
            grad[..., :code].baddbmm_(left, torch.cat([d, -gz], 1))
            grad[..., code:].baddbmm_(torch.cat([half, w], -1), torch.cat([w, half], -1).mT)
            d_values.append(gz)
            d_noise.append(gs[:, 0])
            d_ridge = d_ridge - (y * w).sum((1, 2))
        d_values.reverse()
        d_noise.reverse()
        return (
            grad[..., :code], grad[..., code:], torch.cat(d_values, 1), torch.cat(d_noise, 1),
            d_ridge,
        )  # fmt: skip


def small(shape: Shape, direction: str) -> bool:
    return shape.slots < BATCHED_LU


def fits_tape(shape: Shape, direction: str) -> bool:
    """Autograd keeps every state: less than 4 GB of them."""
    state = 4 * shape.batch * shape.steps * shape.slots * (shape.code + 2 * shape.slots)
    return direction == "forward" or 6 * state < 2**32


def fits_resolving(shape: Shape, direction: str) -> bool:
    return fits_tape(shape, direction) and shape.steps <= 256


OPERATOR = Operator(
    "adaptive_write",
    inputs,
    kanerva,
    Truth.apply,
    definition,
    (
        Rival(
            "steps_solve",
            resolving(by_solve),
            family="steps",
            fits=lambda s, d: small(s, d) and fits_resolving(s, d),
        ),
        Rival("steps_cholesky", resolving(by_cholesky), fits=fits_resolving),
        Rival("gram", gram, fits=fits_resolving),
        Rival("inverse", inverse, fits=fits_tape),
        Rival("inverse_inplace", inverse_inplace, FORWARD),
        Rival("closed(inverse)", ClosedForm.apply, FORWARD_BACKWARD, "closed"),
        compiled(Rival("inverse", inverse, fits=fits_tape), max_steps=32),
    ),
)
