"""What is particular to the Triton kernels; the tests of the operators run on them with
KANERVA_BACKEND=triton, on a GPU or, with TRITON_INTERPRET=1, on the CPU."""

import functools
import importlib
from typing import NamedTuple

import pytest
import torch
from helpers import Case, problem, recursion, relative_error
from samples import NAMES, sample
from selection import grid

import kanerva_ext
from kanerva_ext import _backend, ops, reference

pytestmark = pytest.mark.skipif(
    kanerva_ext.backends()["triton"] != "available"
    or not (_backend.interpreted or torch.get_default_device().type == "cuda"),
    reason="needs a GPU or TRITON_INTERPRET=1",
)

MOVING = ("moving bayes_write", "moving causal_scan")
SHAPES = {"small": (2, 5, 3, 7), "partial tiles": (2, 37, 35, 70)}


@functools.cache
def kernels():
    import kanerva_ext.triton

    return kanerva_ext.triton


def arguments(name: str, shape, dtype):
    """Those of the operator's own tests, without what is optional, as raw arguments; a memory that
    moves does so by the last two."""
    b, t, k, c = shape
    if name == "adaptive_write":
        t = min(t, 6)  # the interpreter takes a second for a step
    if name not in MOVING:
        own = sample(name)
        return own.raw_args(own.arguments((b,), t, k, c, dtype, optional=False))
    mean, cov, weights, values, noise = problem(Case("iid", 1.0, t, k, c, batch=b), dtype)[:5]
    retention = torch.linspace(1.0, 0.3, t, dtype=torch.float64).to(dtype).repeat(b, 1)
    moves = None, None, retention, cov.flip(1, 2).contiguous()
    if name == "moving bayes_write":
        return mean, cov, weights, values, noise, *moves, "auto"
    return mean, cov, weights, values, weights / 2, noise, *moves, None, 0


def run(module, name, args):
    """Results and, for incoming gradients that do not depend on the dtype, gradients."""
    name = name.removeprefix("moving ")
    results = getattr(module, name)(*args)
    results = results if isinstance(results, tuple) else (results,)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(r.shape, generator=generator, device="cpu").to(r) for r in results]
    saved = [results[i] for i in ops.OPERATORS[name].saved_results]
    gradients = getattr(module, f"{name}_backward")(*grads, *args, *saved)
    return [*results, *(g for g in gradients if g.numel())]


def assert_right(name, shape, dtype, tolerance):
    args = arguments(name, shape, dtype)
    wide = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
    got, want = run(kernels(), name, args), run(reference, name, wide)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.dtype == dtype and a.is_contiguous()
        assert relative_error(a, b.double().cpu().numpy()) < tolerance, f"{name}: result {i}"


class Configuration(NamedTuple):
    work: torch.dtype
    config: tuple

    @property
    def label(self) -> str:
        return (
            f"{str(self.work)[6:]}-{self.config.steps}x{self.config.size}-{self.config.precision}"
        )


def configurations():
    pytest.importorskip("triton")
    from kanerva_ext.triton import _launch

    return [
        Configuration(work, config) for work, rows in _launch.TABLE.items() for _, config in rows
    ]


