"""A causal sequence layer whose memory is the exact Bayesian one, in place of attention."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import _backend, ops
from ._state import MemoryState

MASK_DTYPES = (torch.bool, torch.int8, torch.uint8, torch.int32, torch.int64)
# Nats. What is never written at grows by as much, and must stay within the digits of float32.
FORGETTING_LIMIT = math.log(1e3)


class KanervaCache(NamedTuple):
    """What `KanervaLayer` carries from one call to the next; its size does not grow.

    Attributes:
        state: the memory of each head, mean (B, H, K, C) and cov (B, H, K, K).
        history: (B, conv_size - 1, width), what the short convolution looks back on, or None.
        forgotten: (B, H), minus the sum of the logarithms of all decays so far, nats.
    """

    state: MemoryState
    history: Tensor | None
    forgotten: Tensor


class KanervaOutput(NamedTuple):
    """What `KanervaLayer` returns.

    Attributes:
        hidden_states: (B, T, d_model); 0 at padding.
        cache: for the next call, if it was asked for, else None.
        read_var: (B, T, H), predictive variance of each head's read, in the state's dtype; of no
            meaning at padding.
        log_evidence: (B, H), ln p(values | keys) of each head, nats; (1, N, H) of packed sequences.
    """

    hidden_states: Tensor
    cache: KanervaCache | None
    read_var: Tensor
    log_evidence: Tensor


class KanervaLayer(nn.Module):
    """Causal sequence mixing by exact recursive least squares, with the memory's uncertainty.

    Each head writes (key, value) of every token into a Bayesian memory of head_dim slots and then
    reads it at the query (`ops.causal_scan`). DeltaNet (Yang et al., 2024), MesaNet (von Oswald et
    al., 2025) and Gated KalmaNet (2025) approximate this update or iterate towards it; the
    interface is theirs: query, key and value projections, a short causal convolution, gates per
    head and token (here the observation noise and the decay), a normalised and gated output.
    Queries and keys have norm one and the prior is ``M ~ MN(0, I, I)``.

    Args:
        d_model: width of the tokens.
        num_heads: H, number of heads.
        head_dim: K, size of keys and queries, and slots of a head's memory; None: d_model / H.
        value_dim: C, size of a head's values; None: head_dim.
        conv_size: taps of the depthwise causal convolution over queries, keys and values; 0: none.
        use_decay: forget exponentially, by a decay per head and token. Along directions that are
            not written at any more the variance grows as the decays multiply; once they come to
            1e-3 in a sequence the layer forgets no further, so that float32 can hold it.
        use_gate: multiply the output of each head by ``silu`` of a projection of the token.
        noise_var: observation noise variance at the start of training, > noise_floor.
        noise_floor: the smallest that it can become, > 0.
        norm_eps: of the RMS norm of each head's output.
        chunk_size: see `ops.causal_scan`.
        backend: see `ops.bayes_write`.

    The memory is float32 (float64 after ``.double()``) whatever the dtype of the module.

    >>> import torch, kanerva_ext
    >>> layer = kanerva_ext.KanervaLayer(64, num_heads=4)
    >>> out = layer(torch.randn(2, 10, 64))
    >>> out.hidden_states.shape, out.read_var.shape
    (torch.Size([2, 10, 64]), torch.Size([2, 10, 4]))
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        value_dim: int | None = None,
        conv_size: int = 4,
        use_decay: bool = True,
        use_gate: bool = True,
        noise_var: float = 0.25,
        noise_floor: float = 1e-3,
        norm_eps: float = 1e-5,
        chunk_size: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("d_model", d_model, 1),
            ("num_heads", num_heads, 1),
            ("head_dim", head_dim, 1),
            ("value_dim", value_dim, 1),
            ("conv_size", conv_size, 0),
            ("chunk_size", chunk_size, 1),
        ):
            optional = name in ("head_dim", "value_dim", "chunk_size")
            if not (optional and value is None):
                _check_int(name, value, least)
        if head_dim is None:
            if d_model % num_heads:
                raise ValueError(
                    f"KanervaLayer: d_model must be a multiple of num_heads = {num_heads} where "
                    f"head_dim is not given, got {d_model}"
                )
            head_dim = d_model // num_heads
        if not 0 < noise_floor < noise_var < math.inf:
            raise ValueError(
                "KanervaLayer: noise_var must be finite and above noise_floor, which must be "
                f"positive, got noise_var={noise_var}, noise_floor={noise_floor}"
            )
        self.d_model, self.num_heads = d_model, num_heads
        self.head_dim = head_dim
        self.value_dim = head_dim if value_dim is None else value_dim
        self.noise_floor, self.chunk_size = noise_floor, chunk_size
        self.backend = _backend.check_name(backend)
        self._widths = [num_heads * head_dim] * 2 + [num_heads * self.value_dim]

        self.qkv_proj = nn.Linear(d_model, sum(self._widths), bias=False)
        self.conv = _ShortConvolution(sum(self._widths), conv_size) if conv_size > 1 else None
        self.noise_proj = nn.Linear(d_model, num_heads)
        self.decay_proj = nn.Linear(d_model, num_heads) if use_decay else None
        self.gate_proj = nn.Linear(d_model, self._widths[2], bias=False) if use_gate else None
        self.norm = nn.RMSNorm(self.value_dim, eps=norm_eps)
        self.out_proj = nn.Linear(self._widths[2], d_model, bias=False)
        # Gates start at noise_var, and at decays that halve a memory in 700 to 70,000 tokens.
        nn.init.constant_(self.noise_proj.bias, _inverse_softplus(noise_var - noise_floor))
        if self.decay_proj is not None:
            with torch.no_grad():
                rates = torch.logspace(-5, -3, num_heads)
                self.decay_proj.bias.copy_(rates.expm1().log())

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cache: KanervaCache | None = None,
        use_cache: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> KanervaOutput:
        """Mix the tokens of each sequence.

        Args:
            hidden_states: (B, T, d_model).
            attention_mask: (B, T), bool or integer; 0 marks padding, at any place, which is as if
                it were not there.
            cache: from the call with the tokens before these. Without gradients and for one token
                it is changed in place, and is the one returned.
            use_cache: return a cache.
            cu_seqlens: (N + 1,), bounds of N sequences packed in one row (B = 1), see
                `ops.causal_scan`; not with a mask or a cache.

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came.
        """
        self._check(hidden_states, attention_mask, cache, use_cache, cu_seqlens)
        x, kept, order = hidden_states, None, None
        if attention_mask is not None:
            kept, order = _padding_last(attention_mask != 0)
            x = _take(x, order).masked_fill(~kept[..., None], 0)
        mixed, history = self._project(x, kept, cache, use_cache, cu_seqlens)
        queries, keys, values = (self._heads(part) for part in mixed.split(self._widths, -1))
        queries, keys = (functional.normalize(part, dim=-1) for part in (queries, keys))
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        noise = functional.softplus(self.noise_proj(x).mT.to(dtype)) + self.noise_floor
        decay, forgotten = self._decay(x, kept, cache, cu_seqlens, dtype)
        mask = None if kept is None else kept[:, None].expand_as(noise)
        reads, read_var, state, log_evidence = self._scan(
            keys, values, queries, noise, mask, decay, cache, cu_seqlens
        )
        out = self._finish(reads, x)
        read_var = read_var.mT
        if order is not None:
            back = order.argsort(-1)
            out = _take(out.masked_fill(~kept[..., None], 0), back)
            read_var = _take(read_var, back)
        wanted = KanervaCache(state, history, forgotten) if use_cache else None
        return KanervaOutput(out, wanted, read_var, log_evidence)

    def _project(self, x, kept, cache, use_cache, cu_seqlens):
        """Queries, keys and values beside each other, convolved, and the history they leave."""
        mixed = self.qkv_proj(x)
        if self.conv is None:
            return mixed, None
        history = None if cache is None else cache.history
        counts = None if kept is None else kept.sum(-1)
        return self.conv(mixed, history, counts if use_cache else None, cu_seqlens)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _decay(self, x, kept, cache, cu_seqlens, dtype):
        """Decays (B, H, T) or None, and how much is forgotten after the last token."""
        before = None if cache is None else cache.forgotten
        if self.decay_proj is None:
            return None, x.new_zeros(len(x), self.num_heads) if before is None else before
        rate = functional.softplus(self.decay_proj(x).mT.to(dtype))
        if kept is not None:
            rate = rate * kept[:, None]
        asked = rate.detach()
        total, forgotten = asked.cumsum(-1), asked.sum(-1)
        if cu_seqlens is not None:
            total = _since_start(total, asked, cu_seqlens)
        if before is not None:
            total, forgotten = total + before[..., None], forgotten + before
        room = FORGETTING_LIMIT - (total - asked)
        rate = torch.minimum(rate, room.clamp(min=0))
        return torch.exp(-rate), forgotten.clamp(max=FORGETTING_LIMIT)

    def _scan(self, keys, values, queries, noise, mask, decay, cache, cu_seqlens):
        if cache is not None and keys.shape[2] == 1 and not torch.is_grad_enabled():
            step = [None if x is None else x.select(2, 0) for x in (mask, decay)]
            reads, read_var, log_evidence = ops.causal_step(
                *cache.state,
                *(x.select(2, 0) for x in (keys, values, queries, noise)),
                mask=step[0],
                decay=step[1],
                backend=self.backend,
            )
            return reads[:, :, None], read_var[..., None], cache.state, log_evidence
        mean, cov = (None, None) if cache is None else cache.state
        reads, read_var, mean, cov, log_evidence = ops.causal_scan(
            *(mean, cov, keys, values, queries, noise),
            mask=mask,
            decay=decay,
            cu_seqlens=cu_seqlens,
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        if cu_seqlens is not None:
            log_evidence = log_evidence.mT
        return reads, read_var, MemoryState(mean, cov), log_evidence

    def _finish(self, reads: Tensor, x: Tensor) -> Tensor:
        out = self.norm(reads.transpose(1, 2).to(x.dtype)).flatten(2)
        if self.gate_proj is not None:
            out = out * functional.silu(self.gate_proj(x))
        return self.out_proj(out)

    def _check(self, hidden_states, attention_mask, cache, use_cache, cu_seqlens) -> None:
        if not isinstance(hidden_states, Tensor):
            _wrong("hidden_states", "a torch.Tensor", hidden_states)
        shape = tuple(hidden_states.shape)
        if len(shape) != 3 or shape[-1] != self.d_model:
            raise ValueError(
                f"KanervaLayer: hidden_states must have shape (B, T, d_model = {self.d_model}), "
                f"got {shape}"
            )
        if attention_mask is not None:
            if not isinstance(attention_mask, Tensor):
                _wrong("attention_mask", "a torch.Tensor or None", attention_mask)
            if attention_mask.dtype not in MASK_DTYPES:
                raise TypeError(
                    "KanervaLayer: attention_mask must be bool or integer, got "
                    f"{attention_mask.dtype}"
                )
            if tuple(attention_mask.shape) != shape[:2]:
                raise ValueError(
                    f"KanervaLayer: attention_mask must have shape (B, T) = {shape[:2]}, the "
                    f"tokens of this call alone, got {tuple(attention_mask.shape)}"
                )
        if cache is not None:
            if not isinstance(cache, KanervaCache):
                _wrong("cache", "a KanervaCache or None", cache)
            expected = (shape[0], self.num_heads, self.head_dim, self.value_dim)
            if tuple(cache.state.mean.shape) != expected:
                raise ValueError(
                    f"KanervaLayer: cache must hold a mean of shape (B, H, K, C) = {expected}, got "
                    f"{tuple(cache.state.mean.shape)}"
                )
        if cu_seqlens is not None:
            if shape[0] != 1:
                raise ValueError(
                    f"KanervaLayer: hidden_states must have one row (B = 1) with cu_seqlens, got "
                    f"{shape}"
                )
            if attention_mask is not None or cache is not None or use_cache:
                raise ValueError(
                    "KanervaLayer: cu_seqlens must be None with attention_mask, cache or use_cache"
                )

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}, value_dim={self.value_dim}"


