"""The commands' pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .._pictures import GAP, draw_columns, name_figure, new_figure, save, show, tile

__all__ = ["Block", "Panel", "Series", "draw_capacity", "draw_columns", "draw_panels"]
__all__ += ["draw_reconstructions"]

IMAGE_INCHES = 0.42  # of an image in a block
LABEL_INCHES = 0.7  # left of a block
HEADING = 0.6  # of a panel, in heights of an image


class Block(NamedTuple):
    """Rows of images, each under a title of its own: (label, (N, C, H, W))."""

    title: str
    rows: list[tuple[str, Tensor]]


class Panel(NamedTuple):
    """The blocks of one run, one below the other."""

    title: str
    blocks: list[Block]


LEGEND_COLUMNS = 5


class Series(NamedTuple):
    """One run's measures over the number of stored patterns: each by name, one per length."""

    label: str
    lengths: list[int]
    measures: dict[str, list[float]]


def draw_reconstructions(
    images: Tensor, pictures: Tensor, addresses: Tensor | None, path: Path, title: str = ""
) -> None:
    """Images (N, C, H, W), what was read of them, and bars of their addresses (N, K), if any."""
    if addresses is None:
        draw_columns([("image", images), ("reconstruction", pictures)], path, title)
        return
    count, slots = addresses.shape
    figure = new_figure(7, 0.85 * count + 0.4)
    axes = figure.subplots(count, 3, width_ratios=[1, 1, 5.5], squeeze=False)
    figure.subplots_adjust(wspace=0.06, hspace=0.08, left=0, right=1, top=1, bottom=0)
    bound = 1.05 * addresses.abs().max().item() or 1.0
    for row, image, picture, weights in zip(axes, images, pictures, addresses, strict=True):
        show(row[0], tile(image.unsqueeze(0), 1))
        show(row[1], tile(picture.unsqueeze(0), 1))
        bars = row[2]
        bars.bar(range(slots), weights.tolist(), width=0.8, color="black")
        bars.axhline(0, color="black", linewidth=0.5)
        bars.set_xlim(-1, slots)
        bars.set_ylim(-bound, bound)
        bars.yaxis.tick_right()
        bars.tick_params(labelsize=7, labelbottom=False, bottom=False)
        for side in ("top", "left", "bottom"):
            bars.spines[side].set_visible(False)
    for ax, name in zip(
        axes[0], ("image", "reconstruction", f"mean address, {slots} slots"), strict=True
    ):
        ax.set_title(name, fontsize=9)
    name_figure(figure, title)
    save(figure, path)


def draw_panels(panels: list[Panel], path: Path) -> None:
    """Panels side by side; the blocks of a single one in two columns."""
    if len(panels) == 1:
        (panel,) = panels
        columns = [panel.blocks[0::2], panel.blocks[1::2]] if panel.blocks[1:] else [panel.blocks]
        titles = [panel.title]
    else:
        columns, titles = [panel.blocks for panel in panels], [panel.title for panel in panels]
    grids = [[(block, _rows(block)) for block in blocks] for blocks in columns]
    # In units of an image's height; a title takes one of them.
    widths = [LABEL_INCHES / IMAGE_INCHES + len(blocks[0].rows[0][1]) for blocks in columns]
    heights = [sum(1 + len(block.rows) for block in blocks) for blocks in columns]
    height = HEADING + max(heights)
    figure = new_figure(IMAGE_INCHES * sum(widths), IMAGE_INCHES * height)
    left = 0.0
    for blocks, width in zip(grids, widths, strict=True):
        top = HEADING
        for block, picture in blocks:
            top += 1
            label = LABEL_INCHES / IMAGE_INCHES
            place = [
                (left + label) / sum(widths),
                1 - (top + len(block.rows)) / height,
                (width - label) / sum(widths),
                len(block.rows) / height,
            ]
            _show_block(figure.add_axes(place), picture, block)
            top += len(block.rows)
        left += width
    at = 0.0
    for title, width in zip(titles, widths if len(titles) > 1 else [sum(widths)], strict=True):
        x = (at + (width + LABEL_INCHES / IMAGE_INCHES) / 2) / sum(widths)
        figure.text(x, 1 - 0.5 * HEADING / height, title, ha="center", va="center", fontsize=11)
        at += width
    save(figure, path)


def _rows(block: Block) -> Tensor:
    """One picture of the rows; those with fewer images than the longest end with blank ones."""
    count = max(len(images) for _, images in block.rows)
    rows = []
    for _, images in block.rows:
        blank = 1.0 if images.shape[1] == 3 else 0.0
        missing = images.new_full((count - len(images), *images.shape[1:]), blank)
        rows.append(torch.cat([images, missing]))
    return tile(torch.cat(rows), count)


def _show_block(axes, picture: Tensor, block: Block) -> None:
    show(axes, picture, block.title)
    size = block.rows[0][1].shape[-2]
    for i, (label, _) in enumerate(block.rows):
        middle = i * (size + GAP) + (size - 1) / 2
        axes.text(-4, middle, label, ha="right", va="center", fontsize=8)


def draw_capacity(
    series: list[Series], titles: dict[str, str], path: Path, percent: Sequence[str] = ()
) -> None:
    """A panel for each measure of ``titles``; those of ``percent`` are shares.

    Series of the same label are seeds of one model: their mean, and a band from the least to the
    largest.
    """
    from matplotlib.ticker import PercentFormatter

    figure = new_figure(9, 6.6)
    axes = figure.subplots(2, -(-len(titles) // 2), squeeze=False).flatten()
    groups: dict[str, list[Series]] = {}
    for each in series:
        groups.setdefault(each.label, []).append(each)
    for ax, (measure, title) in zip(axes, titles.items(), strict=True):
        for i, (label, members) in enumerate(groups.items()):
            values = torch.tensor([each.measures[measure] for each in members])
            lengths, colour = members[0].lengths, f"C{i}"
            ax.plot(lengths, values.mean(0).tolist(), color=colour, marker="o", ms=4, label=label)
            if len(members) > 1:
                low, high = values.amin(0).tolist(), values.amax(0).tolist()
                ax.fill_between(lengths, low, high, color=colour, alpha=0.2, linewidth=0)
        tops = sorted(max(max(e.measures[measure]) for e in each) for each in groups.values())
        if tops[-1] > 3 * tops[len(tops) // 2]:  # one that fails would hide the others
            low = min(min(each.measures[measure]) for each in series)
            ax.set_ylim(low - 0.1 * abs(low), 1.5 * tops[len(tops) // 2])
        if measure in percent:
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("stored patterns", fontsize=9)
        ax.tick_params(labelsize=8)
        ax.set_xticks(series[0].lengths)
        ax.grid(alpha=0.3)
    rows = -(-len(groups) // LEGEND_COLUMNS)
    figure.tight_layout(rect=(0, 0.01 + 0.04 * rows, 1, 1))
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="lower center",
        ncols=min(len(groups), LEGEND_COLUMNS),
    )
    save(figure, path)
