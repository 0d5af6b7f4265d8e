"""What a memory believes at three addresses while it is written, forgotten and merged."""

import torch
from _common import BLUE, GREEN, ORANGE, main, plt

from kanerva_ext import ops

NOISE, SHOTS = 0.25, 2  # variance; times that each code is written
# Unit addresses of two slots: A and B overlap, C lies between B and the other side of A.
ADDRESSES = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.6, 0.8]], dtype=torch.float64)
CODES = torch.tensor([[1.0], [-0.5], [0.3]], dtype=torch.float64)


def draw():
    prior = (
        torch.zeros(2, 1, dtype=torch.float64),
        torch.eye(2, dtype=torch.float64),
    )

    def item(which):
        return ADDRESSES[[which] * SHOTS], CODES[[which] * SHOTS], NOISE

    states, names = [prior], ["prior"]
    for name, which, function in (
        ("write A", 0, ops.bayes_write),
        ("write B", 1, ops.bayes_write),
        ("forget A", 0, ops.forget),
        ("write A", 0, ops.bayes_write),
        ("forget B", 1, ops.forget),
    ):
        states.append(function(*states[-1], *item(which))[:2])
        names.append(name)
    apart = ops.bayes_write(*prior, *item(2))[
        :2
    ]  # C, written elsewhere from the same prior
    sums = [
        a + b - c
        for a, b, c in zip(
            *(ops.to_statistics(*state) for state in (states[-1], apart, prior)),
            strict=True,
        )
    ]
    states.append(ops.from_statistics(*sums))
    names.append("merge C")
    together = ops.bayes_write(*states[-2], *item(2))[:2]
    print(
        "merge against a write of C:",
        max(
            (a - b).abs().max().item()
            for a, b in zip(states[-1], together, strict=True)
        ),
    )
    print(
        "A written, B written and forgotten, against A alone:",
        max(
            (a - b).abs().max().item()
            for a, b in zip(states[5], states[1], strict=True)
        ),
    )
    alone = ops.bayes_write(*prior, *item(1))[:2]
    print(
        "A written and forgotten below B, against B alone:",
        max(
            (a - b).abs().max().item()
            for a, b in zip(states[3], alone, strict=True)
        ),
    )

    figure, axes = plt.subplots(
        1, 3, figsize=(9.6, 3), sharey=True, layout="constrained"
    )
    for which, (axis, color) in enumerate(
        zip(axes, (BLUE, ORANGE, GREEN), strict=True)
    ):
        reads = [ops.read(*state, ADDRESSES[[which]]) for state in states]
        mean = torch.tensor([values.item() for values, _ in reads])
        std = torch.tensor([var.item() for _, var in reads]).sqrt()
        print(
            "ABC"[which],
            "mean",
            [f"{x:.2f}" for x in mean],
            "std",
            [f"{x:.2f}" for x in std],
        )
        axis.errorbar(
            range(len(names)), mean, std, color=color, fmt="o", capsize=4, lw=2
        )
        axis.axhline(CODES[which].item(), color=color, ls=":", lw=1)
        axis.set_title(f"read at the address of {'ABC'[which]}")
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes[0].set_ylabel("read-out ± standard deviation")
    return figure


if __name__ == "__main__":
    main(__file__, __doc__, draw)