class _ShortConvolution(nn.Module):
    """Depthwise causal convolution of ``size`` taps and ``silu``."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(size, width))
        bound = 1 / math.sqrt(size)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x, history, counts, cu_seqlens):
        """x (B, T, width) after ``history``; also the history that its first ``counts`` tokens
        (None: all of them) leave."""
        steps, back = x.shape[1], self.size - 1
        if history is None:
            history = x.new_zeros(len(x), back, x.shape[-1])
        padded = torch.cat([history.to(x.dtype), x], 1)
        place = None if cu_seqlens is None else _places(cu_seqlens, steps)
        total = None
        for tap in range(self.size):
            term = padded[:, tap : tap + steps] * self.weight[tap]
            if place is not None:
                term = term * (place >= back - tap)[:, None]
            total = term if total is None else total + term
        if counts is None:
            history = padded[:, steps:]
        else:
            at = counts[:, None] + torch.arange(back, device=x.device)
            history = _take(padded, at)
        return functional.silu(total), history


def _places(cu_seqlens: Tensor, steps: int) -> Tensor:
    """(T,), the place of each token in its own sequence."""
    at = torch.arange(steps, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens, at, right=True) - 1
    return at - cu_seqlens[sequence]


def _since_start(total: Tensor, rate: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Sums from the start of each packed sequence, of sums from the start of all."""
    steps = total.shape[-1]
    start = torch.arange(steps, device=total.device) - _places(cu_seqlens, steps)
    return total - (total - rate)[..., start]


def _padding_last(kept: Tensor) -> tuple[Tensor, Tensor]:
    """A mask with its kept tokens first, and the order that brings them there."""
    order = torch.argsort(~kept, dim=-1, stable=True)
    return kept.gather(-1, order), order


def _take(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(*order.shape, x.shape[-1]))


def _inverse_softplus(x: float) -> float:
    return x + math.log(-math.expm1(-x))


def _wrong(name: str, expected: str, value: object):
    kind = "None" if value is None else type(value).__name__
    raise TypeError(f"KanervaLayer: {name} must be {expected}, got {kind}")


def _check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        _wrong(name, "an int", value)
    if value < least:
        raise ValueError(f"KanervaLayer: {name} must be at least {least}, got {value}")
