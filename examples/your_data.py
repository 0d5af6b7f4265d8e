"""A memory in a model of your own data: train it, save it, remember, recall from damaged queries.

    python examples/your_data.py [--data rows.npy] [--steps 600] [--picture your_data.png]

Without --data it makes some: 6,000 traces of 96 samples, each a sum of two waves that fade. Your
rows are an array (N, features), float; an episode is any 16 of them.
"""

import argparse

import numpy as np
import torch
from torch import nn

import kanerva_ext

EPISODE, BATCH = 16, 16  # rows that are written together, and memories in a step


def made_up_traces(count=6000, samples=96, seed=0):
    random = np.random.default_rng(seed)
    time = np.linspace(0, 1, samples)
    amplitude, fade = random.normal(size=(2, count, 2, 1))
    frequency, phase = random.uniform(1, 6, (count, 2, 1)), random.uniform(0, 6.3, (count, 2, 1))
    waves = amplitude * np.exp(-np.abs(fade) * time) * np.sin(6.3 * frequency * time + phase)
    return waves.sum(1).astype(np.float32)


class EpisodicAutoencoder(nn.Module):
    """Encodes rows, writes the codes of an episode, reads each back and decodes it."""

    def __init__(self, features, code_size=48, memory_size=24):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(features, 128), nn.SiLU(), nn.Linear(128, code_size))
        self.decoder = nn.Sequential(nn.Linear(code_size, 128), nn.SiLU(), nn.Linear(128, features))
        self.memory = kanerva_ext.FusedKanervaMemory(memory_size, code_size, noise_std=0.3)

    def write(self, rows):
        return self.memory.write(self.encoder(rows)).state

    def read(self, rows, state):
        return self.decoder(self.memory.read(self.encoder(rows), state).values)


def damage(rows):
    """What a query looks like in use: a third of each row, all at one place, is missing."""
    length = rows.shape[-1] // 3
    start = torch.randint(rows.shape[-1] - length, (*rows.shape[:-1], 1))
    place = torch.arange(rows.shape[-1])
    return rows.masked_fill((place >= start) & (place < start + length), 0)


def episodes(rows, batch):
    return rows[torch.randint(len(rows), (batch, EPISODE))]  # (batch, 16, features)


def train(model, rows, steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for step in range(steps):
        episode = episodes(rows, BATCH)
        state = model.write(episode)
        loss = (model.read(damage(episode), state) - episode).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 0:
            print(f"step {step}: error {loss.item():.3f}")
    return losses


def draw(path, losses, episode, damaged, read, comparison):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(11, 2.6), layout="constrained")
    axes[0].plot(losses, color="#3f51b5", lw=0.8)
    axes[0].set(xlabel="step", title="error in training", yscale="log")
    for axis, row in zip(axes[1:3], range(2), strict=True):
        axis.plot(episode[0, row], color="#9e9e9e", lw=3, label="written")
        axis.plot(damaged[0, row], color="#ef6c00", lw=1, label="asked with")
        axis.plot(read[0, row], color="#3f51b5", lw=1.2, label="read")
        axis.set(title=f"new trace {row + 1}")
    axes[1].legend(fontsize=7)
    axes[3].bar(["own", "other", "prior"], comparison, color=["#3f51b5", "#9e9e9e", "#9e9e9e"])
    axes[3].set(title="error, by memory read")
    figure.savefig(path, dpi=110)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a .npy file (N, features)")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--save", help="a file for the trained parameters")
    parser.add_argument("--picture", help="a file for curves and examples")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    rows = torch.as_tensor(np.load(args.data) if args.data else made_up_traces()).float()
    mean, std = rows.mean(), rows.std()
    rows = (rows - mean) / std
    held_out, rows = rows[: len(rows) // 10], rows[len(rows) // 10 :]

    model = EpisodicAutoencoder(rows.shape[-1])
    losses = train(model, rows, args.steps)
    if args.save:
        torch.save(model.state_dict(), args.save)

    model.eval()
    episode = episodes(held_out, 32)
    damaged = damage(episode)
    with torch.no_grad():
        read = model.read(damaged, model.write(episode))
    comparison = kanerva_ext.compare_memories(
        model.memory, lambda: (model.read(damaged, model.write(episode)) - episode).square()
    )
    missing = (damaged == 0) & (episode != 0)
    filled = ((read - episode)[missing].square().mean() / episode[missing].square().mean()).item()
    print(
        f"new rows, error: own memory {comparison.own:.3f}, another's {comparison.other:.3f}, "
        f"prior {comparison.prior:.3f}; of what was missing {filled:.0%} stays unknown"
    )
    if args.picture:
        draw(args.picture, losses, episode, damaged, read, comparison)
    return comparison


if __name__ == "__main__":
    main()
