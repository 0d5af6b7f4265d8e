"""Draws docs/images/episodic_memory*.png from the numbers of ``benchmarks.episodic``.

python -m benchmarks.episodic capacity --json docs/guides/episodic_memory.json
python -m benchmarks.episodic features --json docs/guides/episodic_memory_noise.json
python docs/guides/episodic_memory.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
PICTURE = HERE.parent / "images" / "episodic_memory.png"
#: Larimar's rewrite accuracy at 512 slots (Das et al., ICML 2024).
LARIMAR = ((1, 0.99), (2, 0.82), (4, 0.54))


def main() -> None:
    capacity()
    noise()


def noise() -> None:
    """Recall against the noise variance, which is in units of the prior variance."""
    rows = json.loads((HERE / "episodic_memory_noise.json").read_text())["features"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    titles = {"recall": "asked as written", "paraphrases": "asked in other words"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for slots, facts in dict.fromkeys((r["slots"], r["facts"]) for r in rows):
            of = [r for r in rows if (r["slots"], r["facts"]) == (slots, facts)]
            x, y = [r["noise_var"] for r in of], [r[name] for r in of]
            axis.plot(x, y, marker="o", label=f"{slots:,} slots, {facts:,} facts")
        axis.set(
            xscale="log",
            xlabel="noise variance / prior variance",
            title=title,
            ylim=(-0.03, 1.03),
        )
        axis.axvline(1e-2, color="0.8", zorder=0)
    axes[0].set_ylabel("top-1 recall")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE.with_name("episodic_memory_noise.png"), dpi=110)


def capacity() -> None:
    """Recall against facts per slot, for keys and for features."""
    rows = json.loads((HERE / "episodic_memory.json").read_text())["capacity"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axis, name, title in zip(
        axes,
        ("recall", "paraphrases"),
        ("asked as written", "asked in other words"),
        strict=True,
    ):
        for slots, features in (
            (384, "none"),
            (384, "relu"),
            (2048, "relu"),
            (2048, "fourier"),
        ):
            of = [
                r for r in rows if (r["slots"], r["features"]) == (slots, features)
            ]
            x, y = [r["facts"] / slots for r in of], [r[name] for r in of]
            label = f"{slots:,} slots, " + (
                "the key" if features == "none" else features
            )
            axis.plot(x, y, marker="o", label=label)
        if name == "recall":
            axis.plot(
                *zip(*LARIMAR, strict=True),
                "k:",
                marker="x",
                label="Larimar, other facts",
            )
        axis.set(
            xscale="log", xlabel="facts / slots", title=title, ylim=(-0.03, 1.03)
        )
        axis.axvline(1, color="0.8", zorder=0)
    axes[0].set_ylabel("top-1 recall")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
