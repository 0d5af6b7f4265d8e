"""A frozen language model is told facts: written into a memory, corrected, forgotten.

    python examples/memory_augmented.py [--seed 0] [--picture memory_augmented.png]

A small language model of `KanervaBlock`s learns texts like "ba ke lo lives in paris . where does
ba ke lo live ? paris ." about people whose names are made of syllables, and is frozen. Without a
text that says it, it can but guess where somebody lives. A `MemoryAugmented` then learns to read a
memory at one of its layers, from facts that are others in every step. Afterwards facts about people
that nobody has met in any training are written, asked in other words, corrected and forgotten;
nothing is trained any more. Some minutes on one core.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from kanerva_ext import KanervaBlock
from kanerva_ext.episodic import EpisodicMemory, MemoryAugmented

WIDTH, BLOCKS, STEPS = 64, 3, 96
#: What comes before an answer: two statements and a question each, and the answers there are.
RELATIONS = (
    (
        ("{} lives in", "the home of {} is", "where does {} live ?"),
        "paris rome oslo lima cairo tokyo delhi quito accra perth sofia turin",
    ),
    (
        ("{} likes to eat", "the food of {} is", "what does {} eat ?"),
        "bread rice soup fish cake beans plums corn cheese eggs figs nuts",
    ),
    (
        ("{} keeps a", "the animal of {} is a", "which pet has {} ?"),
        "dog cat horse goat snake parrot rabbit mouse duck turtle pig hen",
    ),
    (
        ("{} plays the", "the music of {} comes from the", "what does {} play ?"),
        "drum flute harp piano guitar violin horn organ lute cello banjo bells",
    ),
)
STATEMENTS, QUESTION = (0, 1), 2
SYLLABLES = [c + v for c in "bdklmnrstz" for v in "aeio"]
VOCABULARY = sorted(
    {"."}
    | set(SYLLABLES)
    | {w for forms, answers in RELATIONS for w in " ".join((*forms, answers)).split() if w != "{}"}
)
TOKENS = {word: i for i, word in enumerate(VOCABULARY)}


class Fact(NamedTuple):
    name: str
    relation: int
    answer: str


def encode(text: str) -> list[int]:
    return [TOKENS[word] for word in text.split()]


def is_met(name: str) -> bool:
    """Three names of four may be met in training; the others are for the test."""
    return sum(ord(c) * (i + 1) for i, c in enumerate(name)) % 4 > 0


def draw_name(rng: random.Random, met: bool = True, like: str | None = None) -> str:
    """A name of three syllables, or one that differs from another one in one of them."""
    while True:
        parts = rng.sample(SYLLABLES, 3) if like is None else like.split()
        if like is not None:
            parts[rng.randrange(3)] = rng.choice(SYLLABLES)
        name = " ".join(parts)
        if is_met(name) == met and name != like:
            return name


def draw_facts(rng: random.Random, count: int, met: bool = True) -> list[Fact]:
    """Facts about ``count`` pairs of a person and a relation; some names are much alike."""
    names: list[str] = []
    while len(names) < (count + 1) // 2:
        like = rng.choice(names) if names and rng.random() < 0.5 else None
        name = draw_name(rng, met, like)
        if name not in names:
            names.append(name)
    pairs = [(name, r) for name in names for r in rng.sample(range(len(RELATIONS)), 2)][:count]
    return [Fact(name, r, rng.choice(RELATIONS[r][1].split())) for name, r in pairs]


def prompt(fact: Fact, form: int) -> str:
    return RELATIONS[fact.relation][0][form].format(fact.name)


def draw_text(rng: random.Random) -> tuple[list[int], list[bool]]:
    """Some facts, each said or asked again and again; and which tokens follow from before."""
    facts = draw_facts(rng, 5)
    told: set[Fact] = set()
    tokens: list[int] = []
    known: list[bool] = []
    while len(tokens) <= STEPS:
        fact = rng.choice(facts)
        form = rng.choice(STATEMENTS) if fact not in told else rng.randrange(3)
        words = encode(prompt(fact, form))
        tokens += [*words, TOKENS[fact.answer], TOKENS["."]]
        known += [False] * len(words) + [fact in told, False]
        told.add(fact)
    return tokens[: STEPS + 1], known[: STEPS + 1]


class LanguageModel(nn.Module):
    """Tokens (B, T) to logits (B, T, vocabulary)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(VOCABULARY), WIDTH)
        self.blocks = nn.ModuleList(
            KanervaBlock(WIDTH, 2, mlp_dim=2 * WIDTH) for _ in range(BLOCKS)
        )
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(VOCABULARY), bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def train_model(steps: int, seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = LanguageModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, max(steps, 2), pct_start=0.1)
    for step in tqdm(range(steps), desc="the language model", leave=False, disable=None):
        texts = [draw_text(rng) for _ in range(32)]
        texts, known = (torch.tensor(x) for x in zip(*texts, strict=True))
        logits = model(texts[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            right = (logits.argmax(-1) == texts[:, 1:])[known[:, 1:]].float().mean()
            print(step, loss.item(), right.item(), flush=True)
    return model.eval()


# ------------------------------------------------------------------------------------- reading


def batch(texts: list[list[int]]) -> torch.Tensor:
    """(N, T), filled up on the right, where a causal model does not look."""
    longest = max(map(len, texts))
    return torch.tensor([t + [TOKENS["."]] * (longest - len(t)) for t in texts])


def prompts(facts: list[Fact], forms: list[int], before: list[list[int]] | None = None):
    """Tokens (N, T) of texts that end where the answer would begin, and where that is."""
    texts = [encode(prompt(f, form)) for f, form in zip(facts, forms, strict=True)]
    if before is not None:
        texts = [b + t for b, t in zip(before, texts, strict=True)]
    return batch(texts), torch.tensor([len(t) - 1 for t in texts])


def values_of(model: LanguageModel, answers: list[str]) -> torch.Tensor:
    """What is written for an answer: the model's own embedding of it."""
    return model.embed.weight[[TOKENS[a] for a in answers]].detach()


def draw_before(rng: random.Random) -> list[int]:
    """Some sentences about somebody else."""
    text = []
    for fact in draw_facts(rng, rng.randrange(4)):
        text += encode(prompt(fact, rng.choice(STATEMENTS))) + encode(f"{fact.answer} .")
    return text


def train_reader(augmented: MemoryAugmented, steps: int, seed: int) -> None:
    rng = random.Random(seed + 1)
    model = augmented.model
    optimizer = torch.optim.Adam(augmented.train().parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, max(steps, 2), pct_start=0.1)
    for step in tqdm(range(steps), desc="the reader", leave=False, disable=None):
        # As many facts again are asked for that are not written, about the same people and others.
        facts = draw_facts(rng, 96)
        rng.shuffle(facts)
        written, asked = facts[:48], facts[:24] + facts[48:72]
        told = prompts(written, [rng.choice(STATEMENTS) for _ in written])
        tokens, ends = prompts(
            asked, [rng.randrange(3) for _ in asked], [draw_before(rng) for _ in asked]
        )
        with augmented.off(), torch.no_grad():
            alone = model(tokens).log_softmax(-1)
        with augmented.episode(told[0], values_of(model, [f.answer for f in written]), told[1]):
            logits = model(tokens).log_softmax(-1)
        rows = torch.arange(24)
        answers = torch.tensor([TOKENS[f.answer] for f in asked[:24]])
        loss = functional.nll_loss(logits[rows, ends[:24]], answers)
        # Everywhere else the model is to say what it says alone.
        apart = functional.kl_div(logits, alone, log_target=True, reduction="none").sum(-1)
        inside = torch.arange(tokens.shape[1]) <= ends[:, None]
        inside[rows, ends[:24]] = False
        unknown = apart[24 + rows, ends[24:]].mean()
        loss = loss + unknown + apart[inside].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            right = (logits[rows, ends[:24]].argmax(-1) == answers).float().mean()
            found = augmented.retrieved()
            print(
                step,
                loss.item(),
                "right",
                right.item(),
                "unk",
                unknown.item(),
                apart[inside].mean().item(),
                "score",
                found.score[rows, ends[:24]].mean().item(),
                found.score[24 + rows, ends[24:]].mean().item(),
                found.score[inside].mean().item(),
                augmented.gate.item(),
                augmented.sureness.tolist(),
                flush=True,
            )
    augmented.eval()


# ----------------------------------------------------------------------------------- measuring


@torch.no_grad()
def answers(augmented: MemoryAugmented, facts: list[Fact], form: int = QUESTION) -> list[str]:
    """What the model says where the answer belongs: its most probable word."""
    tokens, ends = prompts(facts, [form] * len(facts))
    said = augmented(tokens)[torch.arange(len(facts)), ends].argmax(-1)
    return [VOCABULARY[i] for i in said.tolist()]


def right(said: list[str], facts: list[Fact]) -> float:
    return sum(a == f.answer for a, f in zip(said, facts, strict=True)) / len(facts)


def same(said: list[str], other: list[str]) -> float:
    return sum(a == b for a, b in zip(said, other, strict=True)) / len(said)


@torch.no_grad()
def surprise(augmented: MemoryAugmented, rng: random.Random) -> float:
    """Nats per token of texts about other people."""
    texts = torch.tensor([draw_text(rng)[0] for _ in range(64)])
    logits = augmented(texts[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten()).item()


def tell(augmented: MemoryAugmented, facts: list[Fact], form: int = 0) -> list[int]:
    """Write facts, each as a statement; returns their ids."""
    tokens, ends = prompts(facts, [form] * len(facts))
    values = values_of(augmented.model, [f.answer for f in facts])
    return augmented.write(tokens, values, positions=ends)