@pytest.mark.parametrize(
    ("name", "configuration", "size"),
    grid(
        [*NAMES, *MOVING],
        configurations(),
        SHAPES,
        name=lambda name, c, size: f"{name}-{c.label}-{size}",
    ),
)
def test_every_configuration_at_every_size(monkeypatch, name, configuration, size):
    """Also where the table would not choose it: tiles much larger or smaller than the matrices."""
    from kanerva_ext.triton import _launch

    work = configuration.work
    monkeypatch.setitem(_launch.TABLE, work, ((float("inf"), configuration.config),))
    single = work == torch.float32
    assert_right(name, SHAPES[size], work, 2e-6 if single else 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_adaptive_write_of_a_code_narrower_than_the_memory(dtype):
    assert_right("adaptive_write", (2, 6, 35, 34), dtype, 2e-6 if dtype == torch.float32 else 1e-11)


def test_table_ends_with_a_row_for_every_size():
    from kanerva_ext.triton import _launch

    for rows in _launch.TABLE.values():
        limits = [limit for limit, _ in rows]
        assert limits == sorted(limits) and limits[-1] == float("inf")
        for _, config in rows:
            for size in (config.steps, config.size):
                assert size >= 16 and size & (size - 1) == 0
            assert config.precision in ("ieee", "tf32x3")


@pytest.mark.parametrize("name", ["bayes_write", "causal_scan", "moving causal_scan"])
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_columns_shared_by_several_programs(monkeypatch, blocks, name):
    module = importlib.import_module("kanerva_ext.triton.bayes_write")
    monkeypatch.setattr(module, "processors", lambda device: blocks)
    assert module.blocks_of_columns(torch.empty(1, 20, 130))[0] == min(blocks, 3)
    assert_right(name, (1, 37, 20, 130), torch.float32, 2e-6)
    assert_right(name, (1, 37, 20, 130), torch.float64, 1e-11)


@pytest.mark.parametrize("name", ["causal_scan", "moving causal_scan"])
def test_columns_of_packed_sequences_shared_by_several_programs(monkeypatch, name):
    """The workspace holds every step once for each block of columns."""
    module = importlib.import_module("kanerva_ext.triton.bayes_write")
    monkeypatch.setattr(module, "processors", lambda device: 8)
    assert module.blocks_of_columns(torch.empty(4, 5, 40))[0] == 2
    mean, cov, *rest = arguments(name, (2, 40, 5, 40), torch.float64)
    mean, cov, sigma = (x if x is None else x.repeat(2, 1, 1) for x in (mean, cov, rest[7]))
    args = (mean, cov, *rest[:7], sigma, torch.tensor([0, 33, 40]), 0)
    for got, want in zip(run(kernels(), name, args), run(reference, name, args), strict=True):
        assert relative_error(got, want.cpu().numpy()) < 1e-11


def test_items_of_one_batch_take_different_arithmetic():
    """Float32, float64 in chunks, from a square root, large values, and failure, mixed."""
    easy = problem(Case("iid", 1.0, 40, 20, 30, batch=5), torch.float32)
    mean, cov, weights, values, noise = (x.clone() for x in easy[:5])
    noise[1] = 1e-3  # too hard for float32
    noise[2] = 4e-12  # too hard for Cholesky factors: from a square root
    values[3] *= 1e15
    noise[4, 7] = -1.0
    args = (mean, cov, weights, values, noise)
    mean, cov, evidence = kernels().bayes_write(*args)
    truth = recursion(easy._replace(values=values, noise_var=noise))
    for got, want in zip((mean, cov, evidence), truth, strict=True):
        for item in range(4):
            assert relative_error(got[item : item + 1], want[item : item + 1]) < 2e-6, item
        assert got[4].isnan().all()
    grads = kernels().bayes_write_backward(
        torch.ones_like(mean), torch.ones_like(cov), torch.ones_like(evidence), *args,
        *[None] * 4, "auto", mean, cov,
    )  # fmt: skip
    alone = [
        kernels().bayes_write_backward(
            torch.ones_like(mean[:1]),
            torch.ones_like(cov[:1]),
            torch.ones_like(evidence[:1]),
            *(x[i : i + 1] for x in args),
            *[None] * 4,
            "auto",
            mean[:1],
            cov[:1],
        )
        for i in range(4)
    ]
    for i, grad in enumerate(grads[:5]):
        for item in range(4):
            assert torch.equal(grad[item], alone[item][i][0]), "items do not touch each other"
        assert grad[4].isnan().all()


def test_gradient_of_a_scan_takes_the_arithmetic_of_each_item(monkeypatch):
    """Float32, float64 in chunks, from a square root, and failure; with decay never float32."""
    module = importlib.import_module("kanerva_ext.triton.bayes_write_backward")
    launch, served = module.launch, []

    def record(kernel, programs, config, *args, **constants):
        launch(kernel, programs, config, *args, **constants)
        if kernel is module.write_kernel:
            served.append((str(constants["WORK"]), args[4].status.amin(1).sign().tolist()))

    monkeypatch.setattr(module, "launch", record)
    easy = problem(Case("iid", 1.0, 40, 20, 30, batch=4), torch.float32)
    mean, cov, weights, values, noise = (x.clone() for x in easy[:5])
    noise[1] = 0.05  # a hardness between that of this gradient and the write's
    noise[2] = 4e-12  # too hard for Cholesky factors
    noise[3, 7] = -1.0
    hard = ((weights @ cov) * weights).sum(-1).amax(1) / noise[:, 0]
    assert hard[0] < 8 < hard[1] and hard[2] > 1e11
    args = (mean, cov, weights, values, weights.flip(1), noise, *[None] * 5, 0)
    wide = [x.double() if isinstance(x, torch.Tensor) else x for x in args]
    got, want = (run(m, "causal_scan", a) for m, a in ((kernels(), args), (reference, wide)))
    (narrow, first), (double, second) = served
    assert (narrow, first) == ("fp32", [1, 0, 0, -1])  # done, twice left to do, failed
    assert (double, second[1:3]) == ("fp64", [1, 1])
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        assert relative_error(x[:2], y[:2].cpu().numpy()) < 2e-6, i
        assert x[2].isfinite().all() and x[3].isnan().all(), i
    served.clear()
    run(kernels(), "causal_scan", (*args[:7], torch.ones_like(noise), *args[8:]))
    assert [work for work, _ in served] == ["fp64"]


def test_items_of_one_batch_move_by_different_arithmetic():
    """Float32, float64 in chunks, step by step, and failures, of the pivots and of the domain."""
    mean, cov, weights, values, noise, *_, retention, sigma, method = (
        x.clone() if isinstance(x, torch.Tensor) else x
        for x in arguments("moving bayes_write", (5, 40, 20, 30), torch.float32)
    )
    noise[1] = 1e-3  # too hard for float32
    retention[2], noise[2] = 1.0, 4e-12  # too hard for Cholesky factors
    retention[3, 7] = 1.5
    sigma[4] = -sigma[4]
    args = (mean, cov, weights, values, noise, None, None, retention, sigma, method)
    wide = [x.double() if isinstance(x, torch.Tensor) else x for x in args]
    got, want = (run(m, "bayes_write", a) for m, a in ((kernels(), args), (reference, wide)))
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        for item, limit in enumerate((2e-6, 2e-6, 1e-4)):  # by steps, digits go as the noise does
            error = relative_error(x[item : item + 1], y[item : item + 1].cpu().numpy())
            assert error < limit or (item == 2 and i > 2), (i, item)
        assert x[:3].isfinite().all() and x[3:].isnan().all(), i


def test_items_too_hard_for_segments_go_on_in_the_chain(monkeypatch):
    """Pivots of an element too small, what a segment says too sharp, a failure; the rest is done in
    segments, each in the arithmetic that it needs."""
    module = importlib.import_module("kanerva_ext.triton._segments")
    finished, served = module.Segments.finished, []

    def record(self, partials):
        done, total = finished(self, partials)
        served.append((self.done.view(-1, self.count)[:, 0].tolist(), done.tolist()))
        return done, total

    monkeypatch.setattr(module.Segments, "finished", record)
    monkeypatch.setenv("KANERVA_SEGMENTS", "3")
    mean, cov, weights, values, queries, noise, *rest = (
        x.clone() if isinstance(x, torch.Tensor) else x
        for x in arguments("moving causal_scan", (5, 40, 20, 30), torch.float64)
    )
    retention = rest[2]
    noise[1], retention[1] = 1e-9, 1.0
    weights[2] = weights[2, :1] + 1e-3 * weights[2]
    noise[2], retention[2] = 1e-2, 1.0
    retention[3, 30] = 1.5
    values[4, 39] = float("inf")
    args = (mean, cov, weights, values, queries, noise, *rest)
    got = run(kernels(), "causal_scan", args)
    assert served == [([0, 1, 1, 0, 0], [1, 0, 0, 0, 0])] * 2
    monkeypatch.setenv("KANERVA_SEGMENTS", "1")
    chain = run(kernels(), "causal_scan", args)
    assert len(served) == 2
    assert not torch.equal(got[5][0], chain[5][0])
    for i, (x, y) in enumerate(zip(got, chain, strict=True)):
        assert relative_error(x[:1], y[:1].cpu().numpy()) < 1e-11, i
        assert torch.equal(x[1:3], y[1:3]), "by the same kernels"
        assert x[3].isnan().all() and not x[4].isfinite().all(), i


@pytest.mark.parametrize("blocks", [1, 32])
def test_columns_of_segments_shared_by_several_programs(monkeypatch, blocks):
    module = importlib.import_module("kanerva_ext.triton.bayes_write")
    monkeypatch.setattr(module, "processors", lambda device: blocks)
    monkeypatch.setenv("KANERVA_SEGMENTS", "3")
    assert module.blocks_of_columns(torch.empty(6, 20, 70))[0] == min(blocks, 3)
    assert_right("moving causal_scan", (2, 37, 20, 70), torch.float32, 2e-6)
    assert_right("moving causal_scan", (2, 37, 20, 70), torch.float64, 1e-11)


def test_workspace_of_the_gradient_is_bounded(monkeypatch):
    module = importlib.import_module("kanerva_ext.triton.bayes_write_backward")
    monkeypatch.setattr(module, "WORKSPACE", 0)
    seen = []
    launch = module.launch

    def record(kernel, programs, *args, **constants):
        seen.append(programs)
        launch(kernel, programs, *args, **constants)

    monkeypatch.setattr(module, "launch", record)
    assert_right("bayes_write", (1, 5, 20, 130), torch.float64, 1e-11)
    assert set(seen) == {1}
