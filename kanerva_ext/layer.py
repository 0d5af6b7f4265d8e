"""A causal sequence layer whose memory is the exact Bayesian one, in place of attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import _backend, ops
from ._checks import check_choice, check_flags, check_int
from ._convolution import ShortConvolution
from ._layer_checks import (
    GATES,
    check_gates,
    check_mask,
    check_noise,
    check_norm_eps,
    wrong,
)
from ._layer_gates import Gate, inverse_softplus, limited_decay, retention_of
from ._packing import check_cu_seqlens, places
from ._settings import SavedSettings
from ._state import MemoryState, register_for_loading
from .cache import KanervaCache, check_cache

__all__ = ["KanervaCache", "KanervaLayer", "KanervaOutput"]

SMALLEST_NORM = 1e-2  # of a query or key that is brought to norm one; smaller ones stay smaller


class KanervaOutput(NamedTuple):
    """What `KanervaLayer` returns.

    Attributes:
        hidden_states: (B, T, d_model); 0 at padding.
        cache: for the next call, if it was asked for, else None; of N packed sequences, a cache
            with N for B.
        read_var: (B, T, H), predictive variance of each head's read, in the state's dtype; 0 at
            padding.
        log_evidence: (B, H), ln p(values | keys) of each head, nats; (1, N, H) of packed sequences.
    """

    hidden_states: Tensor
    cache: KanervaCache | None
    read_var: Tensor
    log_evidence: Tensor


class KanervaLayer(SavedSettings):
    """Causal sequence mixing by exact recursive least squares, with the memory's uncertainty.

    Each head writes (key, value) of every token into a Bayesian memory of head_dim slots and then
    reads it at the query (`ops.causal_scan`). DeltaNet (Yang et al., 2024), MesaNet (von Oswald et
    al., 2025) and Gated KalmaNet (2025) approximate this update or iterate towards it; the
    interface is theirs: query, key and value projections, a short causal convolution, gates per
    head and token (here the observation noise and the forgetting), a normalised and gated output.
    Queries and keys have norm one (less where a projection is below 1e-2, so that a zero token has
    a gradient) and the prior is ``M ~ MN(0, I, I)``.

    Args:
        d_model: width of the tokens.
        num_heads: H, number of heads, each with a memory.
        num_kv_heads: heads of queries and keys, a divisor of H; None: H. With fewer, each serves
            H / num_kv_heads memories with values, noise and decay of their own (grouped-value
            attention, as in Gated DeltaNet, Yang et al., 2025).
        head_dim: K, size of keys and queries, and slots of a head's memory; None: d_model / H.
        value_dim: C, size of a head's values; None: head_dim.
        conv_size: taps of the depthwise causal convolution over queries, keys and values; 0: none.
        use_decay: forget, by a gate per head and token.
        dynamics: what forgetting is. ``"stationary"``: the memory drifts back to its prior, ``M <-
            a M + sqrt(1 - a^2) N`` with ``N ~ MN(0, I, I)`` and the gate's ``a =
            exp(-softplus(retention_proj(x)))`` (``retention`` of `ops.causal_scan`), which starts
            at 0.9999 in the first head to 0.905 in the last: nothing grows, and there is no limit.
            ``"decay"``: exponential forgetting. Along directions that are not written at any more
            the variance grows as the decays multiply; once they come to 1e-3 in a sequence the
            layer forgets no further, so that float32 can hold it; the gate is ``decay_proj``, and
            the other dynamics' is None. Without ``use_decay``: either.
        use_gate: multiply the output of each head by ``silu`` of a projection of the token.
        noise_var: observation noise variance at the start of training, > noise_floor.
        noise_floor: the smallest that it can become, > 0.
        norm_eps: of the RMS norm of each head's output; 1 leaves small reads their size, which
            helps where answers are numbers (`docs/sequence_layer.md`).
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
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        conv_size: int = 4,
        use_decay: bool = True,
        dynamics: str = "stationary",
        use_gate: bool = True,
        noise_var: float = 0.25,
        noise_floor: float = 1e-3,
        norm_eps: float = 1e-5,
        chunk_size: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        d_model = check_int("KanervaLayer", "d_model", d_model)
        num_heads = check_int("KanervaLayer", "num_heads", num_heads)
        num_kv_heads = check_int("KanervaLayer", "num_kv_heads", num_kv_heads, optional=True)
        head_dim = check_int("KanervaLayer", "head_dim", head_dim, optional=True)
        value_dim = check_int("KanervaLayer", "value_dim", value_dim, optional=True)
        conv_size = check_int("KanervaLayer", "conv_size", conv_size, least=0)
        chunk_size = check_int("KanervaLayer", "chunk_size", chunk_size, optional=True)
        if head_dim is None:
            if d_model % num_heads:
                raise ValueError(
                    f"KanervaLayer: d_model must be a multiple of num_heads = {num_heads} where "
                    f"head_dim is not given, got {d_model}"
                )
            head_dim = d_model // num_heads
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads % num_kv_heads:
            raise ValueError(
                f"KanervaLayer: num_kv_heads must divide num_heads = {num_heads}, got "
                f"{num_kv_heads}"
            )
        check_noise(noise_var, noise_floor)
        check_choice("KanervaLayer", "dynamics", dynamics, tuple(GATES.values()))
        check_flags("KanervaLayer", use_decay=use_decay, use_gate=use_gate)
        check_norm_eps(norm_eps)
        self.dynamics = dynamics
        self.d_model, self.num_heads, self.num_kv_heads = d_model, num_heads, num_kv_heads
        self.head_dim = head_dim
        self.value_dim = head_dim if value_dim is None else value_dim
        self.noise_floor, self.chunk_size = noise_floor, chunk_size
        self.backend = _backend.check_name(backend)
        self._widths = [num_kv_heads * head_dim] * 2 + [num_heads * self.value_dim]

        self.qkv_proj = nn.Linear(d_model, sum(self._widths), bias=False)
        self.conv = ShortConvolution(sum(self._widths), conv_size) if conv_size > 1 else None
        # Gates start at noise_var, and at decays that halve a memory in 700 to 70,000 tokens,
        # or retentions that do in 7 to 7,000.
        start = [inverse_softplus(noise_var - noise_floor)] * num_heads
        self.noise_proj = Gate(d_model, start)
        moves = dynamics == "stationary"
        slowest, fastest = (-4, -1) if moves else (-5, -3)
        rates = torch.logspace(slowest, fastest, num_heads, device="cpu")
        start = rates.expm1().log().tolist()
        self.decay_proj = Gate(d_model, start) if use_decay and not moves else None
        self.retention_proj = Gate(d_model, start) if use_decay and moves else None
        self.gate_proj = nn.Linear(d_model, self._widths[2], bias=False) if use_gate else None
        self.norm = nn.RMSNorm(self.value_dim, eps=norm_eps)
        self.out_proj = nn.Linear(self._widths[2], d_model, bias=False)

    def settings(self) -> dict[str, float]:
        """What the ``state_dict`` holds beside the parameters."""
        return {"noise_floor": self.noise_floor, "norm_eps": float(self.norm.eps or 0)}

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, *rest) -> None:
        gates = {name for name in GATES if getattr(self, name) is not None}
        check_gates(gates, state_dict, prefix, rest[-1])
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)

    def reset_parameters(self) -> None:
        """Draw every parameter anew, as the constructor does; also after ``to_empty``."""
        for module in self.children():
            module.reset_parameters()

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cache: KanervaCache | None = None,
        use_cache: bool = False,
        cu_seqlens: Tensor | None = None,
        inplace: bool = False,
    ) -> KanervaOutput:
        """Mix the tokens of each sequence.

        Args:
            hidden_states: (B, T, d_model), in the dtype of the parameters (any floating one under
                autocast).
            attention_mask: (B, T), bool, integer or floating 0 and 1; 0 marks padding, at any
                place, which is as if it were not there. With a cache also (B, S) with S > T, for
                all tokens so far: its last T count.
            cache: from the call with the tokens before these; of B sequences, or of the N packed
                ones. It is left as it is, and may serve several continuations.
            use_cache: return a cache.
            cu_seqlens: (N + 1,), bounds of N sequences packed in one row (B = 1), see
                `ops.causal_scan`; not with a mask. The cache is then that of N sequences, and
                decoding can go on with B = N.
            inplace: change every field of ``cache``, and return it: for decoding without an
                allocation of the state. Without gradients alone.

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came.
            RuntimeError: ``inplace`` where a gradient is needed.
        """
        mask, bounds = self._check(hidden_states, attention_mask, cache, cu_seqlens, inplace)
        x, kept, order = hidden_states, None, None
        where = None if bounds is None else places(bounds, x.shape[1])
        if mask is not None:
            kept, order = _padding_last(mask)
            x = _take(x, order).masked_fill(~kept[..., None], 0)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        wanted = use_cache or inplace
        mixed, history = self._project(x, kept, cache, wanted, where)
        queries, keys, values = mixed.split(self._widths, -1)
        queries, keys = (
            _unit(self._heads(part, self.num_kv_heads).to(dtype)) for part in (queries, keys)
        )
        if self.num_kv_heads != self.num_heads:
            each = self.num_heads // self.num_kv_heads
            queries, keys = (part.repeat_interleave(each, 1) for part in (queries, keys))
        values = self._heads(values, self.num_heads)
        noise = functional.softplus(self.noise_proj(x).mT.to(dtype)) + self.noise_floor
        decay, retention, forgotten = self._forget(x, kept, cache, where, dtype)
        mask = None if kept is None else kept[:, None].expand_as(noise)
        reads, read_var, state, log_evidence = self._scan(
            keys, values, queries, noise, mask, decay, retention, cache, bounds, inplace
        )
        out = self._finish(reads, x)
        read_var = read_var.mT
        if order is not None:
            back = order.argsort(-1)
            out = _take(out.masked_fill(~kept[..., None], 0), back)
            read_var = _take(read_var.masked_fill(~kept[..., None], 0), back)
        if inplace:
            _overwrite(cache, state, history, forgotten)
        elif use_cache:
            cache = KanervaCache(state, history, forgotten)
        return KanervaOutput(out, cache if wanted else None, read_var, log_evidence)

    def _project(self, x, kept, cache, wanted, where):
        """Queries, keys and values beside each other, convolved, and the history they leave."""
        mixed = self.qkv_proj(x)
        if self.conv is None:
            return mixed, None
        history = None if cache is None else cache.history
        counts = None if kept is None else kept.sum(-1)
        return self.conv(mixed, history, counts, where, wanted)

    def _heads(self, x: Tensor, count: int) -> Tensor:
        return x.unflatten(-1, (count, -1)).transpose(1, 2)

    def _forget(self, x, kept, cache, where, dtype):
        """Decays and retentions, (B, H, T) or None, and what a cache says was forgotten."""
        if self.decay_proj is not None:
            before = None if cache is None else cache.forgotten
            rate = self._rate(self.decay_proj, x, kept, dtype)
            decay, forgotten = limited_decay(rate, before, where)
            return decay, None, forgotten
        if self.retention_proj is not None:
            return None, retention_of(self._rate(self.retention_proj, x, kept, dtype)), None
        return None, None, None

    def _rate(self, gate: Gate, x: Tensor, kept: Tensor | None, dtype: torch.dtype) -> Tensor:
        """How much is forgotten before each token, nats, (B, H, T); 0 at padding."""
        rate = functional.softplus(gate(x).mT.to(dtype))
        return rate if kept is None else rate * kept[:, None]

    def _scan(self, keys, values, queries, noise, mask, decay, retention, cache, bounds, inplace):
        one = cache is not None and bounds is None and keys.shape[2] == 1
        if one and (inplace or not _needs_scan()):
            state = cache.state if inplace else cache.state.clone()
            step = [
                None if x is None else x.select(2, 0).flatten(0, 1)  # a memory is an item
                for x in (keys, values, queries, noise, mask, decay, retention)
            ]
            results = ops.causal_step(
                *(y.flatten(0, 1) for y in state),
                *step[:4],
                mask=step[4],
                decay=step[5],
                retention=step[6],
                backend=self.backend,
            )
            reads, read_var, log_evidence = (y.unflatten(0, state.mean.shape[:2]) for y in results)
            return reads[:, :, None], read_var[..., None], state, log_evidence
        mean, cov = (None, None) if cache is None else cache.state
        if bounds is not None and cache is not None:  # a head is an item, with N sequences
            mean, cov = (y.transpose(0, 1)[None] for y in (mean, cov))
        reads, read_var, mean, cov, log_evidence = ops.causal_scan(
            *(mean, cov, keys, values, queries, noise),
            mask=mask,
            decay=decay,
            retention=retention,
            cu_seqlens=bounds,
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        if bounds is not None:
            mean, cov = (y[0].transpose(0, 1).contiguous() for y in (mean, cov))
            log_evidence = log_evidence.mT
        return reads, read_var, MemoryState(mean, cov), log_evidence

    def _finish(self, reads: Tensor, x: Tensor) -> Tensor:
        # In the dtype of the memory: a half-precision read-out may overflow, and its eps vanish.
        out = functional.rms_norm(
            reads.transpose(1, 2),
            self.norm.normalized_shape,
            self.norm.weight.to(reads.dtype),
            self.norm.eps,
        )
        out = out.to(x.dtype).flatten(2)
        if self.gate_proj is not None:
            out = out * functional.silu(self.gate_proj(x))
        return self.out_proj(out)

    def _check(
        self, hidden_states, attention_mask, cache, cu_seqlens, inplace
    ) -> tuple[Tensor | None, Tensor | None]:
        """The mask (B, T) as bool, and the bounds of packed sequences as int64."""
        self._check_tokens(hidden_states)
        shape = tuple(hidden_states.shape)
        mask = bounds = None
        if attention_mask is not None:
            mask = check_mask(attention_mask, shape[:2], cache is not None)
        count = shape[0]
        if cu_seqlens is not None:
            if shape[0] != 1:
                raise ValueError(
                    f"KanervaLayer: hidden_states must have one row (B = 1) with cu_seqlens, got "
                    f"{shape}"
                )
            if attention_mask is not None:
                raise ValueError("KanervaLayer: cu_seqlens must be None with attention_mask")
            bounds = check_cu_seqlens(
                "KanervaLayer", cu_seqlens, shape[1], hidden_states.device, "hidden_states"
            )
            count = bounds.shape[0] - 1
        if cache is not None:
            mean_shape = (count, self.num_heads, self.head_dim, self.value_dim)
            history_shape = None
            if self.conv is not None:
                history_shape = (count, self.conv.size - 1, sum(self._widths))
            check_cache(
                "KanervaLayer",
                cache,
                mean_shape,
                history_shape,
                self.decay_proj is not None,
                hidden_states,
            )
        if inplace:
            self._check_inplace(hidden_states, cache)
        return mask, bounds

    def _check_tokens(self, hidden_states) -> None:
        if not isinstance(hidden_states, Tensor):
            wrong("hidden_states", "a torch.Tensor", hidden_states)
        if not hidden_states.is_floating_point():
            raise TypeError(
                f"KanervaLayer: hidden_states must have a floating-point dtype, got "
                f"{hidden_states.dtype}"
            )
        shape = tuple(hidden_states.shape)
        if len(shape) != 3 or shape[-1] != self.d_model:
            raise ValueError(
                f"KanervaLayer: hidden_states must have shape (B, T, d_model = {self.d_model}), "
                f"got {shape}"
            )
        weight, device = self.noise_proj.weight, hidden_states.device.type
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        if weight.dtype != hidden_states.dtype and weight.is_floating_point() and not autocast:
            raise TypeError(
                f"KanervaLayer: hidden_states must be {weight.dtype} like the layer's parameters, "
                f"got {hidden_states.dtype}"
            )

    def _check_inplace(self, hidden_states, cache) -> None:
        if cache is None:
            raise ValueError("KanervaLayer: inplace=True needs a cache to change, got cache=None")
        fields = [x for x in (*cache.state, cache.history, cache.forgotten) if x is not None]
        given = (hidden_states, *self.parameters()) if torch.is_grad_enabled() else ()
        if any(x.requires_grad for x in (*fields, *given)):
            raise RuntimeError(
                "KanervaLayer: inplace=True changes the cache, so that there is no gradient, and "
                "one is needed: call it under torch.no_grad(), with cache.detach() where the cache "
                "requires one, or with inplace=False"
            )
        # Before the first field changes: a step that fails half-way would be lost.
        writable = torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
        for field in fields:
            if not field.is_contiguous():
                raise ValueError(
                    "KanervaLayer: cache must be contiguous with inplace=True: clone() it"
                )
            if not writable and field.is_inference():
                raise ValueError(
                    "KanervaLayer: cache must not come from torch.inference_mode with inplace=True "
                    "outside of it: clone() it"
                )

    def extra_repr(self) -> str:
        parts = [f"num_heads={self.num_heads}"]
        if self.num_kv_heads != self.num_heads:
            parts.append(f"num_kv_heads={self.num_kv_heads}")
        if self.decay_proj is not None:
            parts.append("dynamics='decay'")
        return ", ".join([*parts, f"head_dim={self.head_dim}", f"value_dim={self.value_dim}"])


def _needs_scan() -> bool:
    """Whether a step must not be made in place, not even on a copy of the state."""
    if torch.is_grad_enabled():
        return True
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _unit(x: Tensor) -> Tensor:
    """``x`` with norm one over its last dimension, or ``x / SMALLEST_NORM`` where it is smaller."""
    return x * x.square().sum(-1, keepdim=True).clamp(min=SMALLEST_NORM**2).rsqrt()


def _overwrite(cache: KanervaCache, state: MemoryState, history, forgotten: Tensor) -> None:
    pairs = [(cache.state.mean, state.mean), (cache.state.cov, state.cov)]
    pairs += [(cache.history, history), (cache.forgotten, forgotten)]
    for old, new in pairs:
        if old is not new and old is not None:
            old.copy_(new)


def _padding_last(kept: Tensor) -> tuple[Tensor, Tensor]:
    """A mask with its kept tokens first, and the order that brings them there."""
    order = torch.argsort(~kept, dim=-1, stable=True)
    return kept.gather(-1, order), order


def _take(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(*order.shape, x.shape[-1]))


register_for_loading(KanervaOutput)
