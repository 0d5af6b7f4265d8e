"""The episodic memory on facts of the world: ``python -m benchmarks.episodic TABLE``.

Tables: capacity, features, sources, changes, known, close, times, index, drift, stream; or all.
Facts are questions about towns (`episodic_facts`; ``pip install '.[episodic]'``), each with the
answer of another town: what is true could be guessed, because a question and its answer share the
town's name and a linear map copies it ("true facts" shows by how much). ``sources`` is of elements
and words too, and wants WordNet. ``close``, ``times``, ``drift`` and ``stream`` are of random
vectors and need nothing. ``--json FILE`` also writes the numbers.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from kanerva_ext.episodic import EpisodicMemory

from . import machine
from .episodic_facts import UNRELATED, element_facts, embed, town_facts, word_facts
from .episodic_times import Row, drift, measured, stream, times

#: Facts that there are, those that are asked about, and questions about towns of none of them.
FACTS, ASKED, UNWRITTEN = 6144, 1024, 1024
#: How many facts are written: from half to sixteen times 384.
SIZES = (192, 384, 768, 1536, 3072, 6144)


class World:
    """The embeddings of towns, computed when they are first asked for."""

    def __init__(self) -> None:
        texts = town_facts(FACTS)
        self.questions, self.true = embed(texts.questions), embed(texts.answers)
        self.answers = self.true[within_parts(SIZES)]
        kinds = zip(*texts.paraphrases[:ASKED], strict=True)
        self.paraphrases = [embed(list(kind)) for kind in kinds]
        others = town_facts(UNWRITTEN, 20_000).questions
        self.unwritten = embed(others)
        unwritten = zip(*town_facts(512, 20_000).paraphrases, strict=True)
        self.unwritten_paraphrases = torch.cat([embed(list(kind)) for kind in unwritten])
        names = [q.removeprefix("Where is ").removesuffix("?") for q in others[:512]]
        self.unrelated = embed([u.format(town=name) for u in UNRELATED for name in names])

    def memory(self, count: int, **options: Any) -> EpisodicMemory:
        memory = EpisodicMemory(384, 384, **options)
        memory.write(self.questions[:count], self.answers[:count])
        return memory


class Mixed(World):
    """Facts of three kinds, in one order: the first `ASKED` are of all kinds equally often."""

    #: From half to sixteen times 384 and 2,048.
    SIZES = (192, 384, 768, 1024, 1536, 2048, 4096, 6144, 8192, 20_000, 32_768)

    def __init__(self) -> None:
        towns, elements = town_facts(20_000), element_facts()
        words = word_facts(self.SIZES[-1] - len(towns.questions) - len(elements.questions))
        texts = {"towns": towns, "elements": elements, "words": words}
        self.kinds = list(texts)
        self.kind, row = self.mixed([len(t.questions) for t in texts.values()])
        self.questions, self.true = (
            torch.cat([embed(t[i]) for t in texts.values()])[row] for i in range(2)
        )
        self.answers = self.true[within_parts(self.SIZES)]
        every = [p for t in texts.values() for p in t.paraphrases]
        asked = [every[i] for i in row[:ASKED].tolist()]
        self.paraphrases = [embed(list(some)) for some in zip(*asked, strict=True)]

    @staticmethod
    def mixed(counts: list[int]) -> tuple[Tensor, Tensor]:
        """The kind of each fact and its row among all, one kind after the other."""
        generator = torch.Generator().manual_seed(0)
        kind = torch.cat([torch.full((n,), i) for i, n in enumerate(counts)])
        order = torch.randperm(len(kind), generator=generator)
        each = -(-ASKED // len(counts))
        first = torch.stack([order[kind[order] == i][:each] for i in range(len(counts))], 1)
        first = first.flatten()[:ASKED]
        rest = order[~torch.isin(order, first)]
        row = torch.cat([first, rest])
        return kind[row], row


def within_parts(sizes: Sequence[int]) -> Tensor:
    """A permutation within each part, so that the first N facts have the first N answers."""
    generator = torch.Generator().manual_seed(0)
    parts = zip([0, *sizes], sizes, strict=False)
    return torch.cat(
        [start + torch.randperm(end - start, generator=generator) for start, end in parts]
    )


def top1(reads: Tensor, values: Tensor, right: Tensor) -> float:
    """How often the value nearest to a read-out, of all, is the right one."""
    return top1_of(reads, values, right).mean().item()


def top1_of(reads: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """Of each read-out, 1.0 where that is so."""
    found = (normalize(reads, dim=-1) @ normalize(values, dim=-1).mT).argmax(-1)
    return (found == right).float()


def recall_row(world: World, memory: EpisodicMemory, count: int) -> Row:
    asked = torch.arange(min(count, ASKED))
    values = world.answers[:count]
    reads = memory.read(world.questions[asked]).values
    paraphrased = [top1(memory.read(p[asked]).values, values, asked) for p in world.paraphrases]
    index = [top1(p[asked], world.questions[:count], asked) for p in world.paraphrases]
    return {
        "facts": count,
        "recall": top1(reads, values, asked),
        "cosine": cosine_similarity(reads, values[asked]).mean().item(),
        "paraphrases": sum(paraphrased) / len(paraphrased),
        "index, paraphrases": sum(index) / len(index),
    }


def capacity(world: World) -> Iterable[Row]:
    """Recall against the number of facts, in units of the slots; Larimar's K is 512."""
    for options in (
        {"slots": 384, "features": "none"},
        {"slots": 384, "features": "relu"},
        {"slots": 2048, "features": "relu"},
        {"slots": 2048, "features": "fourier", "bandwidth": 0.5},
    ):
        for count in SIZES:
            memory = world.memory(count, **options)
            about = {"slots": options["slots"], "features": options["features"]}
            row = about | recall_row(world, memory, count)
            memory = EpisodicMemory(384, 384, **options)
            memory.write(world.questions[:count], world.true[:count])
            asked = torch.arange(min(count, ASKED))
            reads = memory.read(world.questions[asked]).values
            yield row | {"true facts": top1(reads, world.true[:count], asked)}


