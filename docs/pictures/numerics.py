"""What float32 keeps: against the noise, and against the number of calls."""

import torch
from _common import BLUE, GREEN, GREY, RED, main, plt

from kanerva_ext import ops

SLOTS, CODE, STEPS = 32, 24, 256


def relative(found, truth):
    """The larger of the mean's and the covariance's: largest error over largest value."""
    each = [
        (f.double() - t).abs().max() / t.abs().max()
        for f, t in zip(found, truth, strict=True)
    ]
    return max(torch.stack(each).nan_to_num(torch.inf).max().item(), 1e-9)


def draw():
    torch.manual_seed(0)
    weights = torch.randn(1, STEPS, SLOTS, dtype=torch.float64)
    weights = (
        weights[:, :1] + 1e-3 * weights
    )  # nearly the same address again and again: hard
    values = torch.randn(1, STEPS, CODE, dtype=torch.float64)
    prior = (
        torch.zeros(1, SLOTS, CODE, dtype=torch.float64),
        torch.eye(SLOTS).double()[None],
    )
    single = [x.float() for x in (*prior, weights, values)]
    exact = [
        x.double() for x in single
    ]  # the same numbers, so that arithmetic alone differs
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.4), layout="constrained"
    )

    noises = [10.0**-n for n in range(0, 13)]
    recursion, ours = [], []
    for noise in noises:
        truth = ops.bayes_write(*exact, noise)[:2]
        recursion.append(
            relative(
                ops.bayes_write(*single, noise, backend="reference")[:2], truth
            )
        )
        ours.append(relative(ops.bayes_write(*single, noise)[:2], truth))
    print("noise variance:", [f"{x:.0e}" for x in noises])
    print("recursion:", [f"{x:.0e}" for x in recursion])
    print("bayes_write:", [f"{x:.0e}" for x in ours])
    shown = [min(x, 10) for x in recursion]
    left.plot(
        noises, shown, color=RED, marker=".", label="the recursion in float32"
    )
    left.plot(
        noises, ours, color=BLUE, marker=".", label="bayes_write, float32 state"
    )
    left.set(
        xscale="log",
        yscale="log",
        xlabel="noise variance",
        ylabel="relative error",
        title="one call, addresses that differ by 0.001",
    )
    left.invert_xaxis()
    left.text(1e-7, 4, "breaks down", color=RED, ha="center", va="top", fontsize=8)
    left.legend(fontsize=8)

    addresses = torch.randn(4096, SLOTS, dtype=torch.float64)
    codes = torch.randn(4096, CODE, dtype=torch.float64)
    counts = [1, 4, 16, 64, 256, 1024, 4096]
    for noise, color in ((1.0, GREEN), (1e-4, BLUE), (1e-8, RED)):
        wide, narrow = [x[0] for x in prior], [x[0].float() for x in prior]
        found = []
        for step in range(4096):
            item = addresses[[step]], codes[[step]], noise
            wide = ops.bayes_write(*wide, *item)[:2]
            narrow = ops.bayes_write(*narrow, *item)[
                :2
            ]  # rounded to float32 after every call
            if step + 1 in counts:
                found.append(relative(narrow, wide))
        print(
            f"calls, noise variance {noise:g}:",
            dict(zip(counts, (f"{x:.0e}" for x in found), strict=True)),
        )
        right.plot(
            counts,
            [min(x, 10) for x in found],
            color=color,
            marker=".",
            label=f"noise variance {noise:g}",
        )
    right.set(
        xscale="log",
        yscale="log",
        xlabel="calls of one step each",
        title="a float32 state between calls",
    )
    right.axhline(1, color=GREY, lw=0.8, ls=":")
    right.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main(__file__, __doc__, draw)
