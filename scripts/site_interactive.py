"""Hook of the manual: what docs/interactive/ computes with, the model that ships and drawings.

A script and no file to fetch, so that the page works when it is opened from a folder.
"""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "kanerva_ext" / "pretrained" / "omniglot-kanerva.safetensors"
TARGET = "interactive/data.js"


def drawings() -> np.ndarray:
    """(N, 28, 28) bool, the first drawing of every character that training did not see."""
    from kanerva_ext.data import load_images

    test = load_images("omniglot", "test")
    _, first = np.unique(test.labels.numpy(), return_index=True)
    return test.images[np.sort(first)].numpy().astype(bool)


def script() -> str:
    packed = np.packbits(drawings().reshape(-1))
    texts = {"KANERVA_MODEL": MODEL.read_bytes(), "KANERVA_DRAWINGS": packed.tobytes()}
    lines = (f'const {name} = "{base64.b64encode(b).decode()}";' for name, b in texts.items())
    return "\n".join(lines) + "\n"


def on_files(files, config):
    from mkdocs.structure.files import File

    files.append(File.generated(config, TARGET, content=script()))
    return files
