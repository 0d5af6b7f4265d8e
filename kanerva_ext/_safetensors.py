"""safetensors files with metadata of JSON: checkpoints of runs, and the models that ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ._files import naming, write_bytes
from ._version import __version__

__all__ = [
    "CHECKPOINT",
    "MODEL",
    "field",
    "of_another_version",
    "read_tensors",
    "with_prefix",
    "write_tensors",
]

CHECKPOINT = "checkpoint.safetensors"  # of a run, in its folder
MODEL = "model."  # before the names of the model's tensors in it


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """A safetensors file, the metadata as JSON in it."""
    from safetensors.torch import save as to_bytes

    # Not save_file, which lets nobody else read the file, and whose errors name no path.
    write_bytes(path, to_bytes(tensors, {n: json.dumps(value) for n, value in metadata.items()}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file of `write_tensors`.

    Raises:
        ValueError: it is not one, or damaged.
        OSError: it cannot be read; the error names it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with naming(path), safe_open(path, "pt") as file:
            metadata = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return tensors, metadata


def field(metadata: dict[str, Any], name: str, kind: type) -> Any:
    """An entry of the metadata.

    Raises:
        ValueError: there is none, or one of another type.
    """
    if name not in metadata:
        raise ValueError(f"its metadata has no {name!r}")
    value = metadata[name]
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
        raise ValueError(f"{name!r} of its metadata must be of type {kind.__name__}, got {value!r}")
    return value


def of_another_version(metadata: dict[str, Any]) -> str:
    """What to add to an error of a file that another version wrote; "" of others."""
    version = metadata.get("kanerva_ext", __version__)
    return "" if version == __version__ else f" (kanerva_ext {version} wrote it, not {__version__})"


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
