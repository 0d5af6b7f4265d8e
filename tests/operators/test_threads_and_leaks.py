"""Many threads at once, and many calls: the same results, and no memory that stays."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from helpers import run_python

from kanerva_ext import FusedKanervaMemory, KanervaLayer, ops

THREADS = 8


def problem(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    batch, steps, slots, code = 2 + seed % 3, 1 + 7 * (seed % 5), 3 + 9 * (seed % 4), 40 + seed
    mean, weights, values = (
        torch.randn(*shape, generator=generator, dtype=dtype)
        for shape in ((batch, slots, code), (batch, steps, slots), (batch, steps, code))
    )
    return mean, torch.eye(slots, dtype=dtype).expand(batch, -1, -1), weights, values


def every_operator(seed):
    """Results and gradients, one after the other."""
    found = []
    for dtype in (torch.float32, torch.float64):
        mean, cov, weights, values = (x.requires_grad_() for x in problem(seed, dtype))
        state = ops.bayes_write(mean, cov, weights, values, 0.3)
        parts = [
            *state,
            *ops.read(*state[:2], weights),
            *ops.recall(*state[:2], values, 0.5),
            ops.solve_addresses(state[0], values, 0.5),
            ops.memory_kl(*state[:2], mean, cov),
            *ops.to_statistics(*state[:2]),
            *ops.forget(*state[:2], weights, values, 0.3),
            *ops.adaptive_write(mean, cov, values, 0.3, 0.5),
            *ops.causal_scan(mean, cov, weights, values, weights, 0.3),
        ]
        loss = sum(part.square().mean() for part in parts)
        found += parts + list(torch.autograd.grad(loss, (mean, cov, weights, values)))
    return [x.detach() for x in found]


def in_threads(function, seeds):
    start = Barrier(THREADS)

    def run(seed):
        start.wait()
        return function(seed)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, seeds))


@pytest.mark.parametrize("inner", [1, 2])
def test_eight_threads_get_what_one_gets(inner):
    """Bit by bit: on data of their own, and twice the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(inner)
    try:
        seeds = [seed // 2 for seed in range(THREADS)]
        want = {seed: every_operator(seed) for seed in set(seeds)}
        for _ in range(3):
            for seed, got in zip(seeds, in_threads(every_operator, seeds), strict=True):
                for a, b in zip(got, want[seed], strict=True):
                    assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


def test_eight_threads_share_the_modules():
    torch.manual_seed(0)
    memory, layer = FusedKanervaMemory(4, 12), KanervaLayer(12, 2)
    codes = torch.randn(2, 6, 12)
    state = memory.write(codes).state
    cache = layer(codes, use_cache=True).cache

    def use(_):
        read = memory.read(codes, state)
        step = layer(codes[:, :1], cache=cache, use_cache=True)
        return read.values, read.var, step.hidden_states, *step.cache.state

    want = use(0)
    for _ in range(5):
        for got in in_threads(use, range(THREADS)):
            for a, b in zip(got, want, strict=True):
                assert torch.equal(a, b)


LEAK = """
import torch
from kanerva_ext import KanervaLayer, ops
torch.set_num_threads(1)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

mean, cov = torch.randn(2, 4, 8), torch.eye(4)[None]
weights, values = torch.randn(2, 6, 4, requires_grad=True), torch.randn(2, 6, 8)
layer = KanervaLayer(8, 2)
prompt = layer(torch.randn(1, 3, 8), use_cache=True).cache.detach()

def calls(count):
    for call in range(count):
        out = ops.bayes_write(mean, cov, weights, values, 0.5)
        read = ops.recall(out[0], out[1], values, 0.5)
        torch.autograd.grad(out[2].sum() + read[0].sum(), weights)
        ops.causal_scan(mean, cov, weights, values, weights, 0.5)
        ops.adaptive_write(mean, cov, values, 0.5, 0.5)
        if call % 10 == 0:
            for wrong in (weights[..., :3], weights[:, 0, 0]):
                try:
                    ops.read(mean, cov, wrong)
                except ValueError:
                    pass
            with torch.no_grad():
                layer(torch.randn(1, 1, 8), cache=prompt, use_cache=True)

calls(2000)
before = resident()
calls(10_000)
print(f"grew by {resident() - before} bytes")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_ten_thousand_calls_leave_no_memory_behind():
    said = run_python(LEAK).stdout
    grew = int(said.split()[2])
    assert grew < 400_000, said  # 40 bytes a call, less than the smallest object that could stay
