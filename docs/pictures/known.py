"""Which number tells a drawing that was written from one that was not: ROC curves."""

import torch
from _common import BLUE, GREEN, GREY, ORANGE, RED, main, plt

import kanerva_ext
from kanerva_ext.data import load_omniglot

EPISODES, STEPS = 60, 16


def roc(known, unknown):
    """Share of false alarms, share found, and the area; high numbers mean known."""
    values = torch.cat([known, unknown])
    order = values.argsort(descending=True, stable=True)
    is_known = torch.cat([torch.ones_like(known), torch.zeros_like(unknown)])[order]
    found, false = (
        is_known.cumsum(0) / known.numel(),
        (1 - is_known).cumsum(0) / unknown.numel(),
    )
    return false, found, torch.trapezoid(found, false).item()


@torch.no_grad()
def draw():
    torch.manual_seed(0)
    drawings, _ = load_omniglot("test")
    chosen = torch.stack(
        [torch.randperm(len(drawings))[: 2 * STEPS] for _ in range(EPISODES)]
    )
    codes = drawings[chosen].float().flatten(2)  # (60, 32, 784)
    written, others = codes.split(STEPS, 1)
    memory = kanerva_ext.FusedKanervaMemory(
        memory_size=32, code_size=784, noise_std=0.3, prior_mean_std=0.05
    )
    state = memory.write(written).state

    def damage(
        pixels,
    ):  # a fifth of the ink is gone, and every query has a brightness of its own
        kept = pixels * (torch.rand_like(pixels) > 0.2)
        return kept * (0.5 + torch.rand(*pixels.shape[:-1], 1))

    def measure(queries):
        read = memory.read(queries, state)
        return {
            "score": memory.score(queries, state),
            "score(normalize=False)": memory.score(queries, state, normalize=False),
            "-var": -read.var,
            "-var / ‖w‖²": -read.var / read.weights.square().sum(-1),
            "-‖z - read‖² / ‖z‖²": -(queries - read.values).square().sum(-1)
            / queries.square().sum(-1),
        }

    plain = {"written": measure(written), "not written": measure(others)}
    for which in plain["written"]:
        area = roc(*(plain[name][which].flatten() for name in plain))[2]
        print(f"queries as they were written, {which}: area {area:.3f}")
    numbers = {
        "written": measure(damage(written)),
        "not written": measure(damage(others)),
    }
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8, 3.4), layout="constrained"
    )
    colors = (BLUE, ORANGE, RED, GREEN, GREY)
    for which, color in zip(numbers["written"], colors, strict=True):
        pair = [numbers[name][which].flatten() for name in numbers]
        false, found, area = roc(*pair)
        print(f"damaged queries, {which}: area {area:.3f}")
        left.plot(false, found, color=color, label=f"{which}: {area:.3f}")
    left.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    left.set(
        xlabel="not written, taken for written",
        ylabel="written, found",
        title="ROC, area",
    )
    left.legend(fontsize=8)
    bins = torch.linspace(-0.15, 0.85, 80).numpy()
    for name, color in (("written", BLUE), ("not written", ORANGE)):
        values = numbers[name]["score"].flatten()
        print(
            f"score, {name}: {values.mean():.3f} ± {values.std():.3f}, > 0: "
            f"{(values > 0).float().mean():.3f}"
        )
        right.hist(values.numpy(), bins, color=color, alpha=0.6, label=name)
    right.axvline(0, color="k", lw=0.8)
    right.set(xlabel="score, nats per pixel", ylabel="queries", title="score")
    right.legend()
    return figure


if __name__ == "__main__":
    main(__file__, __doc__, draw)
