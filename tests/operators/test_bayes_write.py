import functools

import numpy as np
import pytest
import torch
from helpers import (
    CASES,
    DTYPES,
    LONG,
    METHODS,
    Case,
    Problem,
    assert_as_accurate,
    assert_same_direction,
    problem,
    recursion,
    recursion_grads,
    symmetric,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_checks import DATA, MASK, NOISE, STATE, OperatorChecks
from selection import INTERPRETER, MANY_CALLS, PTX, REFERENCE_ALONE, TEAMS, grid, not_on

from kanerva_ext import ops, reference

NAMES = ("mean", "cov", "log_evidence")
GRADS = ("mean", "cov", "weights", "values", "noise_var", "decay")
GRAD_CASES = [c for c in CASES if c.steps <= 100 and c.slots <= 65]


class TestBayesWrite(OperatorChecks):
    name = "bayes_write"
    function = staticmethod(ops.bayes_write)
    signature = (
        ("mean", STATE, "KC"),
        ("cov", STATE, "KK"),
        ("weights", DATA, "TK"),
        ("values", DATA, "TC"),
        ("noise_var", NOISE, "T"),
        ("mask", MASK, "T"),
        ("decay", NOISE, "T"),
    )
    optional = ("mask", "decay")
    raw_tail = (None, None, "auto")
    saved_outputs = (0, 1)
    factors_covariance = False


def write(p: Problem, **options):
    return ops.bayes_write(*p[:5], mask=p.mask, decay=p.decay, **options)


def methods(case: Case) -> list[str]:
    return [m for m in METHODS if not (case.decay and m == "information")]


def cases_methods_dtypes(cases):
    return pytest.mark.parametrize(
        ("case", "method", "dtype"),
        grid(
            cases,
            METHODS,
            DTYPES,
            values=lambda case, method, dtype: (*case, method, dtype),
            allowed=lambda case, method, dtype: method in methods(case),
            marks=lambda case, method, dtype: case.marks,
        ),
    )


@functools.cache
def truth(case: Case):
    return recursion(problem(case))


@functools.cache
def plain(case: Case, dtype: torch.dtype):
    """The symmetric recursion in PyTorch."""
    return reference.bayes_write(*problem(case, dtype))


@cases_methods_dtypes(CASES)
def test_accuracy(case, method, dtype):
    p = problem(case, dtype)
    results, rivals = write(p, method=method), plain(case, dtype)
    floor = 1e-10 if dtype == torch.float64 else None
    for name, got, want, rival in zip(NAMES, results, truth(case), rivals, strict=True):
        assert_as_accurate(got, want, rival, floor=floor, name=name)
    check_covariance(p, results[1])


def check_covariance(p: Problem, cov):
    """Exactly symmetric, positive up to rounding and, without decay, below the prior's."""
    assert torch.equal(cov, cov.mT)
    if p.decay is None:
        eps = torch.finfo(cov.dtype).eps
        trace = p.cov.diagonal(dim1=-2, dim2=-1).double().sum(-1)
        assert (torch.linalg.eigvalsh(cov.double())[:, 0] >= -16 * eps * trace).all()
        variance, before = (x.diagonal(dim1=-2, dim2=-1) for x in (cov, p.cov))
        assert (variance <= before * (1 + 8 * eps)).all()


#: Which CUDA sums over the steps by all processors: several tiles, ragged ones, of several blocks;
#: of the last the mask leaves fewer steps than the information form takes.
LARGE = (
    (Case("iid", 1.0, 600, 257, 130, batch=1), 0),
    (Case("iid", 3.0, 1100, 256, 5, "some"), 1),
    (Case("iid", 3.0, 600, 256, 3, "some", batch=1), 0),
)


@pytest.mark.parametrize(
    ("case", "apart"), [pytest.param(c, a, id=str(c), marks=c.marks) for c, a in LARGE]
)
def test_long_episodes_of_large_memories(case, apart):
    """Also where rows lie ``apart`` numbers further from each other than they need, and where what
    the mask leaves out is not finite."""

    def spread(x):
        room = torch.full((*x.shape[:-1], x.shape[-1] + apart), torch.nan, dtype=x.dtype)
        room[..., apart:] = x
        return room[..., apart:]

    p = problem(case, torch.float32)
    given = p._replace(weights=spread(p.weights), values=spread(p.values))
    if p.mask is not None:
        given.weights[~p.mask] = torch.nan
        given.values[~p.mask] = torch.inf
        given = given._replace(noise_var=torch.where(p.mask, p.noise_var, -1.0))
    results, rivals = write(given), plain(case, torch.float32)
    for name, got, want, rival in zip(NAMES, results, truth(case), rivals, strict=True):
        assert_as_accurate(got, want, rival, name=name)
    check_covariance(p, results[1])


#: Which clusters of blocks write in CUDA: several chunks, ragged sizes, blocks without a slot or a
#: column; the last ones are too hard for float32, in the first chunk or a later one.
MIDDLE = (
    Case("iid", 1.0, 97, 70, 100, "some"),
    Case("softmax", 1.0, 70, 130, 9, decay=True),
    Case("iid", 2.0, 40, 200, 33, batch=20),
    Case("scaled", 1.0, 33, 129, 40),
    Case("repeated", 1e-3, 70, 66, 40, "some", decay=True, batch=1),
)


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c), marks=c.marks) for c in MIDDLE])
def test_memories_of_more_than_64_slots(case):
    p = problem(case, torch.float32)
    results, rivals = write(p), plain(case, torch.float32)
    for name, got, want, rival in zip(NAMES, results, truth(case), rivals, strict=True):
        assert_as_accurate(got, want, rival, name=name)
    check_covariance(p, results[1])


