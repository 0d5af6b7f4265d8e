"""FusedKanervaMemory that drifts back to its prior: against the filter, step by step."""

import math

import pytest
import torch

from kanerva_ext import FusedKanervaMemory, MemoryState, ops

B, T, K, C, S = 3, 12, 4, 9, 5


def make(**options):
    options = {"retention": 0.8, "prior_var": 0.7, **options}
    return FusedKanervaMemory(K, C, noise_std=0.3, **options).double()


def keyed(**options):
    return make(addressing="key", key_size=S, **options)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def drift(state, prior, a):
    """``M - R0 <- a (M - R0) + sqrt(1 - a^2) N``, with the prior's covariance for N."""
    a = a[:, None, None]
    mean = prior.mean + a * (state.mean - prior.mean)
    return MemoryState(mean, a**2 * state.cov + (1 - a**2) * prior.cov)


def observe(state, w, z, v):
    """Condition on one code, and its log evidence."""
    c = (state.cov @ w[..., None])[..., 0]
    s = (c * w).sum(-1) + v
    d = z - (w[:, None] @ state.mean)[:, 0]
    mean = state.mean + c[..., None] * d[:, None] / s[:, None, None]
    cov = state.cov - c[..., None] * c[:, None] / s[:, None, None]
    term = -((d * d).sum(-1) / s + C * (2 * math.pi * s).log()) / 2
    return MemoryState(mean, cov), term


