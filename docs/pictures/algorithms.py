"""One chunk of a write, every matrix as a block of its shape."""

from _common import BLUE, GREEN, ORANGE, main, plt

L, K, C = 2, 3, 5  # steps of the chunk, slots, code size, in the picture's units
SYMBOL = 0.8  # width of an operator


def block(axis, x, y, name, rows, columns, color=BLUE, triangle=False):
    """Draws a matrix with its middle at height y; returns where it ends."""
    top, bottom, right = y + rows / 2, y - rows / 2, x + columns
    corners = [(x, top), (right, top), (right, bottom), (x, bottom)]
    if triangle:
        del corners[3 if triangle == "upper" else 1]
    axis.add_patch(
        plt.Polygon(corners, facecolor=color, alpha=0.2, edgecolor=color, lw=1.2)
    )
    off = {"upper": 0.17, True: -0.17, False: 0}[triangle]
    at = (x + columns * (0.5 + off), y + rows * off)
    axis.text(*at, name, ha="center", va="center", fontsize=11)
    return x + columns


def sign(axis, x, y, text):
    width = SYMBOL * (1.5 if len(text) > 1 else 1)
    axis.text(x + width / 2, y, text, ha="center", va="center", fontsize=12)
    return x + width


def line(axis, y, parts, note):
    """Blocks and signs in a row; a block is (name, rows, columns, color[, triangle])."""
    x = 0
    for part in parts:
        x = (
            sign(axis, x, y, part)
            if isinstance(part, str)
            else block(axis, x, y, *part) + 0.12
        )
    axis.text(24.2, y, note, va="center", fontsize=9, color="#555555")


def draw():
    figure, axis = plt.subplots(figsize=(10, 6.6))
    w, u, z, r = (
        ("W", L, K, BLUE),
        ("U", K, K, GREEN),
        ("Z", L, C, BLUE),
        ("R", K, C, GREEN),
    )
    back = ("F⁻¹", L, L, ORANGE, True)
    line(
        axis,
        0,
        [
            ("S", L, L, ORANGE),
            "=",
            w,
            u,
            ("W'", K, L, BLUE),
            "+",
            ("V", L, L, BLUE),
        ],
        "how uncertain the L codes are,\nand V, the noise, on the diagonal",
    )
    line(
        axis,
        -3.6,
        [
            ("S", L, L, ORANGE),
            "=",
            ("F", L, L, ORANGE, True),
            ("F'", L, L, ORANGE, "upper"),
        ],
        "Cholesky: conditioning, in order",
    )
    line(
        axis,
        -7.0,
        [("P", L, K, ORANGE), "=", back, w, u],
        "whitened gains: row t is what\nstep t takes from the covariance",
    )
    line(
        axis,
        -10.4,
        [("E", L, C, ORANGE), "=", back, "(", z, "−", w, r, ")"],
        "whitened surprise: what the\nsteps before t did not foresee",
    )
    line(
        axis,
        -14.2,
        [r, "+=", ("P'", K, L, ORANGE), ("E", L, C, ORANGE)],
        "the mean: K × C",
    )
    line(
        axis,
        -18.0,
        [u, "−=", ("P'", K, L, ORANGE), ("P", L, K, ORANGE)],
        "the covariance: K × K,\nsymmetric as it is formed",
    )
    axis.set(xlim=(-0.3, 33), ylim=(-20, 2))
    axis.set_aspect("equal")
    axis.axis("off")
    axis.text(
        0,
        1.9,
        "blue: the episode (L steps)    green: the memory (K slots, codes of C)    "
        "orange: what is computed",
        fontsize=9,
        color="#555555",
    )
    return figure


if __name__ == "__main__":
    main(__file__, __doc__, draw, "svg")
