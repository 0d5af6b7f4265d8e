"""A small language model, texts and answers for `MemoryAugmented`."""

from __future__ import annotations

import torch
from torch import nn

from kanerva_ext.episodic import EpisodicMemory, MemoryAugmented

V, D, S, C, K = 30, 16, 8, 12, 64


def same(x):
    return x


class Model(nn.Module):
    """Tokens (B, T) to logits; its blocks return tensors, tuples or named tuples."""

    def __init__(self, wrap=same):
        super().__init__()
        self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.blocks = nn.ModuleList(Block(wrap) for _ in range(3))
        self.drop = nn.Dropout(0.5)

    def forward(self, tokens, attention_mask=None):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
            x = x if isinstance(x, torch.Tensor) else x[0]
        return self.head(self.drop(x))


class Block(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.linear, self.wrap = nn.Linear(D, D), wrap

    def forward(self, x):
        return self.wrap(x + torch.tanh(self.linear(x.cumsum(-2))))


def tokens(count=6, steps=5, seed=0):
    return torch.randint(V, (count, steps), generator=torch.Generator().manual_seed(seed))


def values(count=6, seed=1):
    return torch.randn(count, C, generator=torch.Generator().manual_seed(seed))


def make(model=None, layer="blocks.1", strength=0.3, **options):
    torch.manual_seed(0)
    model = Model() if model is None else model
    memory = EpisodicMemory(S, C, K, **options)
    augmented = MemoryAugmented(model, layer, memory, hidden_size=D)
    assert not augmented.output.weight.any()
    nn.init.normal_(augmented.output.weight, std=strength)
    return augmented
