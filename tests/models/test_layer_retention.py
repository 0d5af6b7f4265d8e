"""KanervaLayer whose memories drift back to their prior: against the filter, step by step."""

import copy
import math

import pytest
import torch
from layers import HEADS, WIDTH, make, tokens

from kanerva_ext import KanervaLayer


def stationary(dtype=torch.float64, **options):
    return make(dtype, dynamics="stationary", **options)


def gates(layer, x):
    """Queries, keys, values (B, T, H, K) and noise, retention (B, T, H) of a layer without a
    convolution."""
    q, k, v = layer.qkv_proj(x).unflatten(-1, (3, HEADS, -1)).unbind(2)
    q, k = (y / y.norm(dim=-1, keepdim=True) for y in (q, k))
    noise = torch.nn.functional.softplus(layer.noise_proj(x)) + layer.noise_floor
    return q, k, v, noise, torch.exp(-torch.nn.functional.softplus(layer.retention_proj(x)))


def filtered(q, k, v, noise, retention):
    """Reads, variances, the last mean and covariance, and the log evidence, step by step."""
    (b, steps, heads, slots), code = k.shape, v.shape[-1]
    mean = torch.zeros(b, heads, slots, code, dtype=k.dtype)
    unit = torch.eye(slots, dtype=k.dtype)
    cov, evidence, reads, variances = unit.expand(b, heads, slots, slots), 0, [], []
    for t in range(steps):
        a = retention[:, t, :, None, None]
        mean, cov = a * mean, a**2 * cov + (1 - a**2) * unit
        key = k[:, t, :, :, None]
        c = cov @ key
        s = (key * c).sum((-2, -1)) + noise[:, t]
        d = v[:, t] - (key.mT @ mean)[..., 0, :]
        mean = mean + c * d[..., None, :] / s[..., None, None]
        cov = cov - c @ c.mT / s[..., None, None]
        evidence = evidence - ((d * d).sum(-1) / s + code * (2 * math.pi * s).log()) / 2
        asked = q[:, t, :, :, None]
        reads.append((asked.mT @ mean)[..., 0, :])
        variances.append((asked.mT @ cov @ asked)[..., 0, 0])
    return torch.stack(reads, 1), torch.stack(variances, 1), mean, cov, evidence


def assert_is_the_filter(wide, x, tolerances):
    """Outputs, state and the gradients of every parameter in each dtype, by the filter in float64.

    The parameters of ``wide`` are float32 numbers.
    """
    reads, variances, *last = filtered(*gates(wide, x.double()))
    want = wide.out_proj(wide.norm(reads).flatten(2))
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(5))

    def loss(hidden, var):
        return (hidden.double() * weight).sum() + var.double().sum()

    true = torch.autograd.grad(loss(want, variances), list(wide.parameters()))
    for dtype, tolerance in tolerances.items():
        layer = copy.deepcopy(wide).to(dtype)
        out = layer(x.to(dtype), use_cache=True)
        found = (out.hidden_states, out.read_var, *out.cache.state, out.log_evidence)
        for got, expected in zip(found, (want, variances, *last), strict=True):
            error = (got.double() - expected).abs().max() / expected.abs().max()
            assert error < tolerance, (dtype, error)
        grads = torch.autograd.grad(loss(*found[:2]), list(layer.parameters()))
        for (name, _), a, b in zip(layer.named_parameters(), grads, true, strict=True):
            error = (a.double() - b).norm() / b.norm()
            assert error < 20 * tolerance, (dtype, name, error)
        assert out.cache.forgotten is None


def test_it_is_a_memory_that_drifts():
    layer = stationary(torch.float32, conv_size=0, use_gate=False).double()
    x = tokens(2, 40, torch.float32)
    assert_is_the_filter(layer, x, {torch.float64: 1e-12, torch.float32: 1e-5})


