"""What a head of the sequence layer knows of one key, token after token."""

import torch
from _common import BLUE, GREY, ORANGE, main, plt

from kanerva_ext import ops

TOKENS, SLOTS, CHANGE, NOISE = 120, 16, 60, 0.05


def draw():
    torch.manual_seed(0)
    keys = torch.nn.functional.normalize(
        torch.randn(1, TOKENS, SLOTS, dtype=torch.float64), dim=-1
    )
    maps = 2 * torch.randn(
        2, SLOTS, 1, dtype=torch.float64
    )  # before the change, and after it
    values = torch.cat([keys[:, :CHANGE] @ maps[0], keys[:, CHANGE:] @ maps[1]], 1)
    values = values + NOISE**0.5 * torch.randn_like(values)
    asked = torch.nn.functional.normalize(
        torch.randn(1, 1, SLOTS, dtype=torch.float64), dim=-1
    )
    truth = torch.cat([(asked @ maps[i])[0, 0].expand(CHANGE) for i in range(2)])
    figure, axes = plt.subplots(
        1, 3, figsize=(12, 3.2), sharey=True, layout="constrained"
    )
    dynamics = ({}, {"decay": 0.97}, {"retention": 0.97})
    for axis, forgetting in zip(axes, dynamics, strict=True):
        title = (
            " ".join(f"{k} {v}" for k, v in forgetting.items()) or "no forgetting"
        )
        reads, var, *_ = ops.causal_scan(
            None,
            None,
            keys,
            values,
            asked.expand(-1, TOKENS, -1),
            NOISE,
            **forgetting,
        )
        reads, std = reads[0, :, 0], var[0].sqrt()
        for token in (0, 7, 15, 31, CHANGE - 1, CHANGE + 15, TOKENS - 1):
            print(
                f"{title}, token {token}: {reads[token]:.2f} ± {std[token]:.2f}, "
                f"right {truth[token]:.2f}"
            )
        steps = torch.arange(TOKENS)
        axis.fill_between(
            steps, reads - std, reads + std, color=BLUE, alpha=0.25, lw=0
        )
        axis.plot(steps, reads, color=BLUE, label="read ± standard deviation")
        axis.plot(steps, truth, color=ORANGE, ls="--", label="right answer")
        axis.axvline(CHANGE, color=GREY, ls=":", lw=0.8)
        axis.set(title=title, xlabel="token")
    axes[0].set_ylabel("answer to one query")
    axes[0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main(__file__, __doc__, draw)
