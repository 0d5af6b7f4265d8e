"""A memory that drifts back to a stationary state between writes, in every operator that has it."""

import functools
import itertools
import math

import pytest
import torch
from helpers import CASES, DTYPES, Case, assert_as_accurate, assert_same_direction
from operator_checks import DATA, MASK, NOISE, STATE, OperatorChecks
from retention_truth import (
    COVARIANCES,
    RETENTIONS,
    Moving,
    MovingProblem,
    moving_problem,
    moving_scan,
    moving_scan_grads,
)
from selection import INTERPRETER, MANY_CALLS, PTX, SANITIZED, covering, grid, not_on
from torch import Tensor

from kanerva_ext import ops, reference

NAMES = ("reads", "read_var", "mean", "cov", "log_evidence")
GRADS = (
    *("mean", "cov", "weights", "values", "queries", "noise_var", "retention"),
    "stationary_cov",
)
CHUNKS = (1, 2, 3, 5, 16, 31, 64, 1000)
HARD = [c for c in CASES if c.steps <= 100 and c.slots <= 65 and not c.decay]
MOVING = [
    Moving(case, RETENTIONS[i % 4], COVARIANCES[(i // 4 + i) % 4]) for i, case in enumerate(HARD)
]
EASY = [
    Moving(Case("iid", noise, 70, 9, 4, mask), retention, stationary)
    for noise, mask in ((1.0, "none"), (0.1, "some"))
    for retention in RETENTIONS
    for stationary in COVARIANCES
]
CHUNKED = [
    Moving(Case("iid", 1.0, 100, 17, 5, "some"), "gentle", "none"),
    Moving(Case("iid", 1.0, 100, 17, 5), "strong", "matrix"),
    Moving(Case("softmax", 1e3, 33, 64, 16, "some"), "half", "rank1"),
    Moving(Case("repeated", 1e-6, 100, 12, 3), "mixed", "matrix"),
    Moving(Case("rank8", 1e-2, 20, 9, 5, "some"), "gentle", "scalar"),
]
COLLINEAR = [
    Moving(Case("collinear", noise, 60, 12, 5, "some"), retention, "matrix")
    for noise in (1e-6, 1e-3, 1e3)
    for retention in ("strong", "gentle")
]
ALL = EASY + MOVING + COLLINEAR
#: A few problems, easy and hard, for the interpreter.
FEW = (EASY[5], EASY[15], COLLINEAR[1], COLLINEAR[2])
OFTEN_ENOUGH = not_on(INTERPRETER, reason="others of its kind run there")


def affordable(*axes):
    """Marks for a grid of problems with what follows: the interpreter runs those rows, of the
    problems that it can afford, in which every two traits meet."""
    rows = [row for row in itertools.product(*axes) if not row[0].case.marks]
    traits = [(*m.case.traits()[:4], m.retention, m.stationary, *more) for m, *more in rows]
    chosen = {rows[i] for i in covering(traits)}
    return lambda *row: row[0].case.marks or (() if row in chosen else (OFTEN_ENOUGH,))


AFFORDABLE = affordable(ALL, DTYPES)


def a_few(movings):
    """Of these the interpreter runs those in `FEW`."""
    return [pytest.param(m, id=str(m), marks=() if m in FEW else (OFTEN_ENOUGH,)) for m in movings]


class _MovingChecks(OperatorChecks):
    optional = ("mask", "stationary_cov")
    semidefinite = ("stationary_cov",)
    factors_covariance = False


class TestMovingScan(_MovingChecks):
    name = "causal_scan"
    function = staticmethod(ops.causal_scan)
    signature = (
        ("mean", STATE, "KC"),
        ("cov", STATE, "KK"),
        ("weights", DATA, "TK"),
        ("values", DATA, "TC"),
        ("queries", DATA, "TK"),
        ("noise_var", NOISE, "T"),
        ("mask", MASK, "T"),
        ("retention", NOISE, "T"),
        ("stationary_cov", STATE, "KK"),
    )
    raw_order = (
        *("mean", "cov", "weights", "values", "queries", "noise_var", "mask", "decay"),
        *("retention", "stationary_cov"),
    )
    raw_tail = (None, 0)
    with_default = ("mean", "cov", "retention")

    def depends(self, name, result, results):
        return name != "queries"  # a NaN in a query stays in its read


class TestMovingWrite(_MovingChecks):
    name = "bayes_write"
    function = staticmethod(ops.bayes_write)
    signature = tuple(x for x in TestMovingScan.signature if x[0] != "queries")
    raw_order = tuple(x for x in TestMovingScan.raw_order if x != "queries")
    raw_tail = ("auto",)
    saved_outputs = (0, 1)
    with_default = ("retention",)


def call(m: MovingProblem, **options):
    p = m.p
    return ops.causal_scan(*p[:4], m.queries, p.noise_var, **m.options(), **options)


def plain_call(m: MovingProblem):
    """The recursion in PyTorch."""
    p = m.p
    return reference.causal_scan(
        *p[:4], m.queries, p.noise_var, p.mask, None, m.retention, m.matrix()
    )


@functools.cache
def truth(moving: Moving):
    return moving_scan(moving_problem(moving))


@functools.cache
def plain(moving: Moving, dtype):
    return plain_call(moving_problem(moving, dtype))


def assert_true(moving: Moving, dtype, results, **options) -> None:
    floor = 1e-10 if dtype == torch.float64 else None
    known = truth(moving), plain(moving, dtype)
    for name, got, want, rival in zip(NAMES, results, *known, strict=True):
        assert_as_accurate(got, want, rival, floor=floor, name=name)


@pytest.mark.parametrize(("moving", "dtype"), grid(ALL, DTYPES, marks=AFFORDABLE))
def test_accuracy(moving, dtype):
    m = moving_problem(moving, dtype)
    results = call(m)
    assert_true(moving, dtype, results)
    assert torch.equal(results[3], results[3].mT)
    assert (results[1] >= 0).all()
    written = ops.bayes_write(*m.p[:5], **m.options())
    assert_true(moving, dtype, (*results[:2], *written))
    assert torch.equal(written[1], written[1].mT)


@pytest.mark.parametrize(
    "moving", [pytest.param(m, id=str(m), marks=affordable(EASY)(m)) for m in EASY]
)
def test_float64_is_exact(moving):
    """To the truth in extended precision, whatever the recursion in float64 makes of it."""
    for name, got, want in zip(NAMES, call(moving_problem(moving)), truth(moving), strict=True):
        assert_as_accurate(got, want, floor=1e-12, name=name)


@pytest.mark.parametrize(
    ("moving", "chunk_size", "dtype"),
    grid(
        *([*CHUNKED, *COLLINEAR, *MOVING[::4]], CHUNKS, DTYPES),
        marks=lambda m, *_: m.case.marks or ((OFTEN_ENOUGH,) if m.case.steps > 33 else ()),
    ),
)
def test_every_chunk_length(moving, chunk_size, dtype):
    results = call(moving_problem(moving, dtype), chunk_size=chunk_size)
    assert_true(moving, dtype, results)


@pytest.mark.parametrize("method", ["auto", "chunk", "sqrt"])
@pytest.mark.parametrize("moving", a_few([*EASY[::5], *COLLINEAR]))
def test_every_method(moving, method):
    for dtype in DTYPES:
        m = moving_problem(moving, dtype)
        written = ops.bayes_write(*m.p[:5], **m.options(), method=method)
        assert_true(moving, dtype, (*plain(moving, dtype)[:2], *written))


def gradients(m: MovingProblem, grads, function):
    """Of `GRADS`, with the covariances made symmetric inside."""
    inputs = [*m.p[:4], m.queries, m.p.noise_var, m.retention, m.matrix()]
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    results = function(leaves)
    used = [(r, g.to(r.dtype)) for r, g in zip(results, grads, strict=True) if r is not None]
    outputs, seeds = zip(*used, strict=True)
    return torch.autograd.grad(outputs, leaves, seeds, materialize_grads=True)


@functools.cache
def truth_of_gradients(moving: Moving):
    m = moving_problem(moving)
    generator = torch.Generator().manual_seed(3)
    with torch.device("cpu"):
        grads = [torch.randn(x.shape, generator=generator).double() for x in truth(moving)]
    grads = [g.to(m.p.cov) for g in grads]
    return grads, moving_scan_grads(m, grads)


def marks_of_gradients(moving, dtype):
    if (*moving.case[:5], dtype) == ("rank8", 0.01, 100, 5, 300, torch.float32):
        checked = not_on(SANITIZED, reason="checked loops sum one by one: 1.2 of the bound")
        return (*AFFORDABLE(moving, dtype), checked)
    return AFFORDABLE(moving, dtype)


@pytest.mark.parametrize(("moving", "dtype"), grid(ALL, DTYPES, marks=marks_of_gradients))
def test_gradients(moving, dtype):
    if moving.case.steps == 0:
        pytest.skip("no gradients of steps; see test_degenerate_sizes")
    grads, want = truth_of_gradients(moving)
    m = moving_problem(moving, dtype)

    def scan(x):
        return ops.causal_scan(*x[:6], mask=m.p.mask, retention=x[6], stationary_cov=x[7])

    def recursion(x):
        return reference.causal_scan(*x[:6], m.p.mask, None, *x[6:])

    got = gradients(m, grads, scan)
    rivals = gradients(m, grads, recursion)
    floor = 1e-9 if dtype == torch.float64 else None
    for name, g, w, r in zip(GRADS, got, want, rivals, strict=True):
        r = (r + r.mT) / 2 if name in ("cov", "stationary_cov") else r
        assert_as_accurate(g, w, r, floor=floor, name=f"gradient of {name}")
        if dtype == torch.float64:
            assert_same_direction(g, w, name=f"gradient of {name}")


@pytest.mark.parametrize(
    ("moving", "chunk_size"),
    grid(
        [*EASY[::3], *COLLINEAR],
        CHUNKS,
        values=lambda m, n: (m.case.kind, m.case.noise, m.retention, m.stationary, n),
        marks=lambda m, n: () if m in FEW and n in (5, 31) else (OFTEN_ENOUGH,),
    ),
)
def test_gradients_of_every_chunk_length(moving, chunk_size):
    grads, want = truth_of_gradients(moving)
    m = moving_problem(moving)

    def scan(x):
        return ops.causal_scan(
            *x[:6], mask=m.p.mask, retention=x[6], stationary_cov=x[7], chunk_size=chunk_size
        )

    def recursion(x):
        return reference.causal_scan(*x[:6], m.p.mask, None, *x[6:])

    got, rivals = gradients(m, grads, scan), gradients(m, grads, recursion)
    for name, g, w, r in zip(GRADS, got, want, rivals, strict=True):
        r = (r + r.mT) / 2 if name in ("cov", "stationary_cov") else r
        assert_as_accurate(g, w, r, floor=1e-9, name=f"gradient of {name}")


@pytest.mark.parametrize("moving", a_few(EASY[::3]))
def test_gradients_of_a_write(moving):
    grads, _ = truth_of_gradients(moving)
    grads = [torch.zeros_like(g) if i < 2 else g for i, g in enumerate(grads)]
    m = moving_problem(moving)
    want = moving_scan_grads(m, grads)

    def write(x):
        options = {"retention": x[6], "stationary_cov": x[7], "mask": m.p.mask}
        return None, None, *ops.bayes_write(*x[:4], x[5], **options)

    for name, g, w in zip(GRADS, gradients(m, grads, write), want, strict=True):
        assert_as_accurate(g, w, floor=1e-9, name=f"gradient of {name}")


def small(seed=0, dtype=torch.float64, b=2, t=6, k=4, c=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.device("cpu"):

        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        root = randn(b, k, k)
        made = {
            "mean": randn(b, k, c),
            "cov": root @ root.mT / k + 0.5 * torch.eye(k, dtype=torch.float64),
            "weights": randn(b, t, k),
            "values": randn(b, t, c),
            "queries": randn(b, t, k),
            "noise_var": torch.rand(b, t, generator=generator, dtype=torch.float64) + 0.1,
        }
    return {n: x.to(torch.get_default_device(), dtype) for n, x in made.items()}


@pytest.mark.parametrize("stationary_cov", [None, 3.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_retention_of_one_is_none(dtype, stationary_cov):
    args = small(dtype=dtype, t=40)
    still = ops.causal_scan(**args)
    kept = ops.causal_scan(**args, retention=1.0, stationary_cov=stationary_cov)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(kept, still, **tolerance)


def test_ways_to_say_the_same():
    args = small()
    sigma = 0.3 * torch.eye(4, dtype=torch.float64)
    per_step = torch.full((2, 6), 0.8, dtype=torch.float64)
    whole = sigma.repeat(2, 1, 1)
    for function, rest in ((ops.causal_scan, args), (ops.bayes_write, without_queries(args))):
        want = function(**rest, retention=per_step, stationary_cov=whole)
        for retention in (0.8, torch.tensor(0.8, dtype=torch.float64), per_step[:, :1]):
            for given in (0.3, torch.tensor(0.3), sigma, whole[:1], whole):
                got = function(**rest, retention=retention, stationary_cov=given)
                tight = given if isinstance(given, Tensor) and given.dim() else None
                rtol = 1e-6 if tight is None else 1e-12  # 0.3 may come as a float32
                torch.testing.assert_close(got, want, rtol=rtol, atol=1e-7)
        unit = function(**rest, retention=0.8, stationary_cov=1.0)
        torch.testing.assert_close(function(**rest, retention=0.8), unit)


def test_gradients_of_numbers_are_sums():
    args = small()
    retention = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def loss(retention, scale):
        results = ops.causal_scan(**args, retention=retention, stationary_cov=scale)
        return sum(r.square().sum() for r in results)

    assert torch.autograd.gradcheck(loss, (retention, scale))


def without_queries(args):
    return {n: x for n, x in args.items() if n != "queries"}


def test_masked_steps_are_as_if_they_were_not_there():
    args = small(t=9)
    keep = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1, 0], dtype=torch.bool)
    retention = torch.linspace(0.2, 0.9, 9, dtype=torch.float64).expand(2, 9).clone()
    spoiled = {n: x.clone() for n, x in args.items()}
    for name in ("weights", "values", "noise_var"):
        spoiled[name][:, ~keep] = math.nan
    retention[:, ~keep] = math.nan
    got = ops.causal_scan(**spoiled, mask=keep.expand(2, 9), retention=retention)
    kept = {n: x[:, keep] if n not in ("mean", "cov") else x for n, x in args.items()}
    want = ops.causal_scan(**kept, retention=retention[:, keep])
    torch.testing.assert_close(got[0][:, keep], want[0])
    torch.testing.assert_close(got[1][:, keep], want[1])
    torch.testing.assert_close(got[2:], want[2:])
    query = args["queries"][:, :1]  # before the first step that counts
    torch.testing.assert_close(got[0][:, :1], query @ args["mean"])


def test_no_steps():
    args = small(t=0)
    results = ops.causal_scan(**args, retention=0.5, stationary_cov=2.0)
    assert torch.equal(results[2], args["mean"])
    torch.testing.assert_close(results[3], args["cov"])
    assert not results[4].any() and results[0].shape == (2, 0, 3)


@pytest.mark.parametrize("bounds", [(0, 6, 6, 13, 20), (0, 1, 2, 19, 20)])
def test_packed_sequences_are_separate_ones(bounds):
    b, n = 2, len(bounds) - 1
    args = small(t=20, b=b)
    states = [small(seed=1 + i, b=b) for i in range(n)]
    mean, cov = (torch.stack([s[x] for s in states], 1) for x in ("mean", "cov"))
    sigma = torch.stack([s["cov"].flip(0) for s in states], 1)
    steps = {x: args[x] for x in ("weights", "values", "queries", "noise_var")}
    steps["retention"] = 0.3 + 0.7 * torch.rand(b, 20, dtype=torch.float64)
    leaves = {**steps, "mean": mean, "cov": cov, "stationary_cov": sigma}
    leaves = {x: y.clone().requires_grad_() for x, y in leaves.items()}
    at = torch.tensor(bounds)
    got = ops.causal_scan(**leaves, cu_seqlens=at)
    apart = []
    for i in range(n):
        span = slice(bounds[i], bounds[i + 1])
        own = {x: leaves[x][:, span] for x in steps}
        own.update({x: leaves[x][:, i] for x in ("mean", "cov", "stationary_cov")})
        apart.append(ops.causal_scan(**own))
    columns = list(zip(*apart, strict=True))
    want = [*(torch.cat(c, 1) for c in columns[:2]), *(torch.stack(c, 1) for c in columns[2:])]
    torch.testing.assert_close(got, tuple(want))
    seeds = [torch.randn_like(r) for r in want]
    inputs = list(leaves.values())
    found = torch.autograd.grad(got, inputs, seeds)
    expected = torch.autograd.grad(want, inputs, seeds)
    torch.testing.assert_close(found, expected)
    one = {x: y.detach() for x, y in leaves.items()}
    one["stationary_cov"] = one["stationary_cov"][:, :1]
    shared = ops.causal_scan(**one, cu_seqlens=at)
    one["stationary_cov"] = one["stationary_cov"].expand(b, n, 4, 4)
    torch.testing.assert_close(shared, ops.causal_scan(**one, cu_seqlens=at))
    one["stationary_cov"] = 0.5 * torch.eye(4, dtype=torch.float64)
    shared = ops.causal_scan(**one, cu_seqlens=at)
    one["stationary_cov"] = 0.5
    torch.testing.assert_close(shared, ops.causal_scan(**one, cu_seqlens=at))


@pytest.mark.parametrize("moving", a_few([*EASY[::5], *COLLINEAR]))
def test_steps_are_a_scan(moving):
    for dtype in DTYPES:
        m = moving_problem(moving, dtype)
        mean, cov = m.p.mean.clone(), m.p.cov.clone()
        sigma, before = m.stationary_cov, (mean, cov)
        kept = sigma.clone() if isinstance(sigma, Tensor) else sigma
        rows, total = [], 0
        for t in range(moving.case.steps):
            steps = (m.p.weights, m.p.values, m.queries, m.p.noise_var)
            reads, var, more = ops.causal_step(
                *(mean, cov),
                *(x[:, t] for x in steps),
                mask=None if m.p.mask is None else m.p.mask[:, t],
                retention=m.retention[:, t],
                stationary_cov=sigma,
            )
            rows.append((reads, var))
            total = total + more
        reads, read_var = (torch.stack(x, 1) for x in zip(*rows, strict=True))
        assert before[0] is mean and before[1] is cov
        assert not isinstance(kept, Tensor) or torch.equal(kept, sigma)
        assert_true(moving, dtype, (reads, read_var, mean, cov, total))


@pytest.mark.slow
@not_on(INTERPRETER, PTX, reason="10,000 steps")
def test_strong_forgetting_for_long():
    """0.5 a step for 10,000 steps: the products of the retentions are beyond all floats."""
    moving = Moving(Case("iid", 0.1, 10_000, 6, 3, batch=1), "half", "matrix")
    for dtype in DTYPES:
        results = call(moving_problem(moving, dtype))
        assert_true(moving, dtype, results)
        assert results[1].max() < 10
    grads, want = truth_of_gradients(moving)
    m = moving_problem(moving)

    def scan(x):
        return ops.causal_scan(*x[:6], retention=x[6], stationary_cov=x[7])

    for name, g, w in zip(GRADS, gradients(m, grads, scan), want, strict=True):
        assert_as_accurate(g, w, floor=1e-9, name=f"gradient of {name}")


def test_a_memory_without_writes_becomes_stationary():
    args = small(t=50)
    args["weights"] = torch.zeros_like(args["weights"])
    sigma = args["cov"].flip(0)
    _, _, mean, cov, _ = ops.causal_scan(**args, retention=0.5, stationary_cov=sigma)
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    torch.testing.assert_close(cov, sigma)


def test_zero_stationary_covariance_is_accepted():
    args = small()
    zero = torch.zeros(2, 4, 4, dtype=torch.float64)
    results = ops.causal_scan(**args, retention=0.5, stationary_cov=zero, check=True)
    assert all(r.isfinite().all() for r in results)


FUNCTIONS = {
    "causal_scan": (ops.causal_scan, small()),
    "bayes_write": (ops.bayes_write, without_queries(small())),
    "causal_step": (
        ops.causal_step,
        {n: x if n in ("mean", "cov") else x[:, 0] for n, x in small().items()},
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"stationary_cov": 1.0}, ValueError, r"stationary_cov .* got retention=None"),
        ({"decay": 0.9, "retention": 0.9}, ValueError, "decay and retention"),
        ({"retention": 0.0}, ValueError, r"retention must be in \(0, 1\], got 0"),
        ({"retention": 1.5}, ValueError, r"retention must be in \(0, 1\], got 1.5"),
        ({"retention": math.nan}, ValueError, r"retention must be in \(0, 1\], got nan"),
        ({"retention": "half"}, TypeError, "retention must be a float or a torch.Tensor"),
        ({"retention": 0.5, "stationary_cov": -1.0}, ValueError, "stationary_cov must be positive"),
        ({"retention": 0.5, "stationary_cov": True}, TypeError, "stationary_cov must be a float"),
        (
            {"retention": 0.5, "stationary_cov": torch.eye(3, dtype=torch.float64)},
            ValueError,
            r"stationary_cov must have shape \(..., K, K\) with K \(slots\) = 4 as in mean, got",
        ),
        (
            {"retention": 0.5, "stationary_cov": torch.eye(4)},
            TypeError,
            "stationary_cov must be torch.float64 like the rest of the state",
        ),
        (
            {"retention": 0.5, "stationary_cov": torch.ones(4, dtype=torch.float64)},
            ValueError,
            r"stationary_cov must have shape \(..., K, K\), got \(4,\)",
        ),
    ],
    ids=str,
)
def test_wrong_dynamics(name, options, error, text):
    function, args = FUNCTIONS[name]
    args = {n: x.clone() for n, x in args.items()}
    with pytest.raises(error, match=rf"^{name}: {text}"):
        function(**args, **options)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("value", [0.0, -0.5, 1.001, math.nan, math.inf])
def test_a_retention_out_of_range_is_nan_in_its_item(name, value):
    function, args = FUNCTIONS[name]
    shape = args["noise_var"].shape
    retention = torch.full(shape, 0.9, dtype=torch.float64)
    retention[1].view(-1)[-1] = value
    fresh = {n: x.clone() for n, x in args.items()}
    results = function(**fresh, retention=retention)
    if name == "causal_step":
        results = (*results, fresh["mean"], fresh["cov"])
    assert all(r[1].isnan().all() and r[0].isfinite().all() for r in results)
    fresh = {n: x.clone() for n, x in args.items()}
    with pytest.raises(ValueError, match=rf"{name}: retention .* in batch item\(s\) 1$"):
        function(**fresh, retention=retention, check=True)
    if name == "causal_step":
        return
    leaves = {n: x.clone().requires_grad_() for n, x in args.items()}
    retention.requires_grad_()
    results = function(**leaves, retention=retention)
    grads = torch.autograd.grad([r.sum() for r in results], [*leaves.values(), retention])
    assert all(g[1].isnan().all() and g[0].isfinite().all() for g in grads)


def test_sums_over_the_steps_have_no_retention():
    with pytest.raises(ValueError, match=r"bayes_write: method=.* has no retention"):
        ops.bayes_write(**without_queries(small()), retention=0.5, method="information")


@MANY_CALLS
def test_vmap_of_a_step():
    several = [
        {n: x if n in ("mean", "cov") else x[:, 0] for n, x in small(i).items()} for i in range(3)
    ]
    stacked = {n: torch.stack([a[n] for a in several]) for n in several[0]}
    retention = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    sigma = torch.stack([a["cov"] for a in several]).clone()
    results = torch.vmap(lambda a, r, s: ops.causal_step(**a, retention=r, stationary_cov=s))(
        stacked, retention[:, None].expand(3, 2), sigma
    )
    for i, args in enumerate(several):
        want = ops.causal_step(**args, retention=float(retention[i]), stationary_cov=sigma[i])
        torch.testing.assert_close(tuple(r[i] for r in results), want)
        torch.testing.assert_close(stacked["mean"][i], args["mean"])
        torch.testing.assert_close(stacked["cov"][i], args["cov"])


@MANY_CALLS
def test_opcheck_of_a_step():
    args = [x if n in ("mean", "cov") else x[:, 0] for n, x in small().items()]
    retention = torch.full((2,), 0.5, dtype=torch.float64)
    operator = torch.ops.kanerva.causal_step.default
    torch.library.opcheck(operator, (*args, None, None, retention, args[1].clone()))
    torch.library.opcheck(operator, (*args, None, None, retention, None))


@not_on(INTERPRETER, PTX, reason="threads of the CPU's kernels, and a long sequence")
def test_threads_share_a_long_sequence():
    """Two of them prepare and reverse, or factorise and write, different chunks at once."""
    args = small(seed=5, b=1, t=800, k=48, c=20)
    args["stationary_cov"] = args["cov"].flip(1, 2)
    args["retention"] = 1 - 0.1 * torch.rand(1, 800, dtype=torch.float64)
    args["weights"] = args["weights"] / 7
    mask = torch.arange(800)[None] % 5 != 3
    before, results = torch.get_num_threads(), []
    try:
        for threads, backend in ((1, "auto"), (2, "auto"), (1, "reference")):
            torch.set_num_threads(threads)
            leaves = {n: x.clone().requires_grad_() for n, x in args.items()}
            found = ops.causal_scan(**leaves, mask=mask, backend=backend)
            seeds = [x.detach().cos() for x in found]
            results.append((found, torch.autograd.grad(found, list(leaves.values()), seeds)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-9)


def test_second_derivatives_of_a_covariance_are_symmetric():
    args = small(seed=3, t=3)
    retention = torch.full(args["noise_var"].shape, 0.7, dtype=torch.float64)
    cov = args["cov"].clone().requires_grad_()
    write = [args["mean"], cov, args["weights"], args["values"], args["noise_var"]]
    loss = sum(x.sin().sum() for x in ops.bayes_write(*write, retention=retention))
    (first,) = torch.autograd.grad(loss, cov, create_graph=True)
    (second,) = torch.autograd.grad(first.cos().sum(), cov)
    torch.testing.assert_close(second, second.mT, rtol=1e-12, atol=1e-12)
