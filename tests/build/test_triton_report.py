"""scripts/triton_report.py: what would be launched compiles for every GPU, and what is too large
shows.

In processes of their own where kernels are interpreted, since those cannot be compiled.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from checkout import ROOT

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

sys.path.insert(0, str(ROOT / "scripts"))
import triton_report as report


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
    table = [(one, {"sm_80": report.Usage(32, 0, 99 * 1024), "sm_90": "ValueError: no"})]
    found = report.problems(table)
    assert "takes 101376 bytes of shared memory" in found[0]
    assert "does not compile: ValueError: no" in found[1]
    assert report.problems([(one, {"gfx942": report.Usage(32, 0, 65 * 1024)})])
    assert not report.problems([(one, {"sm_80": report.Usage(32, 0, 98 * 1024)})])


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
