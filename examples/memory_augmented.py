"""A frozen language model is told facts: written into a memory, corrected, forgotten.

    python examples/memory_augmented.py [--seed 0] [--picture memory_augmented.png]

A small language model, in plain PyTorch, learns texts like "nangil lives in paris . where is the
house of nangil ? paris .", in which everybody lives somewhere else every time, and is frozen.
Without a text that says it, it can but guess. A `MemoryAugmented` then learns to read a memory at
one of its layers, from facts that are others in every step. Afterwards facts are written, asked in
other words, corrected and forgotten; nothing is trained any more. They are about people of whom the
reader, or even the language model, has never heard. Some minutes on one core.
"""

from __future__ import annotations

import argparse
import random
import time
from contextlib import nullcontext
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from kanerva_ext.episodic import EpisodicMemory, MemoryAugmented

WIDTH, HEADS, WINDOW, STEPS = 64, 2, 6, 72
LAYER = "blocks.0"  # where the memory is read
#: What comes before an answer: two statements and a question each, and the answers there are.
RELATIONS = (
    (
        ("{} lives in", "the home of {} is", "where is the house of {} ?"),
        "paris rome oslo lima cairo tokyo delhi quito accra perth sofia turin",
    ),
    (
        ("{} eats", "the food of {} is", "what is the meal of {} ?"),
        "bread rice soup fish cake beans plums corn cheese eggs figs nuts",
    ),
    (
        ("{} has a", "the animal of {} is a", "which is the pet of {} ?"),
        "dog cat horse goat snake parrot rabbit mouse duck turtle pig hen",
    ),
    (
        ("{} plays the", "the music of {} is the", "which sounds are those of {} ?"),
        "drum flute harp piano guitar violin horn organ lute cello banjo bells",
    ),
)
STATEMENTS, QUESTION, ASKED = (0, 1), 2, (0, 1, 2, 2)
ANSWERS = [answers.split() for _, answers in RELATIONS]
#: Met in all training; in that of the language model alone; in none.
NAMES = [
    a + b + c
    for a in ("ba", "de", "ki", "lo", "mu", "na", "re", "si", "to", "zu")
    for b in ("n", "ru", "la", "mi")
    for c in ("bin", "dan", "fer", "gil", "hal")
]
random.Random(0).shuffle(NAMES)
MET, NEW_TO_READER, NEW = NAMES[:140], NAMES[140:170], NAMES[170:]
VOCABULARY = sorted(
    {"."}
    | set(NAMES)
    | {w for forms, answers in RELATIONS for w in " ".join((*forms, answers)).split() if w != "{}"}
)
TOKENS = {word: i for i, word in enumerate(VOCABULARY)}


class Fact(NamedTuple):
    name: str
    relation: int
    answer: str


def encode(text: str) -> list[int]:
    return [TOKENS[word] for word in text.split()]


def draw_facts(rng: random.Random, count: int, names: list[str]) -> list[Fact]:
    """Facts about ``count`` different pairs of a person and a relation."""
    pairs = [(name, r) for name in names for r in range(len(RELATIONS))]
    return [Fact(name, r, rng.choice(ANSWERS[r])) for name, r in rng.sample(pairs, count)]


def prompt(fact: Fact, form: int) -> str:
    return RELATIONS[fact.relation][0][form].format(fact.name)


def draw_text(rng: random.Random, names: list[str]) -> tuple[list[int], list[bool]]:
    """Some facts, each said or asked again and again; and which tokens follow from before."""
    facts = draw_facts(rng, 6, rng.sample(names, 4))
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


class Neighbours(nn.Module):
    """Each token sees the few before it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(WIDTH, WIDTH, WINDOW)

    def forward(self, x):
        return self.mix(functional.pad(x.mT, (WINDOW - 1, 0))).mT


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        read = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(read.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer, self.norm, self.mlp_norm = mixer, nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x):
        x = x + self.mixer(self.norm(x))
        return x + self.mlp(self.mlp_norm(x))


class LanguageModel(nn.Module):
    """Tokens (B, T) to logits (B, T, vocabulary)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(VOCABULARY), WIDTH)
        self.blocks = nn.ModuleList(Block(mixer()) for mixer in (Neighbours, Attention, Attention))
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
    for _ in tqdm(range(steps), desc="the language model", leave=False, disable=None):
        texts = [draw_text(rng, MET + NEW_TO_READER) for _ in range(32)]
        texts, known = (torch.tensor(x) for x in zip(*texts, strict=True))
        logits = model(texts[:, :-1])
        # What can be answered counts more than which name or answer comes up next.
        weight = 1 + 4 * known[:, 1:].float()
        losses = functional.cross_entropy(logits.mT, texts[:, 1:], reduction="none")
        loss = (losses * weight).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        right = (logits.argmax(-1) == texts[:, 1:])[known[:, 1:]].float().mean().item()
    print(f"the language model repeats {right:.1%} of what a text has said before")
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
    for fact in draw_facts(rng, rng.randrange(3), MET):
        text += encode(prompt(fact, rng.choice(STATEMENTS))) + encode(f"{fact.answer} .")
    return text


