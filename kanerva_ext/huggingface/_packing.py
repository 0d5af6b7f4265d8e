"""Texts packed in one row, by each of the names that transformers has for their bounds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def bounds_of(
    cu_seqlens: Tensor | None, attention_mask: Tensor | None, others: Mapping[str, object]
) -> Tensor | None:
    """The bounds of packed texts: ``cu_seqlens``, ``cu_seq_lens_q``, or what ``position_ids`` that
    start again in a row of tokens say.

    Args:
        cu_seqlens: (N + 1,) or None.
        attention_mask: where there is padding, positions start again without a new text.
        others: the other arguments of the call.

    Raises:
        TypeError: a name like cu_seqlens that no model knows.
        ValueError: position_ids that start again in several rows.
    """
    for name in others:
        if name.startswith("cu_") and name not in ("cu_seq_lens_q", "cu_seq_lens_k"):
            raise TypeError(f"KanervaModel: there is no argument {name}, but cu_seqlens")
    if cu_seqlens is None:
        cu_seqlens = others.get("cu_seq_lens_q")
    positions = others.get("position_ids")
    if cu_seqlens is not None or not isinstance(positions, Tensor) or positions.shape[-1] < 2:
        return cu_seqlens
    if attention_mask is not None or torch.compiler.is_compiling():
        return None
    rows = positions.reshape(-1, positions.shape[-1])
    starts = rows[:, 1:] <= rows[:, :-1]
    if not starts.any():
        return None
    if len(rows) > 1:
        raise ValueError(
            "KanervaModel: position_ids must not start again within the rows of a batch, got "
            f"{tuple(positions.shape)} that do: pack texts into one row, or give cu_seqlens"
        )
    ends = torch.tensor([0, rows.shape[1]], device=rows.device)
    return torch.cat([ends[:1], starts[0].nonzero()[:, 0] + 1, ends[1:]])
