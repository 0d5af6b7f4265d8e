"""Which implementation serves ``backend="auto"``."""

from _common import BLUE, GREEN, GREY, ORANGE, main, plt


def box(axis, x, y, text, color):
    axis.text(
        x,
        y,
        text,
        ha="center",
        va="center",
        fontsize=9,
        bbox={
            "boxstyle": "round,pad=0.5",
            "facecolor": "white",
            "edgecolor": color,
            "lw": 1.6,
        },
    )


def arrow(axis, start, end, text=""):
    axis.annotate(
        "", end, start, arrowprops={"arrowstyle": "->", "color": GREY, "lw": 1.4}
    )
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    axis.text(
        *middle,
        text,
        fontsize=8,
        color="#444444",
        ha="center",
        va="center",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def draw():
    figure, axis = plt.subplots(figsize=(8.6, 3.2))
    box(axis, 0, 0, "where is\nthe state?", GREY)
    box(axis, 3.4, 1.3, 'C++ library\nbackend "cpu"', GREEN)
    box(axis, 3.4, -1.0, "was nvcc there\nat install?", GREY)
    box(axis, 7.2, 0.4, 'CUDA C++ kernels\nbackend "cuda"', BLUE)
    box(axis, 7.2, -2.0, "is Triton\ninstalled?", GREY)
    box(axis, 10.8, -1.0, 'Triton kernels\nbackend "triton"', BLUE)
    box(axis, 10.8, -3.0, 'PyTorch, one warning\nbackend "reference"', ORANGE)
    arrow(axis, (0.8, 0.3), (2.4, 1.2), "CPU")
    arrow(axis, (0.8, -0.3), (2.3, -0.9), "GPU")
    arrow(axis, (4.6, -0.7), (5.8, 0.1), "yes (NVIDIA)")
    arrow(axis, (4.6, -1.3), (6.3, -1.9), "no, or AMD")
    arrow(axis, (8.1, -1.8), (9.5, -1.2), "yes")
    arrow(axis, (8.1, -2.3), (9.2, -2.8), "no")
    axis.set(xlim=(-1, 12.4), ylim=(-3.6, 2))
    axis.axis("off")
    return figure


if __name__ == "__main__":
    main(__file__, __doc__, draw, "svg")
