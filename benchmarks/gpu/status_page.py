"""docs/gpu_status.md, from the rows in ``benchmarks/results/``:
``python -m benchmarks.gpu.status_page``. Which kernels have run on a GPU, and how it went.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from . import phases, rows, tools, visit
from .visit import PREFIX, RESULTS

PAGE = visit.ROOT / "docs/gpu_status.md"
#: What the page calls an operator, where that is not its name.
TITLES = {
    "to_statistics": "`to_statistics`, `from_statistics`",
    "moving_write": "`bayes_write` with `retention`",
    "moving_scan": "`causal_scan` with `retention`",
}
#: The tests of an operator, where those of its name are not all.
TESTED_BY = {
    "to_statistics": ("to_statistics", "statistics"),
    "causal_scan": ("causal_scan", "causal_scan_packed"),
    "moving_write": ("retention",),
    "moving_scan": ("retention",),
}
COLUMNS = {
    "CUDA C++": (
        ("smoke", *("graphs", "capture_sizes", "streams", "host_threads", "determinism")),
        tools.SANITIZERS,
        "tests",
    ),
    "Triton": (("smoke", "graphs by triton", "determinism by triton"), (), "triton"),
}
NOT_RUN = "-"
BEFORE = """# Which kernels have run on a GPU

Made by `python -m benchmarks.gpu.status_page` from the rows in `benchmarks/results/`.

{first} The CUDA kernels are compiled for sm_80, sm_90a, sm_100 and sm_120 (and PTX for later
GPUs), and their PTX runs in an interpreter under the tests ([ptx.md](ptx.md)), which assumes how
tensor cores round. The Triton kernels compile for the same GPUs and gfx942 and run in Triton's
interpreter under the tests, where products in `tf32x3` are exact. [kernels.md](kernels.md) and
[triton_kernels.md](triton_kernels.md) have their registers and memory.

All operators are written in both. A dash says that one has not run on a GPU.

"""
AFTER = """
## How to run it

On a machine with a GPU, nvcc and a PyTorch with CUDA (2.11 or later), with pytest, hypothesis,
setuptools, pybind11 and ninja; nothing is fetched from the network. Four commands of at most 8
minutes each, in this order:

```
python3 benchmarks/gpu_check.py contact --out FOLDER     # builds; smoke, graphs, compute-sanitizer
python3 benchmarks/gpu_check.py tests --out FOLDER       # the operators' tests, a row for each
python3 benchmarks/gpu_check.py benchmarks --out FOLDER  # against PyTorch; Nsight Compute
python3 benchmarks/gpu_check.py triton --out FOLDER      # the same for Triton; the faster one
```

Each builds the package if this source is not installed yet, and stops with the compiler's error
if that fails. The installed package is tested, never the checkout: every process checks where it
was imported from and that the backend is available. Each question is a process of its own; its
answer is a line of `FOLDER/PHASE.jsonl` as soon as it is there, and a process that hangs,
crashes, loses the CUDA context or fills the disk is a line too, and costs no other. The command
again goes on with what is missing; `--again KEY` asks anew, `--only TEXT` a part, `--dry-run`
says what would be asked, `--seconds` is the limit, `--at-once N` the processes beside each
other. `summary` names every failure, also as `FOLDER/tests.xml`. `python3
benchmarks/gpu_check.py take --out FOLDER` brings the rows here: into `benchmarks/results/`, this
page and [performance.md](performance.md).

`KANERVA_TEAM_WORK=0` gives every memory a team of blocks, as many as the processors have room
for: the rows "teams" are so, since without it only large memories get one, and the gradients of few
memories of 33 to 64 slots or steps. Teams of 2, 4 and 8 are clusters, as are the writes of 65 slots
and more and their gradients: their launches, their barriers and a device that refuses them have run
in the interpreter of PTX alone.

Without a GPU, `make rehearse-gpu` goes through all four phases with a CUDA build of PyTorch: it
builds the package, starts every process, and each must end in "no GPU" and in nothing else. What
comes after the first tensor on the device has not been rehearsed: CUDA graphs, streams, the
device's events, the profiler's counts. The other steps run on the CPU under the tests, and so do
limits, kills, a lost context, a full disk and the resumption, with real processes.