def train_reader(augmented: MemoryAugmented, steps: int, seed: int) -> None:
    rng = random.Random(seed + 1)
    model = augmented.model
    pairs = [fact for _ in range(20) for fact in draw_facts(rng, 100, MET)]
    told, asked = (
        prompts(pairs, [rng.choice(forms) for _ in pairs]) for forms in (STATEMENTS, ASKED)
    )
    augmented.align(told[0], asked[0], told_positions=told[1], asked_positions=asked[1])
    optimizer = torch.optim.Adam(augmented.train().parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, max(steps, 2), pct_start=0.1)
    for _ in tqdm(range(steps), desc="the reader", leave=False, disable=None):
        # As many facts again are asked for that are not written, about the same people and others.
        facts = draw_facts(rng, 96, rng.sample(MET, 30))
        written, asked = facts[:48], facts[:24] + facts[48:72]
        told = prompts(written, [rng.choice(STATEMENTS) for _ in written])
        tokens, ends = prompts(
            asked,
            [rng.choice((*STATEMENTS, QUESTION, QUESTION)) for _ in asked],
            [draw_before(rng) for _ in asked],
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


def tell(augmented: MemoryAugmented, facts: list[Fact]) -> list[int]:
    """Write facts, each as a statement; returns their ids."""
    tokens, ends = prompts(facts, [0] * len(facts))
    values = values_of(augmented.model, [f.answer for f in facts])
    return augmented.write(tokens, values, positions=ends)


@torch.no_grad()
def surprise(augmented: MemoryAugmented, rng: random.Random) -> tuple[float, float]:
    """Nats per token of texts about other people, with the memory and of the model alone."""
    texts = torch.tensor([draw_text(rng, MET)[0] for _ in range(64)])
    found = []
    for context in (nullcontext(), augmented.off()):
        with context:
            logits = augmented(texts[:, :-1]).flatten(0, 1)
        found.append(functional.cross_entropy(logits, texts[:, 1:].flatten()).item())
    return found[0], found[1]


def other_answer(rng: random.Random, fact: Fact) -> Fact:
    others = [answer for answer in ANSWERS[fact.relation] if answer != fact.answer]
    return fact._replace(answer=rng.choice(others))


def measure(
    augmented: MemoryAugmented, names: list[str], count: int, seed: int
) -> dict[str, float]:
    """Write, ask, correct, forget: facts about people whom no training has met."""
    rng = random.Random(seed + 2)
    memory, out = augmented.memory, {}
    both = draw_facts(rng, 2 * count, names)  # of some people one is written and another one not
    facts, unknown = both[:count], both[count:]
    alone = answers(augmented, facts)  # an empty memory changes nothing
    out["before writing"] = right(alone, facts)

    ids = tell(augmented, facts)
    tokens, ends = prompts(draw_facts(rng, 300, MET), [rng.randrange(3) for _ in range(300)])
    mask = torch.arange(tokens.shape[1]) == ends[:, None]
    augmented.calibrate(tokens, mask)  # what questions look like that it cannot answer
    for form, name in enumerate(("as written", "other statement", "question")):
        out[f"written, {name}"] = right(answers(augmented, facts, form), facts)
    tokens, ends = prompts(facts, [QUESTION] * count)
    augmented(tokens)
    found, rows = augmented.retrieved(), torch.arange(count)
    out["right fact retrieved"] = same([found.ids[i][e][0] for i, e in enumerate(ends)], ids)
    out["called known"] = found.is_known[rows, ends].float().mean().item()

    said = answers(augmented, unknown)
    known = augmented.retrieved().is_known
    ends = prompts(unknown, [QUESTION] * count)[1]
    out["unknown, called known"] = known[rows, ends].float().mean().item()
    with augmented.off():
        out["unknown, answer as alone"] = same(said, answers(augmented, unknown))
    out["texts, nats"], out["texts, nats alone"] = surprise(augmented, rng)

    edited, gone, kept = slice(0, count // 5), slice(count // 5, 2 * count // 5), 2 * count // 5
    before = answers(augmented, facts)
    old = facts[edited]
    new = [other_answer(rng, fact) for fact in old]
    memory.edit(ids[edited], values_of(augmented.model, [f.answer for f in new]))
    said = answers(augmented, facts)
    out["edited, new answer"], out["edited, old answer"] = (
        right(said[edited], f) for f in (new, old)
    )
    out["not edited, answer as before"] = same(said[gone.start :], before[gone.start :])

    memory.forget(ids[gone])
    said = answers(augmented, facts)
    out["forgotten, still right"] = right(said[gone], facts[gone])
    out["forgotten, answer as alone"] = same(said[gone], alone[gone])
    out["others right, before"] = right(before[kept:], facts[kept:])
    out["others right, at the end"] = right(said[kept:], facts[kept:])
    memory.clear()
    out["memory cleared, answer as alone"] = same(answers(augmented, facts), alone)
    return out


# ------------------------------------------------------------------------------------- picture


def draw(augmented: MemoryAugmented, seed: int, path: str) -> None:
    """Which fact is read at each position of some sentences, and how sure the memory is."""
    rng = random.Random(seed + 3)
    facts = draw_facts(rng, 41, NEW_TO_READER)
    never = facts.pop()
    # Of those that the model does not happen to guess.
    shown = [i for i, said in enumerate(answers(augmented, facts)) if said != facts[i].answer]
    ids = tell(augmented, facts)
    named = dict(zip(ids, facts, strict=True))
    kept, edited, gone = shown[:3]
    new = named[ids[edited]] = other_answer(rng, facts[edited])
    augmented.memory.edit(ids[edited], values_of(augmented.model, [new.answer]))
    augmented.memory.forget(ids[gone])
    asked = {
        f"written, {facts[kept].answer}": facts[kept],
        f"corrected, {facts[edited].answer} to {new.answer}": facts[edited],
        f"{facts[gone].answer}, forgotten": facts[gone],
        "never written": never,
    }
    figure, axes = plt.subplots(2, 2, figsize=(10, 5.2), sharey=True, layout="constrained")
    for axis, (title, fact) in zip(axes.flat, asked.items(), strict=True):
        tokens, _ = prompts([fact], [QUESTION])
        with augmented.off():
            (alone,) = answers(augmented, [fact])
        (said,) = answers(augmented, [fact])
        found = augmented.retrieved()
        known = found.is_known[0]
        positions = range(tokens.shape[1])
        colors = ["#3f51b5" if k else "#c5cae9" for k in known]
        axis.bar(positions, found.score[0], color=colors)
        for at in positions:
            near = named.get(found.ids[0][at][0])
            if known[at] or at == positions[-1]:
                text = f"{near.name}: {near.answer}\n{found.shares[0, at, 0]:.2f}"
                axis.text(at, found.score[0, at] + 0.03, text, ha="right", fontsize=8)
        axis.axhline(augmented.memory.threshold(), color="0.5", lw=0.8, ls=":")
        axis.set_xticks(positions, [VOCABULARY[t] for t in tokens[0].tolist()])
        axis.set_title(f"{title}: it says {said} (alone {alone})", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("score, nats")
    axis.set_ylim(0, 1.25 * axis.get_ylim()[1])
    figure.savefig(path, dpi=110)
    augmented.memory.clear()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200, help="of the language model")
    parser.add_argument("--reader-steps", type=int, default=1500, help="of the reader")
    parser.add_argument("--facts", type=int, default=60, help="to be written afterwards")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="memory_augmented.png")
    options = parser.parse_args(argv)
    began = time.process_time()
    model = train_model(options.steps, options.seed)
    torch.manual_seed(options.seed)
    # Sharper than the default features: facts about one person are much alike.
    memory = EpisodicMemory(WIDTH, WIDTH, slots=512, features="fourier", bandwidth=0.6)
    with MemoryAugmented(model, LAYER, memory, hidden_size=WIDTH) as augmented:
        train_reader(augmented, options.reader_steps, options.seed)
        seconds = time.process_time() - began
        print(f"{seconds:.0f} s of processor time; from here on nothing is trained")
        results = {
            which: measure(augmented, names, options.facts, options.seed)
            for which, names in (("new to the reader", NEW_TO_READER), ("new to all", NEW))
        }
        draw(augmented, options.seed, options.picture)
    print(f"{'people who are':32s} {' '.join(f'{which:>18s}' for which in results)}")
    for name in results["new to all"]:
        row = " ".join(f"{found[name]:18.3f}" for found in results.values())
        print(f"{name:32s} {row}")
    return results


if __name__ == "__main__":
    main()
