"""The demo's models: trained side by side, saved, loaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from .._safetensors import read_tensors, with_prefix, write_tensors
from ..data import EpisodeSampler, load_omniglot
from ..models import KanervaMachine, MatchedVAE, evaluate, train
from ..models.training import TrainingStep
from ._config import ConfigError

EPISODE_LENGTH = 32
AUGMENT = 0.5
HELD_OUT_POINTS = 12  # on the curves of the training
CURVE_POINTS = 200
SMOOTHING = 0.98  # of the training's bounds
PREFIXES = ("kanerva", "vae")
NAMES = ("Kanerva Machine", "VAE")


def save_checkpoint(path: Path, kanerva: KanervaMachine, vae: MatchedVAE, **metadata: Any) -> None:
    """Both models in one safetensors file; their configurations and ``metadata`` as JSON in it."""
    models = dict(zip(PREFIXES, (kanerva, vae), strict=True))
    tensors = {
        f"{prefix}.{name}": tensor.detach().contiguous()
        for prefix, model in models.items()
        for name, tensor in model.state_dict().items()
    }
    metadata |= {prefix: model.config for prefix, model in models.items()}
    metadata["kanerva_ext"] = __version__
    write_tensors(path, tensors, metadata)


def load_checkpoint(path: Path) -> tuple[KanervaMachine, MatchedVAE, dict[str, Any]]:
    """The models, in evaluation mode, and the metadata of a file of `save_checkpoint`.

    Raises:
        ConfigError: the file is not one.
    """
    try:
        tensors, metadata = read_tensors(path)
        if "config" in metadata:
            raise ValueError("it is of kanerva train, which goes on with --resume")
        models = (KanervaMachine(**metadata["kanerva"]), MatchedVAE(**metadata["vae"]))
        for prefix, model in zip(PREFIXES, models, strict=True):
            model.load_state_dict(with_prefix(tensors, f"{prefix}."))
            model.eval()
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{path} is no checkpoint of this demo: {error}") from error
    return *models, metadata


def fit(
    models: list, held_out: Tensor, budget: dict[str, Any], args: argparse.Namespace
) -> tuple[list, int]:
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

    with bar:
        steps = train(
            models,
            iter(sampler),
            learning_rate=args.learning_rate,
            warm_up=args.new,
            seed=args.seed,
            threads=args.threads,
            on_step=report,
            **budget,
        )
    return curves, steps