@pytest.mark.parametrize("steps", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_strong_forgetting_for_long(steps):
    """Half of what is there, at every token, for 10,000 tokens: 2^-10000 is no number."""
    layer = stationary(torch.float32, conv_size=0, use_gate=False)
    with torch.no_grad():
        layer.retention_proj.bias.fill_(0.0)
        layer.retention_proj.weight.mul_(0.1)  # softplus(0) = ln 2, and gradients of the gate
    x = tokens(1, steps, torch.float32)
    kept = gates(layer, x)[4]
    assert kept.min() > 0.4 and kept.max() < 0.6
    assert_is_the_filter(layer.double(), x, {torch.float64: 1e-10, torch.float32: 1e-5})


def test_forgetting_has_no_limit_and_no_end():
    """A gate that is wide open forgets everything, and the memory is the prior's again."""
    layer = stationary(torch.float32, conv_size=0)
    with torch.no_grad():
        layer.retention_proj.bias.fill_(1000.0)
    x = tokens(1, 50, torch.float32)
    out = layer(x, use_cache=True)
    assert out.hidden_states.isfinite().all() and out.read_var.isfinite().all()
    alone = layer(x[:, -1:])
    torch.testing.assert_close(out.hidden_states[:, -1:], alone.hidden_states)
    torch.testing.assert_close(out.read_var[:, -1:], alone.read_var)
    grads = torch.autograd.grad(out.hidden_states.sum(), list(layer.parameters()))
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("inplace", [False, True])
def test_decoding_token_by_token(inplace):
    layer, x = stationary(), tokens(2, 30)
    with torch.no_grad():
        whole = layer(x, use_cache=True)
        cache, parts, evidence = layer(x[:, :4], use_cache=True), [], 0
        parts, evidence, cache = [cache.hidden_states], cache.log_evidence, cache.cache
        for t in range(4, 30):
            out = layer(x[:, t : t + 1], cache=cache, use_cache=True, inplace=inplace)
            assert (out.cache is cache) == inplace
            cache, evidence = out.cache, evidence + out.log_evidence
            parts.append(out.hidden_states)
    torch.testing.assert_close(torch.cat(parts, 1), whole.hidden_states)
    torch.testing.assert_close(evidence, whole.log_evidence)
    torch.testing.assert_close(cache.state, whole.cache.state)


def test_packed_sequences_go_on_from_their_states():
    layer = stationary()
    first, second = tokens(1, 12), tokens(1, 9, seed=4)
    bounds, more = (0, 5, 5, 12), (0, 2, 6, 9)
    cache = layer(first, cu_seqlens=torch.tensor(bounds), use_cache=True).cache
    out = layer(second, cu_seqlens=torch.tensor(more), cache=cache, use_cache=True)
    for n in range(3):
        spans = (slice(*bounds[n : n + 2]), slice(*more[n : n + 2]))
        before = layer(first[:, spans[0]], use_cache=True).cache
        alone = layer(second[:, spans[1]], cache=before, use_cache=True)
        torch.testing.assert_close(out.hidden_states[:, spans[1]], alone.hidden_states)
        torch.testing.assert_close(out.read_var[:, spans[1]], alone.read_var)
        torch.testing.assert_close(out.cache.state.mean[n : n + 1], alone.cache.state.mean)
        torch.testing.assert_close(out.cache.state.cov[n : n + 1], alone.cache.state.cov)


def test_every_parameter_learns():
    layer = stationary()
    layer(tokens(2, 9)).hidden_states.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all() and (parameter.grad != 0).any(), name


def test_gates_start_at_half_lives_from_a_few_tokens_to_thousands():
    layer = KanervaLayer(64, num_heads=4, dynamics="stationary")
    rate = torch.nn.functional.softplus(layer.retention_proj.bias.detach())
    torch.testing.assert_close(rate, torch.tensor([1e-4, 1e-3, 1e-2, 1e-1]), rtol=1e-4, atol=0)


def test_checkpoints_of_the_other_dynamics_are_refused():
    moving, decaying, still = stationary(), make(dynamics="decay"), make(use_decay=False)
    for layer, other, options in (
        (decaying, moving, "dynamics='stationary'"),
        (moving, decaying, "dynamics='decay'"),
        (moving, still, "use_decay=False"),
        (still, decaying, "dynamics='decay'"),
    ):
        message = rf"is of a layer with {options}, and this is another: construct it with {options}"
        for strict in (True, False):
            with pytest.raises(RuntimeError, match=message):
                layer.load_state_dict(other.state_dict(), strict=strict)
        layer.load_state_dict(layer.state_dict())
    nested = torch.nn.Sequential(torch.nn.Identity(), moving)
    with pytest.raises(RuntimeError, match=r"1\.KanervaLayer: the checkpoint is of"):
        nested.load_state_dict(torch.nn.Sequential(torch.nn.Identity(), decaying).state_dict())
    moving.load_state_dict({}, strict=False)
    assert "dynamics" not in repr(moving) and "dynamics='decay'" in repr(decaying)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"use_decay": 0.97}, TypeError, "use_decay must be a bool, got float"),
        ({"use_gate": "no"}, TypeError, "use_gate must be a bool, got str"),
        ({"norm_eps": -1}, ValueError, "norm_eps must be finite and at least 0, got -1"),
        ({"norm_eps": float("nan")}, ValueError, "norm_eps must be finite and at least 0, got nan"),
        ({"norm_eps": "x"}, TypeError, "norm_eps must be a number or None, got str"),
    ],
)
def test_bad_options_are_named(options, error, text):
    with pytest.raises(error, match=f"KanervaLayer: {text}"):
        KanervaLayer(WIDTH, HEADS, **options)


@pytest.mark.parametrize("dynamics", ["stationary", "decay"])
def test_a_layer_that_does_not_forget_has_no_gate_for_it(dynamics):
    layer = KanervaLayer(WIDTH, HEADS, use_decay=False, dynamics=dynamics)
    assert layer.decay_proj is None and layer.retention_proj is None
    x = tokens(2, 6).float()
    other = KanervaLayer(WIDTH, HEADS, use_decay=False)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x).hidden_states, other(x).hidden_states)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"dynamics": "none"}, ValueError, r"dynamics must be one of \('decay', 'stationary'\)"),
        ({"dynamics": None}, TypeError, "dynamics must be a str"),
    ],
)
def test_wrong_dynamics(options, error, text):
    with pytest.raises(error, match=text):
        KanervaLayer(WIDTH, HEADS, **options)
