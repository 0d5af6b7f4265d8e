"""KanervaLayer in place of attention: associative recall, and regression on weights that drift.

    python examples/sequence_layer.py [--steps 1000] [--picture sequence_layer.png]

Models of two `KanervaBlock`s that differ in one step of one module, what the heads do with their
queries, keys and values: KanervaLayer, softmax attention with a forget gate, and the gated delta
rule. They are trained on two tasks (Arora et al., Zoology, 2023; Garg et al., What Can Transformers
Learn In-Context?, 2022):

recall: keys and values in turn, then the keys again in another order: answer with their values.
regression: y = w'x + noise, w new in every sequence and drifting in it. A token shows the last pair
    and the next x: predict its y. No predictor is better than the exact posterior given the pairs
    so far, which `ops.causal_scan` computes; its error is the dotted line.

Some minutes on one core, for all six runs. `python -m benchmarks.sequence` has more tasks and
rivals.
"""

from __future__ import annotations

import argparse
import time

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from kanerva_ext import KanervaBlock, KanervaLayer, ops

WIDTH, HEADS = 32, 2
KEYS, PAIRS = 48, 12  # recall: different keys (and as many values), pairs in a sequence
INPUTS, EXAMPLES, NOISE = 6, 40, 0.1  # regression: size of x, pairs, noise standard deviation
RETENTION = 0.97  # regression: what a step leaves of w


# ------------------------------------------------------------------------------------- layers


class Kanerva(KanervaLayer):
    def __init__(self):
        super().__init__(WIDTH, HEADS, dynamics="stationary")


class Attention(Kanerva):
    """The same layer with causal softmax attention: the noise is its temperature, and retentions
    lower the scores of what is long ago."""

    def _scan(self, keys, values, queries, noise, mask, decay, retention, *_):
        scores = queries @ keys.mT * (keys.shape[-1] ** 0.5 / noise)[..., None]
        reads = (scores + log_left(retention)).softmax(-1) @ values
        return reads, torch.zeros_like(noise), None, None


class DeltaRule(Kanerva):
    """Gated DeltaNet (Yang et al., 2025): the same layer with the covariance held at the identity,
    and the gate of the noise in the part of the learning rate. The sequence is one chunk."""

    def _scan(self, keys, values, queries, noise, mask, decay, retention, *_):
        rate, left = torch.sigmoid(-noise.log())[..., None], log_left(retention).exp()
        system = torch.eye(keys.shape[2]) + (rate * (keys @ keys.mT) * left).tril(-1)
        errors = torch.linalg.solve_triangular(
            system, rate * values, upper=False, unitriangular=True
        )
        return ((queries @ keys.mT) * left) @ errors, torch.zeros_like(noise), None, None