def features(world: World) -> Iterable[Row]:
    """What the noise variance does to recall, and to recall by paraphrases."""
    for slots, count in ((384, 768), (2048, 768), (2048, 1536), (2048, 6144)):
        for noise_var in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6):
            memory = world.memory(count, slots=slots, features="relu", noise_var=noise_var)
            yield {"slots": slots, "noise_var": noise_var} | recall_row(world, memory, count)


def sources(_: None = None) -> Iterable[Row]:
    """Recall of facts of three kinds at once, up to sixteen times as many as slots."""
    mixed = Mixed()
    for slots, features in ((384, "none"), (2048, "relu")):
        for count in Mixed.SIZES:
            if not slots <= 2 * count <= 32 * slots:
                continue
            memory = mixed.memory(count, slots=slots, features=features)
            asked = torch.arange(min(count, ASKED))
            values, kind = mixed.answers[:count], mixed.kind[asked]
            right = [top1_of(memory.read(mixed.questions[asked]).values, values, asked)]
            right += [
                top1_of(memory.read(p[asked]).values, values, asked) for p in mixed.paraphrases
            ]
            index = [top1_of(p[asked], mixed.questions[:count], asked) for p in mixed.paraphrases]
            row: Row = {"slots": slots, "features": features, "facts": count}
            row["recall"] = right[0].mean().item()
            row["paraphrases"] = torch.stack(right[1:]).mean().item()
            row["index, paraphrases"] = torch.stack(index).mean().item()
            for i, name in enumerate(mixed.kinds):
                row[name] = right[0][kind == i].mean().item()
                row[f"{name}, paraphrases"] = torch.stack(right[1:])[:, kind == i].mean().item()
            yield row


