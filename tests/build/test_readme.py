"""The README's example runs, and what it links to exists."""

import re

import pytest
import torch
from checkout import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_examples_run():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(code, names)
    assert names["logits"].shape == (16, 32, 784)
    assert torch.isfinite(names["loss"]) and names["model"].memory.log_prior_var.grad is not None
    assert names["out"].read_var.shape == (2, 100, 4)
    assert names["following"].hidden_states.shape == (2, 1, 256)


def test_the_examples_of_use_run():
    text = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    codes = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(codes) == 3
    names = {}
    for code in codes:
        exec(code, names)


def test_the_examples_of_the_episodic_memory_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guides" / "episodic_memory.md").read_text(encoding="utf-8")
    names = {}
    codes = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for code in codes:
        exec(code, names)
    assert len(codes) == 2 and names["out"].is_known.all()
    assert len(names["memory"]) == len(names["again"]) == 98
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links and all((ROOT / "docs" / "guides" / link).exists() for link in links)


def test_the_example_of_a_trained_model_runs():
    pytest.importorskip("safetensors")
    text = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python safetensors\n(.*?)```", text, flags=re.DOTALL)
    names = {}
    exec(code, names)
    assert names["pictures"].shape == (1, 8, 1, 28, 28)


def test_links_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
