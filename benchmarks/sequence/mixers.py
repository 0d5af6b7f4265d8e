"""What `KanervaLayer` is compared with, in plain PyTorch: one class per way to mix tokens.

All have its projections, short convolution, two gates per head and token, output norm and output
gate, so that they differ in nothing but what a head does with queries, keys and values. Sequences
are short, and one chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kanerva_ext import KanervaLayer, KanervaOutput
from kanerva_ext._convolution import ShortConvolution

NOISE_FLOOR = 1e-3
NOISE = 0.25  # at the start, as in `KanervaLayer`
SLOWEST, FASTEST = 1e-3, 0.1  # nats that the heads forget in a token, at the start
CONJUGATE_GRADIENT_STEPS = 30  # MesaNet's
DIAGONAL_CHUNK = 8


class Mixer(nn.Module):
    """A head's queries, keys and values, and gates; `mix` is what the classes differ in."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.d_model, self.heads = d_model, heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        self.conv = ShortConvolution(3 * d_model, 4)
        self.noise_proj = nn.Linear(d_model, heads)
        self.decay_proj = nn.Linear(d_model, heads)
        self.gate_proj = nn.Linear(d_model, d_model, bias=False)
        self.norm = nn.RMSNorm(d_model // heads, eps=1e-5)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        with torch.no_grad():
            self.noise_proj.bias.fill_(_inverse_softplus(NOISE - NOISE_FLOOR))

    def forward(self, x: Tensor, attention_mask: None = None, **_) -> KanervaOutput:
        """(B, T, d_model) to the same shape; without padding, packing or a cache."""
        mixed, _ = self.conv(self.qkv_proj(x))
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in mixed.chunk(3, -1)
        )
        queries, keys = (functional.normalize(part, dim=-1, eps=1e-2) for part in (queries, keys))
        noise = functional.softplus(self.noise_proj(x)).mT + NOISE_FLOOR
        rate = functional.softplus(self.decay_proj(x)).mT
        reads = self.norm(self.mix(queries, keys, values, noise, rate).transpose(1, 2))
        out = self.out_proj(reads.flatten(2) * functional.silu(self.gate_proj(x)))
        return KanervaOutput(out, None, None, None)

    def mix(self, queries, keys, values, noise, rate) -> Tensor:
        """Reads (B, H, T, C). noise and rate (nats forgotten) are (B, H, T)."""
        raise NotImplementedError


class Attention(Mixer):
    """Softmax attention with a forget gate (Lin et al., Forgetting Transformer, 2025) and queries
    and keys of norm one; the noise is the temperature."""

    def mix(self, queries, keys, values, noise, rate):
        queries = queries * (keys.shape[-1] ** 0.5 / noise)[..., None]
        scores = queries @ keys.mT + _log_kept(rate)
        return scores.softmax(-1) @ values


class GatedDeltaRule(Mixer):
    """Gated DeltaNet (Yang et al., 2025): ``M <- a M``, then ``M <- M + b k (v - k'M)``.

    The rate b is in (0, 2), so that ``I - b k k'`` can reflect (Grazzi et al., Unlocking
    State-Tracking in Linear RNNs Through Negative Eigenvalues, 2025). It starts at 1.
    """

    def mix(self, queries, keys, values, noise, rate):
        learning = 2 * torch.sigmoid(-(noise / NOISE).log())[..., None]
        kept = _log_kept(rate).exp()
        system = (learning * (keys @ keys.mT) * kept).tril(-1)
        system = system + torch.eye(keys.shape[2], dtype=system.dtype)
        errors = torch.linalg.solve_triangular(
            system, learning * values, upper=False, unitriangular=True
        )
        return ((queries @ keys.mT) * kept) @ errors


class DiagonalKalman(Mixer):
    """A Kalman filter whose belief is diagonal, in information form, with process noise (as in
    Kalman Linear Attention, Shaj et al., 2026).

    ``l`` is the precision of each slot, ``e`` the precision times the mean. Before a token
    ``M <- a M + sqrt(1 - a^2) N``; its pair adds ``k^2 / noise`` to l and ``k v' / noise`` to e.
    """

    def mix(self, queries, keys, values, noise, rate):
        kept = torch.exp(-rate)[..., None]
        noise = noise[..., None]
        square = kept.square()
        var = _Variances.apply(square, keys.square() / noise)
        before = functional.pad(var[:, :, :-1], (0, 0, 1, 0), value=1.0)
        gates = kept * before / (square * before + 1 - square)
        return _gated_reads(queries * var, keys / noise, values, gates.log())


class _Variances(torch.autograd.Function):
    """``var <- square var + 1 - square``, then ``var <- var / (1 + added var)``, from 1.

    (B, H, T, K) after each token, of squares (B, H, T, 1) and added (B, H, T, K).
    """

    @staticmethod
    def forward(ctx, squares, added):
        var, after = torch.ones_like(added[:, :, 0]), []
        for square, more in zip(squares.unbind(2), added.unbind(2), strict=True):
            var = square * var + (1 - square)
            var = var / (1 + more * var)
            after.append(var)
        after = torch.stack(after, 2)
        ctx.save_for_backward(squares, after)
        return after

    @staticmethod
    def backward(ctx, grad):
        squares, after = ctx.saved_tensors
        before = functional.pad(after[:, :, :-1], (0, 0, 1, 0), value=1.0)
        slope = (after / (squares * before + 1 - squares)).square()
        step = slope * squares
        total, carried = [], torch.zeros_like(grad[:, :, 0])
        for t in reversed(range(grad.shape[2])):
            here = grad[:, :, t] + carried
            total.append(here)
            carried = here * step[:, :, t]
        total = torch.stack(total[::-1], 2)
        d_squares = (total * slope * (before - 1)).sum(-1, keepdim=True)
        return d_squares, -total * after.square()


