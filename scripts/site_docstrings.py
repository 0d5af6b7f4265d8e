"""Docstrings as Markdown for the manual: an extension of griffe, see mkdocs.yml.

In the sources an example begins with ``>>>`` and a name stands between backticks. Here an example
becomes a block of code, and the name of something public a link to it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import griffe

sys.path.insert(0, str(Path(__file__).resolve().parent))
from site_pages import REFERENCE, entry, public_names

MODULES = ["kanerva_ext.ops", *(m for _, _, modules in REFERENCE.values() for m in modules)]
NAME = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")


def fence_examples(text: str) -> str:
    """Blocks of ``>>>`` lines, which end at an empty one, as fenced code."""
    lines, inside, indent = [], False, ""
    for line in text.splitlines():
        if not inside and line.lstrip().startswith(">>>"):
            indent = line[: len(line) - len(line.lstrip())]
            lines += ["", f"{indent}```pycon"]
            inside = True
        elif inside and not line.strip():
            lines.append(f"{indent}```")
            inside = False
        lines.append(line)
    return "\n".join([*lines, f"{indent}```"] if inside else lines)


def link_names(text: str, scopes: list[str], known: dict[str, str]) -> str:
    """Names that the reference has, as links; scopes are looked through in turn."""

    def link(match: re.Match) -> str:
        for scope in scopes:
            path = f"{scope}.{match[1]}" if scope else match[1]
            if path in known:
                return f"[`{match[1]}`][{known[path]}]"
        return match[0]

    return NAME.sub(link, text)


class Docstrings(griffe.Extension):
    """Rewrites every docstring of the package, once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        known: dict[str, str] = {}  # everything that the reference has an entry of, and its name
        for module in MODULES:
            for name in public_names(module):
                path = f"{module}.{name}"
                found = pkg[path.removeprefix("kanerva_ext.")]
                known[path] = entry(module, name)
                if found.is_class:
                    for member, what in found.all_members.items():
                        if not member.startswith("_") and what.docstring is not None:
                            known[f"{path}.{member}"] = f"{path}.{member}"
        self._seen: set[int] = set()
        self._rewrite(pkg, known)

    def _rewrite(self, thing, known: dict[str, str]) -> None:
        if thing.is_alias or id(thing) in self._seen:
            return
        self._seen.add(id(thing))
        if thing.docstring is not None:
            own = [thing.path, thing.parent.path if thing.parent else ""]
            public = [p for p in known if thing.name == p.rpartition(".")[2]]
            scopes = [*public, *(p.rpartition(".")[0] for p in public), *own, "kanerva_ext"]
            scopes += [*MODULES, ""]
            text = fence_examples(thing.docstring.value)
            thing.docstring.value = link_names(text, scopes, known)
        for member in list(thing.members.values()):
            self._rewrite(member, known)
