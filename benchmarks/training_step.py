"""Where the time of a training step goes, and what the fused memory takes off it.

    python -m benchmarks.training_step [--threads 2] [--json]

Both machines at the papers' Omniglot settings (16 episodes of 32 images, code size 100), forward
and backward, float32. The same model on the fused kernels and on the reference backend (the
equations in plain PyTorch) takes turns in one run; before that both must give the same gradients.
A part is timed alone; what is left of the step is the small networks, the losses and Python.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kanerva_ext.cli._config_files import load_config
from kanerva_ext.models.training import Trainer

from .compare import RESULTS, write_json
from .machine import OtherLoad, describe, headline
from .measure import interleaved, relative_error

PRESETS = {"Kanerva Machine": "omniglot-kanerva", "Dynamic Kanerva Machine": "omniglot-dynamic"}
BACKENDS = ("auto", "reference")
MAX_ERROR = 1e-4  # of one backend's gradients against the other's, float32


@dataclass
class Row:
    """One part of a step; milliseconds per call."""

    machine: str
    part: str  # "memory", "step", "coders" or "optimiser"
    backend: str
    ms: float
    gradients_differ_by: float


def make(preset: str, backend: str, device: str | torch.device = "cpu"):
    """A model of a preset; the same parameters for every backend."""
    config = load_config(preset)
    torch.manual_seed(0)
    model = config.make_model()
    model.memory.backend = backend
    return model.to(device), config


def memory_part(model, config) -> Callable[[], tuple[Tensor, ...]]:
    """Write and read of one step, with the gradients of all that goes in."""
    memory, data = model.memory, config.data
    device = memory.prior_mean.device
    generator = torch.Generator(device).manual_seed(0)

    def normal(size: int) -> Tensor:
        shape = (data.batch_size, data.episode_length, size)
        return torch.randn(shape, generator=generator, device=device).requires_grad_()

    codes, grad = normal(memory.code_size), normal(memory.code_size).detach()
    inputs = [codes, memory.prior_mean, memory.log_prior_var]
    if memory.key_size is None:

        def forward() -> Tensor:
            state = memory.write(codes).state
            return memory.read(codes, state, generator=generator.manual_seed(1)).values
    else:
        written, read = normal(memory.key_size), normal(memory.key_size)
        inputs += [written, read, memory.address_matrix]

        def forward() -> Tensor:
            state = memory.write(codes, keys=written).state
            return memory.read(read, state).values

    return lambda: torch.autograd.grad(forward(), inputs, grad)


def coder_part(model, config) -> Callable[[], object]:
    """Encoder and decoder of one step's images, with their gradients."""
    data = config.data
    device = model.memory.prior_mean.device
    batch = (data.batch_size, data.episode_length)
    images = torch.rand(*batch, *model.image_shape, device=device)
    codes = torch.randn(*batch, model.config["code_size"], device=device)
    codes.requires_grad_()
    parameters = [codes, *model.encoder.parameters(), *model.decoder.parameters()]
    calls = 2 if hasattr(model, "code") else 1  # the Dynamic Kanerva Machine decodes codes too

    def call():
        total = model.encoder(images).sum()
        for _ in range(calls):
            total = total + model.decoder(codes).sum()
        return torch.autograd.grad(total, parameters)

    return call


def whole_step(model, config) -> Callable[[], object]:
    """`Trainer.step`, its optimiser with it, on one batch again and again."""
    data = config.data
    trainer = Trainer(model, config.training.schedule()._replace(learning_rate=1e-6))
    shape = (data.batch_size, data.episode_length, *model.image_shape)
    images = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    images, generator = images.to(trainer.device), torch.Generator(trainer.device)

    def call():
        return trainer.step(images, None, 0, 0.5, generator.manual_seed(0))

    return call


def check(calls: dict[str, Callable[[], tuple[Tensor, ...]]]) -> float:
    """The largest relative difference of the gradients; AssertionError if it is too large."""
    ours, reference = (calls[backend]() for backend in BACKENDS)
    error = relative_error(ours, tuple(x.double() for x in reference))
    if not error < MAX_ERROR:
        raise AssertionError(f"gradients of the two backends differ by {error:.1e}")
    return error


def measure(name: str, rounds: int, seconds: float) -> list[Row]:
    """Medians of each part on each backend."""
    made = {backend: make(PRESETS[name], backend) for backend in BACKENDS}
    memory = {backend: memory_part(*one) for backend, one in made.items()}
    error = check(memory)
    parts: dict[tuple[str, str], Callable] = {}
    for backend, one in made.items():
        parts["memory", backend] = memory[backend]
        parts["step", backend] = whole_step(*one)
    parts["coders", "auto"] = coder_part(*made["auto"])
    model, config = made["auto"]
    parts["optimiser", "auto"] = Trainer(model, config.training.schedule()).optimizer.step
    times = interleaved(parts, rounds, seconds)
    return [Row(name, *key, statistics.median(t) * 1e3, error) for key, t in times.items()]


def table(rows: list[Row]) -> list[list[str]]:
    """The first row is the heads; one column per machine."""
    names = list(dict.fromkeys(row.machine for row in rows))
    ms = {(row.machine, row.part, row.backend): row.ms for row in rows}
    lines = [["", *names]]

    def add(title: str, cell: Callable[[str], str]) -> None:
        lines.append([title, *map(cell, names)])

    for part in ("memory", "step"):
        add(f"{part}, fused", lambda n, p=part: f"{ms[n, p, 'auto']:.2f} ms")
        add(f"{part}, reference", lambda n, p=part: f"{ms[n, p, 'reference']:.2f} ms")
        add(
            f"{part}, ratio",
            lambda n, p=part: f"{ms[n, p, 'reference'] / ms[n, p, 'auto']:.2f}",
        )
    for part in ("coders", "optimiser"):
        add(part, lambda n, p=part: f"{ms[n, p, 'auto']:.2f} ms")
    for part in ("memory", "coders", "optimiser"):
        add(
            f"share of the fused step, {part}",
            lambda n, p=part: f"{ms[n, p, 'auto'] / ms[n, 'step', 'auto']:.1%}",
        )
    add(
        "share of the reference step, memory",
        lambda n: f"{ms[n, 'memory', 'reference'] / ms[n, 'step', 'reference']:.1%}",
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60.0, help="per machine, at most")
    parser.add_argument("--json", type=Path, nargs="?", const=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = describe()
    rows: list[Row] = []
    with OtherLoad() as load:
        for name in PRESETS:
            rows += measure(name, args.rounds, args.seconds)
    about["other_load"] = load.cores
    print(f"{headline(about)}; other programs kept {load.cores} cores busy\n")
    lines = table(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))
    if args.json:
        print(f"written to {write_json(args.json, 'training_step', about, rows)}")


if __name__ == "__main__":
    main()
