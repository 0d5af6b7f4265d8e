"""Makes the sdist, and the wheel from it, as pip does; no second PyTorch may be fetched for it.

    python scripts/check_dist.py --out dist

pip builds in isolation, with the requirements of pyproject.toml and whatever the build backend asks
for; beside a PyTorch that is there, that must not be another one.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FETCHED = re.compile(
    r"(Collecting|Downloading|Processing|Installing collected packages:.*[ ,])"
    r" ?[^ ]*torch([-=<>~ ,]|$)"
)


def torches() -> list[str]:
    """Each PyTorch of this environment: its version, and a digest of its files' sizes and times."""
    found = []
    for torch in metadata.distributions():
        if (torch.metadata["Name"] or "").lower() == "torch":
            paths = (Path(str(file.locate())) for file in torch.files or ())
            stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths if p.is_file()]
            digest = hashlib.sha256(repr(sorted(stats)).encode()).hexdigest()
            found.append(f"{torch.version} {digest[:16]}")
    return found


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\ncheck_dist: {' '.join(words[:3])} failed")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for both")
    parser.add_argument("--torches", action="store_true", help="print what torch is there, no more")
    args = parser.parse_args()
    before, out = torches(), args.out.resolve()
    if args.torches:
        print(*before, sep="\n")
        return 0
    if len(before) != 1:
        raise SystemExit(
            f"check_dist: {sys.executable} must have one torch, it has {len(before) or 'none'}: "
            "pip install torch"
        )
    if missing := [name for name in ("build", "pip") if find_spec(name) is None]:
        raise SystemExit(f"check_dist: {', '.join(missing)} missing: pip install {missing[0]}")
    run("build", "--sdist", "--outdir", str(out), str(ROOT))
    sdist = max(out.glob("kanerva_ext-*.tar.gz"), key=lambda path: path.stat().st_mtime)
    words = ("pip", "wheel", "--verbose", "--no-deps", "--wheel-dir", str(out), str(sdist))
    printed = run(*words)
    print(*(line.strip() for line in printed.splitlines() if "kanerva_ext: building" in line))
    if found := [line for line in printed.splitlines() if FETCHED.search(line)]:
        raise SystemExit(
            "check_dist: pip fetched a torch although one is there:\n" + "\n".join(found)
        )
    if torches() != before:
        raise SystemExit("check_dist: the build changed the installed torch")
    print(f"one torch, untouched: {before[0]}")
    print(*sorted(file.name for file in out.iterdir()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
