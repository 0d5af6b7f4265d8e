"""The operators' tests as questions of benchmarks/gpu_check.py: a test that hangs or crashes costs
one row, and the others of its file go on."""

from __future__ import annotations

import xml.etree.ElementTree as xml

import pytest

from benchmarks.gpu import child, report, rows, suite
from benchmarks.gpu.schedule import Schedule, Stage, Suite

VISIT = {"key": "visit", "visit": "20260101T000000", "device": "a GPU", "source": "abc"}

OF_A_FILE = """
import os, time
import pytest

def test_good(): pass
@pytest.mark.parametrize("x", [1, 2])
def test_fails(x): assert x == 1, "two is not one"
def test_skips(): pytest.skip("no reason")
def test_hangs(): time.sleep(300)
def test_dies(): os.kill(os.getpid(), 9)
def test_lost():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_fixture(missing): pass
def test_last(): pass
"""


@pytest.mark.slow
def test_tests_that_hang_and_die_cost_one_row_each(tmp_path, monkeypatch):
    (tmp_path / "test_of_a_file.py").write_text(OF_A_FILE)
    monkeypatch.delenv("KANERVA_TEST_DEVICE", raising=False)
    question = {"file": str(tmp_path / "test_of_a_file.py"), "chosen": "test", "device": "cpu"}
    suites = [
        Suite(
            f"test/of_a_file/{part + 1} of 2",
            tuple(child.child_command("tests", part=part, parts=2, **question)),
            25,  # a busy machine takes seconds to import torch
            silence=True,
        )
        for part in range(2)
    ]
    file = rows.RowFile(tmp_path / "tests.jsonl")
    found = Schedule(file, VISIT, 200, say=lambda text: None)
    file.append(VISIT)
    found.run([Stage("tests", suites, workers=2)])
    written = [row for row in file.read() if "state" in row]
    tests = {r["key"].split("::")[1]: r for r in written if "::" in r["key"]}
    assert len(written) == len(tests) + 2  # one row for each test, and one for each part
    assert {name: row["state"] for name, row in tests.items()} == {
        "test_good": rows.OK,
        "test_fails[1]": rows.OK,
        "test_fails[2]": rows.FAILED,
        "test_skips": rows.SKIPPED,
        "test_hangs": rows.HUNG,
        "test_dies": rows.KILLED,
        "test_lost": rows.CUDA_ERROR,
        "test_fixture": rows.FAILED,
        "test_last": rows.OK,
    }
    assert "two is not one" in tests["test_fails[2]"]["note"]
    parts = [row for row in written if "::" not in row["key"]]
    assert {row["state"] for row in parts} == {rows.FAILED}
    assert sum(sum(row["result"]["tests"].values()) for row in parts) == len(tests)

    text = report.summary("tests", file.read(), [])
    for name, row in tests.items():
        assert (f"::{name}" in text) == (row["state"] not in (rows.OK, rows.SKIPPED)), name
    report.write_junit(tmp_path, file.read())
    root = xml.parse(tmp_path / "tests.xml").getroot()
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("9", "5", "1")
    assert {x.get("name") for x in root.iter("testcase") if x.find("failure") is not None} == {
        name for name, row in tests.items() if row["state"] not in (rows.OK, rows.SKIPPED)
    }
    again = Schedule(file, VISIT, 60, say=lambda text: None)
    again.run([Stage("tests", suites, workers=2)])
    assert len([row for row in file.read() if "state" in row]) == len(written)


@pytest.mark.slow
def test_tests_cut_off_go_on_where_they_were(tmp_path, monkeypatch):
    (tmp_path / "test_slow.py").write_text(
        "import time, pytest\n"
        "@pytest.mark.parametrize('i', range(6))\n"
        f"def test_one(i): open({str(tmp_path / 'log')!r}, 'a').write(str(i)); time.sleep(1.5)\n"
    )
    question = {"file": str(tmp_path / "test_slow.py"), "chosen": "test", "device": "cpu"}
    command_line = tuple(child.child_command("tests", part=0, parts=1, **question))
    one = Suite("test/slow/1 of 1", command_line, 30, silence=True)
    file = rows.RowFile(tmp_path / "tests.jsonl")
    file.append(VISIT)
    found = Schedule(file, VISIT, 300, say=lambda text: None)
    first = "test/slow/1 of 1::test_one[1]"
    add = found.add

    def add_and_stop(row, aloud=True):
        add(row)
        if row["key"] == first:
            found.stop()

    monkeypatch.setattr(found, "add", add_and_stop)
    found.run([Stage("tests", [one])])
    assert found.missing == [one.key]
    Schedule(file, VISIT, 60, say=lambda text: None).run([Stage("tests", [one])])
    states = {k: r["state"] for k, r in rows.latest(file.read()).items() if "state" in r}
    assert states == {one.key: rows.OK, **{f"{one.key}::test_one[{i}]": rows.OK for i in range(6)}}
    log = (tmp_path / "log").read_text()
    assert set(log) == set("012345") and len(log) - log.count("2") == 5  # the third was cut off


def test_rows_of_tests():
    assert suite.short("tests/folder/test_x.py::TestRead::test_x[a::b]") == "TestRead::test_x[a::b]"
    assert suite.last_words("a\nE   ValueError: x\nE   more") == "ValueError: x"
