"""Which backend was faster at which shape, as the rules of ``kanerva_ext/_choice.py``."""

from __future__ import annotations

import math
from collections.abc import Iterable

from . import rows


def ratio(duel: dict) -> float:
    """Triton's time over CUDA C++'s: the geometric mean over the directions, so that neither
    counts for more because it takes longer."""
    ratios = [float(row["ratio"]) for row in duel["directions"].values()]
    return math.prod(ratios) ** (1 / len(ratios))


def rules(found: Iterable[dict], source: str) -> list[dict]:
    """A rule for every shape at which the two were measured, from rows of "duel/...".

    Each is what ``kanerva_ext._choice.Rule`` takes: limits are the measured sizes themselves. Of
    shapes that differ in T alone, which a rule does not know, the first decides.
    """
    made: dict[tuple, dict] = {}
    for key, row in rows.latest(found).items():
        if not key.startswith("duel/") or row.get("state") != rows.OK:
            continue
        operator, shape = key.split("/")[1:]
        batch, _, slots, code = map(int, shape.split("x"))
        rule = {
            "operator": operator,
            "backend": "cuda" if ratio(row["result"]) >= 1 else "triton",
            "source": source,
            "memories": [batch, batch],
            "slots": [slots, slots],
            "code": [code, code],
        }
        made.setdefault((operator, batch, slots, code), rule)
    return list(made.values())
