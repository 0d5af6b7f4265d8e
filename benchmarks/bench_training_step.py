"""A whole training step of both machines, and its memory alone, fused and on the reference."""

import pytest
import torch

from .conftest import THREADS
from .training_step import BACKENDS, PRESETS, check, make, memory_part, whole_step


@pytest.mark.parametrize("machine", PRESETS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("part", ["memory", "step"])
def test_training_step(benchmark, request, machine, backend, part):
    torch.set_num_threads(THREADS)
    device = request.config.getoption("device")
    parts = {name: memory_part(*make(PRESETS[machine], name, device)) for name in BACKENDS}
    benchmark.extra_info["gradients_differ_by"] = check(parts)
    call = parts[backend]
    if part == "step":
        call = whole_step(*make(PRESETS[machine], backend, device))
    benchmark.group = f"{machine}, {part}"
    benchmark.pedantic(call, rounds=20 if part == "memory" else 5, warmup_rounds=1)
