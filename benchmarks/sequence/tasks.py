"""The tasks: batches, losses and what is measured. Every one draws from a generator of its own."""

from __future__ import annotations

import itertools
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from .text import read_text


class Recall:
    """Multi-query associative recall (Arora et al., Zoology, 2023) at a growing load.

    Pairs of a key and a value, then the keys again in another order: name each one's value. The
    number of pairs changes from batch to batch.
    """

    title, unit, better = "Associative recall", "accuracy", "higher"
    axis = "pairs to remember"
    steps, batch_size, symbols, most = 1500, 16, 48, 32
    loads = (4, 8, 16, 24, 32)

    def model_ends(self, width: int):
        return nn.Embedding(2 * self.symbols, width), self.symbols

    def batch(self, size: int, generator, pairs: int | None = None):
        """Tokens (B, 3 pairs), answers (B, pairs)."""
        if pairs is None:
            pairs = int(torch.randint(4, self.most + 1, (), generator=generator))
        keys = torch.rand(size, self.symbols, generator=generator).argsort(-1)[:, :pairs]
        values = torch.randint(self.symbols, (size, pairs), generator=generator)
        order = torch.rand(size, pairs, generator=generator).argsort(-1)
        written = torch.stack([keys, self.symbols + values], -1).flatten(1)
        return torch.cat([written, keys.gather(1, order)], 1), values.gather(1, order)

    def loss(self, model, batch):
        tokens, answers = batch
        return _answers(model(tokens)[:, -answers.shape[1] :], answers)

    def held_out(self, model, generator):
        return {
            load: self.loss(model, self.batch(128, generator, load))[1].mean().item()
            for load in self.loads
        }


class Regression:
    """Linear regression in context whose weights drift.

    ``w_t = a w_{t-1} + sqrt(1 - a^2) n_t`` with ``w_0, n_t ~ N(0, I)``, and ``y_t = w_t'x_t`` plus
    noise, x_t on the unit sphere. A token shows the last pair and the next x: predict its y.
    Nothing predicts better than the exact posterior, whose error is `exact_error`.
    """

    title, unit, better = (
        "Regression, drifting weights",
        "squared error / exact posterior's",
        "lower",
    )
    axis = "pairs seen"
    steps, batch_size, inputs, length = 2000, 32, 6, 48
    retention, noise_var = 0.98, 0.01

    def model_ends(self, width: int):
        return nn.Linear(2 * self.inputs + 2, width), 1

    def batch(self, size: int, generator):
        """Tokens (B, T, 2 inputs + 2), x (B, T, inputs), y (B, T)."""
        x = torch.randn(size, self.length, self.inputs, generator=generator)
        x = functional.normalize(x, dim=-1)
        steps = torch.randn(size, self.length, self.inputs, generator=generator)
        w, weights = torch.randn(size, self.inputs, generator=generator), []
        for t in range(self.length):
            w = self.retention * w + (1 - self.retention**2) ** 0.5 * steps[:, t]
            weights.append(w)
        noise = self.noise_var**0.5 * torch.randn(size, self.length, generator=generator)
        y = (torch.stack(weights, 1) * x).sum(-1) + noise
        last = torch.cat([x, y[..., None], torch.ones_like(y)[..., None]], -1)
        last = functional.pad(last, (0, 0, 1, -1))
        return torch.cat([x, last], -1), x, y

    def loss(self, model, batch):
        tokens, _, y = batch
        error = (model(tokens)[..., 0] - y).square()
        return error.mean(), error.detach()

    def exact_error(self, batch) -> Tensor:
        """(B, T), the squared error of ``E[y_t | x_1, y_1, ..., x_t]``, in float64.

        From the joint normal distribution of all y alone, without a filter: with its covariance
        ``C = L L'``, the error of predicting y_t from those before is ``L_tt (L^-1 y)_t``.
        """
        _, x, y = (part.double() for part in batch)
        t = torch.arange(self.length, dtype=torch.float64)
        drift = self.retention ** (t[:, None] - t).abs()
        cov = (x @ x.mT) * drift + self.noise_var * torch.eye(self.length, dtype=torch.float64)
        factor = torch.linalg.cholesky(cov)
        white = torch.linalg.solve_triangular(factor, y[..., None], upper=False)[..., 0]
        return (factor.diagonal(dim1=-2, dim2=-1) * white).square()

    def held_out(self, model, generator):
        batch = self.batch(1024, generator)
        error, exact = self.loss(model, batch)[1], self.exact_error(batch)
        found = {"error": error.mean().item(), "exact": exact.mean().item()}
        found["ratio"] = found["error"] / found["exact"]
        places = (0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 40, 47)
        return found | {
            f"{name} {t}": part[:, max(0, t - 1) : t + 2 if t > 2 else t + 1].mean().item()
            for name, part in (("error", error), ("exact", exact))
            for t in places
        }


