"""Checkpoints: everything that a training needs to go on, in one safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import __version__, pretrained
from .._safetensors import (
    CHECKPOINT,
    MODEL,
    field,
    of_another_version,
    read_tensors,
    with_prefix,
    write_tensors,
)
from ._config import Config, ConfigError, from_dict

FILE = CHECKPOINT
_MODEL, _OPTIMIZER = MODEL, "optimizer."


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        config: of the run.
        step: steps made.
        seconds: of training until then.
        extra: whatever else was saved, as JSON has it.
        tensors: of the model and the optimiser, by name.
        of_another_version: what to add to errors of a file that another version wrote.
    """

    config: Config
    step: int
    seconds: float
    extra: dict[str, Any]
    tensors: dict[str, Tensor]
    of_another_version: str = ""

    def restore_model(self, model: nn.Module) -> None:
        model.load_state_dict(with_prefix(self.tensors, _MODEL))

    def restore_matching(self, model: nn.Module) -> list[str]:
        """Restore what has the same name and shape in the model, but its settings; the names."""
        own = model.state_dict()
        saved = with_prefix(self.tensors, _MODEL)
        names = [n for n, tensor in saved.items() if n in own and tensor.shape == own[n].shape]
        names = [n for n in names if not n.endswith("_extra_state")]
        model.load_state_dict(own | {name: saved[name] for name in names})
        return names

    def restore_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """State of every parameter, by the model's names for them."""
        saved = with_prefix(self.tensors, _OPTIMIZER)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        state = optimizer.state_dict()
        order = [p for group in optimizer.param_groups for p in group["params"]]
        state["state"] = {}
        for i, parameter in enumerate(order):
            start = f"{names[id(parameter)]}/"
            if own := with_prefix(saved, start):
                state["state"][i] = {
                    key: value if key == "step" else _laid_out(value, parameter)
                    for key, value in own.items()
                }
        optimizer.load_state_dict(state)


def save(
    path: Path,
    config: Config,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
    extra: dict[str, Any],
) -> None:
    """Write a checkpoint; whenever the process is killed, the file is the old or the new one."""
    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"{_OPTIMIZER}{names[id(parameter)]}/{key}"] = value
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"config": config.as_dict(), "step": step, "seconds": seconds, "extra": extra}
    metadata["kanerva_ext"] = __version__
    write_tensors(path, tensors, metadata)


def hint(run: str | Path) -> str:
    """What to add to an error of a run that there is not."""
    known = str(run) in pretrained.available()
    return f" (do you mean {pretrained.PREFIX}{run}?)" if known else ""


def locate(run: str | Path) -> Path:
    """The file of a run: in its folder, a checkpoint, or ``pretrained:NAME`` of one that ships.

    Raises:
        ConfigError: no such model ships.
    """
    if str(run).startswith(pretrained.PREFIX):
        try:
            return pretrained.find(str(run))
        except ValueError as error:
            raise ConfigError(str(error)) from error
    path = Path(run)
    return path / FILE if path.is_dir() else path


def load(path: Path) -> Checkpoint:
    """The checkpoint of a file of `save`.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    metadata: dict[str, Any] = {}
    try:
        tensors, metadata = read_tensors(path)
        config = from_dict(field(metadata, "config", dict))
        kinds = {"step": int, "seconds": float, "extra": dict}
        rest = (field(metadata, name, kind) for name, kind in kinds.items())
        return Checkpoint(config, *rest, tensors, of_another_version(metadata))
    except ValueError as error:
        raise ConfigError(
            f"{path} is no checkpoint of a run: {error}{of_another_version(metadata)}"
        ) from error


def _laid_out(saved: Tensor, parameter: Tensor) -> Tensor:
    """With the parameter's strides: fused Adam pairs elements by their place in memory."""
    if saved.dim() == 0 and parameter.shape == (1,):  # of a checkpoint whose parameter was 0-d
        saved = saved.reshape(1)
    if saved.shape != parameter.shape:
        return saved
    return torch.empty_like(parameter, dtype=saved.dtype).copy_(saved)
