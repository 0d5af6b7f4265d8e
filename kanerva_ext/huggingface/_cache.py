"""What a model carries from one call to the next: the `KanervaCache` of each layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cache import KanervaCache


class KanervaModelCache:
    """The caches of all layers, as transformers' ``generate`` handles one.

    A model changes it with every call, as others change theirs: ``copy.deepcopy`` it to go on from
    one prompt in several ways. Its size does not grow with the text, and no token can be taken
    back.

    Attributes:
        layers: the `KanervaCache` of each, empty before the first call.
        seen_tokens: tokens of each row so far, padding included.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        self.layers: list[KanervaCache] = []
        self.seen_tokens = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of each row so far, padding included."""
        return self.seen_tokens

    @property
    def is_initialized(self) -> bool:
        return bool(self.layers)

    @property
    def is_linear(self) -> list[bool]:
        """False for each layer: ``generate`` cuts a prompt that goes on by `get_seq_length`, which
        it does not for caches of linear attention, as they do not count."""
        return [False] * max(1, len(self.layers))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The rows of ``beam_idx`` (B',), in its order; some repeated, as beams go on."""
        self.layers = [cache.select(beam_idx.to(cache.state.mean.device)) for cache in self.layers]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows of ``indices`` (B',), in its order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times, one after another."""
        for i, cache in enumerate(self.layers):
            rows = torch.arange(cache.state.mean.shape[0], device=cache.state.mean.device)
            self.layers[i] = cache.select(rows.repeat_interleave(repeats))

    def detach(self) -> KanervaModelCache:
        """The same values without their gradients' history, as between pieces of a long text."""
        other = KanervaModelCache()
        other.layers = [cache.detach() for cache in self.layers]
        other.seen_tokens = self.seen_tokens
        return other

    def reset(self) -> None:
        """As before the first call."""
        self.layers, self.seen_tokens = [], 0

    def crop(self, *_) -> None:
        """Raises NotImplementedError: what was written is not taken back."""
        raise NotImplementedError(
            "KanervaModelCache: tokens that were written cannot be taken back; copy.deepcopy the "
            "cache before them"
        )

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"KanervaModelCache(layers={len(self.layers)}, seen_tokens={self.seen_tokens})"