class Permutations:
    """State tracking in S5: a token swaps two of five objects; say after each where all are.

    Every permutation of S5 is a product of such swaps. Trained on 16 swaps, also asked of 32.
    """

    title, unit, better = "Composition of swaps in S5", "objects placed right", "higher"
    axis = "swaps"
    steps, batch_size, objects, length = 2000, 32, 5, 16
    swaps = tuple(itertools.combinations(range(5), 2))

    def model_ends(self, width: int):
        return nn.Embedding(len(self.swaps), width), self.objects**2

    def batch(self, size: int, generator, length: int | None = None):
        """Tokens (B, T), and the object at each place after each swap (B, T, 5)."""
        length = length or self.length
        tokens = torch.randint(len(self.swaps), (size, length), generator=generator)
        moves = torch.arange(self.objects).repeat(len(self.swaps), 1)
        for move, (i, j) in zip(moves, self.swaps, strict=True):
            move[i], move[j] = j, i
        state, states = torch.arange(self.objects).expand(size, -1), []
        for t in range(length):
            state = state.gather(1, moves[tokens[:, t]])
            states.append(state)
        return tokens, torch.stack(states, 1)

    def loss(self, model, batch):
        tokens, states = batch
        return _answers(model(tokens).unflatten(-1, (self.objects, self.objects)), states)

    def held_out(self, model, generator):
        right = self.loss(model, self.batch(512, generator, 2 * self.length))[1].mean((0, 2))
        lengths = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
        found = {length: right[length - 1].item() for length in lengths}
        return found | {"mean to 16": right[: self.length].mean().item()}


class SelectiveCopying:
    """Copy, in order, the symbols that lie scattered among blanks (Gu and Dao, Mamba, 2023).

    Symbols of a sequence differ; the copy is read back token by token, after a marker that also
    stands at the beginning.
    """

    title, unit, better = "Selective copying", "accuracy", "higher"
    axis = "place in the copy"
    steps, batch_size, symbols, copied, length = 1500, 16, 24, 8, 32

    def model_ends(self, width: int):
        return nn.Embedding(self.symbols + 3, width), self.symbols

    def batch(self, size: int, generator):
        """Tokens (B, 1 + length + copied), answers (B, copied)."""
        chosen = torch.rand(size, self.symbols, generator=generator).argsort(-1)[:, : self.copied]
        blanks = torch.randint(2, (size, self.length), generator=generator)
        places = torch.rand(size, self.length, generator=generator).argsort(-1)
        places = places[:, : self.copied].sort(-1).values
        text = (self.symbols + 1 + blanks).scatter(1, places, chosen)
        marker = torch.full((size, 1), self.symbols)
        return torch.cat([marker, text, marker, chosen[:, :-1]], 1), chosen

    def loss(self, model, batch):
        tokens, answers = batch
        return _answers(model(tokens)[:, -self.copied :], answers)

    def held_out(self, model, generator):
        right = self.loss(model, self.batch(1024, generator))[1].mean(0)
        found = {place + 1: right[place].item() for place in range(self.copied)}
        return found | {"mean": right.mean().item()}


class Characters:
    """The next character of Python's own reference (`pydoc_data.topics`, PSF licence).

    The last tenth of the text is held out.
    """

    title, unit, better = "Characters of Python's reference", "bits per character", "lower"
    axis = "steps of training"
    steps, batch_size, length = 1200, 16, 96

    @cached_property
    def text(self) -> Tensor:
        return read_text()[0]

    def model_ends(self, width: int):
        symbols = int(self.text.max()) + 1
        return nn.Embedding(symbols, width), symbols

    def batch(self, size: int, generator, held_out: bool = False):
        """Tokens (B, T + 1)."""
        first, last = 0, len(self.text) * 9 // 10
        if held_out:
            first, last = last, len(self.text)
        start = torch.randint(first, last - self.length, (size, 1), generator=generator)
        return self.text[start + torch.arange(self.length + 1)]

    def loss(self, model, batch):
        scores = model(batch[:, :-1])
        loss = functional.cross_entropy(scores.mT, batch[:, 1:], reduction="none")
        return loss.mean(), loss.detach() / torch.log(torch.tensor(2.0))

    def held_out(self, model, generator):
        parts = [self.loss(model, self.batch(64, generator, True))[1].mean() for _ in range(8)]
        return {"bits": torch.stack(parts).mean().item()}


def _answers(scores: Tensor, answers: Tensor):
    """Mean cross entropy, and which of the answers are right."""
    loss = functional.cross_entropy(scores.flatten(0, -2), answers.flatten())
    return loss, (scores.argmax(-1) == answers).float()


#: By the names of the command line.
TASKS = {
    "regression": Regression(),
    "recall": Recall(),
    "permutations": Permutations(),
    "copying": SelectiveCopying(),
    "characters": Characters(),
}
#: The one number of a table.
SCORES = {
    "regression": "ratio",
    "recall": 32,
    "permutations": "mean to 16",
    "copying": "mean",
    "characters": "bits",
}