def log_left(retention):
    """(B, H, T, T): the logarithm of what token t finds left of token s; -inf where s is later."""
    total = retention.log().cumsum(-1)
    left = total[..., None] - total[:, :, None]
    return left.masked_fill(torch.ones(left.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)


MIXERS = {"Kanerva": Kanerva, "attention": Attention, "delta rule": DeltaRule}


def model_of(mixer: str, inputs: nn.Module, outputs: int) -> nn.Module:
    blocks = [KanervaBlock(WIDTH, HEADS, mlp_dim=2 * WIDTH) for _ in range(2)]
    for block in blocks:
        block.layer = MIXERS[mixer]()
    return nn.Sequential(inputs, *blocks, nn.RMSNorm(WIDTH), nn.Linear(WIDTH, outputs))


# -------------------------------------------------------------------------------------- tasks


class Recall:
    title, unit = "associative recall", "accuracy of the answers"

    def model(self, mixer):
        return model_of(mixer, nn.Embedding(2 * KEYS, WIDTH), KEYS)

    def batch(self, size):
        """Tokens (size, 3 PAIRS), of which the last PAIRS are answered, and the answers."""
        keys = torch.rand(size, KEYS).argsort(-1)[:, :PAIRS]
        values = torch.randint(KEYS, (size, PAIRS))
        order = torch.rand(size, PAIRS).argsort(-1)
        written = torch.stack([keys, KEYS + values], -1).flatten(1)
        return torch.cat([written, keys.gather(1, order)], 1), values.gather(1, order)

    def loss(self, model, batch):
        tokens, answers = batch
        scores = model(tokens)[:, -PAIRS:]
        loss = functional.cross_entropy(scores.flatten(0, 1), answers.flatten())
        return loss, (scores.argmax(-1) == answers).float()


class Regression:
    title, unit = "regression, drifting weights", "squared error"

    def model(self, mixer):
        return model_of(mixer, nn.Linear(2 * INPUTS + 1, WIDTH), 1)

    def batch(self, size):
        """Tokens (size, EXAMPLES, 2 INPUTS + 1): the next x, the last x and its y; and x, y."""
        x = functional.normalize(torch.randn(size, EXAMPLES, INPUTS), dim=-1)
        w, y = torch.randn(size, INPUTS), []
        for t in range(EXAMPLES):
            y.append((x[:, t] * w).sum(-1, keepdim=True) + NOISE * torch.randn(size, 1))
            w = RETENTION * w + (1 - RETENTION**2) ** 0.5 * torch.randn(size, INPUTS)
        y = torch.stack(y, 1)
        last = functional.pad(torch.cat([x, y], -1)[:, :-1], (0, 0, 1, 0))
        return torch.cat([x, last], -1), x, y

    def loss(self, model, batch):
        tokens, _, y = batch
        error = (model(tokens) - y).square()[..., 0]
        return error.mean(), error.detach()

    def exact(self, batch):
        """The error of the exact posterior: what was read before a pair was written."""
        _, x, y = batch
        ahead = x.roll(-1, 1)
        reads, *_ = ops.causal_scan(None, None, x, y, ahead, NOISE**2, retention=RETENTION)
        first = torch.zeros_like(y[:, :1])
        predicted = torch.cat([first, RETENTION * reads[:, :-1]], 1)
        return (predicted - y).square()[..., 0]


def train(task, mixer: str, steps: int, seed: int):
    """Returns the curve of training and the mean measure of each answer at the end."""
    torch.manual_seed(seed)
    model = task.model(mixer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps, pct_start=0.1)
    curve = []
    began = time.perf_counter()
    for _ in tqdm(range(steps), desc=f"{task.title}, {mixer}", leave=False, disable=None):
        loss, measure = task.loss(model, task.batch(32))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        curve.append(measure.mean().item())
    seconds = time.perf_counter() - began
    torch.manual_seed(seed + 1000)
    with torch.no_grad():
        held_out = task.loss(model, task.batch(512))[1].mean(0)
    size = sum(p.numel() for p in model.parameters())
    print(
        f"{task.title:22s} {mixer:10s} {held_out.mean():6.3f} {task.unit}; {size / 1e3:.0f}k "
        f"parameters, {1e3 * seconds / steps:.0f} ms a step",
        flush=True,
    )
    return curve, held_out


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="of training, per model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="sequence_layer.png")
    options = parser.parse_args(argv)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    results = {}
    for mixer in MIXERS:
        curve, held_out = train(Recall(), mixer, options.steps, options.seed)
        window = max(1, options.steps // 50)
        smooth = torch.tensor(curve).unfold(0, window, 1).mean(-1)
        left.plot(range(window, len(curve) + 1), smooth, label=mixer)
        results["recall", mixer] = held_out.mean().item()
    left.set(xlabel="step of training", ylabel=Recall.unit, title=Recall.title, ylim=(0, 1.02))
    left.legend()
    for mixer in MIXERS:
        _, held_out = train(Regression(), mixer, options.steps, options.seed)
        right.semilogy(range(EXAMPLES), held_out, label=mixer)
        results["regression", mixer] = held_out.mean().item()
    torch.manual_seed(options.seed + 1000)
    exact = Regression().exact(Regression().batch(512)).mean(0)
    results["regression", "exact"] = exact.mean().item()
    right.semilogy(range(EXAMPLES), exact, "k:", label="exact posterior")
    right.set(xlabel="pairs seen", ylabel=Regression.unit, title=Regression.title)
    right.legend()
    figure.savefig(options.picture, dpi=120)
    print(f"regression: the exact posterior's error is {exact.mean():.3f}; {options.picture}")
    return results


if __name__ == "__main__":
    main()
