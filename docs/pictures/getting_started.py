"""Drawings written into a memory, damaged queries, what is read, and how it scores."""

import torch
from _common import images, main, plt

import kanerva_ext
from kanerva_ext.data import load_omniglot

COUNT = 12  # drawings that are written; 6 of them and 3 others are asked for


def draw():
    torch.manual_seed(0)
    drawings, labels = load_omniglot("test")
    first = [
        (labels == label).nonzero()[0, 0] for label in labels.unique()[: COUNT + 3]
    ]
    codes = drawings[torch.stack(first)].float().flatten(1)[None]  # (1, 15, 784)
    written, others = codes[:, :COUNT], codes[:, COUNT:]

    memory = kanerva_ext.FusedKanervaMemory(
        memory_size=32, code_size=784, noise_std=0.3, prior_mean_std=0.05
    )
    asked = torch.cat([written[:, :6], others], 1)
    damaged = asked.clone().view(1, 9, 28, 28)
    damaged[:, :, 14:] = 0  # the lower half is missing
    damaged = damaged.flatten(2)
    with torch.no_grad():
        state = memory.write(written).state
        read = memory.read(damaged, state).values
        score = memory.score(damaged, state)[0]
        error = (read - asked).square().sum(-1) / asked.square().sum(-1)
    print("score, nats per pixel:", [round(x, 3) for x in score.tolist()])
    print(
        "error of the read / energy of the drawing:",
        [round(x, 2) for x in error[0].tolist()],
    )

    figure, axes = plt.subplots(3, 9, figsize=(8, 2.9))
    for row, (pictures, title) in enumerate(
        [(asked, "drawing"), (damaged, "asked with"), (read, "read")]
    ):
        images(axes[row], pictures[0].view(9, 28, 28), title)
    for axis, value in zip(axes[2], score, strict=True):
        axis.set_xlabel(f"{value:.2f}")
    for axis in axes[0, :6]:
        axis.set_title("written", fontsize=8)
    for axis in axes[0, 6:]:
        axis.set_title("not written", fontsize=8)
    figure.text(0.5, -0.02, "score, nats per pixel", ha="center")
    return figure


if __name__ == "__main__":
    main(__file__, __doc__, draw)
