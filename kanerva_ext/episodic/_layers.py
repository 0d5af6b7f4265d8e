"""A named layer of a model: where it is, and the hidden states in what it returns."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: Names that an error shows.
SHOWN = 5


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The submodule of this name.

    Raises:
        TypeError, ValueError: there is none; the names most like it are shown.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(name, str):
        raise TypeError(f"layer must be the name of a submodule, got {type(name).__name__}")
    modules = {own: module for own, module in model.named_modules() if own}
    if name in modules:
        return modules[name]
    like = difflib.get_close_matches(name, modules, n=SHOWN, cutoff=0.4)
    # "layers.5" of four layers is most like "layers.0" to "layers.3"; "h" names none.
    shown = like or list(modules)[:SHOWN]
    raise ValueError(
        f"layer must be the name of a submodule of the {type(model).__name__}, got {name!r}; "
        + (
            f"{'close to it' if like else 'there'} are {', '.join(shown)}"
            if shown
            else "it has none"
        )
    )


def width_of(model: nn.Module) -> int | None:
    """The width that the configuration of a transformers model states."""
    size = getattr(getattr(model, "config", None), "hidden_size", None)
    return size if isinstance(size, int) else None


def hidden_in(output: Any, layer: str) -> Tensor:
    """The hidden states in what a layer returned: a tensor, or the first of a tuple or list.

    Raises:
        TypeError: there are none.
    """
    first = output[0] if isinstance(output, (tuple, list)) and len(output) else output
    if isinstance(first, Tensor) and first.is_nested:
        raise TypeError(
            f"layer {layer!r} must return hidden states of one length, got a nested tensor: make "
            "the nn.TransformerEncoder with enable_nested_tensor=False"
        )
    if isinstance(first, Tensor) and first.is_floating_point():
        return first
    found = type(output).__name__
    if isinstance(first, Tensor):
        found = f"a tensor of {first.dtype}"
    elif isinstance(output, (tuple, list)):
        found += f" that begins with {type(first).__name__}"
    raise TypeError(
        f"layer {layer!r} must return floating-point hidden states, or a tuple that begins with "
        f"them, got {found}"
    )


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """What a layer returned, with other hidden states in it."""
    if isinstance(output, Tensor):
        return hidden
    if hasattr(output, "_fields"):
        return output._replace(**{output._fields[0]: hidden})
    return type(output)((hidden, *output[1:]))


def run(model: nn.Module, inputs: Any) -> Any:
    """Call a model with one argument, a tuple of arguments, or named ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def last_positions(inputs: Any, hidden: Tensor) -> Tensor:
    """The last position of each row, or the last 1 of an ``attention_mask`` in the inputs."""
    rows, steps = hidden.shape[:2]
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if isinstance(mask, Tensor) and mask.shape == (rows, steps):
        index = torch.arange(1, steps + 1, device=mask.device)
        return (index * mask.bool()).amax(-1).clamp(min=1) - 1
    return torch.full((rows,), steps - 1)


def check_not_again(layer: str) -> None:
    """For a layer that read an episode, and is called when there is none any more.

    Raises:
        RuntimeError: a backward pass calls it, to have what a checkpoint did not keep.
    """
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"layer {layer!r} is computed again in the backward pass (activation checkpointing), "
            "but its episode has ended: call backward() within episode(...)"
        )
