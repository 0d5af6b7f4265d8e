"""Pages of the manual that are made from the code: a hook of mkdocs, see mkdocs.yml.

The reference of every public module (its names are read from ``__all__``), the command line from
its parsers, the cards of the models that ship, the changelog.
"""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Page -> its title, what it begins with, and the modules on it.
REFERENCE = {
    "kanerva_ext": (
        "kanerva_ext",
        "The memory as a module, the sequence layer, and what they return. The operators, "
        "`kanerva_ext.ops`, have [pages of their own](../operators/index.md).",
        ["kanerva_ext"],
    ),
    "episodic": ("kanerva_ext.episodic", "", ["kanerva_ext.episodic"]),
    "huggingface": ("kanerva_ext.huggingface", "", ["kanerva_ext.huggingface"]),
    "models": ("kanerva_ext.models", "", ["kanerva_ext.models", "kanerva_ext.models.training"]),
    "data": ("kanerva_ext.data", "", ["kanerva_ext.data"]),
    "pretrained": (
        "kanerva_ext.pretrained",
        "The cards themselves are on [a page of their own](../trained_models.md).",
        ["kanerva_ext.pretrained"],
    ),
    "other": (
        "distributed, flops, info",
        "Importing the first two tells PyTorch about the operators.",
        ["kanerva_ext.distributed", "kanerva_ext.flops", "kanerva_ext.info"],
    ),
    "reference": (
        "kanerva_ext.reference",
        "",
        ["kanerva_ext.reference"],
    ),
}
#: The names of a module that has no ``__all__``, or what of it stands nowhere else.
NAMES = {
    "kanerva_ext.info": ["collect"],
    "kanerva_ext.models.training": ["Schedule", "Trainer", "TrainingStep"],
    "kanerva_ext.reference": [],
}
#: Names that need no entry: modules, numbers and tables that have none of their own.
WITHOUT_ENTRY = {"__version__", "ops"}


def public_names(module: str) -> list[str]:
    """What a module's ``__all__`` lists, in the order of the source."""
    if module in NAMES:
        return NAMES[module]
    folder = ROOT / module.replace(".", "/")
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__":
            return [name for name in ast.literal_eval(node.value) if name not in WITHOUT_ENTRY]
    raise ValueError(f"{module} has no __all__; give its names in scripts/site_pages.py")


def entry(module: str, name: str) -> str:
    """Where the manual has a public name: an operator's function has the name of its module."""
    own = module == "kanerva_ext.ops" and (ROOT / f"kanerva_ext/ops/{name}.py").exists()
    return f"{module}.{name}.{name}" if own else f"{module}.{name}"


def _reference_page(title: str, intro: str, modules: list[str]) -> str:
    lines = [f"# {title}", "", intro, ""]
    for module in modules:
        if len(modules) > 1:
            lines += [f"## {module}", "", f"::: {module}", *_OPTIONS_OF_A_MODULE, ""]
        else:
            lines += [f"::: {module}", *_OPTIONS_OF_A_MODULE, ""]
        for name in public_names(module):
            lines += [f"::: {entry(module, name)}", ""]
            if len(modules) > 1:
                lines[-1:] = ["    options: { heading_level: 3 }", ""]
    return "\n".join(lines)


#: Its docstring alone.
_OPTIONS_OF_A_MODULE = [
    "    options: { members: false, show_root_heading: false, show_root_toc_entry: false }",
]


