"""A frozen model with a hook at one of its layers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .._checks import check_int
from . import _layers

if TYPE_CHECKING:
    from .augmented import MemoryAugmented


class _Frozen:
    """What a model was before the first memory at one of its layers, and how many there are."""

    of: ClassVar[weakref.WeakKeyDictionary[nn.Module, _Frozen]] = weakref.WeakKeyDictionary()

    def __init__(self, model: nn.Module):
        self.training, self.count = model.training, 0
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    @classmethod
    def take(cls, model: nn.Module) -> None:
        cls.of.setdefault(model, cls(model)).count += 1
        model.eval().requires_grad_(False)

    @classmethod
    def give_back(cls, model: nn.Module) -> None:
        frozen = cls.of[model]
        frozen.count -= 1
        if not frozen.count:
            del cls.of[model]
            model.train(frozen.training)
            for parameter in frozen.parameters:
                parameter.requires_grad_(True)


class NoHook:
    """What a copy of a model has in the place of a memory's hook."""

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        return None


class _Hook:
    """Lets a layer read. A copy of the model, deep or by pickle, is a model without a memory."""

    def __init__(self, augmented: Attached):
        self.augmented = augmented

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return self.augmented._read_at_layer(module, args, output)

    def __reduce__(self):
        return NoHook, ()


class Attached(nn.Module):
    """See `MemoryAugmented`."""

    def __init__(self, model: nn.Module, layer: str, hidden_size: int | None) -> None:
        super().__init__()
        module = _layers.find_layer(model, layer)
        if hidden_size is None:
            hidden_size = _layers.width_of(model)
            if hidden_size is None:
                raise ValueError(
                    f"hidden_size must be given, the width of what {layer!r} returns: a "
                    f"{type(model).__name__} has no config.hidden_size"
                )
        self.hidden_size = check_int("", "hidden_size", hidden_size)
        self.layer = layer
        # Not submodules: neither their parameters nor their mode are this module's.
        self._frozen = (model, module)
        self._hook: Any = None
        self._enabled = True
        self._captured: list[Tensor] | None = None

    @property
    def model(self) -> nn.Module:
        """The frozen model. It reads the memory however it is called, by ``generate`` too."""
        return self._frozen[0]

    def attach(self) -> None:
        """Freeze the model and let its layer read, also after `remove`."""
        if self._hook is not None:
            return
        model, module = self._frozen
        _Frozen.take(model)
        self._hook = module.register_forward_hook(_Hook(self))

    def remove(self) -> None:
        """Give the model back as it was, without the hook and, once no other memory is at one of
        its layers, with its gradients."""
        if self._hook is None:
            return
        self._hook.remove()
        self._hook = None
        _Frozen.give_back(self.model)

    def __reduce_ex__(self, protocol: Any):
        raise TypeError(
            f"a {type(self).__name__} is neither pickled nor copied: save(folder) writes it, and "
            "load(folder, model) puts it at another model; state_dict() is its projections"
        )

    def __enter__(self: MemoryAugmented) -> MemoryAugmented:
        self.attach()
        return self

    def __exit__(self, *error) -> None:
        self.remove()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the model answers without the memory."""
        before, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = before

    def _read_at_layer(self, module: nn.Module, args: tuple, output: Any) -> Any:
        hidden = _layers.hidden_in(output, self.layer)
        if hidden.shape[-1] != self.hidden_size:
            raise ValueError(
                f"hidden_size must be {hidden.shape[-1]}, the width of what layer {self.layer!r} "
                f"returns, got {self.hidden_size}"
            )
        if self._captured is not None:
            self._captured.append(hidden.detach())
            return None
        if not self._enabled:
            return None
        return self._at_layer(output, hidden)

    def _at_layer(self, output: Any, hidden: Tensor) -> Any:
        """What the layer is to return instead; None: what it returned."""
        raise NotImplementedError

    def hidden(self, inputs: Any) -> Tensor:
        """The layer's hidden states (N, T, hidden_size), of the model without the memory.

        Args:
            inputs: what the model takes: a tensor, a tuple of arguments, or a mapping of named
                ones.
        """
        if self._hook is None:
            raise RuntimeError("the memory has been removed from the model: attach() puts it back")
        self._captured = []
        try:
            with torch.no_grad():
                _layers.run(self.model, inputs)
            found = self._captured
        finally:
            self._captured = None
        if not found:
            raise RuntimeError(f"the model did not call its layer {self.layer!r} on these inputs")
        return found[-1]

    def _apply(self, fn, recurse=True):
        self.model._apply(fn)
        return super()._apply(fn, recurse)
