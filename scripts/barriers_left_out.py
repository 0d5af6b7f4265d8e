"""Which of a kernel's barriers nothing misses, for the scripts that run kernels without a GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from build_backend import probe


def needless_barriers(
    run: Callable[..., subprocess.CompletedProcess], variable: str, operator: str
) -> tuple[list[int], int]:
    """Barriers of ``operator`` that can be left out unnoticed, and how many a block has at most.

    ``run(**environment)`` runs the operator; ``variable`` names the barrier to leave out.
    """
    done = run()
    if done.returncode != 0:
        raise SystemExit(f"{operator} fails with all barriers:\n{done.stdout}{done.stderr}")
    count = int(done.stdout.rsplit(":", 1)[1])

    def unnoticed(barrier: int) -> bool:
        return run(**{variable: str(barrier)}).returncode == 0

    with ThreadPoolExecutor(probe.cores()) as pool:
        found = list(pool.map(unnoticed, range(count)))
    return [barrier for barrier, needless in enumerate(found) if needless], count
