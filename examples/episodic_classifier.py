"""One-shot classification in ten lines of model: write labelled examples, read the labels.

    python examples/episodic_classifier.py [--steps 300]

An episode shows each of 5 characters 3 times with its label, and asks for the label of further
drawings of the same 5. What is written is an image's embedding next to its one-hot label; a query
is an embedding with no label. The test asks about characters never seen in training.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

from kanerva_ext import FusedKanervaMemory
from kanerva_ext.data import load_omniglot

WAYS, SHOTS, QUERIES, BATCH = 5, 3, 2, 16


class EpisodicClassifier(nn.Module):
    def __init__(self, size=64):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, size))
        self.memory = FusedKanervaMemory(memory_size=32, code_size=size + WAYS, noise_std=0.3)

    def forward(self, examples, labels, queries):
        x, q = F.normalize(self.embed(examples), dim=-1), F.normalize(self.embed(queries), dim=-1)
        state = self.memory.write(torch.cat([x, F.one_hot(labels, WAYS).float()], -1)).state
        read = self.memory.read(torch.cat([q, torch.full_like(q[..., :WAYS], 1 / WAYS)], -1), state)
        return 10 * read.values[..., -WAYS:]


def by_character(split):
    """(number of characters, 20 drawings, 784)."""
    images, labels = load_omniglot(split)
    return images[labels.argsort(stable=True)].view(len(labels) // 20, 20, 784).float()


def draw(characters, generator):
    """A batch of episodes: examples (B, 15, 784), labels (B, 15), queries, their labels."""
    count, drawings, _ = characters.shape
    chosen = torch.rand(BATCH, count, generator=generator).topk(WAYS).indices[..., None]
    which = torch.rand(BATCH, WAYS, drawings, generator=generator).topk(SHOTS + QUERIES).indices
    x = characters[chosen, which]
    y = torch.arange(WAYS).view(1, -1, 1).expand(BATCH, -1, SHOTS + QUERIES)
    split = (x[:, :, :SHOTS], y[:, :, :SHOTS], x[:, :, SHOTS:], y[:, :, SHOTS:])
    return [part.flatten(1, 2) for part in split]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args(argv).steps
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = EpisodicClassifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    data = by_character("train")
    for _ in range(steps):
        *episode, answers = draw(data, generator)
        loss = F.cross_entropy(model(*episode).flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    data = by_character("test")
    with torch.no_grad():
        rounds = [draw(data, generator) for _ in range(10)]
        right = [(model(*e).argmax(-1) == a).float().mean() for *e, a in rounds]
    accuracy = torch.stack(right).mean().item()
    chance = 1 / WAYS
    print(
        f"{WAYS} new characters, {SHOTS} examples each: {accuracy:.0%} right ({chance:.0%} chance)"
    )
    return accuracy


if __name__ == "__main__":
    main()
