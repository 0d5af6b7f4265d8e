"""What the scripts of the pictures share: how they look and where they go.

Each script draws one picture of a guide from numbers that it measures, prints them, and runs alone:

    python docs/pictures/choosing.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

IMAGES = Path(__file__).resolve().parents[1] / "images" / "guides"
BLUE, ORANGE, GREEN, RED, GREY = (
    "#3f51b5",
    "#ef6c00",
    "#2e7d32",
    "#c62828",
    "#9e9e9e",
)

plt.rcParams.update(
    {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.dpi": 110,
        "font.size": 9,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "svg.hashsalt": "kanerva_ext",  # the same file every time
        "savefig.bbox": "tight",
    }
)


def main(script: str, description: str, draw, kind: str = "png") -> None:
    """``draw()`` returns a figure, which is saved by the name of the script."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=IMAGES, help="folder (default: %(default)s)"
    )
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{Path(script).stem}.{kind}"
    draw().savefig(path, metadata={"Date": None} if kind == "svg" else None)
    print(f"wrote {path}")


def images(axes, pictures, title: str) -> None:
    """A row of images (N, 28, 28), dark on white."""
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        for spine in axis.spines.values():
            spine.set_visible(False)
    axes[0].set_ylabel(title, rotation=0, ha="right", va="center")
