"""One long sequence cut into segments that go on at once: on a CPU's threads, a GPU's blocks, or
Triton's programs."""

import itertools

import pytest
import torch
from helpers import DTYPES, Case, assert_as_accurate
from retention_cases import OFTEN_ENOUGH, recursion_of, scan_of, small
from retention_truth import (
    GRADS,
    NAMES,
    Moving,
    moving_problem,
    moving_scan_with_grads,
    random_grads,
)
from selection import INTERPRETER, PTX, TEAMS, engine, not_on

from kanerva_ext import ops

OF_THREADS = not_on(INTERPRETER, PTX, reason="of the CPU's threads")

PROBLEMS = [
    Moving(Case("iid", 1.0, 130, 17, 5, "some", batch=1), "gentle", "none"),
    Moving(Case("iid", 0.1, 100, 9, 4, batch=2), "strong", "matrix"),
    Moving(Case("softmax", 1e3, 90, 33, 16, "some", batch=1), "half", "rank1"),
    Moving(Case("iid", 1e-2, 120, 12, 3, "some", batch=1), "mixed", "matrix"),
    Moving(Case("repeated", 1.0, 97, 9, 40, batch=1), "gentle", "scalar"),
]
#: Too hard for elements in float64, and for all but square roots: the chain serves.
HARD = [
    Moving(Case("collinear", noise, 60, 12, 5, "some", batch=1), retention, "matrix")
    for noise in (1e-6, 1e-3, 1e3)
    for retention in ("strong", "gentle")
]
#: Of problem, segments and dtype: each once, for the interpreter.
FEW = [
    (moving, (2, 3, 5)[i % 3], DTYPES[(i + i // 3) % 2])
    for i, moving in enumerate([*PROBLEMS, *HARD[::4]])
] + [(PROBLEMS[4], 30, DTYPES[0])]


@pytest.fixture
def on_the_cpu():
    """Whatever the default device is."""
    with torch.device("cpu"):
        yield


@pytest.fixture
def cut(monkeypatch):
    """Cuts every item into so many segments, with so many threads."""
    before = torch.get_num_threads()

    def set_both(segments, threads=1):
        monkeypatch.setenv("KANERVA_SEGMENTS", str(segments))
        torch.set_num_threads(threads)

    yield set_both
    torch.set_num_threads(before)


def results_and_gradients(m, grads, function):
    leaves = [x.detach().clone().requires_grad_() for x in m.inputs()]
    results = function(leaves)
    seeds = [g.to(r.dtype) for r, g in zip(results, grads, strict=True)]
    found = torch.autograd.grad(results, leaves, seeds)
    found = [(g + g.mT) / 2 if i in (1, 7) else g for i, g in enumerate(found)]
    return [r.detach() for r in results], found


def assert_accurate(moving, dtype, **options):
    """Of results and gradients, by extended precision, as test_retention.py asks of the chain."""
    exact = moving_problem(moving)
    grads = random_grads(exact)
    truth, want = moving_scan_with_grads(exact, grads)
    m = moving_problem(moving, dtype)
    got = results_and_gradients(m, grads, scan_of(m, **options))
    rivals = results_and_gradients(m, grads, recursion_of(m))
    floors = (1e-10, 1e-9) if dtype == torch.float64 else (None, None)
    for names, g, w, r, floor in zip(
        (NAMES, [f"gradient of {x}" for x in GRADS]),
        got,
        (truth, want),
        rivals,
        floors,
        strict=True,
    ):
        for name, a, b, c in zip(names, g, w, r, strict=True):
            assert_as_accurate(a, b, c, floor=floor, name=name)
    assert torch.equal(got[0][3], got[0][3].mT)


@pytest.mark.parametrize(
    ("moving", "segments", "dtype"),
    [
        pytest.param(*row, id="-".join(map(str, row)), marks=() if row in FEW else OFTEN_ENOUGH)
        for row in itertools.product(PROBLEMS + HARD, (2, 3, 5, 30), DTYPES)
    ],
)
def test_as_accurate_as_the_chain(cut, moving, segments, dtype):
    cut(segments)
    assert_accurate(moving, dtype)


@pytest.mark.parametrize(
    ("chunk_size", "movings"),
    [
        (1, [Moving(Case("iid", 0.1, 24, 7, 3, "some", batch=1), "gentle", "matrix")]),
        pytest.param(1, PROBLEMS[:2], marks=OFTEN_ENOUGH),
        (7, PROBLEMS[:2]),
        (64, PROBLEMS[:2]),
    ],
)
def test_every_chunk_length(cut, chunk_size, movings):
    cut(4)
    for moving in movings:
        assert_accurate(moving, torch.float64, chunk_size=chunk_size)


def some(steps, slots=12, code=7, batch=1, seed=0):
    made = small(seed, b=batch, t=steps, k=slots, c=code)
    made["weights"] /= slots**0.5
    return made | {"retention": 1 - 0.1 * torch.rand_like(made["noise_var"])}


def both(args, **options):
    leaves = {n: x.clone().requires_grad_() for n, x in args.items()}
    found = ops.causal_scan(**leaves, **options)
    return [*found, *torch.autograd.grad([x.sum() for x in found], list(leaves.values()))]


@pytest.mark.parametrize(
    ("steps", "segments", "threads"),
    [
        (270, 2, 1),
        pytest.param(700, 5, 1, marks=OFTEN_ENOUGH),
        *(pytest.param(3000, 5, n, marks=OF_THREADS) for n in (1, 2, 4)),
    ],
)
def test_a_long_sequence(cut, steps, segments, threads):
    """At least 128 steps in each segment, which are whole vectors of them then."""
    args = some(steps, batch=2)
    cut(1)
    chain = both(args)
    cut(segments, threads)
    for got, want in zip(both(args), chain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.fixture
def processors(monkeypatch):
    """Sets how many the GPU has; Triton's interpreter would have four."""

    def set_both(count):
        monkeypatch.setenv("KANERVA_PTX_PROCESSORS", str(count))
        if engine() == INTERPRETER:
            from kanerva_ext.triton import _segment_plan

            monkeypatch.setattr(_segment_plan, "processors", lambda device: count)

    if engine() == INTERPRETER:
        set_both(8)
    return set_both


@pytest.mark.skipif(engine() not in (INTERPRETER, PTX), reason="of a GPU's processors")
def test_a_gpu_cuts_a_long_sequence_by_itself(cut, monkeypatch, processors):
    args = some(500 if engine() == INTERPRETER else 1000)
    cut(1)
    chain = both(args)
    monkeypatch.setenv("KANERVA_SEGMENTS", "")
    cut_up = both(args)
    for i in (0, 1, 6, 7):  # reads, their variances, gradients of cov and weights
        assert not torch.equal(chain[i], cut_up[i])
    torch.testing.assert_close(cut_up, chain, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(both(args), cut_up, strict=True))
    processors(2)  # too few
    assert all(torch.equal(a, b) for a, b in zip(both(args), chain, strict=True))


@pytest.mark.skipif(engine() not in (INTERPRETER, PTX, TEAMS), reason="of GPUs' launchers")
@pytest.mark.parametrize("text", ["some", "0", "3.5", "70000"])
def test_a_wrong_number_of_segments_is_named(cut, text):
    cut(text)
    with pytest.raises(RuntimeError, match=f"KANERVA_SEGMENTS must be .* got {text}"):
        ops.causal_scan(**some(5))


@OF_THREADS
@pytest.mark.usefixtures("on_the_cpu")
def test_many_threads_cut_a_long_sequence_by_themselves(cut, monkeypatch):
    args = some(12_000)
    found = {}
    for threads, segments in itertools.product((1, 8), ("1", "")):
        cut(1, threads)
        monkeypatch.setenv("KANERVA_SEGMENTS", segments)
        found[threads, segments] = both(args)
    chain, cut_up = found[8, "1"], found[8, ""]
    assert all(torch.equal(a, b) for a, b in zip(found[1, ""], found[1, "1"], strict=True))
    for i in (0, 1, 6, 7):  # reads, their variances, gradients of cov and weights
        assert not torch.equal(chain[i], cut_up[i])
    torch.testing.assert_close(cut_up, chain, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(both(args), cut_up, strict=True))


def test_packed_sequences_and_writes(cut):
    args = some(60)
    bounds = torch.tensor([0, 0, 7, 60])
    packed = dict(args)
    for name in ("mean", "cov"):
        packed[name] = args[name].expand(3, -1, -1)[None]
    writes = {n: x for n, x in args.items() if n != "queries"}
    cut(1)
    want = both(packed, cu_seqlens=bounds), ops.bayes_write(**writes)
    cut(6)
    got = both(packed, cu_seqlens=bounds), ops.bayes_write(**writes)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("segments", [2, 4, pytest.param(19, marks=OFTEN_ENOUGH)])
def test_packed_sequences_of_every_length_and_any_strides(cut, segments):
    """Rows of sequences of 0, 1, 2 and more steps, of more segments than those have; steps that lie
    apart, the other way around, and once for all."""
    args = some(60, batch=2)
    for name in ("weights", "values", "queries"):
        apart = torch.full((3, 60, 2, 2 * args[name].shape[-1]), torch.nan, dtype=torch.float64)
        apart[1:, :, 1, ::2] = args[name]
        args[name] = apart[1:, :, 1, ::2]
    args["noise_var"] = args["noise_var"].mT.contiguous().mT
    args["retention"] = args["retention"][:, :1].expand(2, 60)
    args["mask"] = torch.arange(120).view(2, 60) % 5 != 3
    bounds = torch.tensor([0, 0, 1, 3, 20, 60])
    for name in ("mean", "cov"):
        args[name] = args[name][:, None].expand(-1, 5, -1, -1)
    mask = args.pop("mask")
    cut(1)
    want = both(args, cu_seqlens=bounds, mask=mask)
    cut(segments)
    got = both(args, cu_seqlens=bounds, mask=mask)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


#: In Triton the chain, which serves there, has 8 times the recursion's error in a gradient.
OF_ANOTHER_CHAIN = not_on(INTERPRETER, reason="of Triton's chain: docs/limits.md")
ENDS = [
    pytest.param(*row, marks=OF_ANOTHER_CHAIN if row == ("kept", 1e-6, torch.float64) else ())
    for row in itertools.product(("hardly", "kept"), (1e-6, 1.0, 1e3), DTYPES)  # 1e-3 and 1
]


@pytest.mark.parametrize(("retention", "noise", "dtype"), ENDS)
def test_the_ends_of_retention_and_noise(cut, retention, noise, dtype):
    cut(5)
    assert_accurate(Moving(Case("iid", noise, 90, 11, 5, batch=1), retention, "matrix"), dtype)


def test_a_state_that_is_not_finite_stays_in_its_item(cut):
    args = some(40, batch=2)
    args["values"][1, 25, 0] = torch.nan
    cut(4)
    found = both(args)
    assert all(x[0].isfinite().all() for x in found)
    assert all(x[1].isnan().all() for x in found[2:5])


@pytest.mark.parametrize("used", [[0], [1], [2, 3], [4]], ids=["reads", "var", "state", "evidence"])
def test_gradients_of_some_of_the_results(cut, used):
    args = some(40)
    found = []
    for segments in (1, 3):
        cut(segments)
        leaves = [x.clone().requires_grad_() for x in args.values()]
        results = ops.causal_scan(**dict(zip(args, leaves, strict=True)))
        total = sum(results[i].sum() for i in used)
        found.append(torch.autograd.grad(total, leaves, materialize_grads=True))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)
