"""What an installed kanerva_ext registered with the PyTorch beside it; see scripts/check_torch.py.

Fails where a library is not loaded, or where an operator has no kernel of its own for the CPU, for
CUDA (with --cuda) or for every other device.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import torch

    import kanerva_ext
    from kanerva_ext.ops import _library
except ModuleNotFoundError as error:
    raise SystemExit(f"torch_probe: {error}; pip install torch, and kanerva_ext") from None


def missing(cuda: bool) -> list[str]:
    """The registrations that are not there, as "operator: dispatch key"."""
    keys = ["CPU", "CompositeExplicitAutograd", *(["CUDA"] if cuda else [])]
    return [
        f"{name}: {key}"
        for name in _library.NAMES
        for key in keys
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{_library.NATIVE}::{name}", key)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", action="store_true", help="the CUDA library was built too")
    args = parser.parse_args()
    backends = kanerva_ext.backends()
    print(f"  torch {torch.__version__}, {Path(kanerva_ext.__file__).parent}")
    print(f"  cpu: {backends['cpu']}; cuda: {backends['cuda']}; triton: {backends['triton']}")
    wanted = ["cpu", *(["cuda"] if args.cuda else [])]
    problems = [
        f"backend {name}: {backends[name]}" for name in wanted if backends[name] != "available"
    ]
    problems += missing(args.cuda)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    devices = "the CPU, CUDA and every other device" if args.cuda else "the CPU and other devices"
    print(f"  {len(_library.NAMES)} operators are registered for {devices}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
