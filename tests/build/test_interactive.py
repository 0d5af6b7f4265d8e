"""docs/interactive/ in headless Chromium: it computes what PyTorch computes, and its page works."""

import html
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from checkout import ROOT

pytest.importorskip("safetensors")
sys.path.insert(0, str(ROOT / "scripts"))
import site_interactive

from kanerva_ext.data import load_images, salt_and_pepper
from kanerva_ext.models import KanervaMachine

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
FOLDER = ROOT / "docs" / "interactive"
SCRIPTS = ("data.js", "memory.js", "model.js")


def result(folder, body, code):
    """What ``code``, which ends in a value, gives in a page with ``body`` and all scripts."""
    for path in FOLDER.iterdir():
        shutil.copy(path, folder)
    (folder / "data.js").write_text(site_interactive.script())
    loaded = "".join(f'<script src="{name}"></script>' for name in SCRIPTS if name not in body)
    guard = f"""
      const out = document.createElement("pre");
      out.id = "out";
      try {{ out.textContent = JSON.stringify((() => {{ {code} }})()); }}
      catch (error) {{ out.textContent = JSON.stringify(String(error.stack)); }}
      document.body.append(out);"""
    page = f"<!doctype html><meta charset=utf-8><body>{body}{loaded}<script>{guard}</script>"
    (folder / "page.html").write_text(page)
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"]
    words += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"{folder / 'page.html'}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return json.loads(html.unescape(found[1]))


@torch.no_grad()
def test_it_computes_what_pytorch_computes(tmp_path):
    model = KanervaMachine.from_pretrained("omniglot-kanerva").eval()
    images = load_images("omniglot", "test").images[::37][:6].float()[None, :, None]
    queries = salt_and_pepper(images, 0.15, torch.Generator().manual_seed(0))
    features = model._features(images)
    keys, codes = model.key(model._latent(features)[0]), model.write_code(features)[0]
    state = model.memory.write(codes, keys=keys).state
    want = {
        "reads": model.denoise(queries, state, 3, noise=0.15)[:, 0].flatten(2).transpose(0, 1),
        "weights": model.addresses(queries, state)[0],
        "mean": state.mean.flatten(),
        "cov": state.cov.flatten(),
    }
    memory, codes, keys = model.memory.double(), codes[:, 3:].double(), keys[:, 3:].double()
    half = memory.write(codes, keys=keys).state  # the page computes in double precision
    want |= {"forgotten": half.mean.flatten(), "forgotten_cov": half.cov.flatten()}
    pixels = [x[0].flatten(1).tolist() for x in (images, queries)]
    got = result(
        tmp_path,
        "",
        f"""
        const [images, queries] = {json.dumps(pixels)};
        const model = new KanervaMachine(Uint8Array.from(atob(KANERVA_MODEL), (x) =>
          x.charCodeAt(0)));
        const memory = model.emptyMemory();
        const items = images.map((image) => model.item(image));
        for (const item of items) memory.write(item.weights, item.values);
        const found = queries.map((seen) => {{
          const reads = [];
          let query = seen;
          for (let step = 0; step < 3; step++) {{
            reads.push(model.read(query, memory));
            query = combine(reads[step].picture, seen, 0.15);
          }}
          return reads;
        }});
        const result = {{ mean: Array.from(memory.mean), cov: Array.from(memory.cov) }};
        result.reads = found.map((reads) => reads.map((read) => Array.from(read.picture)));
        result.weights = found.map(([first]) => Array.from(first.weights));
        for (const item of items.slice(0, 3)) memory.forget(item.weights, item.values);
        result.forgotten = Array.from(memory.mean);
        result.forgotten_cov = Array.from(memory.cov);
        return result;
        """,
    )
    assert isinstance(got, dict), got
    for name, tensor in want.items():
        found = torch.tensor(got[name], dtype=tensor.dtype)
        torch.testing.assert_close(found, tensor.view_as(found), rtol=1e-4, atol=1e-4, msg=name)


def test_the_page(tmp_path):
    text = (FOLDER / "index.md").read_text()
    body = text[text.index('<div id="memory-page"') : text.index("## What to try")]
    body = body.replace("<noscript>", "<!--").replace("</noscript>", "-->")
    got = result(
        tmp_path,
        body,
        """
        const page = (name) => document.getElementById(`memory-${name}`);
        const seen = () => ({
          stored: page("stored").children.length,
          reads: page("reads").children.length,
          marked: Array.from(page("stored").children).findIndex((x) =>
            x.classList.contains("memory-alike")),
          words: page("words").textContent,
          bars: page("address").children.length,
        });
        const click = (element) => element.click();
        const pixels = () => Array.from(page("query").getContext("2d").getImageData(0, 0, 28, 28)
          .data).filter((_, i) => i % 4 === 0);
        const count = () => pixels().filter((x) => x === 0).length;
        const steps = { start: seen() };
        click(page("stored").children[3].querySelectorAll("button")[0]);
        steps.asked = seen();
        click(page("stored").children[3].querySelectorAll("button")[1]);
        steps.forgotten = seen();
        click(page("write"));
        steps.written = seen();
        click(page("more"));
        steps.more = seen();
        click(page("clear"));
        steps.blank = count();
        const canvas = page("query");
        canvas.setPointerCapture = () => {};
        const box = canvas.getBoundingClientRect();
        const at = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type, {
          clientX: box.left + x * box.width, clientY: box.top + y * box.height, pointerId: 1 }));
        at("pointerdown", 0.25, 0.5);
        at("pointermove", 0.75, 0.5);
        at("pointerup", 0.75, 0.5);
        at("pointermove", 0.75, 0.9);
        steps.line = count();
        page("erase").checked = true;
        at("pointerdown", 0.25, 0.5);
        at("pointermove", 0.75, 0.5);
        at("pointerup", 0.75, 0.5);
        steps.erased = count();
        page("noise").value = "60";
        page("noise").dispatchEvent(new Event("input"));
        click(page("corrupt"));
        steps.corrupted = count();
        steps.share = page("share").textContent;
        click(page("empty"));
        steps.empty = seen();
        return steps;
        """,
    )
    assert isinstance(got, dict), got
    start = got["start"]
    assert (start["stored"], start["reads"], start["bars"], start["marked"]) == (6, 4, 64, 4)
    assert start["words"].startswith("6 drawings in 64 slots.")
    assert got["asked"]["marked"] == 3  # a stored drawing is read where it was written
    words = {name: got[name]["words"] for name in ("asked", "forgotten", "written")}
    variance = {n: float(re.search(r"read: (\S+)\. ", text)[1]) for n, text in words.items()}
    # The same query, with the drawing in memory, without it, and with it again.
    assert variance["forgotten"] > 2 * variance["asked"]
    assert variance["written"] == pytest.approx(variance["asked"], rel=0.2)
    stored = [got[name]["stored"] for name in ("forgotten", "written", "more", "empty")]
    assert stored == [5, 6, 7, 0]
    assert got["blank"] == 0 and 14 <= got["line"] <= 45 and got["erased"] == 0
    assert 150 < got["corrupted"] < 320 and got["share"] == "60 %"
    assert got["empty"]["reads"] == 4 and got["empty"]["marked"] == -1
