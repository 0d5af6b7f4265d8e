"""Numbers of a module that are no parameters, and change what it computes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SavedSettings(nn.Module):
    """Its ``state_dict`` holds its `settings`, as extra state, and refuses those of others.

    A checkpoint without them loads, as one did before there were any.
    """

    def settings(self) -> dict[str, float]:
        """Names and values, in an order that never changes: a new one goes to the end."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        """The settings, float64 on the CPU."""
        return torch.tensor(list(self.settings().values()), dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: a checkpoint of other values is refused, see `_load_from_state_dict`."""

    def _differ(self, theirs: float, ours: float) -> bool:
        return not math.isclose(theirs, ours, rel_tol=1e-6)

    def _as_given(self, name: str, value: float) -> str:
        """How the constructor takes it, for a message."""
        return f"{value:g}"

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        key = f"{prefix}_extra_state"
        saved = state_dict.setdefault(key, self.get_extra_state())
        if isinstance(saved, Tensor) and saved.dim() == 1:
            for (name, ours), theirs in zip(self.settings().items(), saved.tolist(), strict=False):
                if self._differ(theirs, ours):
                    saved_as, here = self._as_given(name, theirs), self._as_given(name, ours)
                    error_msgs.append(
                        f"{prefix}{name} is {saved_as} in the checkpoint and {here} in this "
                        f"{type(self).__name__}: construct it with {name}={saved_as} (or remove "
                        f"{key!r} from the checkpoint)"
                    )
        else:
            error_msgs.append(
                f"{key} must be a tensor of the settings {list(self.settings())}, got "
                f"{type(saved).__name__}"
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
