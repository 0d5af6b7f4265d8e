#!/usr/bin/env python3
"""Pack Omniglot's drawings into the small file that ships with kanerva_ext.

    python scripts/pack_omniglot.py images_background_small1.zip images_background_small2.zip \
        --out kanerva_ext/data/omniglot.npz

Reads the archives of 105 x 105 drawings (Lake, Salakhutdinov, Tenenbaum, Science 2015), and does
the following, deterministically:

1. Drops repeats: an alphabet that is in both archives is taken once. Drawings are compared by
   their pixels, and the same pixels under two names are an error.
2. Shrinks to 28 x 28: each new pixel is the share of its 3.75 x 3.75 cell that is ink (area
   averaging), and it is ink where the share is above ``--threshold``. 0.5 keeps the total area of
   ink and the strokes connected: the script counts the drawings that fell into more pieces than
   they had (one of 4,840).
3. Splits whole characters into train and held-out, the same share of every alphabet: the
   characters of an alphabet are ordered by SHA-256 of ``seed/alphabet/character`` and the first
   are held out. All 20 drawings of a character are on one side.
4. Packs 8 pixels into a byte, and writes images and labels into one compressed .npz.

Steps 2 and 3 are what ``load_images("omniglot-images")`` does too. Needs kanerva_ext, SciPy and
Pillow.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import numpy as np
    from scipy.ndimage import label

    from kanerva_ext.data._files import ImageFiles
    from kanerva_ext.data._omniglot_images import (
        HELD_OUT_SEED,
        HELD_OUT_SHARE,
        INK_THRESHOLD,
        Drawing,
        held_out_characters,
        iterate_drawings,
        shrink,
    )
except ModuleNotFoundError as error:
    raise SystemExit(
        f"pack_omniglot: {error}; pip install numpy scipy pillow, and kanerva_ext"
    ) from None


def read_drawings(archives: list[Path]) -> dict[Drawing, np.ndarray]:
    """Every drawing, bool (105, 105), True is ink; repeats dropped."""
    drawings: dict[Drawing, np.ndarray] = {}
    names_of_pixels: dict[bytes, Drawing] = {}
    for archive in archives:
        try:
            with ImageFiles(archive) as files:
                for entry, name, pixels in iterate_drawings(files):
                    same = names_of_pixels.setdefault(np.packbits(pixels).tobytes(), name)
                    if same != name:
                        raise SystemExit(f"{archive}: {entry} has the same pixels as {same}")
                    drawings[name] = pixels
        except ValueError as error:
            raise SystemExit(str(error)) from error
    if len(drawings) != len(names_of_pixels):
        raise SystemExit("two archives hold different drawings under the same name")
    return drawings


def count_broken(before: np.ndarray, after: np.ndarray) -> int:
    """Drawings with more 8-connected pieces of ink after shrinking than before."""
    neighbours = np.ones((3, 3))
    return sum(
        label(b, neighbours)[1] > label(a, neighbours)[1]
        for a, b in zip(before, after, strict=True)
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archives", nargs="+", type=Path, help="the archives of drawings")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    parser.add_argument(
        "--threshold", type=float, default=INK_THRESHOLD, help="share of ink (default 0.5)"
    )
    parser.add_argument(
        "--held-out", type=float, default=HELD_OUT_SHARE, help="share (default 0.15)"
    )
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED, help="of the split (default 0)")
    arguments = parser.parse_args(argv)

    drawings = read_drawings(arguments.archives)
    names = sorted(drawings)
    before = np.stack([drawings[name] for name in names])
    after = shrink(before, arguments.threshold)
    if len(np.unique(np.packbits(after.reshape(len(after), -1), axis=1), axis=0)) != len(after):
        raise SystemExit("two drawings became the same image")

    characters = sorted({name[:2] for name in names})
    held_out = held_out_characters(set(characters), arguments.held_out, arguments.seed)
    index = {character: i for i, character in enumerate(characters)}
    np.savez_compressed(
        arguments.out,
        images=np.packbits(after.reshape(len(after), -1), axis=1),
        character=np.array([index[name[:2]] for name in names], dtype=np.uint16),
        drawer=np.array([name[2] for name in names], dtype=np.uint8),
        names=np.array([f"{alphabet}/character{number:02d}" for alphabet, number in characters]),
        held_out=np.array([character in held_out for character in characters]),
    )
    print(
        f"{len(names)} drawings of {len(characters)} characters, {len(held_out)} held out; "
        f"ink {before.mean():.4f} before, {after.mean():.4f} after; "
        f"{count_broken(before, after)} drawings with a broken stroke; "
        f"{arguments.out.stat().st_size / 1000:.0f} kB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
