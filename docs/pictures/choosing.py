"""Recall error of random codes against every setting of a memory, one at a time.

Codes are 128 independent normal numbers, the hardest that there are: nothing in one code tells of
another. Error: energy of what is wrong in the read-out over the energy of the code.
"""

import warnings

import torch
from _common import BLUE, GREEN, GREY, ORANGE, main, plt

import kanerva_ext

CODE, BATCH = 128, 16


@torch.no_grad()
def errors(slots=32, steps=16, size=CODE, damage=0.0, keys=None, **settings):
    """Error of the written codes as they are read, and what an unwritten one's read returns."""
    torch.manual_seed(0)
    if keys is not None:
        settings |= {"addressing": "key", "key_size": keys, "prior_mean_std": 0}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # as many slots as columns: shown here on purpose
        memory = kanerva_ext.FusedKanervaMemory(
            slots, size, **{"noise_std": 0.1} | settings
        )
    codes, others = torch.randn(BATCH, steps, size), torch.randn(BATCH, steps, size)
    if keys is not None:
        names = torch.randn(BATCH, steps, keys)
        read = memory.read(names, memory.write(codes, keys=names).state).values
        return ((read - codes).square().sum() / codes.square().sum()).item(), None
    state = memory.write(codes).state
    read = memory.read(codes + damage * torch.randn_like(codes), state).values
    unknown = memory.read(others, state).values
    error = (read - codes).square().sum() / codes.square().sum()
    return error.item(), (unknown.square().sum() / others.square().sum()).item()


def draw():
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 5.6), layout="constrained")
    size, columns, noise, prior, weight, kind = axes.flat

    steps = [2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    for slots, color in ((16, GREY), (32, BLUE), (64, GREEN)):
        found = [errors(slots, t)[0] for t in steps]
        print(
            f"K = {slots}:",
            dict(zip(steps, (f"{x:.1e}" for x in found), strict=True)),
        )
        size.plot(steps, found, color=color, marker=".", label=f"{slots} slots")
        size.axvline(slots, color=color, lw=0.8, ls=":")
    size.set(
        title="memory_size: codes written",
        xlabel="codes in the episode",
        xscale="log",
    )

    sizes = [24, 32, 40, 48, 64, 96, 128, 256]
    found = [errors(32, 16, c)[1] for c in sizes]
    print(
        "unknown, K = 32:",
        dict(zip(sizes, (f"{x:.2f}" for x in found), strict=True)),
    )
    columns.plot(
        sizes, found, color=BLUE, marker=".", label="never written, read back"
    )
    columns.plot(
        sizes, [min(1, 32 / c) for c in sizes], color=GREY, ls=":", label="K / C"
    )
    columns.set(title="code_size, with 32 slots", xlabel="code_size", xscale="log")

    noises = [0.01, 0.03, 0.1, 0.3, 1, 3, 10]
    for damage, color in ((0, BLUE), (0.5, ORANGE), (1, GREEN)):
        found = [errors(damage=damage, noise_std=s)[0] for s in noises]
        print(f"noise_std, damage {damage}:", [f"{x:.3f}" for x in found])
        label = f"query damaged by {damage}" if damage else "query as written"
        noise.plot(noises, found, color=color, marker=".", label=label)
    noise.set(title="noise_std", xlabel="noise_std", xscale="log")

    scales = [0.01, 0.1, 1, 10, 100]
    for std, color in ((0.1, BLUE), (1, ORANGE)):
        found = [errors(noise_std=std, prior_var=p)[0] for p in scales]
        print(f"prior_var, noise_std {std}:", [f"{x:.3f}" for x in found])
        prior.plot(
            scales, found, color=color, marker=".", label=f"noise_std = {std}"
        )
        found = [errors(noise_std=std, weight_std=s)[0] for s in scales]
        print(f"weight_std, noise_std {std}:", [f"{x:.3f}" for x in found])
        weight.plot(
            scales, found, color=color, marker=".", label=f"noise_std = {std}"
        )
    for std in (0.1, 1):
        found = [errors(noise_std=std, num_write_iters=n)[0] for n in (1, 2, 3)]
        print(
            f"num_write_iters 1, 2, 3, noise_std {std}:",
            [f"{x:.3f}" for x in found],
        )
    prior.set(title="prior_var", xlabel="prior_var", xscale="log")
    weight.set(title="weight_std", xlabel="weight_std", xscale="log")

    for keys, color, label in (
        (None, BLUE, "least squares"),
        (64, ORANGE, "keys of 64"),
        (16, GREY, "keys of 16"),
    ):
        found = [errors(steps=t, keys=keys)[0] for t in steps]
        print(f"{label}:", [f"{x:.3f}" for x in found])
        kind.plot(steps, found, color=color, marker=".", label=label)
    kind.set(
        title="addressing, 32 slots", xlabel="codes in the episode", xscale="log"
    )

    for axis in axes.flat:
        axis.set_ylim(-0.03, 1.05)
        axis.legend(fontsize=8)
    columns.set_xticks([32, 64, 128, 256], ["32", "64", "128", "256"])
    for axis in axes.flat:
        axis.set_xticks([], minor=True)
    axes[0, 0].set_ylabel("error of the read")
    axes[0, 1].set_ylabel("share of its energy")
    axes[1, 0].set_ylabel("error of the read")
    return figure


if __name__ == "__main__":
    main(__file__, __doc__, draw)
