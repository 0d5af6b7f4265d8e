"""What the tools around a question of benchmarks/gpu_check.py say, and the pages that are made of
the answers."""

from __future__ import annotations

import json
import sys

import pytest
from checkout import ROOT

from benchmarks import report as performance
from benchmarks.gpu import child, command, phases, results, rows, status_page, tools

# The tools

MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void kanerva::cuda::read_kernel<float>(kanerva::ReadArgs)+0x90
=========     by thread (3,0,0) in block (1,0,0)
========= ERROR SUMMARY: 1 error
"""


def test_what_compute_sanitizer_says():
    result = tools.judge_sanitizer(tools.ERROR_EXIT, MEMCHECK, {"state": "ok"})
    assert result["state"] == rows.FAILED
    for part in ("Invalid __global__ write", "read_kernel", "ERROR SUMMARY: 1 error"):
        assert part in result["note"]
    clean = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
    assert tools.judge_sanitizer(0, clean, {"state": "ok"}) == {
        "state": "ok",
        "note": "ERROR SUMMARY: 0 errors",
    }
    refusal = "========= Error: Device not supported. Please refer\n"
    assert tools.judge_sanitizer(1, refusal, None)["state"] == rows.NO_TOOL
    assert tools.judge_sanitizer(1, "x", {"state": "no GPU", "note": "n"})["state"] == rows.NO_GPU
    assert tools.judge_sanitizer(-11, "dies", None)["state"] == rows.FAILED


NCU = """==PROF== Connected to process 1
==PROF== Disconnected from process 1
"ID","Kernel Name","Block Size","Grid Size","gpu__time_duration.sum",\
"launch__registers_per_thread",\
"sm__warps_active.avg.pct_of_peak_sustained_active",\
"smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio"
"","","","","nsecond","register/thread","%","inst","inst"
"0","void kanerva::cuda::<unnamed>::write<float>(kanerva::Args, int)","(128, 1, 1)","(64, 1, 1)",\
"12,345.0","96","24.9","0.5","7.25"
"1","kanerva::cuda::finish(kanerva::Args)","(256, 1, 1)","(16, 1, 1)","2,000","32","","0",""
"""


def test_what_nsight_compute_says():
    first, second = tools.counters(NCU)
    assert first["time_ns"] == 12345.0 and first["registers"] == 96
    assert first["stalls"] == {"long_scoreboard": 7.25, "barrier": 0.5}
    assert (first["grid"], first["block"]) == ("(64, 1, 1)", "(128, 1, 1)")
    assert "write<float>" in first["kernel"] and second["kernel"] == "finish"
    assert "occupancy_percent" not in second
    assert tools.counters(NCU.replace("nsecond", "usecond"))[1]["time_ns"] == 2e6
    assert tools.judge_profiler(0, NCU, {"state": "ok"})["state"] == rows.OK
    assert tools.judge_profiler(0, "no table", {"state": "ok"})["state"] == rows.FAILED
    assert tools.judge_profiler(1, "==ERROR== ERR_NVGPUCTRPERM - x", None)["state"] == rows.NO_TOOL
    assert tools.judge_profiler(1, "", {"state": "no GPU"})["state"] == rows.NO_GPU


def test_tools_that_are_not_here(monkeypatch):
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    assert child.sanitize("memcheck", operator="read")["state"] == rows.NO_TOOL
    assert child.profile(operator="read")["state"] == rows.NO_TOOL


def test_stand_ins_run_what_they_are_given(tmp_path, monkeypatch):
    monkeypatch.setenv("KANERVA_RESULT", str(tmp_path / "result"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    code = "import os; open(os.environ['KANERVA_RESULT'], 'w').write('{\"state\": \"no GPU\"}')"
    inner = [sys.executable, "-c", code]
    with command.stand_in_tools():
        assert tools.sanitized("memcheck", inner)["state"] == rows.NO_GPU
        assert tools.profiled(inner)["state"] == rows.NO_GPU


# The pages

MACHINE = {
    "gpu": "NVIDIA Fake",
    "cpu": "some CPU",
    "torch": "2.11.0+cu130",
    "torch_cuda": "13.0",
    "commit": "0123456789abcdef",
    "date": "2026-01-02T03:04:05+00:00",
    "gemm_gflops": 50_000.0,
    "tf32_gflops": 300_000.0,
    "copy_gb_per_s": 3000.0,
}


def compared(operator: str, shape: str, direction: str, **more) -> dict:
    row = {
        "operator": operator,
        "shape": shape,
        "direction": direction,
        "against": "all",
        "backend": "cuda",
        "rival": "inner",
        "ours_ms": 0.05,
        "rival_ms": 0.1,
        "ratio": 2.0,
        "ours_error": 1e-7,
        "rival_error": 1e-7,
        "other_load": 0.0,
    }
    return row | more


def duelled(forward: float, backward: float) -> dict:
    """Triton's time over CUDA C++'s in each direction."""

    def one(ratio):
        return {"ours_ms": 0.1, "rival_ms": 0.1 * ratio, "ratio": ratio}

    return {"directions": {"forward": one(forward), "forward_backward": one(backward)}}


@pytest.fixture
def folder(tmp_path):
    """Rows of two visits: of a machine without a GPU, and of one with."""
    out, shape = tmp_path / "rows", "16x32x32x100"
    out.mkdir()
    kernel = {"kernel": "write<float>", "grid": "(64, 1, 1)", "block": "(128, 1, 1)",
              "time_ns": 12345.0, "registers": 96.0, "stalls": {"barrier": 1.5}}  # fmt: skip
    found = {
        "contact": {
            "smoke/read/small/plain": {},
            "smoke/read/small/teams": {"state": rows.HUNG, "note": "stopped", "output": "x" * 9999},
            "memcheck/read/plain": {},
            "racecheck/read/plain": {"state": rows.NO_TOOL},
        },
        "tests": {
            "test/read/1 of 2::test_a": {},
            "test/read/1 of 2::test_b": {"state": rows.FAILED, "note": "not equal"},
            "test/read/1 of 2::test_c": {"state": rows.SKIPPED},
            "test/read/1 of 2": {"state": rows.FAILED},
        },
        "benchmarks": {
            "rates/first": {"result": {"machine": MACHINE}},
            f"compare/read/{shape}/forward": {
                "result": {"row": compared("read", shape, "forward"), "graph_ms": 0.03}
            },
            f"compare/read/{shape}/forward_backward": {
                "result": {"row": compared("read", shape, "forward_backward"), "graph_ms": 0.04}
            },
            f"compiled/read/{shape}/forward": {
                "result": {
                    "row": {"rival": "compile(inner)", "ours_ms": 0.05, "rival_ms": 0.04,
                            "ratio": 0.8, "rival_error": float("inf")}
                }
            },
            f"counters/read/{shape}/forward": {"result": {"kernels": [kernel]}},
        },
        "triton": {
            "duel/read/16x32x32x100": {"result": duelled(1.2, 0.7)},
            "duel/recall/16x32x32x100": {"result": duelled(1.2, 1.1)},
            "duel/forget/16x32x32x100": {"state": rows.HUNG},
            "smoke/read/small/triton": {},
        },
    }  # fmt: skip
    for phase, answers in found.items():
        file = rows.RowFile(phases.files_of(out, phase))
        for device in ("", "NVIDIA Fake"):
            about = {
                "key": "visit",
                "visit": f"20260101T00000{len(device) % 9}",
                "device": device,
                "source": "abc",
                "changes": False,
                "triton": "3.6.0",
                "driver": "580",
                "python": "3.12",
                **{name: MACHINE[name] for name in ("torch", "commit", "date")},
            }
            file.append(about)
            for key, answer in answers.items():
                row = {"key": key, "state": rows.OK, "visit": about["visit"], **answer}
                file.append(row if device else {**row, "state": rows.NO_GPU})
    return out


def test_rows_become_results_and_pages(folder, tmp_path, monkeypatch, capsys):
    target = tmp_path / "results"
    target.mkdir()
    written = results.save(folder, target)
    names = [path.name for path in written]
    assert names == [
        "gpu_contact-20260101T000002-0123456789.json",
        "gpu_tests-20260101T000002-0123456789.json",
        "gpu_benchmarks-20260101T000002-0123456789.json",
        "compare-20260101T000002-0123456789.json",
        "gpu_triton-20260101T000002-0123456789.json",
    ]
    assert all(path.stat().st_size < 20_000 for path in written)
    tests = json.loads(written[1].read_text())["rows"]
    assert {row["key"].rsplit("::", 1)[-1] for row in tests} == {
        "test_b", "test/read/1 of 2", "tests of read"
    }  # fmt: skip

    page = status_page.page(target)
    (line,) = (x for x in page.splitlines() if x.startswith("| `read` |"))
    for part in ("smoke 1 of 2 (1 hung)", "memcheck 1 of 1", "tests 1 of 2", "| NVIDIA Fake |"):
        assert part in line
    assert "racecheck" not in line  # the tool was not there
    assert "Those of the table that say so." in page
    (other,) = (x for x in page.splitlines() if x.startswith("| `memory_kl` |"))
    assert other == "| `memory_kl` | - | - | - |"
    assert page.count("has not run on a GPU") == 1

    text = performance.page(performance.newest(target))
    assert "## NVIDIA Fake" in text and "No GPU has been measured" not in text
    duel = "| `read` (16, 32, 32, 100) | 0.1000 ms | 0.1200 ms |"
    counters = ("`write<float>`", "12.3 us", "barrier 1.5")
    for part in ("`compile(inner)`", "**0.80**", "0.0300 ms", *counters, duel):
        assert part in text, part


def test_no_rows_of_a_gpu_are_no_results(tmp_path, capsys):
    file = rows.RowFile(phases.files_of(tmp_path, "contact"))
    file.append({"key": "visit", "visit": "a", "device": "", "source": "abc"})
    file.append({"key": "smoke/read", "state": rows.OK, "visit": "a"})
    assert command.main(["take", "--out", str(tmp_path)]) == 1
    assert "has no rows of a GPU" in capsys.readouterr().err


def test_the_summary_of_a_folder(folder, capsys):
    assert command.main(["summary", "--out", str(folder)]) == 0
    text = capsys.readouterr().out
    for part in ("contact:", "smoke/read/small/teams  stopped", "not equal", "1 failed, 1 skipped"):
        assert part in text, part
    assert (folder / "tests.xml").is_file()


def test_the_page_in_docs_is_made_of_the_results():
    assert (ROOT / "docs/gpu_status.md").read_text() == status_page.page()


def test_performance_says_whether_a_gpu_was_measured():
    """Until there are results of one."""
    measured = any("gpu" in json.loads(path.read_text()).get("machine", {})
                   for path in (ROOT / "benchmarks/results").glob("*.json"))  # fmt: skip
    text = (ROOT / "docs/performance.md").read_text()
    assert ("No GPU has been measured yet" in text) == (not measured)
