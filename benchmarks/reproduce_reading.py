"""Reading again from corrupted queries: the error after each read, and where the addresses are."""

from __future__ import annotations

from pathlib import Path

import torch

from kanerva_ext.cli._loaded_run import LoadedRun, load_run
from kanerva_ext.data import occlude, salt_and_pepper, split_episodes

QUERIES = {
    "clean": lambda images, generator: images,
    "salt and pepper, 15 %": lambda images, generator: salt_and_pepper(images, 0.15, generator),
    "occlusion, 15 %": lambda images, generator: occlude(images, 0.15, generator),
}
EPISODES = 24


@torch.no_grad()
def measure(folder: Path, root: str | None, reads: int = 5, seed: int = 0) -> list[dict]:
    """One row for each kind of query of a run of `KanervaMachine`.

    ``errors`` are those of the query and of every read, `LoadedRun.pixel_error`, means over
    episodes of test images. ``moved`` is how far the query's y is from that of the clean image, in
    standard deviations of q(y|clean image): within about one, training has asked for a right read.
    ``nearest`` is the share of queries whose y is nearer to that of the right image than to that of
    any other image of the episode.
    """
    run = load_run(folder, "cpu", root)
    generator = torch.Generator().manual_seed(seed)
    data = run.config.data
    images = split_episodes(
        run.images().images,
        episode_length=data.episode_length,
        pixels=data.pixels,
        generator=generator,
    )[:EPISODES]
    state = run.write(images, run.generator(seed))
    mean, log_std = _latent(run, images)
    rows = []
    for name, corrupt in QUERIES.items():
        queries = corrupt(images, torch.Generator().manual_seed(seed + 1))
        steps = run.denoise(queries, state, reads)
        seen = torch.cat([queries[None], steps])
        errors = run.pixel_error(seen, images).mean(-1).tolist()
        moved = _latent(run, queries)[0]
        size = mean.shape[-1] ** 0.5
        nearest = torch.cdist(moved, mean).argmin(-1) == torch.arange(mean.shape[1])
        rows.append(
            {
                "query": name,
                "measure": run.error_name,
                "errors": errors,
                "moved": (((moved - mean) / log_std.exp()).norm(dim=-1) / size).median().item(),
                "nearest": nearest.float().mean().item(),
            }
        )
    return rows


def _latent(run: LoadedRun, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log-std of q(y|x)."""
    return run.model._latent(run.model._query(images))
