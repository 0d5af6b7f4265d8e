"""Files of image sets as their authors lay them out, for tests: made here, or the whole sets."""

import os
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from checkout import ROOT

DATA = Path(os.environ.get("KANERVA_DATA", ROOT.parent / "shared" / "data"))


def needs(*names):
    missing = [name for name in names if not (DATA / name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not in {DATA}")


@pytest.fixture
def image():
    """Pillow's module, which the package does not need."""
    return pytest.importorskip("PIL.Image")


def encoded(image, pixels, kind):
    data = BytesIO()
    image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def write(path, files):
    """A folder, or a zip archive if the name says so, of {name: bytes}."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def ink(*seed):
    """Random blocks of 15 x 15 pixels, four by four new ones: (105, 105) and (28, 28)."""
    blocks = np.random.default_rng(seed).random((7, 7)) < 0.3
    return np.kron(blocks, np.ones((15, 15))) > 0, np.kron(blocks, np.ones((4, 4))) > 0


def drawings(image, prefix, alphabets, characters=4, drawers=2):
    """Files of Omniglot's layout."""
    files = {}
    for alphabet in alphabets:
        for character in range(1, characters + 1):
            for drawer in range(1, drawers + 1):
                pixels = ~ink(ord(alphabet[0]), character, drawer)[0]
                name = f"{900 + character:04d}_{drawer:02d}.png"
                path = f"{prefix}{alphabet}/character{character:02d}/{name}"
                files[path] = encoded(image, pixels, "PNG")
    return files


def expected(alphabets, characters=4, drawers=2):
    return np.stack(
        [
            ink(ord(alphabet[0]), character, drawer)[1]
            for alphabet in alphabets
            for character in range(1, characters + 1)
            for drawer in range(1, drawers + 1)
        ]
    )


def same(left, right):
    return (
        torch.equal(left.images, right.images)
        and torch.equal(left.labels, right.labels)
        and left.class_names == right.class_names
    )