def changes(world: World) -> Iterable[Row]:
    """Edits and forgetting of 100 of the facts, and what became of the others."""
    changed = torch.arange(100)
    for slots, count in ((2048, 1024), (2048, 2048), (2048, 6144)):
        memory = world.memory(count, slots=slots)
        others = torch.arange(100, min(count, ASKED))
        before = memory.read(world.questions[others]).values
        # The town moves: its answer becomes that of another town, written nowhere else.
        new = normalize(world.answers[:100].roll(1, 0) + 0.5 * world.answers[200:300], dim=-1)
        memory.edit(changed.tolist(), new)
        values = world.answers[:count].clone()
        values[:100] = new
        reads = memory.read(world.questions[:100]).values
        both = torch.cat([values, world.answers[:100]])  # the old ones may still be answered
        after = memory.read(world.questions[others]).values
        row = {
            "slots": slots,
            "facts": count,
            "edits": top1(reads, both, changed),
            "edits, paraphrases": sum(
                top1(memory.read(p[:100]).values, both, changed) for p in world.paraphrases
            )
            / len(world.paraphrases),
            "others after": top1(after, both, others),
            "others before": top1(before, world.answers[:count], others),
        }
        memory.forget(changed.tolist())
        gone = memory.read(world.questions[:100])
        fresh = EpisodicMemory(384, 384, slots)
        fresh.write(world.questions[100:count], world.answers[100:count])
        never = fresh.read(world.questions[:100]).values
        after = memory.read(world.questions[others]).values
        yield row | {
            "forgotten": top1(gone.values, torch.cat([values, world.answers[:100]]), changed),
            "kept": top1(after, values, others),
            "from never written": ((gone.values - never).norm() / never.norm()).item(),
        }


def roc_area(positive: Tensor, negative: Tensor) -> float:
    """P(a positive scores above a negative), ties half."""
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive).double()
    upto = torch.searchsorted(ordered, positive, right=True).double()
    return ((below + upto) / 2 / len(negative)).mean().item()


def known(world: World) -> Iterable[Row]:
    """Which questions the memory says that it knows, at a false alarm rate of 0.05."""
    for slots, count in ((2048, 256), (2048, 1024), (2048, 6144), (384, 192), (384, 1536)):
        memory = world.memory(count, slots=slots)
        asked = min(count, ASKED)
        said = {
            "written": memory.read(world.questions[:asked]),
            "paraphrases": memory.read(torch.cat([p[:asked] for p in world.paraphrases])),
            "unwritten": memory.read(world.unwritten),
            "unrelated": memory.read(world.unrelated),
        }
        row: Row = {"slots": slots, "features": memory.features.kind, "facts": count}
        row |= {name: out.is_known.float().mean().item() for name, out in said.items()}
        row["ROC, written"] = roc_area(said["written"].score, said["unwritten"].score)
        row["ROC, paraphrases"] = roc_area(
            said["paraphrases"].score, memory.read(world.unwritten_paraphrases).score
        )
        row["ROC, unrelated"] = roc_area(said["paraphrases"].score, said["unrelated"].score)
        memory.calibrate(world.unrelated[::2])
        for name, keys in (
            ("calibrated: paraphrases", torch.cat([p[:asked] for p in world.paraphrases])),
            ("calibrated: unrelated", world.unrelated[1::2]),
        ):
            row[name] = memory.read(keys).is_known.float().mean().item()
        yield row


#: Of facts around one direction each: how many, and how far apart (a width of 1 is an angle of 45
#: degrees); the last group is of directions of their own.
GROUPS = {
    "one group": ((0.1, 1000),),
    "a group, and as many scattered": ((0.1, 500), (None, 500)),
    "groups of several widths": ((0.05, 250), (0.2, 250), (0.5, 250), (None, 250)),
}