def test_a_bad_item_of_more_than_64_slots_is_nan_alone():
    p = problem(Case("iid", 1.0, 70, 80, 90, batch=6), torch.float32)
    want = write(p)
    noise = p.noise_var.clone()
    noise[1, 3] = -1.0  # in the first chunk
    noise[2, 40] = 0.0  # in the second
    cov, values = p.cov.clone(), p.values.clone()
    cov[3, 7, 5] = torch.nan
    values[4, 33, 89] = torch.inf
    got = write(p._replace(noise_var=noise, cov=cov, values=values))
    for result, good in zip(got, want, strict=True):
        assert torch.equal(result[::5], good[::5])
        assert all(result[b].isnan().all() for b in (1, 2, 3, 4))


@not_on(INTERPRETER, PTX, reason="65,536 steps")
@pytest.mark.parametrize(("method", "dtype"), grid(METHODS, DTYPES, values=lambda m, d: (m, "any")))
def test_65536_steps(method, dtype):
    floor = 1e-10 if dtype == torch.float64 else None
    results, rivals = write(problem(LONG, dtype), method=method), plain(LONG, dtype)
    for name, got, want, rival in zip(NAMES, results, truth(LONG), rivals, strict=True):
        assert_as_accurate(got, want, rival, floor=floor, name=name)


# ---------------------------------------------------------------------------- gradients


def incoming(case: Case):
    generator = torch.Generator().manual_seed(1)
    p = problem(case)
    shapes = (p.mean.shape, p.cov.shape, p.mean.shape[:1])
    return [
        torch.randn(s, generator=generator, dtype=torch.float32, device="cpu").to(p.mean).double()
        for s in shapes
    ]


@functools.cache
def true_grads(case: Case):
    return recursion_grads(problem(case), incoming(case))


def grads(case: Case, dtype: torch.dtype, function):
    """Gradients of (mean, cov, weights, values, noise_var[, decay]) of ``function``."""
    p = Problem(
        *(
            x if x is None or x.dtype == torch.bool else x.requires_grad_()
            for x in problem(case, dtype)
        )
    )
    inputs = [x for x in (*p[:5], p.decay) if x is not None]
    cotangents = [grad.to(dtype) for grad in incoming(case)]
    results = function(p)
    return torch.autograd.grad(results, inputs, cotangents, materialize_grads=True)


