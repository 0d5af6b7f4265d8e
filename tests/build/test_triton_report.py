"""scripts/triton_report.py: what would be launched compiles for every GPU, and what is too large
shows.

In processes of their own where kernels are interpreted, since those cannot be compiled.
"""

import dataclasses
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from checkout import ROOT

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

sys.path.insert(0, str(ROOT / "scripts"))
import triton_report as report

from kanerva_ext.triton._arguments import Memory


def test_every_kernel_is_recorded():
    found = {(v.file, v.name) for v in report.variants(quick=True)}
    folder = Path(report.kernels.__file__).parent
    written = {
        (path.name, line.split("def ")[1].split("(")[0])
        for path in folder.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and "_kernel(" in line
    }
    assert found == written


def test_every_configuration_is_recorded():
    seen = {(dict(v.constants).get("WORK"), v.config) for v in report.variants(quick=True)}
    for work, rows in report._launch.TABLE.items():
        for _, config in rows:
            assert (config.constants(work)["WORK"], config) in seen


@pytest.mark.parametrize("target", report.TARGETS)
def test_a_kernel_compiles(target):
    (index,) = (
        i
        for i, v in enumerate(report._variants(True))
        if v.name == "read_kernel" and v.config.size == 16
    )
    usage = report.compile_one(True, index, target)
    assert not isinstance(usage, str), usage
    assert usage.registers > 0 and 0 < usage.shared < report.LARGEST_SHARED["cuda"]


def test_problems():
    one = report.variants(quick=True)[0]
    table = [(one, {"sm_80": report.Usage(32, 0, 99 * 1024), "sm_90": "does not compile: no"})]
    found = report.problems(table)
    assert "takes 101376 bytes of shared memory" in found[0]
    assert "for sm_90: does not compile: no" in found[1]
    assert report.problems([(one, {"gfx942": report.Usage(32, 0, 65 * 1024)})])
    assert not report.problems([(one, {"sm_80": report.Usage(32, 0, 98 * 1024)})])


