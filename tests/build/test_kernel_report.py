"""scripts/kernel_report.py: reading ptxas' messages and writing the table."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from build_helpers import ROOT

spec = importlib.util.spec_from_file_location("kernel_report", ROOT / "scripts/kernel_report.py")
kernel_report = importlib.util.module_from_spec(spec)
sys.modules["kernel_report"] = kernel_report
path = list(sys.path)
spec.loader.exec_module(kernel_report)
sys.path[:] = path  # the script finds build_backend itself; the tests must not find the checkout

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4fillPf' for 'sm_80'
ptxas info    : Function properties for _Z4fillPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 368 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN1a1gIfEEvPT_' for 'sm_80'
ptxas info    : Function properties for _ZN1a1gIfEEvPT_
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Function properties for _Z6calledv
    8 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem, 368 bytes cmem[0]
"""


def test_messages_are_read():
    fill, g = kernel_report.parse(PTXAS)
    assert fill == kernel_report.Usage("_Z4fillPf", 8)
    assert g == kernel_report.Usage("_ZN1a1gIfEEvPT_", 255, 24, 8, 16, 1024)
    assert fill.text() == "8"
    assert g.text() == "255, stack 24, spills 8/16, shared 1024"


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("void kanerva::cuda::write<float, (int)32>(kanerva::Args)", "write<float, 32>"),
        ("kanerva::cuda::(anonymous namespace)::read(float*, long)", "read"),
        ("void a::f<a::B<float>, void (*)(int)>(int)", "f<B<float>, void (*)(int)>"),
    ],
)
def test_names_are_short(signature, expected):
    assert kernel_report.shorten(signature) == expected


def test_table_and_spills(monkeypatch):
    fill, g = kernel_report.parse(PTXAS)
    table = {("a.cu", "fill"): {"sm_80": fill}, ("a.cu", "g<float>"): {"sm_80": g}}
    text = kernel_report.render(table, "13.0")
    assert "| a.cu | `fill` | 8 | - | - | - |" in text
    assert "| file | kernel | sm_80 | sm_90a | sm_100 | sm_120 |" in text
    (problem,) = kernel_report.forbidden_spills(table)
    assert "g<float> spills on sm_80" in problem
    monkeypatch.setattr(kernel_report, "MAY_SPILL", (r"^g<",))
    assert kernel_report.forbidden_spills(table) == []


PTX = """\
.version 9.0
.target sm_90a
	// .globl	_ZN1a39_GLOBAL__N__405c4b7b_7_read_cu_9cd1cbf411read_kernelEv
.entry _ZN1a39_GLOBAL__N__405c4b7b_7_read_cu_9cd1cbf411read_kernelEv(
	.loc	1 37 0
	add.s32 	%r1, %r2, 1;	// begin inline asm
	.file	1 "/somewhere/csrc/cuda/read.cu"
	.section	.debug_str
.b8 95,90
"""


def test_a_digest_is_of_the_instructions():
    digest = kernel_report.compile_ptx.digest
    moved = PTX.replace(" 37 0", " 38 0").replace("/somewhere", "/elsewhere").replace("95", "96")
    renamed = moved.replace("405c4b7b", "0123abcd").replace("9cd1cbf4", "89abcdef")
    assert digest(PTX) == digest(moved) == digest(renamed)
    others = [PTX.replace("%r2, 1", "%r2, 2"), PTX.replace("sm_90a", "sm_80")]
    others.append(PTX.replace("read_kernel", "reap_kernel"))
    assert len({digest(PTX), *map(digest, others)}) == 4


def test_a_page_of_other_sources_or_with_spills_is_refused(monkeypatch, tmp_path):
    def ends(text):
        files = {}
        for target in kernel_report.ARCHS:
            (tmp_path / target).write_text(text)
            files[target] = tmp_path / target
        return kernel_report.digests({"read.cu": files}, "13.0")

    fill, g = kernel_report.parse(PTXAS)
    page = tmp_path / "kernels.md"
    monkeypatch.setattr(kernel_report, "PAGE", page)
    assert "out of date" in kernel_report.check(ends(PTX))[0]
    page.write_text(
        kernel_report.render({("a.cu", "fill"): {"sm_80": fill}}, "13") + "\n" + ends(PTX)
    )
    assert kernel_report.check(ends(PTX)) == []
    problem, *lines = kernel_report.check(ends(PTX.replace("add", "sub")))
    assert "out of date" in problem and [x.startswith("| read.cu |") for x in lines] == [True]
    page.write_text(kernel_report.render({("a.cu", "g"): {"sm_80": g}}, "13") + "\n" + ends(PTX))
    (problem,) = kernel_report.check(ends(PTX))
    assert problem.startswith("a kernel spills: | a.cu | `g` |")
    monkeypatch.setattr(kernel_report, "MAY_SPILL", (r"^g$",))
    assert kernel_report.check(ends(PTX)) == []