@functools.cache
def plain_grads(case: Case, dtype: torch.dtype):
    """Automatic differentiation through the symmetric recursion."""
    return grads(case, dtype, lambda p: reference.bayes_write(*p))


@cases_methods_dtypes(GRAD_CASES)
def test_gradients(case, method, dtype):
    got = grads(case, dtype, lambda p: write(p, method=method))
    floor = 1e-10 if dtype == torch.float64 else None
    for name, g, want, rival in zip(
        GRADS, got, true_grads(case), plain_grads(case, dtype), strict=False
    ):
        assert_as_accurate(g, want, rival, floor=floor, name=f"gradient of {name}")
        assert_same_direction(g, want, name=f"gradient of {name}")


#: Which have an adjoint of their own in CUDA, from the posterior, in tiles of 64: ragged ones, one
#: step, more steps than slots; the last ones are too hard for it, or have a decay.
MIDDLE_GRADS = (
    Case("iid", 1.0, 1, 100, 50),
    Case("iid", 1.0, 17, 65, 70, "some"),
    Case("softmax", 1.0, 128, 100, 33),
    Case("iid", 0.3, 128, 128, 64, batch=1),
    Case("rank8", 1.0, 300, 200, 20, "some", batch=1),
    Case("zeros", 1.0, 40, 256, 31, batch=1),
    Case("iid", 2.0, 70, 40, 30, batch=3),
    Case("iid", 1.0, 9, 70, 12, "all"),
    Case("collinear", 1e-4, 33, 70, 20),
    Case("repeated", 1e-3, 70, 66, 40, "some"),
    Case("softmax", 1.0, 20, 130, 9, decay=True),
)


def marks_of_middle(case: Case):
    if case.steps * case.slots <= 2000:
        return case.marks
    return (*case.marks, not_on(TEAMS, reason="too large a problem"))


@pytest.mark.parametrize("apart", [0, 1])
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=str(c), marks=marks_of_middle(c)) for c in MIDDLE_GRADS]
)
def test_gradients_of_more_than_64_slots_or_steps(case, apart):
    """Also where rows lie further apart than they need, and what the mask leaves out is not finite.

    What the posterior's rounding is amplified by there is beyond the recursion's own errors."""
    p = problem(case, torch.float32)
    if apart:
        spread = p._replace(weights=_apart(p.weights), values=_apart(p.values))
        if p.mask is not None:
            spread.weights[~p.mask] = torch.nan
            spread.values[~p.mask] = torch.inf
            spread = spread._replace(noise_var=torch.where(p.mask, p.noise_var, -1.0))
        p = spread
    p = Problem(*(x if x is None or x.dtype == torch.bool else x.requires_grad_() for x in p))
    inputs = [x for x in (*p[:5], p.decay) if x is not None]
    cotangents = [grad.float() for grad in incoming(case)]
    got = torch.autograd.grad(write(p), inputs, cotangents)
    for name, g, want, rival in zip(
        GRADS, got, true_grads(case), plain_grads(case, torch.float32), strict=False
    ):
        assert_as_accurate(g, want, rival, floor=1e-5, name=f"gradient of {name}")
        assert_same_direction(g, want, name=f"gradient of {name}")


def _apart(x):
    """The same numbers, the rows one further apart."""
    room = torch.full((*x.shape[:-1], x.shape[-1] + 1), torch.nan, dtype=x.dtype)
    room[..., 1:] = x
    return room[..., 1:]


