"""What the manual is made by: its check finds what is wrong, and its pages have all they are to."""

import importlib.util
import sys

import pytest
from checkout import ROOT

SCRIPTS = ROOT / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def check_site(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = script("check_site")
    monkeypatch.setattr(module, "MODULES", ["kanerva_ext.flops"])
    return module


def site(folder, body):
    """Twelve pages, the first with this body, the second with all names that are asked for."""
    names = "".join(f'<h2 id="kanerva_ext.flops.{name}"></h2>' for name in ("FORWARD", "Sizes"))
    for number in range(12):
        text = {0: body, 1: names}.get(number, "")
        (folder / f"{number}.html").write_text(f"<html><body>{text}</body></html>")
    return folder


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ('<a href="1.html#kanerva_ext.flops.Sizes">x</a><a href="https://example.org">y</a>', []),
        ('<a href="13.html">x</a>', ["0.html: nothing is at 13.html"]),
        ('<a href="#nowhere">x</a>', ["0.html: no anchor #nowhere"]),
        ('<a href="1.html#nowhere">x</a>', ["0.html: no anchor 1.html#nowhere"]),
        ('<img src="x.png">', ["0.html: nothing is at x.png"]),
        ('<script src="https://a.b/c.js"></script>', ["0.html: loads https://a.b/c.js"]),
        ('<link rel="stylesheet" href="//a.b/c.css">', ["0.html: loads //a.b/c.css"]),
    ],
)
def test_what_is_wrong_with_a_page_is_found(check_site, tmp_path, body, found):
    assert check_site.check(site(tmp_path, body)) == found


def test_a_style_from_elsewhere_and_a_name_without_entry_are_found(check_site, tmp_path):
    site(tmp_path, "")
    (tmp_path / "a.css").write_text("@font-face { src: url(https://a.b/c.woff2) }")
    (tmp_path / "1.html").write_text('<h2 id="kanerva_ext.flops.FORWARD"></h2>')
    assert check_site.check(tmp_path) == [
        "a.css: loads from elsewhere",
        "kanerva_ext.flops.Sizes has no entry",
    ]


def test_the_command_line_is_all_there():
    from kanerva_ext.cli import COMMANDS, make_parser

    page = script("site_pages")._command_line()
    for name in COMMANDS:
        assert f"## kanerva {name}\n" in page
    parser = make_parser()
    (commands,) = (a for a in parser._actions if hasattr(a, "choices") and a.dest == "command")
    options = [o for each in commands.choices.values() for o in each._option_string_actions]
    assert len(options) > 30
    assert [o for o in options if o not in ("-h", "--help") and o not in page] == []


def test_every_public_module_has_its_names():
    pages = script("site_pages")
    modules = [module for _, _, modules in pages.REFERENCE.values() for module in modules]
    public = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "kanerva_ext").glob("*/__init__.py")
    }
    left_out = {"kanerva_ext.cli", "kanerva_ext.triton"}  # the command line; kernels
    assert public - left_out - {"kanerva_ext.ops"} <= set(modules)
    assert "FusedKanervaMemory" in pages.public_names("kanerva_ext")
    with pytest.raises(ValueError, match="has no __all__"):
        pages.public_names("kanerva_ext._checks")


def test_docstrings_become_markdown(monkeypatch):
    pytest.importorskip("griffe")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    docstrings = script("site_docstrings")
    text = "Some.\n\n>>> 1 + 1\n2\n\nMore."
    assert docstrings.fence_examples(text) == ("Some.\n\n\n```pycon\n>>> 1 + 1\n2\n```\n\nMore.")
    known = {"kanerva_ext.ops.read": "kanerva_ext.ops.read.read"}
    linked = docstrings.link_names("`ops.read`, ``read``, `other`", ["kanerva_ext"], known)
    assert linked == "[`ops.read`][kanerva_ext.ops.read.read], ``read``, `other`"
