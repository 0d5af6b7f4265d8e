"""Pictures made of images. Ink is dark; matplotlib is imported when something is drawn.

Figures are made without pyplot: no display, no global state, no backend to choose.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ._files import replacing

__all__ = ["DPI", "GAP", "GREY", "draw_columns", "draw_row", "name_figure", "new_figure"]
__all__ += ["save", "show", "tile"]

GAP = 2  # pixels between images
DPI = 120
GREY = 0.25  # of the lines between images, as a share of ink
INCHES_PER_PIXEL = 0.03


def tile(images: Tensor, columns: int) -> Tensor:
    """Images in rows of ``columns``, as one picture.

    Args:
        images: (N, H, W) or (N, 1, H, W), shares of ink; or (N, 3, H, W), colours.
        columns: images in a row; the last row may have fewer.

    Returns:
        (rows * H + gaps, columns * W + gaps), with a last dimension of 3 for colours.
    """
    if images.ndim == 4:
        images = images.movedim(1, -1)
        images = images.squeeze(-1) if images.shape[-1] == 1 else images
    (count, height, width), colours = images.shape[:3], images.shape[3:]
    rows = -(-count // columns)
    size = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP)
    canvas = torch.full((*size, *colours), 1 - GREY if colours else GREY)
    for i, image in enumerate(images):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = image
    return canvas


def new_figure(width: float, height: float):
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure((width, height))


def save(figure, path: Path) -> None:
    """A PNG file, whole or not at all."""
    with replacing(path) as new:
        figure.savefig(new, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.05)


def show(axes, picture: Tensor, title: str = "") -> None:
    """A picture of `tile` under a title, without axes."""
    axes.imshow(picture.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def draw_row(
    pictures: list[tuple[str, Tensor]], path: Path, inches_per_pixel: float, title: str = ""
) -> None:
    """Titled pictures of `tile` side by side, pixels of one size, under a title of them all."""
    widths = [picture.shape[1] for _, picture in pictures]
    height = max(picture.shape[0] for _, picture in pictures)
    figure = new_figure(sum(widths) * inches_per_pixel * 1.05, height * inches_per_pixel + 0.4)
    axes = figure.subplots(1, len(pictures), width_ratios=widths, squeeze=False)
    figure.subplots_adjust(wspace=0.04, left=0, right=1)
    for ax, (name, picture) in zip(axes[0], pictures, strict=True):
        show(ax, picture, name)
        ax.set_anchor("N")
    name_figure(figure, title)
    save(figure, path)


def name_figure(figure, title: str) -> None:
    """A title above all that is drawn; none of an empty text."""
    if title:
        figure.draw_without_rendering()
        top = figure.get_tightbbox().y1 / figure.get_figheight()
        figure.text(0.5, top + 0.1 / figure.get_figheight(), title, ha="center", fontsize=11)


def draw_columns(columns: list[tuple[str, Tensor]], path: Path, title: str = "") -> None:
    """Titled columns of images as `tile` takes them: row i is one image in every column."""
    pictures = [(name, tile(images, 1)) for name, images in columns]
    draw_row(pictures, path, INCHES_PER_PIXEL, title)
