"""Tables in pages: as Markdown, and put between their markers."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping


def markdown(lines: list[list[str]]) -> str:
    """A table; the first line is its head."""
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_tables(text: str, tables: Mapping[str, Callable], results: dict, page: object) -> str:
    """``text`` with what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` made anew.

    Args:
        tables: by NAME, what makes a table of ``results``.
        page: what the text is of, for the error.

    Raises:
        ValueError: the markers of a table are missing.
    """
    for name, make in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{page} has no markers of {name}")
        table = make(results)
        text = pattern.sub(lambda match, made=table: f"{match[1]}\n{made}\n\n{match[2]}", text)
    return text


def wrapped(text: str, width: int = 100) -> str:
    """``text`` with its long lines of prose broken; tables, headings and pictures stay as they
    are."""
    lines = []
    for line in text.split("\n"):
        if len(line) <= width or line.lstrip().startswith(("|", "#", "!", "<")):
            lines.append(line)
            continue
        item = re.match(r"(?:\d+\.|[-*]) ", line)
        inside = " " * len(item[0]) if item else ""
        whole = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), line)
        broken = textwrap.fill(
            whole,
            width,
            subsequent_indent=inside,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines.append(broken.replace("\0", " "))
    return "\n".join(lines)
