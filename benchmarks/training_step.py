"""Where the time of a training step goes, and what the fused memory takes off it.

    python -m benchmarks.training_step [--threads 2] [--json FILE]

Both machines at the papers' Omniglot settings (16 episodes of 32 images, code size 100), forward
and backward, float32. The same model on the fused kernels and on the reference backend (the
equations in plain PyTorch) takes turns in one run; before that both must give the same gradients.
A part is timed alone; what is left of the step is the small networks, the losses and Python.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kanerva_ext.cli._config import load_config
from kanerva_ext.models.training import Trainer

from .machine import OtherLoad, describe, headline
from .measure import interleaved, relative_error

PRESETS = {"Kanerva Machine": "omniglot-kanerva", "Dynamic Kanerva Machine": "omniglot-dynamic"}
BACKENDS = ("auto", "reference")
MAX_ERROR = 1e-4  # of one backend's gradients against the other's, float32


def make(preset: str, backend: str):
    """A model of a preset; the same parameters for every backend."""
    config = load_config(preset)
    torch.manual_seed(0)
    model = config.make_model()
    model.memory.backend = backend
    return model, config


def memory_part(model, config) -> Callable[[], tuple[Tensor, ...]]:
    """Write and read of one step, with the gradients of all that goes in."""
    memory, data = model.memory, config.data
    generator = torch.Generator().manual_seed(0)

    def normal(size: int) -> Tensor:
        shape = (data.batch_size, data.episode_length, size)
        return torch.randn(shape, generator=generator).requires_grad_()

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
    images = torch.rand(data.batch_size, data.episode_length, *model.image_shape)
    codes = torch.randn(data.batch_size, data.episode_length, model.config["code_size"])
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
    generator = torch.Generator()

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


def measure(preset: str, rounds: int, seconds: float) -> dict[str, float]:
    """Medians in milliseconds of each part on each backend."""
    made = {backend: make(preset, backend) for backend in BACKENDS}
    memory = {backend: memory_part(*one) for backend, one in made.items()}
    result = {"gradients differ by": check(memory)}
    parts: dict[str, Callable] = {}
    for backend, one in made.items():
        parts[f"memory, {backend}"] = memory[backend]
        parts[f"step, {backend}"] = whole_step(*one)
    parts["coders"] = coder_part(*made["auto"])
    optimizer = Trainer(made["auto"][0], made["auto"][1].training.schedule()).optimizer
    parts["optimiser"] = optimizer.step
    for name, times in interleaved(parts, rounds, seconds).items():
        result[name] = statistics.median(times) * 1e3
    return result


def table(results: dict[str, dict[str, float]]) -> str:
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]

    def row(title: str, cell: Callable[[dict[str, float]], str]) -> None:
        lines.append(f"| {title} | " + " | ".join(cell(r) for r in results.values()) + " |")

    row("memory, fused", lambda r: f"{r['memory, auto']:.2f} ms")
    row("memory, reference", lambda r: f"{r['memory, reference']:.2f} ms")
    row("ratio", lambda r: f"{r['memory, reference'] / r['memory, auto']:.1f}")
    row("step, fused", lambda r: f"{r['step, auto']:.1f} ms")
    row("step, reference", lambda r: f"{r['step, reference']:.1f} ms")
    row("ratio", lambda r: f"{r['step, reference'] / r['step, auto']:.2f}")
    row("coders", lambda r: f"{r['coders']:.1f} ms")
    row("optimiser", lambda r: f"{r['optimiser']:.2f} ms")
    for backend, name in zip(BACKENDS, ("fused", "reference"), strict=True):
        row(
            f"share of the memory in the step, {name}",
            lambda r, b=backend: f"{r[f'memory, {b}'] / r[f'step, {b}']:.1%}",
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60.0, help="per machine, at most")
    parser.add_argument("--json", type=Path, help="also write everything here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    machine = describe()
    with OtherLoad() as load:
        results = {
            name: measure(preset, args.rounds, args.seconds) for name, preset in PRESETS.items()
        }
    machine["other_load_cores"] = load.cores
    print(f"{headline(machine)}; other programs kept {load.cores} cores busy\n")
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "parts": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
