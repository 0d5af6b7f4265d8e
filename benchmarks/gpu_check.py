"""All that a machine with a GPU can say of the CUDA and Triton backends, in under 8 minutes.

    python benchmarks/gpu_check.py [--quick]

Builds and installs the package into this interpreter's environment, runs the tests of the operators
on the GPU, compute-sanitizer where it is found, CUDA graphs, determinism and the benchmarks, and
all but the sanitizer for Triton's kernels too, which are compiled as they are first called. Every
part runs in a process of its own with a time limit; one that fails is recorded and the rest goes
on. Leaves benchmarks/results/gpu-<device>-<torch>-<commit>.json and prints it as a table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "bayes_write",
    "solve_addresses",
    "read",
    "recall",
    "memory_kl",
    "statistics",
    "adaptive_write",
    "forget",
    "causal_scan",
    "causal_scan_packed",
    "causal_step",
)
TOTAL = 470.0  # seconds for everything
TRITON = {"KANERVA_BACKEND": "triton"}
TAIL = 3000  # characters of a part's output that are kept


@dataclass(frozen=True)
class Part:
    """One process: its command, its limit in seconds, what it adds to the environment."""

    name: str
    command: tuple[str, ...]
    limit: float
    env: dict[str, str] = field(default_factory=dict)
    writes_result: bool = False


def parts(quick: bool, sanitizer: str | None, arch_list: str | None) -> list[Part]:
    """What is run, in order; the result of the build is what all others use."""
    build = {"KANERVA_CUDA": "1"}
    if arch_list:
        build["TORCH_CUDA_ARCH_LIST"] = arch_list
    install = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", ".")
    tests = [f"tests/test_{name}.py" for name in TESTS]
    # Compiling graphs takes minutes and tells nothing of the kernels.
    chosen = "not compile and not opcheck" + (" and not gradcheck" if quick else "")
    # -I: the checkout is not on the path, so that the installed package is tested.
    pytest = (sys.executable, "-I", "-m", "pytest", "-q", "-k")
    found = [
        Part("build", (sys.executable, *install), 150, build),
        Part(
            "tests",
            (*pytest, chosen, *tests),
            60 if quick else 150,
            {"KANERVA_TEST_DEVICE": "cuda"},
        ),
        own("graphs", 30, quick),
        own("determinism", 30, quick),
        own("ceilings", 30, quick),
        own("write", 40 if quick else 90, quick),
        own("solve", 30 if quick else 60, quick),
        own("scan", 30 if quick else 60, quick),
        own("adaptive", 20 if quick else 30, quick),
        own("graphs", 60, quick, "graphs_triton", env=TRITON),
        own("determinism", 60, quick, "determinism_triton", env=TRITON),
        own("write", 40 if quick else 90, quick, "write_triton", env=TRITON),
        own("solve", 30 if quick else 60, quick, "solve_triton", env=TRITON),
        own("scan", 40 if quick else 60, quick, "scan_triton", env=TRITON),
        own("adaptive", 40 if quick else 60, quick, "adaptive_triton", env=TRITON),
        Part(
            "tests_triton",
            (*pytest, f"{chosen} and not gradcheck", *tests),
            60 if quick else 150,
            {"KANERVA_TEST_DEVICE": "cuda", **TRITON},
        ),
    ]
    if sanitizer:
        for tool in ("memcheck", "racecheck"):
            command = (sanitizer, "--tool", tool, "--error-exitcode", "9")
            found.append(own("sanitized", 45, quick, tool, command))
    return found


def own(
    part: str,
    limit: float,
    quick: bool,
    name: str = "",
    before: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
) -> Part:
    """A part of gpu_parts.py."""
    command = (*before, sys.executable, str(Path(__file__).resolve()), "--part", part)
    return Part(
        name or part,
        (*command, "--quick") if quick else command,
        limit,
        env or {},
        writes_result=True,
    )


def run_part(part: Part, limit: float) -> dict[str, object]:
    """Runs a part: {"ok", "seconds", "result" or None, "output" (its end)}. Never raises."""
    started = time.monotonic()
    record: dict[str, object] = {"ok": False, "result": None}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [*part.command, *(("--result", str(result)) if part.writes_result else ())]
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **part.env},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            return {**record, "seconds": 0.0, "output": str(error)}
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            # Its own process group: pytest and nvcc have children.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            output += f"\nstopped after {limit:.0f} s"
        else:
            record["ok"] = process.returncode == 0
        if result.is_file():
            record["result"] = json.loads(result.read_text())
    record["seconds"] = round(time.monotonic() - started, 1)
    record["output"] = output[-TAIL:]
    return record


def run_all(found: list[Part], total: float = TOTAL) -> dict[str, dict[str, object]]:
    """Runs every part within ``total`` seconds; what no time is left for is recorded as such."""
    records: dict[str, dict[str, object]] = {}
    end = time.monotonic() + total
    for part in found:
        left = end - time.monotonic()
        print(f"{part.name} ...", flush=True)
        if left < 1:
            records[part.name] = {"ok": False, "result": None, "seconds": 0.0, "output": "no time"}
            continue
        records[part.name] = run_part(part, min(part.limit, left))
    return records


def describe() -> dict[str, object]:
    """The device and the software, without importing kanerva_ext: it may not be built yet."""
    import torch

    found: dict[str, object] = {
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "device": None,
        "commit": _output("git", "rev-parse", "HEAD"),
        "uncommitted_changes": bool(_output("git", "status", "--porcelain", "-uno")),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "clocks": _output("nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader"),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["device"] = properties.name
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["processors"] = properties.multi_processor_count
    return found


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def arch_of(capability: str | None) -> str | None:
    """The one architecture to build for; Hopper has its own."""
    return {"9.0": "9.0a"}.get(capability, capability) if capability else None


def result_path(machine: dict[str, object]) -> Path:
    words = (machine["device"] or "none", machine["torch"], str(machine["commit"])[:10] or "none")
    name = "-".join(re.sub(r"[^A-Za-z0-9.+]+", "_", str(word)) for word in words)
    return ROOT / "benchmarks/results" / f"gpu-{name}.json"


def render(report: dict[str, object]) -> str:
    """The report for people."""
    machine, records = report["machine"], report["parts"]
    lines = [
        f"{machine['device']}, torch {machine['torch']} (CUDA {machine['torch_cuda']}), commit "
        f"{str(machine['commit'])[:10]}{' + changes' if machine['uncommitted_changes'] else ''}",
        "",
    ]
    for name, record in records.items():
        last = str(record["output"]).strip().splitlines()[-1:] or [""]
        note = last[0][:90] if name.startswith("tests") or not record["ok"] else ""
        state = "ok" if record["ok"] else "FAILED"
        lines.append(f"  {name:<18} {state:<6} {record['seconds']:>6.1f} s  {note}".rstrip())
    ceilings = (records.get("ceilings") or {}).get("result")
    if ceilings:
        lines += [
            "",
            f"copy {ceilings['copy_gb_per_s']:.0f} GB/s, "
            f"float32 matrix product {ceilings['float32_tflops']:.1f} TFLOP/s",
        ]
    rows = [
        (row, suffix.replace("_", " "))
        for suffix in ("", "_triton")
        for n in ("write", "solve", "adaptive")
        for row in (records.get(n + suffix) or {}).get("result") or ()
    ]
    if rows:
        lines += ["", f"{'':<36}{'B, T, K, C':<22}{'graph us':>12}{'eager us':>12}{'error':>10}"]
    for row, suffix in rows:
        name = row["operator"] + (" +backward" if "backward" in row["direction"] else "") + suffix
        shape = ", ".join(map(str, row["shape"]))
        times = "".join(
            f"{row[key]:>12.1f}" if key in row else f"{'-':>12}" for key in ("graph_us", "eager_us")
        )
        lines.append(f"{name:<36}{shape:<22}{times}{row['error']:>10.1e}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer shapes and tests")
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        import gpu_parts

        result = gpu_parts.run(options.part, options.device, options.quick)
        if options.result:
            Path(options.result).write_text(json.dumps(result))
        return 0
    machine = describe()
    arch = os.environ.get("TORCH_CUDA_ARCH_LIST") or arch_of(machine.get("capability"))
    found = parts(options.quick, shutil.which("compute-sanitizer"), arch)
    if options.dry_run:
        for part in found:
            settings = " ".join(f"{k}={v}" for k, v in part.env.items())
            print(f"{part.name:<12} {part.limit:>4.0f} s  {settings} {' '.join(part.command)}")
        return 0
    if machine["device"] is None:
        print("gpu_check: PyTorch finds no CUDA device", file=sys.stderr)
        return 1
    report = {"machine": machine, "quick": options.quick, "parts": run_all(found)}
    path = result_path(machine)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{render(report)}\n\n{path}")
    return 0 if all(r["ok"] for r in report["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
