"""The demo's pictures. Ink is dark; every image is 28 x 28, ink probabilities in [0, 1]."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .._pictures import GAP, GREY, draw_columns, draw_row, new_figure, save, show, tile

__all__ = [
    "GAP",
    "GREY",
    "Curve",
    "draw_columns",
    "draw_curves",
    "draw_overview",
    "draw_pairs",
    "tile",
]


class Curve(NamedTuple):
    """One model's training: (seconds, bound) of the smoothed training and of held-out images."""

    name: str
    train: list[tuple[float, float]]
    held_out: list[tuple[float, float]]


def draw_pairs(pairs: list[tuple[str, Tensor, str, Tensor]], path: Path) -> None:
    """Rows of two titled pictures, 32 images or so in each, in rows of eight."""
    figure = new_figure(9, 2.6 * len(pairs))
    axes = figure.subplots(len(pairs), 2, squeeze=False)
    for row, (left_title, left, right_title, right) in zip(axes, pairs, strict=True):
        show(row[0], tile(left, 8), left_title)
        show(row[1], tile(right, 8), right_title)
    figure.tight_layout()
    save(figure, path)


def draw_curves(curves: list[Curve], path: Path) -> None:
    """Bounds over the wall time of the training."""
    figure = new_figure(7, 4)
    ax = figure.subplots()
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
    save(figure, path)


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
    draw_row(pictures, path, 0.0165)
