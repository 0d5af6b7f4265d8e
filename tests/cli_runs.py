"""Runs of a few steps for the tests of the commands, and what their numbers are checked with.

A plugin of conftest.py, so that nothing optional is imported before a fixture is asked for.
"""

import json
import sys

import pytest
import torch

from kanerva_ext.cli import _figures, main

LENGTH = 10
SIZES = {
    "kanerva": {"memory_size": 8, "hidden_size": 16, "key_size": 6, "latent_size": 4},
    "dynamic": {"memory_size": 8},
    "vae": {"hidden_size": 16},
}
OWN_MODEL = '''
from typing import NamedTuple

import torch
from torch import nn

from kanerva_ext.models.likelihoods import BernoulliPixels


class Terms(NamedTuple):
    bound: torch.Tensor
    reconstruction: torch.Tensor


class Written(NamedTuple):
    state: torch.Tensor


class MeanImage(nn.Module):
    """Its memory is the mean image of the episode, and it reads nothing else."""

    def __init__(self):
        super().__init__()
        self.likelihood = BernoulliPixels()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, images, **options):
        return self.elbo(images, **options)

    def write(self, images, state=None, generator=None):
        return Written(images.mean(1, keepdim=True))

    def elbo(self, images, state=None, queries=None, generator=None):
        state = self.write(images).state if state is None else state
        logits = torch.logit(state.clamp(0.01, 0.99)) + self.bias
        nats = self.likelihood.nll(logits.expand_as(images), images)
        return Terms(nats, nats)

    def reconstruct(self, images, state):
        return state.expand_as(images)

    def denoise(self, images, state, num_steps=3, noise=0.0):
        return state.expand_as(images).expand(num_steps, *images.shape)
'''


@pytest.fixture(scope="module")
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folders of runs of a few steps, by name; and of the colour images, "jpegs"."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("runs")
    jpegs = folder / "jpegs"
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("test", 6)):
        for name in ("bird", "frog", "ship"):
            (jpegs / split / name).mkdir(parents=True)
            for i in range(count):
                small = torch.randint(256, (4, 4, 3), dtype=torch.uint8, generator=generator)
                picture = Image.fromarray(small.numpy()).resize((32, 32))
                picture.save(jpegs / split / name / f"{i}.jpg")
    made = {"jpegs": jpegs}
    extra = {"colour": ("cpu-cifar10-kanerva", "kanerva"), "vae-s2": ("cpu-omniglot-vae", "vae")}
    names = {kind: (f"cpu-omniglot-{kind}", kind) for kind in SIZES} | extra
    for seed, (name, (preset, kind)) in enumerate(names.items()):
        values = {f"model.{key}": value for key, value in SIZES[kind].items()}
        values |= {"model.code_size": 12, "model.num_filters": 4, "training.seed": seed}
        values |= {"data.episode_length": LENGTH, "training.steps": 8, "training.evaluate_every": 0}
        if name == "colour":
            values |= {"data.root": f'"{jpegs}"', "data.batch_size": 1}
        sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        made[name] = folder / name
        assert main(["train", preset, "--out", str(made[name]), "--quiet", *sets]) == 0
    return made


@pytest.fixture(scope="session")
def own_run(tmp_path_factory):
    """A run of a class that is not the package's."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_model.py").write_text(OWN_MODEL)
    config = {"model": {"type": "own_model:MeanImage"}, "training": {"steps": 1}}
    config["data"] = {"episode_length": LENGTH, "batch_size": 1}
    (folder / "own.json").write_text(json.dumps(config))
    sys.path.insert(0, str(folder))
    assert main(["train", str(folder / "own.json"), "--out", str(folder / "x"), "--quiet"]) == 0
    yield folder / "x"
    sys.path.remove(str(folder))


def cli(*words) -> None:
    assert main([str(word) for word in words]) == 0


def refused(capsys, *words) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def calls(monkeypatch, name):
    """Arguments of the calls of a function of `_figures`, which draws as well."""
    seen, draw = [], getattr(_figures, name)
    monkeypatch.setattr(_figures, name, lambda *args: (seen.append(args), draw(*args))[1])
    return seen


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def wrong_pixels(pictures, images):
    """Share of wrong pixels of each episode."""
    return torch.stack(
        [((p >= 0.5).float() - x).abs().mean() for p, x in zip(pictures, images, strict=True)]
    )


def rms(pictures, images):
    squares = [((p - x) ** 2).mean() for p, x in zip(pictures, images, strict=True)]
    return torch.stack(squares).sqrt()
