"""What a machine with a GPU can say of the CUDA and Triton backends, in four visits of 8 minutes.

    python3 benchmarks/gpu_check.py PHASE --out FOLDER

    contact     build and install for this GPU; every operator and gradient against float64, alone
                and by teams of blocks; CUDA graphs, streams, host threads, determinism;
                compute-sanitizer's four tools
    tests       the operators' tests on the GPU, a row for each
    benchmarks  the device's rates; every operator against PyTorch's compositions and torch.compile
                of the best; Nsight Compute's counters
    triton      the Triton kernels: compiled by many processes first, then as above; which backend
                is faster at which shape

Every answer is a row in FOLDER/PHASE.jsonl as soon as it is there; one that hangs, crashes or fills
the disk is a row too, and costs no other. The same command again goes on with what is missing.
Needs PyTorch, pytest and hypothesis, nothing from the network and no installed kanerva_ext.

    python3 benchmarks/gpu_check.py summary --out FOLDER   every failure; tests.xml for tests
    python3 benchmarks/gpu_check.py take --out FOLDER      rows to benchmarks/results/, and the
                                                           pages docs/ has of them made anew
    python3 benchmarks/gpu_check.py rehearse --out FOLDER  all phases on a machine without a GPU
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def load_benchmarks() -> None:
    """Makes the package ``benchmarks`` without the checkout on the path, whose kanerva_ext would
    hide the installed one. Its ``__init__`` is left out: it asks for a kanerva_ext, which a machine
    has only after the first build."""
    sys.path[:] = [p for p in sys.path if p and Path(p).resolve() not in (FOLDER, FOLDER.parent)]
    spec = importlib.util.spec_from_file_location(
        "benchmarks", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["child"]:
        from benchmarks.gpu import child

        return child.main(arguments[1:])
    from benchmarks.gpu import command

    return command.main(arguments, description=__doc__)


if __name__ == "__main__":
    load_benchmarks()
    sys.exit(main(sys.argv[1:]))