RETENTIONS = {
    "module": None,
    "number": 0.3,
    "0-d": torch.tensor(0.9, dtype=torch.float64),
    "per step": 0.1 + 0.9 * torch.rand(B, T, dtype=torch.float64),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("which", RETENTIONS)
@pytest.mark.parametrize("how", ["least_squares", "key", "weights"])
def test_writes_are_those_of_the_filter(how, which, masked):
    module = keyed() if how == "key" else make(num_write_iters=2 if how == "least_squares" else 1)
    values, keys, given = randn(B, T, C), randn(B, T, S), randn(B, T, K)
    mask = torch.rand(B, T) < 0.6 if masked else torch.ones(B, T, dtype=torch.bool)
    noise = 0.1 + torch.rand(B, T, dtype=torch.float64)
    chosen = RETENTIONS[which]
    kept = torch.as_tensor(0.8 if chosen is None else chosen).double().expand(B, T)
    prior = module.prior(B)
    state, evidence, addresses = prior, 0, []
    for t in range(T):
        moved = drift(state, prior, kept[:, t])
        if how == "least_squares":
            w = ops.solve_addresses(moved.mean, values[:, t : t + 1], module.ridge)[:, 0]
            tentative, _ = observe(moved, w, values[:, t], noise[:, t])
            w = ops.solve_addresses(tentative.mean, values[:, t : t + 1], module.ridge)[:, 0]
        else:
            w = module.address(keys)[:, t] if how == "key" else given[:, t]
        after, term = observe(moved, w, values[:, t], noise[:, t])
        own = mask[:, t]
        state = MemoryState(
            *(torch.where(own[:, None, None], x, y) for x, y in zip(after, state, strict=True))
        )
        evidence = evidence + torch.where(own, term, 0)
        addresses.append(torch.where(own[:, None], w, 0))
    options = {"key": {"keys": keys}, "weights": {"weights": given}}.get(how, {})
    out = module.write(
        values, mask=mask if masked else None, noise_var=noise, retention=chosen, **options
    )
    torch.testing.assert_close(out.state, state)
    torch.testing.assert_close(out.log_evidence, evidence)
    torch.testing.assert_close(out.weights, torch.stack(addresses, 1))
    torch.testing.assert_close(out.kl_memory, ops.memory_kl(*state, *prior))


@pytest.mark.parametrize("how", ["least_squares", "key"])
def test_a_retention_of_one_is_none(how):
    retained = keyed() if how == "key" else make()
    plain = keyed(retention=None) if how == "key" else make(retention=None)
    plain.load_state_dict({n: x for n, x in retained.state_dict().items() if "extra" not in n})
    more = {"keys": randn(B, T, S)} if how == "key" else {}
    values = randn(B, T, C)
    got, want = retained.write(values, retention=1.0, **more), plain.write(values, **more)
    for a, b in zip(got.state, want.state, strict=True):
        assert torch.equal(a, b)


def test_it_fades_to_the_prior():
    module = keyed(retention=0.5)
    first = module.write(randn(B, 1, C), keys=randn(B, 1, S)).state
    still = torch.zeros(B, 60, C, dtype=torch.float64), torch.zeros(B, 60, K, dtype=torch.float64)
    later = module.write(still[0], first, weights=still[1]).state
    torch.testing.assert_close(later, MemoryState(*(x.clone() for x in module.prior(B))))


@pytest.mark.parametrize("how", ["least_squares", "key"])
def test_gradients(how):
    module = keyed() if how == "key" else make()
    values = randn(1, 3, C).requires_grad_()
    retention = torch.full((1, 3), 0.8, dtype=torch.float64, requires_grad=True)
    keys = {"keys": randn(1, 3, S)} if how == "key" else {}

    def function(values, retention, prior_mean, log_prior_var):
        parameters = {"prior_mean": prior_mean, "log_prior_var": log_prior_var}
        out = torch.func.functional_call(
            Writes(module), {f"memory.{n}": x for n, x in parameters.items()}, (values, retention),
            keys,
        )  # fmt: skip
        return out.state.mean, out.state.cov, out.log_evidence

    parameters = (module.prior_mean, module.log_prior_var)
    assert torch.autograd.gradcheck(function, (values, retention, *parameters), fast_mode=True)


class Writes(torch.nn.Module):
    def __init__(self, memory):
        super().__init__()
        self.memory = memory

    def forward(self, values, retention, **more):
        return self.memory.write(values, retention=retention, **more)


def test_long_strong_forgetting_stays_bounded():
    out = keyed(retention=0.3).write(randn(2, 300, C), keys=randn(2, 300, S))  # 0.3^300 = 1e-157
    assert out.state.mean.isfinite().all() and out.log_evidence.isfinite().all()
    assert (out.state.cov.diagonal(dim1=-2, dim2=-1) <= 0.7 + 1e-12).all()
    assert make().write(randn(2, 0, C)).weights.shape == (2, 0, K)


def test_autocast_changes_nothing():
    module, keys = keyed().float(), torch.randn(B, T, S)
    values = torch.randn(B, T, C)
    weights = module.address(keys)
    want = module.write(values, weights=weights).state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = module.write(values, weights=weights).state
    torch.testing.assert_close(got, want)


def test_it_is_saved_and_checked():
    saved = make().state_dict()
    make().load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"retention is 0\.8 in the checkpoint and None in"):
        make(retention=None).load_state_dict(saved)
    old = dict(saved)
    old["_extra_state"] = saved["_extra_state"][:2]  # before there was a retention
    make().load_state_dict(old)
    assert "retention=0.8" in repr(make()) and "retention" not in repr(make(retention=None))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: make(retention=0.0), ValueError, r"retention must be in \(0, 1\], got 0"),
        (lambda m: make(retention=1.5), ValueError, r"retention must be in \(0, 1\], got 1.5"),
        (lambda m: make(retention="all"), TypeError, "retention must be a number or None, got str"),
        (lambda m: m.write(randn(B, T, C), decay=0.5), ValueError, "made with retention=0.8"),
        (
            lambda m: make(retention=None).write(randn(B, T, C), decay=0.5, retention=0.5),
            ValueError,
            "decay and retention are two kinds of forgetting; one",
        ),
        (lambda m: m.write(randn(B, T, C), retention=2.0), ValueError, r"retention must be in"),
        (lambda m: m.write(randn(B, T, C), retention="x"), TypeError, r"retention must be a float"),
        (
            lambda m: m.write(randn(B, T, C), retention=torch.ones(B, T + 1)),
            ValueError,
            r"retention must have shape \(..., T\) = \(3, 12\)",
        ),
        (
            lambda m: m.forget(m.prior(B), randn(B, T, K), randn(B, T, C)),
            ValueError,
            r"forget: what a memory with retention = 0.8 holds has faded",
        ),
        (lambda m: m.merge([m.prior(B)]), ValueError, r"merge: what a memory with retention"),
    ],
)
def test_wrong_retention(call, error, text):
    module = make()
    with pytest.raises(error, match=text):
        call(module)


@pytest.mark.parametrize("how", ["least_squares", "weights"])
def test_a_retention_out_of_range_is_nan_in_its_item(how):
    module = make()
    retention = torch.full((B, T), 0.9, dtype=torch.float64)
    retention[1, 3] = 1.5
    more = {"weights": randn(B, T, K)} if how == "weights" else {}
    state = module.write(randn(B, T, C), retention=retention, **more).state
    for part in state:
        assert part[1].isnan().all() and part[[0, 2]].isfinite().all()
