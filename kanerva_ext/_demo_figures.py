"""The demo's pictures. Ink is dark; every image is 28 x 28, ink probabilities in [0, 1]."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the choice of backend

__all__ = ["Curve", "draw_columns", "draw_curves", "draw_overview", "draw_pairs", "tile"]

GAP = 2  # pixels between images
DPI = 120
GREY = 0.25  # of the lines between images


class Curve(NamedTuple):
    """One model's training: (seconds, bound) of the smoothed training and of held-out images."""

    name: str
    train: list[tuple[float, float]]
    held_out: list[tuple[float, float]]


def tile(images: Tensor, columns: int) -> Tensor:
    """Images (N, ..., H, W) in rows of ``columns``, as one (rows * H + gaps, ...) picture."""
    height, width = images.shape[-2:]
    images = images.reshape(-1, height, width)
    rows = -(-len(images) // columns)
    canvas = torch.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), GREY)
    for i, image in enumerate(images):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = image
    return canvas


def _show(axes, picture: Tensor, title: str) -> None:
    axes.imshow(picture.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.05)
    plt.close(figure)


def _row(pictures: list[tuple[str, Tensor]], path: Path, inches_per_pixel: float) -> None:
    """Titled pictures side by side, pixels of one size."""
    widths = [picture.shape[1] for _, picture in pictures]
    height = max(picture.shape[0] for _, picture in pictures)
    figure, axes = plt.subplots(
        1,
        len(pictures),
        figsize=(sum(widths) * inches_per_pixel * 1.05, height * inches_per_pixel + 0.4),
        width_ratios=widths,
        squeeze=False,
    )
    figure.subplots_adjust(wspace=0.04, left=0, right=1)
    for ax, (title, picture) in zip(axes[0], pictures, strict=True):
        _show(ax, picture, title)
        ax.set_anchor("N")
    _save(figure, path)


def draw_columns(columns: list[tuple[str, Tensor]], path: Path) -> None:
    """Titled columns of images (N, 1, H, W): row i is one image in every column."""
    _row([(title, tile(images, 1)) for title, images in columns], path, 0.03)


def draw_pairs(pairs: list[tuple[str, Tensor, str, Tensor]], path: Path) -> None:
    """Rows of two titled pictures, 32 images or so in each, in rows of eight."""
    figure, axes = plt.subplots(len(pairs), 2, figsize=(9, 2.6 * len(pairs)), squeeze=False)
    for row, (left_title, left, right_title, right) in zip(axes, pairs, strict=True):
        _show(row[0], tile(left, 8), left_title)
        _show(row[1], tile(right, 8), right_title)
    figure.tight_layout()
    _save(figure, path)


def draw_curves(curves: list[Curve], path: Path) -> None:
    """Bounds over the wall time of the training."""
    figure, ax = plt.subplots(figsize=(7, 4))
    for i, curve in enumerate(curves):
        ax.plot(*zip(*curve.train, strict=True), color=f"C{i}", alpha=0.4)
        if curve.held_out:
            ax.plot(
                *zip(*curve.held_out, strict=True),
                color=f"C{i}",
                marker="o",
                label=f"{curve.name}, held-out",
            )
    ax.set_xlabel("seconds of training")
    ax.set_ylabel("bound, nats per image (lower is better)")
    ax.set_title("thin: training episodes, augmented", fontsize=10)
    low = min(bound for curve in curves for _, bound in curve.train + curve.held_out)
    ax.set_ylim(0.95 * low, max(2 * low, 1.1 * low + 1))
    ax.grid(alpha=0.3)
    ax.legend()
    _save(figure, path)


def draw_overview(
    written: Tensor, denoised: list[Tensor], generated: Tensor, path: Path, rows: int = 4
) -> None:
    """One wide picture: what was written, reads of corrupted queries, and generations.

    Args:
        written: (N, 1, H, W), shown in ``rows`` rows.
        denoised: columns (clean, corrupted, reads ...) of at least ``2 * rows`` images each.
        generated: (N, 1, H, W), shown in ``rows`` rows.
    """
    steps = torch.stack(denoised, dim=1)[: 2 * rows]
    per_row = len(denoised)
    blocks = [tile(steps[:rows].flatten(0, 1), per_row), tile(steps[rows:].flatten(0, 1), per_row)]
    spacer = torch.zeros(blocks[0].shape[0], 4 * GAP)
    pictures = [
        ("written once: characters never seen in training", tile(written, len(written) // rows)),
        (
            "clean, corrupted, read 1, 2, 3 times",
            torch.cat([blocks[0], spacer, blocks[1]], dim=1),
        ),
        ("generated from that memory", tile(generated, len(generated) // rows)),
    ]
    _row(pictures, path, 0.0165)
