"""What the demo shows of its models: measures, a table, pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..data import EpisodeSampler, load_omniglot, salt_and_pepper, split_episodes
from ..models import KanervaMachine, MatchedVAE, evaluate
from ._demo_training import EPISODE_LENGTH

NOISE = 0.15  # share of pixels replaced in the corrupted queries
NUM_READS = 3
FEW_CHARACTERS = 4
PICTURES = ("reconstructions", "denoising", "generations", "training", "demo")


@torch.no_grad()
def denoising_errors(model, images: Tensor, seed: int) -> list[float]:
    """Share of wrong pixels of corrupted held-out images, then after each read.

    The `KanervaMachine` reads from a memory of the clean episode; the VAE has its weights alone.
    """
    generator = torch.Generator().manual_seed(seed)
    clean = split_episodes(images, episode_length=EPISODE_LENGTH, generator=generator)
    corrupted = salt_and_pepper(clean, NOISE, generator)
    if isinstance(model, KanervaMachine):
        reads = model.denoise(corrupted, model.write(clean).state, NUM_READS, NOISE)
    else:
        reads = model.denoise(corrupted, NUM_READS, NOISE)
    return [((x > 0.5) != (clean > 0.5)).float().mean().item() for x in (corrupted, *reads)]


def measure(kanerva: KanervaMachine, vae: MatchedVAE, held_out: Tensor, seed: int) -> dict:
    options = {"episode_length": EPISODE_LENGTH, "seed": seed}
    return {
        "kanerva": evaluate(kanerva, held_out, **options),
        "kanerva_other_memory": evaluate(kanerva, held_out, other_memory=True, **options),
        "vae": evaluate(vae, held_out, **options),
        "denoising_kanerva": denoising_errors(kanerva, held_out, seed),
        "denoising_vae": denoising_errors(vae, held_out, seed),
    }


def table(metrics: dict) -> str:
    columns = ("bound", "reconstruction", "kl_y", "kl_z")
    rows = [
        ("Kanerva Machine", metrics["kanerva"]),
        ("  read from another episode's memory", metrics["kanerva_other_memory"]),
        ("VAE, same coders", metrics["vae"]),
    ]
    lines = [
        "Held-out characters, nats per image, lower is better:",
        f"{'':<38}" + "".join(f"{name:>16}" for name in columns),
    ]
    for name, terms in rows:
        cells = (f"{terms[c]:.1f}" if c in terms else "-" for c in columns)
        lines.append(f"{name:<38}" + "".join(f"{cell:>16}" for cell in cells))
    own, vae = metrics["kanerva"], metrics["vae"]
    lines += [
        f"The Kanerva Machine's bound is {vae['bound'] - own['bound']:.1f} nats below the VAE's "
        f"(standard error of each: {max(own['standard_error'], vae['standard_error']):.1f}).",
        "It bounds -ln p(x | M), the VAE's -ln p(x): M was written from the same episode, and its",
        f"content, KL(M) = {own['kl_memory']:.1f} nats per image, is not charged.",
        "",
        f"Denoising, {NOISE:.0%} of the pixels replaced, share of wrong pixels:",
        f"{'':<38}{'corrupted':>16}" + "".join(f"{f'read {i + 1}':>16}" for i in range(NUM_READS)),
    ]
    for name, key in (("Kanerva Machine", "kanerva"), ("VAE, same coders", "vae")):
        errors = metrics[f"denoising_{key}"]
        lines.append(f"{name:<38}" + "".join(f"{error:>16.2%}" for error in errors))
    return "\n".join(lines)


@torch.no_grad()
def draw(kanerva: KanervaMachine, vae: MatchedVAE, curves: list, out: Path, seed: int) -> None:
    from . import _demo_figures as figures

    images, labels = load_omniglot("test")
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    mixed = split_episodes(images, episode_length=EPISODE_LENGTH, generator=generator)[:1]
    few = EpisodeSampler(
        images,
        labels,
        episode_length=EPISODE_LENGTH,
        batch_size=1,
        num_classes=FEW_CHARACTERS,
        generator=generator,
    ).sample()
    state = kanerva.write(mixed).state
    figures.draw_columns(
        [
            ("clean", mixed[0, :10]),
            ("VAE", vae.reconstruct(mixed)[0, :10]),
            ("Kanerva", kanerva.reconstruct(mixed, state)[0, :10]),
        ],
        out / "reconstructions.png",
    )
    corrupted = salt_and_pepper(mixed, NOISE, generator)
    reads = kanerva.denoise(corrupted, state, NUM_READS, NOISE)[:, 0]
    columns = [mixed[0], corrupted[0], *reads]
    titles = ["clean", "corrupted", *map(str, range(1, NUM_READS + 1))]
    figures.draw_columns(
        [(title, column[:10]) for title, column in zip(titles, columns, strict=True)],
        out / "denoising.png",
    )
    pairs = []
    for name, episode in (("", mixed), (f": drawings of {FEW_CHARACTERS} characters", few)):
        samples = kanerva.generate(kanerva.write(episode).state, EPISODE_LENGTH, NUM_READS)
        pairs.append((f"written once{name}", episode[0], "generated from the memory", samples[0]))
    figures.draw_pairs(pairs, out / "generations.png")
    if curves:
        figures.draw_curves(curves, out / "training.png")
    figures.draw_overview(mixed[0], columns, pairs[0][3], out / "demo.png")