class Mesa(Mixer):
    """MesaNet (von Oswald et al., 2025): ``(H + ridge)^-1 q`` by 30 conjugate-gradient steps, with
    ``H`` the decayed sum of ``k k' / noise``."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__(d_model, heads)
        self.ridge = nn.Parameter(
            torch.full((heads, d_model // heads), _inverse_softplus(1 - 0.25))
        )

    def mix(self, queries, keys, values, noise, rate):
        weights = _log_kept(rate).exp() / noise[:, :, None]
        ridge = functional.softplus(self.ridge)[:, None] + 0.25
        solved = _Solve.apply(queries, keys, weights, ridge)
        return ((solved @ keys.mT) * weights) @ values


class _Solve(torch.autograd.Function):
    """x_t with ``(K' diag(weights_t) K + ridge) x_t = q_t``; the gradient is one more solve."""

    @staticmethod
    def forward(ctx, queries, keys, weights, ridge):
        x = conjugate_gradients(queries, keys, weights, ridge)
        ctx.save_for_backward(x, keys, weights, ridge)
        return x

    @staticmethod
    def backward(ctx, grad):
        x, keys, weights, ridge = ctx.saved_tensors
        y = conjugate_gradients(grad, keys, weights, ridge)
        from_x, from_y = x @ keys.mT, y @ keys.mT
        d_keys = -((weights * from_x).mT @ y + (weights * from_y).mT @ x)
        return y, d_keys, -from_x * from_y, -(x * y).sum(2, keepdim=True).sum(0)


def conjugate_gradients(queries, keys, weights, ridge, steps=CONJUGATE_GRADIENT_STEPS) -> Tensor:
    """Every query's solution, from zero, in as many steps.

    Args:
        queries: (B, H, T, K), right-hand sides.
        keys: (B, H, T, K).
        weights: (B, H, T, T), lower triangular.
        ridge: (H, 1, K).
    """
    x, residual = torch.zeros_like(queries), queries.clone()
    direction, square = residual, residual.square().sum(-1, keepdim=True)
    for _ in range(steps):
        product = ((direction @ keys.mT) * weights) @ keys + ridge * direction
        step = square / (direction * product).sum(-1, keepdim=True).clamp(min=1e-30)
        x = x + step * direction
        residual = residual - step * product
        now = residual.square().sum(-1, keepdim=True)
        direction = residual + now / square.clamp(min=1e-30) * direction
        square = now
    return x


def _log_kept(rate: Tensor) -> Tensor:
    """(B, H, T, T): the log of what is left after token t of what came with token s; -inf after."""
    total = rate.cumsum(-1)
    left = total[:, :, None] - total[..., None]
    later = torch.ones(left.shape[-2:], dtype=torch.bool).triu(1)
    return left.masked_fill(later, -torch.inf)


def _gated_reads(queries, keys, values, log_gates) -> Tensor:
    """``q_t' M_t`` for ``M_t = diag(gates_t) M_{t-1} + k_t v_t'``, chunk by chunk."""
    steps = keys.shape[2]
    more = -steps % DIAGONAL_CHUNK
    queries, keys, values, log_gates = (
        functional.pad(part, (0, 0, 0, more)).unflatten(2, (-1, DIAGONAL_CHUNK))
        for part in (queries, keys, values, log_gates)
    )
    total = log_gates.cumsum(3)
    between = total[..., :, None, :] - total[..., None, :, :]
    later = torch.ones(DIAGONAL_CHUNK, DIAGONAL_CHUNK, dtype=torch.bool).triu(1)
    between = between.masked_fill(later[..., None], -torch.inf).exp()
    scores = torch.einsum("bhntk,bhnsk,bhntsk->bhnts", queries, keys, between)
    reads = scores @ values
    left = (total[..., -1:, :] - total).exp() * keys
    state, before = torch.zeros_like(left[:, :, 0].mT @ values[:, :, 0]), []
    for n in range(keys.shape[2]):
        before.append(state)
        state = total[:, :, n, -1, :, None].exp() * state + left[:, :, n].mT @ values[:, :, n]
    reads = reads + (queries * total.exp()) @ torch.stack(before, 2)
    return reads.flatten(2, 3)[:, :, :steps]


def _inverse_softplus(x: float) -> float:
    return x + math.log(-math.expm1(-x))


def _kanerva(d_model: int, heads: int, dynamics: str) -> KanervaLayer:
    return KanervaLayer(d_model, heads, dynamics=dynamics)


#: By the names of the command line, in the order of the tables.
MIXERS = {
    "kanerva-stationary": lambda d, h: _kanerva(d, h, "stationary"),
    "kanerva-decay": lambda d, h: _kanerva(d, h, "decay"),
    "attention": Attention,
    "delta": GatedDeltaRule,
    "diagonal": DiagonalKalman,
    "mesa": Mesa,
}
#: How the page calls them.
TITLES = {
    "kanerva-stationary": "KanervaLayer, stationary",
    "kanerva-decay": "KanervaLayer, decay",
    "attention": "softmax attention",
    "delta": "gated delta rule",
    "diagonal": "diagonal Kalman filter",
    "mesa": "MesaNet, 30 steps",
}


def make(name: str, d_model: int, heads: int) -> nn.Module:
    """A mixer whose heads forget at rates that are spread alike in all of them."""
    mixer = MIXERS[name](d_model, heads)
    gate = next(each for n in ("retention_proj", "decay_proj") if (each := getattr(mixer, n, None)))
    with torch.no_grad():
        rates = torch.logspace(math.log10(SLOWEST), math.log10(FASTEST), heads)
        gate.bias.copy_(rates.expm1().log())
    return mixer
