"""Short trainings by `kanerva train`: their arguments, and what they leave."""

import subprocess

from safetensors import safe_open

from kanerva_ext.cli import _checkpoint

SMALL = {
    "model.memory_size": 8,
    "model.code_size": 12,
    "model.num_filters": 4,
    "data.episode_length": 8,
    "training.steps": 30,
    "training.log_every": 4,
    "training.evaluate_every": 8,
    "training.evaluate_images": 64,
    "training.checkpoint_every": 3,
}
PRESET = "cpu-omniglot-kanerva"


def arguments(out, *more, preset=PRESET, **options):
    settings = SMALL | {key.replace("__", "."): value for key, value in options.items()}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["train", preset, "--out", str(out), "--quiet", "--device", "cpu", *sets, *more]


def elsewhere(folder):
    """Where a process starts: in the checkout, -m would import the package without its library."""
    return {"cwd": folder.parent, "stderr": subprocess.PIPE, "text": True}


def tensors(folder):
    with safe_open(folder / _checkpoint.FILE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
