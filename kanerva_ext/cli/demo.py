"""``kanerva demo``: a small Kanerva Machine and a VAE, trained on Omniglot in minutes and shown.

Both have the same coders, see the same batches, side by side, and get the same tricks. Written to
the folder: ``reconstructions.png``, ``denoising.png``, ``generations.png``, ``training.png``,
``demo.png`` (a wide picture of all), ``metrics.json`` and ``checkpoint.safetensors``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__, _backend, backends
from ..data import EpisodeSampler, load_omniglot, salt_and_pepper, split_episodes
from ..models import KanervaMachine, MatchedVAE, evaluate, train
from ..models.training import TrainingStep
from ._config import ConfigError
from ._run import check_at_least

EPISODE_LENGTH = 32
AUGMENT = 0.5
NOISE = 0.15  # share of pixels replaced in the corrupted queries
NUM_READS = 3
RESERVED = 15.0  # seconds of the wall time, for evaluation and pictures
HELD_OUT_POINTS = 12  # on the curves of the training
FEW_CHARACTERS = 4
CURVE_POINTS = 200
SMOOTHING = 0.98  # of the training's bounds
PREFIXES = ("kanerva", "vae")
NAMES = ("Kanerva Machine", "VAE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("demo_output"), help="folder (default demo_output)")
    add("--minutes", type=float, help="of wall time, for everything (default 5); 0: no training")
    add("--steps", type=int, help="training steps of each model, in place of --minutes")
    add("--seed", type=int, default=0, help="default 0; --steps then repeats exactly")
    add("--threads", type=int, help="default: the cores, 4 at most")
    add("--batch-size", type=int, default=2, help="episodes in a batch (default 2)")
    add("--memory-size", type=int, help="slots (default 32)")
    add("--code-size", type=int, help="size of a code (default 100)")
    add("--learning-rate", type=float, default=3e-3, help="Adam's, at its highest (default 3e-3)")
    add("--checkpoint", type=Path, help="go on from this one; its sizes hold")


def _check(args: argparse.Namespace) -> None:
    """Fills in what depends on other options.

    Raises:
        ConfigError: an option is out of bounds, or does not go with another one.
    """
    if args.minutes is not None and args.steps is not None:
        raise ConfigError("give --minutes or --steps, not both")
    if args.minutes is None and args.steps is None:
        args.minutes = 5.0
    if args.minutes is not None and not 0 <= args.minutes < math.inf:
        raise ConfigError(f"--minutes must be at least 0 and finite, got {args.minutes}")
    if args.minutes == 0 and args.checkpoint is None:
        raise ConfigError("--minutes 0 trains nothing and needs a --checkpoint")
    if args.threads is None:
        args.threads = min(4, os.cpu_count() or 1)
    given = {
        name: 1
        for name in ("steps", "threads", "batch_size", "memory_size", "code_size")
        if getattr(args, name) is not None
    }
    check_at_least(args, **given)
    if not 0 < args.learning_rate < math.inf:
        raise ConfigError(f"--learning-rate must be positive and finite, got {args.learning_rate}")
    if args.checkpoint is not None:
        if not args.checkpoint.is_file():
            raise ConfigError(f"--checkpoint {args.checkpoint}: no such file")
        if args.memory_size is not None or args.code_size is not None:
            raise ConfigError("--memory-size and --code-size are the checkpoint's; leave them out")
    if args.out.exists() and not args.out.is_dir():
        raise ConfigError(f"--out {args.out} is not a folder")


def save_checkpoint(path: Path, kanerva: KanervaMachine, vae: MatchedVAE, **metadata: Any) -> None:
    """Both models in one safetensors file; their configurations and ``metadata`` as JSON in it."""
    from safetensors.torch import save_file

    models = dict(zip(PREFIXES, (kanerva, vae), strict=True))
    tensors = {
        f"{prefix}.{name}": tensor.detach().contiguous()
        for prefix, model in models.items()
        for name, tensor in model.state_dict().items()
    }
    metadata |= {prefix: model.config for prefix, model in models.items()}
    metadata["kanerva_ext"] = __version__
    save_file(tensors, path, {name: json.dumps(value) for name, value in metadata.items()})


def load_checkpoint(path: Path) -> tuple[KanervaMachine, MatchedVAE, dict[str, Any]]:
    """The models, in evaluation mode, and the metadata of a file of `save_checkpoint`.

    Raises:
        ConfigError: the file is not one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        models = (KanervaMachine(**metadata["kanerva"]), MatchedVAE(**metadata["vae"]))
        for prefix, model in zip(PREFIXES, models, strict=True):
            start = f"{prefix}."
            model.load_state_dict(
                {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
            )
            model.eval()
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{path} is no checkpoint of this demo: {error}") from error
    return *models, metadata


def _fit(models: list, held_out: Tensor, budget: dict[str, Any], args) -> tuple[list, int]:
    """Trains the models side by side with a progress bar; their curves, and the steps made."""
    from tqdm import tqdm

    from ._demo_figures import Curve

    sampler = EpisodeSampler(
        load_omniglot("train")[0],
        episode_length=EPISODE_LENGTH,
        batch_size=args.batch_size,
        augment=AUGMENT,
        generator=torch.Generator().manual_seed(args.seed),
    )
    curves = [Curve(name, [], []) for name in NAMES]
    smooth: list[float] = []
    bar = tqdm(
        total=100,
        bar_format="{percentage:3.0f}% |{bar:16}| {elapsed}<{remaining} {postfix}",
        mininterval=0.2 if sys.stderr.isatty() else 15,
    )

    def report(now: TrainingStep) -> None:
        old = smooth or now.bounds
        smooth[:] = (
            SMOOTHING * before + (1 - SMOOTHING) * bound
            for before, bound in zip(tuple(old), now.bounds, strict=True)
        )
        if now.progress * CURVE_POINTS >= len(curves[0].train):
            for curve, bound in zip(curves, smooth, strict=True):
                curve.train.append((now.seconds, bound))
        if now.progress * HELD_OUT_POINTS >= len(curves[0].held_out) + 1:
            for curve, model in zip(curves, models, strict=True):
                bound = evaluate(model, held_out, rounds=1, seed=args.seed)["bound"]
                curve.held_out.append((now.seconds, bound))
        bounds = []
        for curve, bound in zip(curves, smooth, strict=True):
            text = f"{curve.name} {bound:.1f}"
            bounds.append(
                text + (f" (held-out {curve.held_out[-1][1]:.1f})" if curve.held_out else "")
            )
        bar.set_postfix_str(f"step {now.step}, nats/image: {', '.join(bounds)}", refresh=False)
        bar.update(100 * now.progress - bar.n)

    steps = train(
        models,
        iter(sampler),
        learning_rate=args.learning_rate,
        warm_up=args.checkpoint is None,
        seed=args.seed,
        threads=args.threads,
        on_step=report,
        **budget,
    )
    bar.close()
    return curves, steps


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


def _measure(kanerva: KanervaMachine, vae: MatchedVAE, held_out: Tensor, seed: int) -> dict:
    options = {"episode_length": EPISODE_LENGTH, "seed": seed}
    return {
        "kanerva": evaluate(kanerva, held_out, **options),
        "kanerva_other_memory": evaluate(kanerva, held_out, other_memory=True, **options),
        "vae": evaluate(vae, held_out, **options),
        "denoising_kanerva": denoising_errors(kanerva, held_out, seed),
        "denoising_vae": denoising_errors(vae, held_out, seed),
    }


def _table(metrics: dict) -> str:
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
def _draw(kanerva: KanervaMachine, vae: MatchedVAE, curves: list, out: Path, seed: int) -> None:
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


def run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    _check(args)
    import matplotlib  # noqa: F401 - missing before minutes of training, not after
    import safetensors  # noqa: F401
    import tqdm  # noqa: F401

    serving = "cpu" if _backend.default == "auto" else _backend.default
    print(f"kanerva_ext {__version__}, backend {serving}: {backends()[serving]}", flush=True)
    torch.set_num_threads(max(1, args.threads // 2))  # two models side by side
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    held_out = load_omniglot("test")[0]

    if args.checkpoint is not None:
        kanerva, vae, metadata = load_checkpoint(args.checkpoint)
    else:
        sizes = {"code_size": args.code_size} if args.code_size else {}
        vae, metadata = MatchedVAE(**sizes), {"steps": 0, "seconds": 0.0}
        if args.memory_size:
            sizes["memory_size"] = args.memory_size
        kanerva = KanervaMachine(**sizes)
    curves = []
    if args.minutes != 0:
        budget: dict[str, Any] = {"steps": args.steps}
        if args.minutes is not None:
            total = 60 * args.minutes
            left = total - RESERVED - (time.perf_counter() - start)
            budget = {"seconds": max(left, total / 2)}
        curves, steps = _fit([kanerva, vae], held_out, budget, args)
        metadata["steps"] += steps

    metrics = _measure(kanerva, vae, held_out, args.seed)
    _draw(kanerva, vae, curves, args.out, args.seed)
    seconds = time.perf_counter() - start
    metadata = {"steps": metadata["steps"], "seconds": metadata["seconds"] + seconds}
    metadata |= {"seed": args.seed, "threads": args.threads, "batch_size": args.batch_size}
    save_checkpoint(args.out / "checkpoint.safetensors", kanerva, vae, **metadata)
    (args.out / "metrics.json").write_text(json.dumps(metrics | metadata, indent=2) + "\n")
    print(_table(metrics))
    print(
        f"\nSeed {args.seed}, {args.threads} threads, {metadata['steps']} steps of each model, "
        f"{seconds:.0f} s. Pictures: {args.out}/*.png"
    )
    return 0