def test_gradients_of_one_output_of_more_than_64_slots():
    """Those of the others are absent."""
    case = Case("iid", 1.0, 20, 70, 24)
    for i in range(3):
        only = [g if j == i else torch.zeros_like(g) for j, g in enumerate(incoming(case))]
        p = Problem(*(None if x is None else x.requires_grad_() for x in problem(case)[:5]))
        p32 = Problem(*(x.detach().float().requires_grad_() for x in p[:5]))
        got = torch.autograd.grad(write(p32)[i], p32[:5], only[i].float(), materialize_grads=True)
        want = recursion_grads(problem(case), only)
        for name, g, w in zip(GRADS, got, want, strict=False):
            assert_as_accurate(g, w, floor=1e-5, name=f"gradient of {name}")


def test_a_bad_item_of_more_than_64_slots_has_gradients_of_nan_alone():
    p = problem(Case("iid", 1.0, 20, 70, 24, batch=3), torch.float32)
    bad = p.noise_var.clone()
    bad[1, 3] = -1.0

    def gradients(noise):
        inputs = [x.clone().requires_grad_() for x in (*p[:4], noise)]
        return torch.autograd.grad(sum(x.sum() for x in ops.bayes_write(*inputs)), inputs)

    for got, want in zip(gradients(bad), gradients(p.noise_var), strict=True):
        assert torch.equal(got[::2], want[::2])
        assert got[1].isnan().all()


@REFERENCE_ALONE
@pytest.mark.parametrize("case", grid(GRAD_CASES, values=Case.traits))
def test_closed_form_of_the_reference(case):
    """The adjoint in chunks, which serves devices without kernels."""
    p = problem(case)
    got = reference.bayes_write_backward(*incoming(case), *p)
    for name, g, want, rival in zip(
        GRADS, got, true_grads(case), plain_grads(case, torch.float64), strict=False
    ):
        # It serves devices without kernels; chunks of it lose a few digits where noise is tiny.
        floor = 1e-10 if case.noise >= 1e-2 and case.kind != "scaled" else 1e-7
        assert_as_accurate(g, want, rival, floor=floor, name=f"gradient of {name}")


@not_on(INTERPRETER, reason="300 steps")
def test_gradients_of_a_long_episode():
    """Several chunks in the adjoint, with decay across them."""
    for decay in (False, True):
        case = Case("iid", 1.0, 300, 9, 4, "some", decay)
        for g in (
            grads(case, torch.float64, write),
            reference.bayes_write_backward(*incoming(case), *problem(case)),
        ):
            for name, a, b in zip(GRADS, g, true_grads(case), strict=False):
                if a.numel():
                    assert_as_accurate(a, b, floor=1e-10, name=name)


# ---------------------------------------------------------------------------- what it means


def test_log_evidence_is_the_density_of_the_values():
    p = problem(Case("iid", 0.3, 6, 4, 3))
    covariance = p.weights @ p.cov @ p.weights.mT + torch.diag_embed(p.noise_var)
    normal = torch.distributions.MultivariateNormal((p.weights @ p.mean).mT, covariance[:, None])
    torch.testing.assert_close(write(p)[2], normal.log_prob(p.values.mT).sum(-1))