def test_what_was_compiled_before_is_not_compiled_again(tmp_path, monkeypatch, capsys):
    """But for some, which must come out as they did; and for all by another Triton."""
    monkeypatch.setattr(report, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(report, "AGAIN", 4)
    kernels = [v for v in report.variants(True) if v.file in ("read.py", "bayes_write.py")]
    monkeypatch.setattr(report, "_variants", lambda *_: kernels)
    monkeypatch.setattr(report, "compile_one", compile_nothing)
    monkeypatch.setattr(report, "ProcessPoolExecutor", ThreadPoolExecutor)
    count = len(kernels)
    assert count > 4

    def collected():
        table = report.collect(False, ["sm_80"])
        said = capsys.readouterr().out
        return table, [row["sm_80"] for _, row in table], int(said.split()[-3])

    table, usages, compiled = collected()
    assert compiled == count and len(set(usages)) == count
    report.remember(table, forget=True)
    again = len(range(2, count, 4))
    assert collected()[1:] == (usages, again)
    # Another kernel alone is compiled; what is known stays known.
    digest = report.digest
    name = kernels[1]
    monkeypatch.setattr(report, "digest", lambda v, t: digest(v, t) + "x" * (v == name))
    table, _, compiled = collected()
    assert compiled == 1 + len(range(2, count - 1, 4))
    report.remember(table, forget=False)
    assert len(report.known()) == count + 1
    monkeypatch.setattr(report, "digest", digest)
    # A record that is wrong is noticed where it is compiled again.
    text = report.RECORD.read_text()
    report.RECORD.write_text(re.sub(r"\[\d+,", "[7,", text))
    table = report.collect(False, ["sm_80"])
    wrong = report.problems(table)
    assert len(wrong) == again and "not as in record.json: Usage(registers=7" in wrong[0]
    report.RECORD.write_text(text.replace(report.triton.__version__, "0.1"))
    assert collected()[2] == count and report.known() == {}


def test_an_interrupted_report_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(report, "SAVE", 2)
    monkeypatch.setattr(report, "ProcessPoolExecutor", ThreadPoolExecutor)
    kernels = report.variants(True)[:7]
    monkeypatch.setattr(report, "_variants", lambda *_: kernels)

    def interrupted(quick, index, target, only=None):
        if index == 5:
            raise KeyboardInterrupt
        return compile_nothing(quick, index, target)

    monkeypatch.setattr(report, "compile_one", interrupted)
    for keep in (False, True):
        with pytest.raises(KeyboardInterrupt):
            report.collect(False, ["sm_80"], keep=keep)
        assert len(report.known()) == 4 * keep
    monkeypatch.setattr(report, "compile_one", compile_nothing)
    table = report.collect(False, ["sm_80"], keep=True)
    assert [row["sm_80"].registers for _, row in table] == list(range(100, 107))
    assert len(report.known()) == 6 and not list(tmp_path.glob("*.new"))


def test_a_kernel_that_moved_in_its_file_is_known():
    one = next(v for v in report.variants(True) if v.name == "write_kernel")
    before = report.digest(one, "sm_80")
    one.kernel.starting_line_number, one.kernel.hash = 77, None
    assert report.digest(one, "sm_80") != before
    report.forget_lines()
    assert report.digest(one, "sm_80") == before


def test_tuples_of_arguments():
    """Members have types of their own; None is a constant, and what Triton may assume of pointers
    holds inside too."""
    cov = torch.empty(3, 3, device="meta", dtype=torch.float64)
    kinds = report.kind_of(Memory(cov, None, cov))
    assert kinds == ("*fp64", "constexpr", "*fp64") and kinds.cov == "constexpr"
    one = next(v for v in report.variants(True) if v.name == "write_kernel")
    place = list(dict(one.signature)).index("memory")
    paths = one.source(report.TARGETS["sm_80"]).attrs
    assert (place, 0) in paths and (place,) not in paths
    kinds = dict(one.signature)["memory"]
    for i, kind in enumerate(kinds):
        assert ((place, i) in dict(one.constants)) == (kind == "constexpr")


@pytest.mark.parametrize("text", ["{", "[]", '{"triton": 1}', '{"triton": "V", "compiled": []}'])
def test_a_damaged_record_is_named(tmp_path, monkeypatch, text):
    monkeypatch.setattr(report, "RECORD", tmp_path / "record.json")
    report.RECORD.write_text(text.replace("V", report.triton.__version__))
    if text == '{"triton": 1}':  # another Triton's
        assert report.known() == {}
        return
    with pytest.raises(SystemExit, match=r"record\.json is damaged"):
        report.known()


def test_an_operator_that_is_none():
    with pytest.raises(SystemExit, match="--only must be an operator, got 'nosuch'"):
        report.main(["--check", "--only", "nosuch"])


def compile_nothing(quick, index, target, only=None):
    return report.Usage(100 + index, 0, 1024)


def test_what_goes_into_a_digest():
    """The source, the types, the constants, how it is compiled, and for what."""
    one = next(v for v in report.variants(True) if v.name == "read_kernel")
    (kind,) = {v for n, v in one.signature if n == "mean"}
    other = tuple((n, "*fp64" if n == "mean" else v) for n, v in one.signature)
    constants = dict(one.constants)
    name = next(n for n, v in constants.items() if isinstance(v, int))
    others = [
        dataclasses.replace(one, signature=other),
        dataclasses.replace(one, constants=tuple((constants | {name: 7}).items())),
        next(v for v in report.variants(True) if v.name == "finish_kernel"),
        dataclasses.replace(one, config=one.config._replace(warps=16)),
    ]
    digests = {report.digest(v, "sm_80") for v in (one, *others)} | {report.digest(one, "sm_90")}
    assert kind == "*fp32" and len(digests) == 6
    assert report.digest(one, "sm_80") == report.digest(one, "sm_80")


def test_render():
    one = report.variants(quick=True)[0]
    row = dict.fromkeys(report.TARGETS, report.Usage(40, 8, 2048))
    text = report.render([(one, row)])
    assert f"| {one.file} | `{one.name}` | {one.label} | 40, stack 8, 2.0 KiB |" in text


def test_nothing_runs_on_meta_tensors():
    launches = report.launches(
        report.kernels.read,
        *(torch.empty(s, device="meta") for s in ((2, 3, 4), (2, 3, 3), (2, 5, 3))),
    )
    assert [kernel.fn.__name__ for kernel, *_ in launches] == ["read_kernel", "finish_kernel"]
