"""The examples of the README and of the manual run, and what the README links to exists.

The blocks of a page run in order, in one namespace, in a folder of their own. What stands before a
block as a comment decides: ``<!-- not run: why -->`` leaves it out, ``<!-- needs: package -->``
skips the rest of the page where the package is not installed.
"""

import re
import subprocess
import sys

import pytest
import torch
from checkout import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMENT = r"(?:<!-- (not run|needs): ([^>]+?) -->\n+)?"
BLOCK = re.compile(COMMENT + r"^( *)```python\n(.*?)^\3```", re.MULTILINE | re.DOTALL)
NAMES = {page.relative_to(ROOT).as_posix(): page for page in PAGES}


def blocks(text):
    """(what to do, about what, line, code) of every block."""
    for match in BLOCK.finditer(text):
        kind, what, indent, code = match.groups()
        code = re.sub(f"^{indent}", "", code, flags=re.M)
        yield kind, what, text.count("\n", 0, match.start(4)), code


WITH_CODE = [name for name, page in NAMES.items() if list(blocks(page.read_text("utf-8")))]


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names, ran = {"__name__": "__main__"}, 0
    for kind, what, line, code in blocks(NAMES[name].read_text("utf-8")):
        if kind == "not run":
            continue
        if kind == "needs":
            pytest.importorskip(what)
        exec(compile("\n" * line + code, str(NAMES[name]), "exec"), names)
        ran += 1
    assert ran


def test_every_block_is_seen():
    # A fence of another form would not be run, without a word.
    for name, page in NAMES.items():
        text = page.read_text("utf-8")
        fences = len(re.findall(r"^ *`{3,} *\{?\.?py", text, flags=re.M))
        assert fences == len(list(blocks(text))), name
    assert len(WITH_CODE) >= 2


def test_what_the_readme_shows():
    names = {}
    for *_, code in blocks(NAMES["README.md"].read_text("utf-8")):
        exec(code, names)
    assert names["logits"].shape == (16, 32, 784)
    assert torch.isfinite(names["loss"]) and names["model"].memory.log_prior_var.grad is not None


PROSE = [*PAGES, *(ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING"))]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_of_prose_are_short(path):
    """Tables, code, pictures and formulas may be wider."""
    text = re.sub(r"^( *)(```|\$\$).*?^\1\2", "", path.read_text("utf-8"), flags=re.M | re.S)
    prose = (line for line in text.split("\n") if not re.match(r"\||    |!\[| *\$\$", line))
    assert [line for line in prose if len(line) > 100] == []


def test_links_of_the_readme_exist():
    text = NAMES["README.md"].read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


SCRIPTS = sorted((ROOT / "docs" / "pictures").glob("[a-z]*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_picture_can_be_drawn_again(script, tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, str(script), "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    (picture,) = tmp_path.iterdir()
    assert picture.stem == script.stem and picture.stat().st_size > 10_000
    assert (ROOT / "docs" / "images" / "guides" / picture.name).exists()


def test_every_picture_of_a_guide_has_a_script_and_a_page():
    pictures = {path.stem for path in (ROOT / "docs" / "images" / "guides").iterdir()}
    assert pictures == {path.stem for path in SCRIPTS} | {"your_data"}  # of examples/your_data.py
    text = "".join(page.read_text("utf-8") for page in PAGES)
    assert [name for name in pictures if f"images/guides/{name}." not in text] == []
