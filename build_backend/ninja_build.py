"""Writes build.ninja and runs it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import BuildError


@dataclass(frozen=True)
class Edge:
    """One command: ``output`` from ``inputs``; ``implicit`` inputs are not on its command line.

    With ``depfile`` the command writes the headers that it read to ``output`` + ".d".
    """

    output: Path
    inputs: tuple[Path, ...]
    command: tuple[str, ...]
    what: str
    implicit: tuple[Path, ...] = ()
    depfile: bool = False


def escape_path(path: str | os.PathLike[str]) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def escape_value(text: str) -> str:
    return text.replace("$", "$$").replace("\n", " ")


def render(edges: Iterable[Edge]) -> str:
    """The text of build.ninja. Changed commands rebuild, so options need no other tracking."""
    lines = [
        "ninja_required_version = 1.8",
        "rule compile",
        "  command = $cmd",
        "  description = $what",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  command = $cmd",
        "  description = $what",
    ]
    for edge in edges:
        inputs = " ".join(map(escape_path, edge.inputs))
        if edge.implicit:
            inputs += " | " + " ".join(map(escape_path, edge.implicit))
        rule = "compile" if edge.depfile else "link"
        lines += [
            f"build {escape_path(edge.output)}: {rule} {inputs}",
            f"  cmd = {escape_value(shlex.join(edge.command))}",
            f"  what = {escape_value(edge.what)}",
        ]
    return "\n".join(lines) + "\n"


def write_if_changed(path: Path, text: str) -> bool:
    """Writes ``text`` unless the file holds it already, so that ninja sees no news."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True


def ninja_program() -> str:
    found = shutil.which("ninja")
    if found is None:
        try:
            import ninja
        except ImportError:
            raise BuildError("ninja was not found; install it (pip install ninja).") from None
        found = str(Path(ninja.BIN_DIR, "ninja"))
    return found


def run(folder: Path, edges: Sequence[Edge], jobs: int, *, verbose: bool = False) -> None:
    """Brings every output of ``edges`` up to date.

    Raises:
        BuildError: a command failed; its messages have been printed by then.
    """
    write_if_changed(folder / "build.ninja", render(edges))
    command = [ninja_program(), "-C", str(folder), "-j", str(jobs)]
    if verbose:
        command.append("-v")
    if subprocess.run(command, check=False).returncode != 0:
        raise BuildError("compilation failed; the compiler's messages are above.")
