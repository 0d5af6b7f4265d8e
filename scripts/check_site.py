"""Looks through the manual as it was built: ``python scripts/check_site.py build/site``.

Every public name has an entry, every link and picture of every page is there, with its anchor, and
nothing is loaded from another place. mkdocs itself checks the links that are written in Markdown.
"""

from __future__ import annotations

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))
from site_pages import REFERENCE, entry, public_names

MODULES = ["kanerva_ext.ops", *(m for _, _, modules in REFERENCE.values() for m in modules)]
#: Attributes that make a browser load something as the page opens.
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
#: `link` elements that are read, not loaded.
READ = {"canonical", "next", "prev", "edit"}


class Page(HTMLParser):
    """The anchors of a page and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[k] for k in ("id", "name") if attrs.get(k)}
        for name in ("href", "src"):
            value = attrs.get(name)
            if not value:
                continue
            loaded = (tag, name) in LOADED and attrs.get("rel") not in READ
            (self.loaded if loaded else self.links).append(value)


def check(site: Path) -> list[str]:
    """What is wrong, a line each."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(site.rglob("*.html"))}
    pages = {path: Page(text) for path, text in texts.items()}
    wrong = []
    for path, page in pages.items():
        name = path.relative_to(site)
        if name.name == "404.html":  # its links begin at the root of wherever it is put
            continue
        for link in page.loaded + page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    wrong.append(f"{name}: loads {link}")
                continue
            target, anchor = urldefrag(unquote(link))
            at = path if not target else (path.parent / target).resolve()
            if at.is_dir():
                at = at / "index.html"
            if not at.exists():
                wrong.append(f"{name}: nothing is at {link}")
            elif anchor and at in pages and anchor not in pages[at].anchors:
                wrong.append(f"{name}: no anchor {link}")
    for path in sorted(site.rglob("*.css")):
        if any(f"url({quote}http" in path.read_text("utf-8") for quote in ("", '"', "'")):
            wrong.append(f"{path.relative_to(site)}: loads from elsewhere")
    anchors = set().union(*(page.anchors for page in pages.values()))
    names = [entry(module, name) for module in MODULES for name in public_names(module)]
    wrong += [f"{name} has no entry" for name in names if name not in anchors]
    if not names or len(pages) < 10:
        wrong.append(f"only {len(pages)} pages and {len(names)} names were found in {site}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path)
    site = parser.parse_args().site.resolve()
    wrong = check(site)
    print("\n".join(wrong) if wrong else f"ok: {len(list(site.rglob('*.html')))} pages")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