def close(_: None = None) -> Iterable[Row]:
    """What is called known among facts whose keys lie close together: false alarm rate 0.05."""
    generator = torch.Generator().manual_seed(1)

    def directions(count: int) -> Tensor:
        return normalize(torch.randn(count, 384, generator=generator), dim=-1)

    for noise_var in (1e-1, 1e-2, 1e-3):
        for name, groups in GROUPS.items():
            written, others = [], []
            for width, count in groups:
                centre = directions(1) if width else 0
                for into, number in ((written, count), (others, 1000)):
                    around = centre + (width or 1) * directions(number)
                    into.append(normalize(around, dim=-1))
            keys = torch.cat(written)
            keys = keys[torch.randperm(len(keys), generator=generator)]
            memory = EpisodicMemory(384, 1, 2048, noise_var=noise_var)
            memory.write(keys, torch.ones(len(keys), 1))
            for (width, _), mine, new in zip(groups, written, others, strict=True):
                own, other = memory.read(mine), memory.read(new)
                at_once = memory.threshold()
                yield {
                    "noise_var": noise_var,
                    "facts": name,
                    "width": "scattered" if width is None else str(width),
                    "written": own.is_known.float().mean().item(),
                    "neighbours": other.is_known.float().mean().item(),
                    "ROC": roc_area(own.score, other.score),
                    "one threshold: written": (own.score > at_once).float().mean().item(),
                    "neighbours, so": (other.score > at_once).float().mean().item(),
                }


def index(world: World) -> Iterable[Row]:
    """The same facts in indices: how often each finds the answer, its times and its size."""
    import faiss

    count, asked = FACTS, torch.arange(ASKED)
    questions, answers = world.questions[:count], world.answers[:count]
    keys = questions.numpy()
    queries = torch.cat([p[:ASKED] for p in world.paraphrases])
    right = asked.repeat(len(world.paraphrases))

    def row(name, build, search, size) -> Row:
        start = time.perf_counter()
        built = build()
        building = 1e3 * (time.perf_counter() - start)
        return {
            "what": name,
            "recall": (search(built, questions[:ASKED]) == asked).double().mean().item(),
            "paraphrases": (search(built, queries) == right).double().mean().item(),
            "build, ms": building,
            "1,000 queries, ms": measured(lambda: search(built, queries[:1000])),
            "numbers": size,
        }

    def flat():
        made = faiss.IndexFlatIP(384)
        made.add(keys)
        return made

    def graph():
        made = faiss.IndexHNSWFlat(384, 32, faiss.METRIC_INNER_PRODUCT)
        made.add(keys)
        return made

    def found(made, asked_for):
        return torch.from_numpy(made.search(asked_for.numpy(), 1)[1][:, 0])

    def brute(made, asked_for):
        return (asked_for @ made.mT).argmax(-1)

    stored = count * 384
    yield row("brute force", lambda: questions, brute, stored)
    yield row("faiss, flat", flat, found, stored)
    yield row("faiss, HNSW", graph, found, stored)
    for slots in (384, 2048, 4096):
        yield row(
            f"memory, {slots} slots",
            lambda slots=slots: world.memory(count, slots=slots, features="relu"),
            lambda made, q: (normalize(made.read(q).values, dim=-1) @ answers.mT).argmax(-1),
            slots * (slots + 384),
        )


TABLES = {
    f.__name__: f
    for f in (capacity, features, sources, changes, known, close, times, index, drift, stream)
}
WITHOUT_FACTS = ("close", "times", "drift", "stream", "sources")


def show(rows: Iterable[Row]) -> list[Row]:
    """Print rows as a table of Markdown, each as it comes."""
    done: list[Row] = []
    columns: list[str] = []
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            print("|", " | ".join(columns), "|")
            print("|", " | ".join("---" for _ in columns), "|")
        print("|", " | ".join(map(text, row.values())), "|", flush=True)
        done.append(row)
    return done


def text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value != 0 and abs(value) < 1e-2:
        return f"{value:.0e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"


def main(argv: list[str] | None = None) -> dict[str, list[Row]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=[*TABLES, "all"])
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    names = list(TABLES) if arguments.table == "all" else [arguments.table]
    results = {}
    try:
        world = World() if set(names) - set(WITHOUT_FACTS) else None
        for name in names:
            print(f"\n{name}: {TABLES[name].__doc__}\n")
            results[name] = show(TABLES[name](world))
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: pip install '.[episodic]'")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"\npeak of the resident set: {peak:,.0f} MiB")
    if arguments.json:
        about = machine.describe()
        arguments.json.write_text(json.dumps({"machine": about, **results}, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
