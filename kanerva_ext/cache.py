"""What a sequence layer carries from one call to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._state import MemoryState, as_index, register_for_loading, wide_to


class KanervaCache(NamedTuple):
    """What `KanervaLayer` carries from one call to the next; its size does not grow.

    B counts sequences. A tuple, hence a pytree; ``torch.load`` takes it with ``weights_only=True``.
    `KanervaLayer` leaves a cache as it is unless it is called with ``inplace=True``, so that one
    prompt's cache serves any number of continuations.

    Attributes:
        state: the memory of each head, mean (B, H, K, C) and cov (B, H, K, K), float32 or float64.
        history: (B, conv_size - 1, width), what the short convolution looks back on, or None.
        forgotten: (B, H), minus the sum of the logarithms of all decays so far, nats; dtype of the
            state. Of layers with ``dynamics="decay"`` alone, None of others, which need no such
            count: a layer refuses the cache of another kind.

    >>> import torch, kanerva_ext
    >>> layer = kanerva_ext.KanervaLayer(8, num_heads=2)
    >>> prompt = layer(torch.randn(1, 5, 8), use_cache=True).cache
    >>> beams = prompt.select([0, 0, 0])  # three continuations of one prompt
    >>> beams.state.mean.shape
    torch.Size([3, 2, 4, 4])
    """

    state: MemoryState
    history: Tensor | None
    forgotten: Tensor | None

    def clone(self) -> KanervaCache:
        """A copy that shares no memory with this one."""
        return self._replace(
            state=self.state.clone(), **{name: _clone(x) for name, x in self._optional()}
        )

    def select(self, index: Tensor | Sequence[int]) -> KanervaCache:
        """The sequences of ``index``, in its order: a copy.

        Args:
            index: (B',) integers in 0 .. B - 1, a tensor or a sequence; repeated where a sequence
                is to go on in several ways, as in beam search.

        Raises:
            TypeError, ValueError, IndexError: an index of the wrong kind, shape or range.
        """
        index = as_index("KanervaCache.select", index, self.state.mean)
        return self._replace(
            state=self.state.select(index),
            **{name: x.index_select(0, index) for name, x in self._optional()},
        )

    def detach(self) -> KanervaCache:
        """The same values without their gradients' history, as between pieces of a long text."""
        return self._replace(
            state=self.state.detach(), **{name: x.detach() for name, x in self._optional()}
        )

    def to(self, *args, **kwargs) -> KanervaCache:
        """Every field brought to a device, a dtype, or both, as ``torch.Tensor.to``.

        A memory is float32 or float64: a half-precision dtype is for ``history`` alone.
        """
        history = None if self.history is None else self.history.to(*args, **kwargs)
        forgotten = None if self.forgotten is None else wide_to(self.forgotten, *args, **kwargs)
        return KanervaCache(self.state.to(*args, **kwargs), history, forgotten)

    def _optional(self) -> list[tuple[str, Tensor]]:
        """The fields that may be None, of those that are not."""
        named = (("history", self.history), ("forgotten", self.forgotten))
        return [(name, x) for name, x in named if x is not None]


def _clone(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def check_cache(
    op: str,
    cache: object,
    mean_shape: tuple[int, ...],
    history_shape: tuple[int, ...] | None,
    decays: bool,
    x: Tensor,
) -> None:
    """Raise unless every field has the shape, dtype and device that a layer leaves for ``x``.

    Args:
        op: the layer's name.
        cache: to look at.
        mean_shape: (B, H, K, C) of the memories.
        history_shape: (B, conv_size - 1, width); None: without a convolution.
        decays: whether the layer forgets by decays, whose product it counts.
        x: the tokens; float64 ones go with a float64 cache, all others with a float32 one.

    Raises:
        TypeError, ValueError: naming the field, what was expected and what came.
    """
    if not isinstance(cache, KanervaCache):
        kind = "None" if cache is None else type(cache).__name__
        raise TypeError(f"{op}: cache must be a KanervaCache or None, got {kind}")
    double = x.dtype == torch.float64
    wide = (torch.float64,) if double else (torch.float32,)
    narrow = wide if double else (torch.float32, torch.bfloat16, torch.float16)
    if (cache.history is None) != (history_shape is None):
        expected = "None" if history_shape is None else f"of shape {history_shape}"
        found = "None" if cache.history is None else f"of shape {tuple(cache.history.shape)}"
        raise ValueError(
            f"{op}: cache must hold a history {expected}, which a layer of this conv_size leaves, "
            f"got {found}"
        )
    if (cache.forgotten is None) == decays:
        kinds = (
            "a layer with dynamics='decay'",
            "one with dynamics='stationary' or that forgets nothing",
        )
        expected, found = kinds if decays else kinds[::-1]
        raise ValueError(
            f"{op}: cache must come from {expected}, like this one, got that of {found}"
        )
    state = cache.state
    if not isinstance(state, tuple) or len(state) != 2:
        raise TypeError(f"{op}: cache must hold a MemoryState, got {type(state).__name__}")
    slots = mean_shape[2]
    for name, tensor, letters, shape, dtypes in (
        ("mean", state[0], "(B, H, K, C)", mean_shape, wide),
        ("cov", state[1], "(B, H, K, K)", (*mean_shape[:2], slots, slots), wide),
        ("history", cache.history, "(B, conv_size - 1, width)", history_shape, narrow),
        ("forgotten", cache.forgotten, "(B, H)", mean_shape[:2] if decays else None, wide),
    ):
        if shape is None:
            continue
        where = f"{op}: cache must hold a {name}"
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{where} that is a torch.Tensor, got {type(tensor).__name__}")
        if tensor.shape != shape:
            raise ValueError(
                f"{where} of shape {letters} = {tuple(shape)}, got {tuple(tensor.shape)}"
            )
        if tensor.dtype not in dtypes:
            raise TypeError(
                f"{where} of {' or '.join(map(str, dtypes))} for tokens of {x.dtype}, got "
                f"{tensor.dtype}"
            )
        if tensor.device != x.device:
            raise ValueError(f"{where} on {x.device} like the tokens, got {tensor.device}")


register_for_loading(KanervaCache)
