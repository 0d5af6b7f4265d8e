"""KanervaLayer in place of attention: associative recall and regression in context.

    python examples/sequence_layer.py [--steps 1000] [--picture sequence_layer.png]

Two-layer models that differ in one step of one module, what the heads do with their queries, keys
and values: KanervaLayer, softmax attention and the delta rule. They are trained on two tasks (Arora
et al., Zoology, 2023; Garg et al., What Can Transformers Learn In-Context?, 2022):

recall: keys and values in turn, then the keys again in another order: answer with their values.
regression: pairs (x, y) with y = b'x + noise, b new in every sequence: at each x predict its y. No
    predictor is better than the exact posterior given the pairs so far, which `ops.causal_scan`
    computes; its error is the dotted line.

Some minutes on two cores, for all six runs.
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

from kanerva_ext import KanervaLayer, ops

WIDTH, HEADS = 64, 2
KEYS, PAIRS = 64, 20  # recall: different keys (and as many values), pairs in a sequence
INPUTS, EXAMPLES, NOISE = 6, 24, 0.1  # regression: size of x, pairs, noise standard deviation


# ------------------------------------------------------------------------------------- layers


class Attention(KanervaLayer):
    """The same layer with causal softmax attention, whose temperature is the gate of the noise."""

    def __init__(self):
        super().__init__(WIDTH, HEADS, use_decay=False)

    def _scan(self, keys, values, queries, noise, *_):
        queries = queries * (keys.shape[-1] ** 0.5 / noise)[..., None]
        reads = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return reads, torch.zeros_like(noise), None, None


class DeltaRule(KanervaLayer):
    """DeltaNet (Yang et al., 2024): the same layer with the covariance held at the identity, and
    the gate of the noise in the part of the learning rate. The sequence is one chunk."""

    def __init__(self):
        super().__init__(WIDTH, HEADS, use_decay=False)

    def _scan(self, keys, values, queries, noise, *_):
        rate = torch.sigmoid(-noise.log())[..., None]
        system = torch.eye(keys.shape[2]) + (rate * keys @ keys.mT).tril(-1)
        errors = torch.linalg.solve_triangular(
            system, rate * values, upper=False, unitriangular=True
        )
        reads = (queries @ keys.mT).tril() @ errors
        return reads, torch.zeros_like(noise), None, None


class Kanerva(KanervaLayer):
    def __init__(self):
        super().__init__(WIDTH, HEADS, use_decay=False)


MIXERS = {"Kanerva": Kanerva, "attention": Attention, "delta rule": DeltaRule}


class Model(nn.Module):
    def __init__(self, mixer: str, inputs: nn.Module, outputs: int):
        super().__init__()
        self.inputs, self.outputs = inputs, nn.Linear(WIDTH, outputs)
        self.mixers = nn.ModuleList(MIXERS[mixer]() for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.RMSNorm(WIDTH),
                nn.Linear(WIDTH, 2 * WIDTH),
                nn.GELU(),
                nn.Linear(2 * WIDTH, WIDTH),
            )
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(3))

    def forward(self, x):
        x = self.inputs(x)
        for mixer, mlp, norm in zip(self.mixers, self.mlps, self.norms, strict=False):
            x = x + mixer(norm(x)).hidden_states
            x = x + mlp(x)
        return self.outputs(self.norms[-1](x))


# -------------------------------------------------------------------------------------- tasks


class Recall:
    title, unit = "associative recall", "accuracy of the answers"

    def model(self, mixer):
        return Model(mixer, nn.Embedding(2 * KEYS, WIDTH), KEYS)

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
    title, unit = "regression in context", "squared error / variance of y"

    def model(self, mixer):
        return Model(mixer, nn.Linear(INPUTS + 2, WIDTH), 1)

    def batch(self, size):
        """Tokens x and y in turn (size, 2 EXAMPLES, INPUTS + 2), and x, y."""
        x = torch.randn(size, EXAMPLES, INPUTS)
        y = (
            x @ torch.randn(size, INPUTS, 1) + NOISE * torch.randn(size, EXAMPLES, 1)
        ) / INPUTS**0.5
        tokens = torch.zeros(size, EXAMPLES, 2, INPUTS + 2)
        tokens[:, :, 0, :INPUTS], tokens[:, :, 0, -1] = x, 1
        tokens[:, :, 1, INPUTS : INPUTS + 1] = y
        return tokens.flatten(1, 2), x, y

    def loss(self, model, batch):
        tokens, _, y = batch
        error = (model(tokens)[:, ::2] - y).square()[..., 0]
        return error.mean(), error.detach()

    def exact(self, batch):
        """The error of the exact posterior: what was read before a pair was written."""
        _, x, y = batch
        ahead = torch.cat([x[:, 1:], x[:, :1]], 1)
        reads, *_ = ops.causal_scan(
            None, torch.eye(INPUTS) / INPUTS, x, y, ahead, NOISE**2 / INPUTS
        )
        first = torch.zeros_like(y[:, :1])
        return (torch.cat([first, reads[:, :-1]], 1) - y).square()[..., 0]


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
