"""One run: a small model of two blocks, trained and measured."""

from __future__ import annotations

import time

import torch
from torch import nn
from tqdm import tqdm

from kanerva_ext import KanervaBlock

from . import mixers
from .tasks import TASKS

WIDTH, HEADS, LAYERS, MLP = 32, 2, 2, 64
LEARNING_RATE, WARM_UP, CLIP, WEIGHT_DECAY = 3e-3, 0.1, 1.0, 0.01
POINTS = 50  # of a curve
HELD_OUT = 1_000_000  # seeds of held-out data begin here


class Model(nn.Module):
    """`KanervaBlock`s with the mixer of a name in each."""

    def __init__(self, task, mixer: str) -> None:
        super().__init__()
        self.inputs, outputs = task.model_ends(WIDTH)
        self.blocks = nn.Sequential(
            *(KanervaBlock(WIDTH, HEADS, mlp_dim=MLP) for _ in range(LAYERS))
        )
        for block in self.blocks:
            block.layer = mixers.make(mixer, WIDTH, HEADS)
        self.norm = nn.RMSNorm(WIDTH)
        self.outputs = nn.Linear(WIDTH, outputs)

    def forward(self, tokens):
        return self.outputs(self.norm(self.blocks(self.inputs(tokens))))


def train(
    name: str, mixer: str, seed: int, steps: int | None = None, norm_eps: float | None = None
) -> dict:
    """Train and measure one model.

    Args:
        name: of the task.
        mixer: its name.
        seed: of parameters and batches; held-out data have seeds of their own, the same for all.
        steps: None: the task's.
        norm_eps: of the norm of every head's reads; None: the layer's own, 1e-5.

    Returns:
        What a result file holds of a run: steps, parameters, seconds, curve, held_out.
    """
    task = TASKS[name]
    steps = task.steps if steps is None else steps
    torch.manual_seed(seed)
    model = Model(task, mixer)
    if norm_eps is not None:
        for block in model.blocks:
            block.layer.norm.eps = norm_eps
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=max(steps, 2), pct_start=WARM_UP
    )
    measures, began = [], time.process_time()
    for _ in tqdm(range(steps), desc=f"{name}, {mixer}, {seed}", leave=False, disable=None):
        loss, measure = task.loss(model, task.batch(task.batch_size, generator))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        schedule.step()
        measures.append(measure.mean().item())
    seconds = time.process_time() - began
    with torch.no_grad():
        held_out = task.held_out(model.eval(), torch.Generator().manual_seed(HELD_OUT + seed))
    return {
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 1),
        "curve": _thin(measures),
        "held_out": {str(k): round(v, 5) for k, v in held_out.items()},
    }


def _thin(measures: list[float]) -> list[list[float]]:
    """At most `POINTS` of (step, mean since the last one)."""
    size = max(1, len(measures) // POINTS)
    return [
        [end, round(sum(measures[end - size : end]) / size, 5)]
        for end in range(size, len(measures) + 1, size)
    ]