The models and the command line (`kanerva train` on a GPU, several by torchrun, bfloat16) have run
on CPUs only.

Where the CUDA kernels were not built, and on AMD GPUs, the Triton kernels serve tensors on a GPU;
without Triton the reference (plain PyTorch) does, with one warning. `backend="cuda"` and
`backend="triton"` raise an error that says why theirs are not there; `python -m kanerva_ext.info`
says how to get them. Where both are there, the CUDA kernels serve `backend="auto"`.
"""


def newest(folder: Path) -> dict[str, dict[str, dict]]:
    """GPU -> phase -> the newest content."""
    found: dict[str, dict[str, dict]] = {}
    for path in sorted(folder.glob(f"{PREFIX}*.json"), key=lambda p: p.name.split("-")[1]):
        content = json.loads(path.read_text())
        phase = content["benchmark"].removeprefix(PREFIX)
        found.setdefault(content["machine"]["gpu"], {})[phase] = content
    return found


def cell(operator: str, column: str, contents: dict[str, dict]) -> str:
    """What ran of an operator's kernels on one GPU; empty if nothing did."""
    questions, sanitizers, tests_in = COLUMNS[column]
    names = TESTED_BY.get(operator, (operator,))
    phase = "contact" if column == "CUDA C++" else "triton"
    own = contents.get(phase, {}).get("rows", [])
    parts = []
    for question in (*questions, *sanitizers):
        states = Counter(
            row["state"]
            for row in own
            if row["key"].split("/")[0] == question and row["key"].split("/")[1:2] == [operator]
        )
        ran = sum(n for state, n in states.items() if state != rows.NO_TOOL)
        if ran:
            others = [f"{n} {s}" for s, n in states.items() if s != rows.OK]
            bad = f" ({', '.join(others)})" if others else ""
            parts.append(f"{question} {states[rows.OK]} of {ran}{bad}")
    counts: Counter = Counter()
    for row in contents.get(tests_in, {}).get("rows", []):
        if row["key"] in {f"tests of {name}" for name in names}:
            counts.update(row["result"]["tests"])
    if counts:
        ran = sum(counts.values()) - counts[rows.SKIPPED]
        parts.append(f"tests {counts[rows.OK]} of {ran}")
    return ", ".join(parts)


def table(found: dict[str, dict[str, dict]]) -> list[str]:
    lines = ["| operator | CUDA C++ | Triton | has run on |", "|---|---|---|---|"]
    for operator in (*phases.OPERATORS, *phases.MOVING):
        title = TITLES.get(operator, f"`{operator}`")
        cells, gpus = [], []
        for column in COLUMNS:
            ran = {gpu: text for gpu, x in found.items() if (text := cell(operator, column, x))}
            gpus += [gpu for gpu in ran if gpu not in gpus]
            text = "; ".join(f"{gpu}: {text}" for gpu, text in ran.items())
            cells.append(text or NOT_RUN)
        lines.append(f"| {title} | {' | '.join(cells)} | {', '.join(gpus) or '-'} |")
    return lines


def origins(found: dict[str, dict[str, dict]]) -> list[str]:
    lines = []
    for gpu, contents in found.items():
        for phase in phases.PHASES:
            if phase in contents:
                about = contents[phase]["machine"]
                commit = str(about["commit"])[:10] or f"source {about['source']}"
                changes = " + changes" if about["uncommitted_changes"] else ""
                lines.append(
                    f"- {gpu}, {phase}: {about['date'][:10]}, commit {commit}{changes}, torch "
                    f"{about['torch']}, Triton {about['triton']}, driver {about['driver']}"
                )
    return lines


def page(folder: Path = RESULTS) -> str:
    found = newest(folder)
    any_ran = any(cell(op, column, x) for x in found.values()
                  for op in (*phases.OPERATORS, *phases.MOVING) for column in COLUMNS)  # fmt: skip
    first = "Those of the table that say so." if any_ran else "None yet."
    lines = [*origins(found), ""] if found else []
    return BEFORE.format(first=first) + "\n".join([*lines, *table(found)]) + "\n" + AFTER


def main() -> int:
    PAGE.write_text(page())
    print(f"written to {PAGE}")
    return 0


if __name__ == "__main__":
    main()
