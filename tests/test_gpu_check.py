"""benchmarks/gpu_check.py, as far as it goes without a GPU."""

from __future__ import annotations

import json
import sys
import time

import gpu_check
import gpu_parts
import pytest


def part(code: str, limit: float = 20, **options):
    return gpu_check.Part("p", (sys.executable, "-c", code), limit, **options)


def test_dry_run_names_every_part(capsys):
    assert gpu_check.main(["--dry-run"]) == 0
    text = capsys.readouterr().out
    for word in ("build", "KANERVA_CUDA=1", "KANERVA_TEST_DEVICE=cuda", "tests/test_read.py"):
        assert word in text
    for name in ("graphs", "determinism", "ceilings", "write", "solve", "adaptive"):
        assert f"--part {name}" in text
    for name in ("tests", "graphs", "determinism", "write", "solve", "adaptive"):
        (line,) = (x for x in text.splitlines() if x.startswith(f"{name}_triton "))
        assert "KANERVA_BACKEND=triton" in line and (name in line.split("KANERVA", 1)[1])


def test_sanitizer_parts_where_the_tool_is():
    found = {p.name: p for p in gpu_check.parts(True, "/bin/compute-sanitizer", "9.0a")}
    assert found["build"].env["TORCH_CUDA_ARCH_LIST"] == "9.0a"
    for tool in ("memcheck", "racecheck"):
        assert found[tool].command[:3] == ("/bin/compute-sanitizer", "--tool", tool)
    assert "memcheck" not in {p.name for p in gpu_check.parts(True, None, None)}


def test_a_part_that_fails_is_recorded_and_the_rest_goes_on():
    found = [
        gpu_check.Part("missing", ("/nonexistent",), 5),
        part("print('cause'); raise SystemExit(3)"),
        gpu_check.Part("good", (sys.executable, "-c", "print('fine')"), 20),
    ]
    records = gpu_check.run_all(found)
    assert [r["ok"] for r in records.values()] == [False, False, True]
    assert "cause" in records["p"]["output"] and "fine" in records["good"]["output"]


def test_a_part_that_hangs_is_stopped_with_its_children():
    code = "import subprocess; subprocess.run(['sleep', '60'])"
    started = time.monotonic()
    record = gpu_check.run_part(part(code), 1)
    assert time.monotonic() - started < 15
    assert not record["ok"] and "stopped after 1 s" in record["output"]


def test_no_time_left():
    records = gpu_check.run_all([part("pass")], total=0)
    assert records["p"]["output"] == "no time"


def test_result_of_a_part():
    code = "import sys; open(sys.argv[2], 'w').write('[1]')"
    record = gpu_check.run_part(part(code, writes_result=True), 20)
    assert record["ok"] and record["result"] == [1]


def test_parts_on_the_cpu():
    """The device's share, with tiny shapes; CUDA graphs excepted."""
    assert len(gpu_parts.determinism("cpu")) == 38
    assert len(gpu_parts.sanitized("cpu")) == 19
    rows = gpu_parts.bench_write("cpu", [(2, 4, 3, 5)], 0.01)
    rows += gpu_parts.bench_solve("cpu", [(2, 4, 3, 5)], 0.01)
    rows += gpu_parts.bench_adaptive("cpu", [(2, 4, 3, 5)], 0.01)
    rows += gpu_parts.bench_scan("cpu", [(2, 4, 3, 5)], 0.01)
    assert len(rows) == 8
    assert all(r["error"] < 1e-4 and r["eager_us"] > 0 for r in rows)
    limits = gpu_parts.ceilings("cpu", 64)
    assert all(x > 0 for x in limits.values())
    records = {
        "build": {"ok": True, "seconds": 1.0, "output": "", "result": None},
        "tests": {"ok": False, "seconds": 2.0, "output": "x\n1 failed, 2 passed", "result": None},
        "ceilings": {"ok": True, "seconds": 2.0, "output": "", "result": limits},
        "write": {"ok": True, "seconds": 2.0, "output": "", "result": rows},
        "write_triton": {"ok": True, "seconds": 2.0, "output": "", "result": rows},
    }
    report = json.loads(json.dumps({"machine": gpu_check.describe(), "parts": records}))
    text = gpu_check.render(report)
    for expected in (
        "bayes_write +backward",
        "bayes_write +backward triton",
        "adaptive_write +backward",
        "2, 4, 3, 5",
        "1 failed, 2 passed",
        "GB/s",
    ):
        assert expected in text


def test_wrong_results_are_not_timed(monkeypatch):
    monkeypatch.setattr(gpu_parts, "MAX_ERROR", -1.0)
    rows = gpu_parts.bench_write("cpu", [(2, 4, 3, 5)], 0.01)
    assert not any("eager_us" in row for row in rows)


@pytest.mark.parametrize(
    ("capability", "expected"), [("9.0", "9.0a"), ("8.6", "8.6"), (None, None)]
)
def test_architecture_to_build_for(capability, expected):
    assert gpu_check.arch_of(capability) == expected


def test_name_of_the_result():
    machine = {"device": "NVIDIA H100 80GB HBM3", "torch": "2.13.0+cu130", "commit": "0123456789ab"}
    name = gpu_check.result_path(machine).name
    assert name == "gpu-NVIDIA_H100_80GB_HBM3-2.13.0+cu130-0123456789.json"