@pytest.mark.parametrize("method", METHODS)
def test_two_halves_are_the_whole(method):
    p = problem(Case("softmax", 0.1, 40, 12, 7, "some", method != "information"))
    halves = [
        Problem(*p[:2], *(None if x is None else x[:, part] for x in p[2:]))
        for part in (slice(0, 17), slice(17, 40))
    ]
    mean, cov, first = write(halves[0], method=method)
    mean, cov, second = write(halves[1]._replace(mean=mean, cov=cov), method=method)
    for got, want in zip((mean, cov, first + second), write(p, method=method), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_decays_whose_product_is_no_float32():
    """0.05^32 is not; nor is the covariance of what nothing was written to."""
    p = problem(Case("iid", 1.0, 40, 32, 20), torch.float32)
    p = p._replace(decay=torch.full(p.noise_var.shape, 0.05))
    mean, cov, log_evidence = write(p)
    want_mean, want_cov, want_log_evidence = recursion(p)
    assert_as_accurate(mean, want_mean, floor=1e-5, name="mean")
    assert_as_accurate(log_evidence, want_log_evidence, floor=1e-5, name="log evidence")
    fits = np.abs(want_cov) < torch.finfo(torch.float32).max
    assert not fits.all() and not cov.isnan().any()


@pytest.mark.parametrize("method", METHODS)
def test_order_does_not_matter(method):
    p = problem(Case("collinear", 0.1, 30, 12, 7, "some"))
    shuffle = torch.randperm(30)
    other = Problem(*p[:2], *(None if x is None else x[:, shuffle] for x in p[2:]))
    for got, want in zip(write(other, method=method), write(p, method=method), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_a_masked_step_is_a_removed_step(method):
    decay = method != "information"
    p = problem(Case("iid", 0.1, 30, 12, 7, "some", decay, batch=1))
    kept = p.mask[0]
    removed = Problem(
        *p[:2],
        *(None if x is None else x[:, kept] for x in p[2:5]),
        None,
        p.decay[:, kept] if decay else None,
    )
    garbage = p._replace(
        weights=torch.where(p.mask[..., None], p.weights, torch.nan),
        values=torch.where(p.mask[..., None], p.values, torch.inf),
        noise_var=torch.where(p.mask, p.noise_var, -1.0),
        decay=torch.where(p.mask, p.decay, torch.nan) if decay else None,
    )
    garbage = Problem(
        *(x if x is None or x.dtype == torch.bool else x.requires_grad_() for x in garbage)
    )
    results = write(garbage, method=method)
    for got, want in zip(results, write(removed, method=method), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)
    inputs = [x for x in (*garbage[:5], garbage.decay) if x is not None]
    for grad, x in zip(
        torch.autograd.grad([r.sum() for r in results], inputs), inputs, strict=True
    ):
        assert not grad.isnan().any()
        if x.shape[1] == 30:
            assert (grad[~p.mask] == 0).all()


def test_all_masked_changes_nothing():
    for method in METHODS:
        p = problem(Case("iid", 0.1, 9, 4, 3, "all"), torch.float32)
        mean, cov, evidence = write(p, method=method)
        torch.testing.assert_close(mean, p.mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(cov, symmetric(p.cov), rtol=1e-6, atol=1e-7)
        assert (evidence == 0).all()


def test_decay_of_one_is_no_decay():
    p = problem(Case("iid", 0.1, 9, 4, 3))
    for decay in (1.0, 1, torch.ones(()), torch.ones(2, 9)):
        for got, want in zip(write(p._replace(decay=decay)), write(p), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@MANY_CALLS
def test_noise_as_number_scalar_and_tensor():
    p = problem(Case("iid", 1.0, 9, 4, 3))
    want = write(p._replace(noise_var=torch.full((2, 9), 0.25, dtype=torch.float64)))
    double = torch.float64
    for noise in (
        0.25,
        np.float64(0.25),
        torch.tensor(0.25),
        torch.full((2, 1), 0.25, dtype=double),
        torch.full((1, 9), 0.25),
    ):
        for got, expected in zip(write(p._replace(noise_var=noise)), want, strict=True):
            torch.testing.assert_close(got, expected)
    scalar = torch.tensor(0.25, dtype=double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: write(p._replace(noise_var=v)), scalar)


def test_vector_of_noise_per_item_is_not_mistaken_for_steps():
    p = problem(Case("iid", 1.0, 2, 4, 3))
    for name in ("noise_var", "mask", "decay"):
        value = torch.ones(2, dtype=torch.bool if name == "mask" else torch.float64)
        with pytest.raises(ValueError, match=rf"bayes_write: {name} must have shape \(..., T\)"):
            write(p._replace(**{name: value}))


def test_method():
    p = problem(Case("iid", 1.0, 5, 4, 3, decay=True))
    with pytest.raises(ValueError, match=r"method must be one of \('auto'.*got 'fast'"):
        write(p, method="fast")
    with pytest.raises(TypeError, match="method must be a str"):
        write(p, method=None)
    with pytest.raises(ValueError, match="has no decay"):
        write(p, method="information")


def test_indefinite_system_is_nan():
    """The covariance is so indefinite that a step's innovation variance is negative."""
    for method in METHODS:
        for dtype in (torch.float32, torch.float64):
            p = problem(Case("iid", 0.01, 5, 4, 3), dtype)
            p.cov[1] -= 50 * torch.eye(4, dtype=dtype)
            for result in write(p, method=method):
                assert result[1].isnan().all() and not result[0].isnan().any(), method


@MANY_CALLS
def test_third_derivative():
    p = problem(Case("iid", 0.5, 3, 3, 2))
    thirds = []
    for backend in ("auto", "reference"):
        mean = p.mean.clone().requires_grad_()
        value = write(p._replace(mean=mean), backend=backend)[0].pow(4).sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, mean, create_graph=True)
            value = grad.square().sum()
        thirds.append(grad.detach())
    torch.testing.assert_close(*thirds)


@MANY_CALLS
def test_changing_a_float_noise_recompiles_once():
    torch._dynamo.reset()
    p = problem(Case("iid", 0.5, 3, 3, 2))
    compiled = torch.compile(
        lambda noise: write(p._replace(noise_var=noise))[2], fullgraph=True, backend="aot_eager"
    )
    for noise in (0.1, 0.2):
        compiled(noise)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for noise in (0.3, 0.4):
            torch.testing.assert_close(compiled(noise), write(p._replace(noise_var=noise))[2])
    torch._dynamo.reset()


@not_on(INTERPRETER, PTX, reason="40 examples of up to 40 steps")
@settings(max_examples=40, deadline=None)
@given(
    b=st.integers(1, 3),
    t=st.integers(0, 40),
    k=st.integers(1, 20),
    c=st.integers(1, 20),
    kind=st.sampled_from(("iid", "rank8", "softmax", "repeated")),
    noise=st.sampled_from((1e-2, 1.0, 1e2)),
    mask=st.sampled_from(("none", "some", "all")),
    decay=st.booleans(),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 99),
    transposed=st.booleans(),
)
def test_random_shapes(b, t, k, c, kind, noise, mask, decay, method, seed, transposed):
    if decay and method == "information":
        method = "auto"
    p = problem(Case(kind, noise, t, k, c, mask, decay, b), seed=seed)
    if transposed:
        p = Problem(*(None if x is None else x.mT.contiguous().mT for x in p))
    for name, got, want in zip(NAMES, write(p, method=method), recursion(p), strict=True):
        assert_as_accurate(got, want, floor=1e-10, name=name)


def test_easy_and_hard_memories_in_one_call():
    """Kernels for easy memories leave the hard ones of a batch, and only those, to others."""
    B, T, K, C = 9, 40, 20, 30
    generator = torch.Generator(device="cpu").manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float64)

    noise = torch.ones(B, T, dtype=torch.float64, device="cpu")
    noise[::2] = 1e-3
    noise[4] = -1.0
    given = (normal(B, K, C), torch.eye(K, dtype=torch.float64, device="cpu").repeat(B, 1, 1))
    given += (normal(B, T, K) / K**0.5, normal(B, T, C), noise)
    grads = [normal(B, K, C), normal(B, K, K), normal(B)]

    def results(dtype, backend):
        here = torch.empty(0).device
        inputs = [x.to(here, dtype).requires_grad_() for x in given]
        out = ops.bayes_write(*inputs, backend=backend)
        loss = sum((o * g.to(here, dtype)).sum() for o, g in zip(out, grads, strict=True))
        return [*out, *torch.autograd.grad(loss, inputs)]

    ours, truth = results(torch.float32, "auto"), results(torch.float64, "reference")
    for name, x, y in zip((*NAMES, *GRADS[:5]), ours, truth, strict=True):
        assert x[4].isnan().all(), name
        for i in (i for i in range(B) if i != 4):
            error = (x[i].double() - y[i].double()).abs().max() / y[i].abs().max()
            assert error < 2e-5, (name, i)