def _reference_index() -> str:
    lines = [
        "# Reference",
        "",
        "Made from the docstrings. Shapes are batch first; B stands for any leading dimensions.",
        "Logarithms are natural: nats. The functions take variances, the modules standard",
        "deviations.",
        "",
        "| module | names |",
        "|---|---|",
    ]
    operators = [name for name in public_names("kanerva_ext.ops") if name != "OPERATORS"]
    rows = {"[`kanerva_ext.ops`](../operators/index.md)": [("kanerva_ext.ops", operators)]}
    for page, (title, _, modules) in REFERENCE.items():
        found = [(module, public_names(module)) for module in modules]
        rows[f"[`{title}`]({page}.md)"] = found
    for title, found in rows.items():
        names = ", ".join(f"[`{n}`][{entry(m, n)}]" for m, names in found for n in names)
        lines.append(f"| {title} | {names or 'every operator as plain PyTorch'} |")
    lines += ["", "`kanerva_ext._core` has the operators for NumPy arrays; see `help(_core)`."]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _argument(action: argparse.Action) -> str:
    if not action.option_strings:
        name = action.metavar or action.dest
    else:
        name = ", ".join(action.option_strings)
        if action.nargs != 0:
            name += " " + (action.metavar or action.dest.upper())
    text = (action.help or "") % {**vars(action), "prog": ""}
    if action.choices is not None:
        text += f" (one of {', '.join(map(str, action.choices))})"
    return f"| `{_cell(name)}` | {_cell(text)} |"


def _command_line() -> str:
    from kanerva_ext.cli import make_parser

    parser = make_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    summaries = {each.dest: each.help for each in commands._choices_actions}
    lines = [
        "# Command line",
        "",
        "```",
        "pip install '.[train]'",
        "kanerva train cpu-omniglot-kanerva --out runs/kanerva",
        "kanerva denoise runs/kanerva",
        "```",
        "",
        parser.epilog,
        "",
        "| command | what it does |",
        "|---|---|",
    ]
    lines += [f"| [`{name}`](#kanerva-{name}) | {summaries[name]} |" for name in commands.choices]
    for name, each in commands.choices.items():
        first, *rest = each.format_usage().removeprefix("usage: ").strip().splitlines()
        usage = "\n".join([first, *(f"  {line.strip()}" for line in rest)])
        described = each.description.strip()
        lines += ["", f"## kanerva {name}", "", described, "", "```", usage, "```", ""]
        actions = [a for a in each._actions if "--help" not in a.option_strings]
        if actions:
            lines += ["| argument | meaning |", "|---|---|", *map(_argument, actions)]
    return "\n".join(lines)


def _trained_models() -> str:
    lines = ["# Trained models", "", "These ship with the package: no download.", ""]
    for path in sorted((ROOT / "kanerva_ext/pretrained").glob("*.md")):
        for line in path.read_text(encoding="utf-8").splitlines():
            lines.append("#" + line if line.startswith("#") else line)
        lines.append("")
    return "\n".join(lines)


def _changelog() -> str:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return text.replace("](docs/", "](")


def _notebook(path: Path) -> dict[str, str | bytes]:
    """The page of a notebook and its pictures, as they were when it was run."""
    from nbconvert import MarkdownExporter

    folder = f"{path.stem}_files"
    resources = {"output_files_dir": folder, "unique_key": path.stem}
    text, found = MarkdownExporter().from_filename(str(path), resources=resources)
    note = f"[This notebook]({path.name}) runs as it is; its results are those of its last run.\n"
    title, _, rest = text.strip().partition("\n")
    pages = {f"notebooks/{path.stem}.md": f"{title}\n\n{note}{rest}"}
    for name, content in found["outputs"].items():
        pages[f"notebooks/{name}"] = content
    return pages


def generated() -> dict[str, str | bytes]:
    """Every page and picture that is made here, by its path."""
    pages = {f"reference/{name}.md": _reference_page(*page) for name, page in REFERENCE.items()}
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        pages |= _notebook(path)
    return pages | {
        "reference/index.md": _reference_index(),
        "command_line.md": _command_line(),
        "trained_models.md": _trained_models(),
        "changelog.md": _changelog(),
    }


FILE = re.compile(r"^<!-- file: (\S+) -->$", re.MULTILINE)


def on_page_markdown(markdown, **_):
    """A file of the repository, folded, in place of a comment that names it."""

    def content(match: re.Match) -> str:
        text = (ROOT / match[1]).read_text(encoding="utf-8")
        code = "\n".join(
            f"    {line}".rstrip() for line in ["```python", *text.splitlines(), "```"]
        )
        return f'??? example "{match[1]}"\n\n{code}'

    return FILE.sub(content, markdown)


def on_files(files, config):
    from mkdocs.structure.files import File

    for path, text in generated().items():
        files.append(File.generated(config, path, content=text))
    return files
