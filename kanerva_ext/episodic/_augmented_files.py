"""The folder of a `MemoryAugmented`: its projections and its memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .._safetensors import field, of_another_version, read_tensors, write_tensors
from .._version import __version__
from .memory import EpisodicMemory

if TYPE_CHECKING:
    from .augmented import MemoryAugmented

FORMAT = "kanerva_ext.MemoryAugmented"
PROJECTIONS, MEMORY = "projections.safetensors", "memory.db"


def save_augmented(augmented: MemoryAugmented, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.detach().cpu().contiguous() for name, x in augmented.state_dict().items()}
    described = {
        "format": FORMAT,
        "kanerva_ext": __version__,
        "layer": augmented.layer,
        "hidden_size": augmented.hidden_size,
    }
    augmented.memory.save(folder / MEMORY)
    write_tensors(folder / PROJECTIONS, tensors, described)


def load_augmented(
    cls: type[MemoryAugmented],
    folder: Path,
    model: nn.Module,
    features: Callable[[Tensor], Tensor] | None,
    in_memory: bool,
) -> MemoryAugmented:
    path = folder / PROJECTIONS
    if not path.is_file():
        raise FileNotFoundError(2, "there is no such file of a MemoryAugmented", str(path))
    try:
        tensors, described = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    try:
        if described.get("format") != FORMAT:
            raise ValueError("it is no file of a MemoryAugmented")
        layer = field(described, "layer", str)
        size = field(described, "hidden_size", int)
    except ValueError as error:
        raise ValueError(f"{path}: {error}{of_another_version(described)}") from error
    memory = EpisodicMemory.load(folder / MEMORY, features, in_memory=in_memory)
    augmented = None
    try:
        augmented = cls(model, layer, memory, hidden_size=size)
        try:
            augmented.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(
                f"{path} does not fit {MEMORY} beside it{of_another_version(described)}: {error}"
            ) from error
    except BaseException:
        if augmented is not None:
            augmented.remove()
        memory.close()
        raise
    return augmented
