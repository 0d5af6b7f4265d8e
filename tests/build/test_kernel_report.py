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
    text = kernel_report.render(kernel_report.rows_of(table), "13.0")
    assert "| a.cu | `fill` | 8 | - | - | - |" in text
    assert "| file | kernel | sm_80 | sm_90a | sm_100 | sm_120 |" in text
    (problem,) = kernel_report.spills_in_page(text)
    assert problem.startswith("a kernel spills: | a.cu | `g<float>` |")
    monkeypatch.setattr(kernel_report, "MAY_SPILL", (r"^g<",))
    assert kernel_report.spills_in_page(text) == []


def test_rows_of_unchanged_files_are_kept():
    def end(nvcc, **digests):
        lines = [f"| {file}.cu | {' | '.join([digest] * 4)} |" for file, digest in digests.items()]
        made = f"Of the instructions that nvcc {nvcc} makes; ptxas gives the same for the same."
        return "\n".join(["## Digests of the PTX", "", made, "", *lines]) + "\n"

    rows = [f"| {name} | 8 | 8 | 8 | - |" for name in ("a.cu | `f`", "a.cu | `g`", "b.cu | `f`")]
    page = kernel_report.render(rows, "13.0") + "\n" + end("13.0", a="1f", b="2e")
    changed = end("13.0", a="1f", b="3d", c="4c")
    assert kernel_report.rows_kept(page, changed) == {"a.cu": rows[:2]}
    assert kernel_report.rows_kept(page, end("13.1", a="1f", b="2e")) == {}
    assert kernel_report.rows_kept("", changed) == {}


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

    def table(name, usage):
        rows = kernel_report.rows_of({("a.cu", name): {"sm_80": usage}})
        return kernel_report.render(rows, "13") + "\n"

    page.write_text(table("fill", fill) + ends(PTX))
    assert kernel_report.check(ends(PTX)) == []
    problem, *lines = kernel_report.check(ends(PTX.replace("add", "sub")))
    assert "out of date" in problem and [x.startswith("| read.cu |") for x in lines] == [True]
    page.write_text(table("g", g) + ends(PTX))
    (problem,) = kernel_report.check(ends(PTX))
    assert problem.startswith("a kernel spills: | a.cu | `g` |")
    monkeypatch.setattr(kernel_report, "MAY_SPILL", (r"^g$",))
    assert kernel_report.check(ends(PTX)) == []


FAST = """\
.version 9.0
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 tile[];
.func  (.param .b32 func_retval0) _Z6calledv(
)
;
.func  (.param .b32 func_retval0) _Z6calledv(
)
{
	ret;
}
.visible .entry _Z12small_kernelv(
	.param .u64 p
)
.maxntid 128, 1, 1
.minnctapersm 4
{
	.loc	1 37 0
	ld.param.u64 	%rd1, [p];
	@%p1 ld.shared.v4.f32 	{%f1, %f2, %f3, %f4}, [%r1];
	st.global.f32 	[%rd1], %f1;
	ret;
}
.entry _Z7generalv(
)
{
	mov.u32 	%r1, tile;
	@%p1 ld.f32 	%f1, [%rd1];
	st.volatile.v2.u64 	[%rd1], {%rd2, %rd3};
	call.uni (retval0), _Z6calledv, ();
	ret;
}
"""


def test_kernels_are_read_from_their_text():
    small, general = kernel_report.ptx_text.kernels(FAST)
    assert (small.name, small.threads, small.blocks) == ("_Z12small_kernelv", 128, 4)
    assert (small.generic, small.calls) == (0, 0)
    assert (general.name, general.generic, general.calls) == ("_Z7generalv", 2, 1)


def test_one_kernel_has_what_it_calls_and_nothing_else():
    one = kernel_report.ptx_text.one_kernel
    general, small = one(FAST, "_Z7generalv"), one(FAST, "_Z12small_kernelv")
    for text in general, small:
        assert text.startswith(".version 9.0\n.target sm_90a\n.address_size 64\n.extern .shared")
        assert ".loc" not in text
    assert "_Z6calledv" not in small and "_Z7generalv" not in small and "st.global.f32" in small
    # Declared before it is defined, once each.
    assert general.count(".func") == 2 and "small_kernel" not in general
    with pytest.raises(ValueError, match="no kernel _Z6calledv"):
        one(FAST, "_Z6calledv")


def test_fast_kernels_are_those_of_small_memories():
    assert kernel_report.is_fast("small_write_kernel<32, false>")
    assert kernel_report.is_fast("small_backward_kernel<64>")
    assert not kernel_report.is_fast("small_write_kernel<32, true>")
    assert not kernel_report.is_fast("small_write_kernel<32, true, BayesWriteArgs>")
    assert not kernel_report.is_fast("small_recall_kernel<32>")
    assert kernel_report.is_fast("episode_sums_kernel")
    assert not kernel_report.is_fast("write_kernel")


@pytest.mark.parametrize(
    ("cell", "change", "problem"),
    [
        ("128", "", None),
        ("96", "", None),
        ("129", "", "129 registers, of at most 128"),
        ("64, stack 16", "", "64, stack 16"),
        ("64, spills 8/8", "", "spills 8/8"),
        ("-", "", "does not say its registers"),
        ("64", "\tst.f32 \t[%rd1], %f1;\n\tret;", "1 accesses whose space of memory is unknown"),
        ("128", ".minnctapersm 5", "5 blocks of 128 threads with 128 registers do not fit"),
    ],
)
def test_facts_of_fast_kernels(cell, change, problem, tmp_path):
    text = FAST
    if change.startswith(".min"):
        text = text.replace(".minnctapersm 4", change)
    elif change:
        text = text.replace("\tret;\n}\n.entry", change + "\n}\n.entry")
    file = tmp_path / "a.ptx"
    file.write_text(text)
    fast = kernel_report.fast_kernels({"a.cu": {"sm_90a": file}})
    ((name, target),) = fast
    assert target == "sm_90a" and "small_kernel" in name
    page = f"| a.cu | `{name}` | {cell} |\n"
    problems = kernel_report.slow_in_fast(fast, page, ["sm_90a"])
    assert bool(problems) == (problem is not None)
    assert problem is None or any(problem in found for found in problems)
    assert kernel_report.slow_in_fast({}, page, ["sm_90a"]) == ["there are no fast kernels"]
    assert f"| `{name}` | 128 |" in kernel_report.fast_section(fast)
