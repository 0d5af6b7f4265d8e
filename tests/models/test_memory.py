import copy
import io
import math
import pickle

import pytest
import torch
import torch.utils.checkpoint
from helpers import run_python
from memory_cases import CONFIGURATIONS, B, C, K, S, T, each_config, episode, loss, make

from kanerva_ext import FusedKanervaMemory, MemoryState, memory, ops


@each_config
def test_shapes_and_dtypes(config):
    module = make(**config)
    for b in ((B,), (2, 2), ()):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            values, keys = episode(module, dtype, b)
            out = module(values, **keys)
            assert out.values.shape == (*b, T, C) and out.values.dtype == torch.float32
            assert out.var.shape == out.kl_weights.shape == (*b, T)
            assert out.weights.shape == (*b, T, K)
            assert out.kl_memory.shape == out.log_evidence.shape == b
            assert isinstance(out.state, MemoryState)
            assert out.state.mean.shape == (*b, K, C) and out.state.cov.shape == (*b, K, K)
            assert all(torch.isfinite(x).all() for x in (*out[:4], *out.state, *out[5:]))


@each_config
def test_every_parameter_gets_a_gradient(config):
    """From values, kl_weights and kl_memory alone: no parameter is unused under DDP."""
    module = make(**config)
    values, keys = episode(module)
    loss(module(values, **keys)).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_parameters_are_those_that_the_flags_need():
    base = {"prior_mean", "log_prior_var"}
    extra = {
        "plain": set(),
        "noise": {"log_noise_std"},
        "iterated": set(),
        "sampled": {"log_weight_std"},
        "key": {"address_matrix"},
        "key_noise": {"address_matrix", "log_noise_std"},
    }
    for name, config in CONFIGURATIONS.items():
        assert {n for n, _ in make(**config).named_parameters()} == base | extra[name]


DDP = """
import os, torch, torch.distributed as dist
from kanerva_ext import FusedKanervaMemory
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for options in {configurations}:
    module = torch.nn.parallel.DistributedDataParallel(FusedKanervaMemory(5, 4, **options))
    keys = {{"keys": torch.randn(2, 6, 7)}} if "key_size" in options else {{}}
    for _ in range(2):  # the second forward raises if a parameter was unused in the first
        out = module(torch.randn(2, 6, 4), **keys)
        (out.values.sum() + out.kl_weights.sum() + out.kl_memory.sum()).backward()
print("every parameter was used", flush=True)
os._exit(0)  # joining gloo's threads can hang
"""


def test_ddp_finds_no_unused_parameter():
    result = run_python(DDP.format(configurations=list(CONFIGURATIONS.values())))
    assert "every parameter was used" in result.stdout, result.stderr


@each_config
def test_forward_is_write_then_read(config):
    module = make(**{k: v for k, v in config.items() if not k.startswith("sample")})
    values, keys = episode(module)
    written = module.write(values, **keys)
    queries = keys.get("keys", values)
    read = module.read(queries, written.state)
    out = module(values, **keys)
    for a, b in zip(out[:4], read[:4], strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(out.state, written.state)
    torch.testing.assert_close(out.kl_memory, written.kl_memory)
    torch.testing.assert_close(out.log_evidence, written.log_evidence)
    assert read.state is None and read.kl_memory is None


def test_least_squares_write_solves_each_address_against_the_memory_as_it_stands():
    module = make(noise_std=0.5, weight_std=2.0)
    values, _ = episode(module)
    for iterations in (1, 2, 3):
        module.num_write_iters = iterations
        state, addresses, evidence = module.prior(B), [], 0
        for t in range(T):
            code, mean = values[:, t : t + 1], state.mean
            for _ in range(iterations):
                weights = ops.solve_addresses(mean, code, 0.25 / 4)
                mean, cov, term = ops.bayes_write(*state, weights, code, 0.25)
            state, evidence = MemoryState(mean, cov), evidence + term
            addresses.append(weights)
        weights = torch.cat(addresses, 1)
        out = module.write(values)
        for got, want in (
            (out.state.mean, state.mean),
            (out.state.cov, state.cov),
            (out.weights, weights),
            (out.log_evidence, evidence),
            (out.kl_memory, ops.memory_kl(*state, *module.prior(B))),
            (out.kl_weights, weights.square().sum(-1) / (2 * 4)),
        ):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_given_weights_and_state():
    module = make(num_write_iters=3)
    values, _ = episode(module)
    first = module.write(values)
    weights = torch.randn(B, T, K)
    out = module.write(values, first.state, weights)
    mean, cov, _ = ops.bayes_write(*first.state, weights, values, 1.0)
    torch.testing.assert_close(out.state, MemoryState(mean, cov))
    assert out.weights is weights
    torch.testing.assert_close(out.kl_memory, ops.memory_kl(mean, cov, *first.state))


@each_config
def test_forget(config):
    """An episode that was written between two others leaves no trace."""
    module = make(**config).double()
    (first, a), (second, b), (third, c) = (episode(module, torch.float64) for _ in range(3))
    mask = torch.rand(B, T) < 0.7
    before = module.write(first, **a).state
    written = module.write(second, before, mask=mask, **b)
    after = module.write(third, written.state, **c)
    want = module.write(third, before, after.weights).state
    got = module.forget(after.state, written.weights, second, mask, check=True)
    assert isinstance(got, MemoryState)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match="what is to be forgotten was not written in batch item"):
        module.forget(before, 10 * written.weights, second, check=True)
    assert module.forget(before, 10 * written.weights, second).mean.isnan().any()


def test_key_addressing_has_unit_rows():
    module = make(addressing="key", key_size=S)
    with torch.no_grad():
        module.address_matrix.mul_(torch.rand(K, 1) * 10)
    weights = module.address(torch.eye(S)[None])[0].mT
    torch.testing.assert_close(weights.norm(dim=1), torch.ones(K))
    values, keys = episode(module)
    out = module(values, **keys)
    torch.testing.assert_close(out.weights, module.address(keys["keys"]))
    assert (out.kl_weights == 0).all()
    given = module.write(values, weights=out.weights)  # needs no keys
    torch.testing.assert_close(given.state, out.state)


@each_config
def test_mask_makes_episodes_of_different_lengths(config):
    module = make(**{k: v for k, v in config.items() if not k.startswith("sample")})
    values, keys = episode(module)
    lengths = torch.tensor([T, 2, 0])
    mask = torch.arange(T) < lengths[:, None]
    values = torch.where(mask[..., None], values, torch.nan).requires_grad_()
    out = module(values, mask=mask, **keys)
    for i, length in enumerate(lengths.tolist()):
        short = {name: key[i : i + 1, :length] for name, key in keys.items()}
        want = module(values[i : i + 1, :length], **short)
        for name in ("values", "var", "weights", "kl_weights"):
            got = getattr(out, name)[i : i + 1]
            torch.testing.assert_close(got[:, :length], getattr(want, name))
            assert (got[:, length:] == 0).all(), name
        torch.testing.assert_close(out.state.mean[i], want.state.mean[0])
        torch.testing.assert_close(out.kl_memory[i], want.kl_memory[0], atol=1e-5, rtol=1e-5)
    loss(out).backward()
    for tensor in (values, *module.parameters()):
        assert not tensor.grad.isnan().any()
    assert (values.grad[~mask] == 0).all()


def test_masked_reads_with_sampled_weights_are_zero():
    module = make(sample_weights=True)
    values, _ = episode(module)
    mask = torch.rand(B, T) < 0.5
    out = module(values, mask=mask)
    for x in (out.values, out.var, out.weights, out.kl_weights):
        assert (x[~mask] == 0).all() and (x[mask] != 0).all()


def test_kl_of_sampled_weights_is_a_divergence():
    module = make(sample_weights=True, weight_std=0.7)
    values, _ = episode(module)
    out = module.write(values)
    std = module.log_weight_std.exp()
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(normal(out.weights, std), normal(0.0, 0.7)).sum(-1)
    torch.testing.assert_close(out.kl_weights, want)


def test_sampled_weights_scatter_around_the_mean():
    module = make(sample_weights=True)
    values, _ = episode(module)
    written = module.write(values)
    many = written.state.mean[0].expand(4000, K, C), written.state.cov[0].expand(4000, K, K)
    samples = module.read(values[:1].expand(4000, T, C), MemoryState(*many)).weights
    module.sample_weights = False
    mean = module.read(values[:1], MemoryState(*(x[:1] for x in written.state))).weights[0]
    torch.testing.assert_close(samples.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(
        samples.std(0), torch.full((T, K), memory.INITIAL_WEIGHT_STD), atol=0.03, rtol=0
    )


def test_sampled_memory_has_the_moments_of_the_belief():
    module = make(sample_memory=True, addressing="key", key_size=S)
    values, keys = episode(module, b=(1,))
    state = module.write(values, **keys).state
    many = MemoryState(*(x.expand(20000, *x.shape[1:]) for x in state))
    queries = keys["keys"][:, :1].expand(20000, 1, S)
    samples = module.read(queries, many)
    w = module.address(keys["keys"][:, :1])
    torch.testing.assert_close(samples.values.mean(0), (w @ state.mean)[0], atol=0.05, rtol=0)
    torch.testing.assert_close(samples.values.var(0).mean(), samples.var[0, 0], rtol=0.05, atol=0)


def test_generate():
    module = make(weight_std=0.5)
    state = module.write(episode(module)[0]).state
    samples = module.generate(state, 20000)
    assert samples.shape == (B, 20000, C) and samples.dtype == torch.float32
    want = 0.25 * state.mean.square().sum(1)
    torch.testing.assert_close(samples.var(1), want, rtol=0.1, atol=0)
    for options in ({"sample_memory": True}, {"addressing": "key", "key_size": S}):
        other = make(**options)
        generated = other.generate(other.prior((2, 3)), 4)
        assert generated.shape == (2, 3, 4, C) and torch.isfinite(generated).all()


def test_writing_lets_it_remember():
    """With small noise and as many slots as codes, what is read is what was written."""
    module = FusedKanervaMemory(16, 32, noise_std=0.01)
    values = torch.randn(4, 10, 32)
    error = (module(values).values - values).square().mean()
    before = (module.read(values, module.prior(4)).values - values).square().mean()
    assert error < 0.05 * before


def stored(noise, slots=16, code=64, items=8, **options):
    """A float64 memory that holds codes of +-1, their noisy versions, and its state."""
    module = FusedKanervaMemory(slots, code, **{"noise_std": 0.1, **options}).double()
    codes = torch.randn(2, items, code, dtype=torch.float64).sign()
    return module, codes, codes + noise * torch.randn_like(codes), module.write(codes).state


@pytest.mark.parametrize("learn_noise", [False, True])
@pytest.mark.parametrize("noise_std", [0.03, 1.0])
def test_the_bound_of_an_attractor_never_falls(noise_std, learn_noise):
    module, _, queries, state = stored(
        0.5, noise_std=noise_std, weight_std=0.8, learn_noise=learn_noise
    )
    out = module.attractor(queries, state, 12, return_trajectory=True)
    assert out.bound.shape == (12, 2, 8) and out.bound.dtype == torch.float64
    gain = out.bound.diff(dim=0)
    assert (gain >= -1e-12 * out.bound.abs().max()).all() and (gain[0] > 0).all()
    normal = torch.distributions.Normal(0.0, noise_std)
    for k, z in enumerate(out.trajectory[:-1]):  # against the densities, and plain reads
        read = module.read(z, state)
        fit = normal.log_prob(z - read.weights @ state.mean).sum(-1)
        prior = torch.distributions.Normal(0.0, 0.8).log_prob(read.weights).sum(-1)
        torch.testing.assert_close(out.bound[k], fit + prior)
        torch.testing.assert_close(out.trajectory[k + 1], read.values)
    for got, want in ((out.values, read.values), (out.var, read.var), (out.weights, read.weights)):
        torch.testing.assert_close(got, want)


def test_a_noisy_code_moves_towards_the_stored_one():
    module, codes, queries, state = stored(0.5)
    out = module.attractor(queries, state, 6, return_trajectory=True)
    steps = out.trajectory.diff(dim=0).norm(dim=-1)
    assert (steps.diff(dim=0) < 0).all() and (steps[-1] < 0.05 * steps[0]).all()
    error = (out.trajectory - codes).norm(dim=-1)
    assert (error[-1] < 0.7 * error[0]).all()  # what is left lies in the span of the memory


def test_an_attractor_with_projection_restores_stored_codes():
    """With the sign as projection stored codes are fixed points, and attract."""
    module, codes, queries, state = stored(0.9)
    assert (queries.sign() != codes).any(-1).all()
    out = module.attractor(queries, state, 10, project=torch.sign)
    assert (out.values == codes).all(-1).double().mean() > 0.9
    again = module.attractor(codes, state, 3, torch.sign)
    assert torch.equal(again.values, codes) and again.trajectory is None


def test_attractor_is_deterministic_and_differentiable():
    module = make(sample_weights=True, sample_memory=True)
    values, _ = episode(module)
    state = module.write(values).state
    torch.testing.assert_close(
        module.attractor(values, state, 2), module.attractor(values, state, 2), rtol=0, atol=0
    )
    queries = values.half().requires_grad_()
    out = module.attractor(queries, state, 3, lambda z: torch.tanh(z).half(), True)
    assert out.values.dtype == out.trajectory.dtype == torch.float32
    assert out.trajectory.shape == (4, B, T, C)
    (out.values.sum() + out.bound.sum()).backward()
    for x in (queries, module.prior_mean, module.log_prior_var):
        assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    shared = module.attractor(values[0], state, 1, return_trajectory=True)  # one for every memory
    assert shared.values.shape == (B, T, C) and shared.trajectory.shape == (2, B, T, C)


@each_config
def test_training_lowers_the_loss(config):
    module = make(**config)
    values, keys = episode(module)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.03)
    history = []
    for _ in range(60):
        optimiser.zero_grad()
        out = module(values, **keys)
        total = (out.values - values).square().sum() + out.kl_weights.sum() + out.kl_memory.sum()
        total.backward()
        optimiser.step()
        history.append(total.item())
    assert math.isfinite(history[-1]) and history[-1] < 0.8 * history[0]


@each_config
def test_state_dict_deepcopy_and_pickle(config):
    module = make(**config)
    values, keys = episode(module)
    other = make(**config)
    other.load_state_dict(module.state_dict())
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    saved = make(**config)
    saved.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (other, saved, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.manual_seed(1)
        want = module(values, **keys)
        torch.manual_seed(1)
        torch.testing.assert_close(twin(values, **keys), want, rtol=0, atol=0)
    state = pickle.loads(pickle.dumps(want.state))
    assert isinstance(state, MemoryState) and torch.equal(state.mean, want.state.mean)
    twin.prior_mean.data.zero_()
    assert module.prior_mean.abs().sum() > 0


@each_config
def test_reference_backend_agrees(config):
    module = make(**{k: v for k, v in config.items() if not k.startswith("sample")}).double()
    values, keys = episode(module, torch.float64)
    want = module(values, **keys)
    module.backend = "reference"
    torch.testing.assert_close(module(values, **keys), want)


def test_repr():
    assert repr(make()) == (
        "FusedKanervaMemory(5, 4, addressing='least_squares', noise_std=1, weight_std=1, "
        "prior_var=1)"
    )
    text = repr(make(addressing="key", key_size=S, learn_noise=True, backend="reference"))
    assert "key_size=7, learn_noise=True, backend='reference'" in text
    assert "num_write_iters=3" in repr(make(num_write_iters=3))
    module = make(prior_var=0.25, learn_noise=True)
    with torch.no_grad():
        module.log_prior_var.add_(math.log(2))
        module.log_noise_std.add_(math.log(3))
    assert "noise_std=3, weight_std=1, prior_var=0.5" in repr(module)
    assert "noise_std=1, weight_std=1, prior_var=0.25" in repr(module.to("meta"))


WRONG_CONSTRUCTIONS = [
    ({"memory_size": 0}, ValueError, "memory_size must be at least 1, got 0"),
    ({"memory_size": 2.0}, TypeError, "memory_size must be an int, got float"),
    ({"code_size": -1}, ValueError, "code_size"),
    ({"code_size": True}, TypeError, "code_size"),
    ({"addressing": "content"}, ValueError, "addressing must be one of"),
    ({"noise_std": 0}, ValueError, "noise_std must be positive"),
    ({"noise_std": float("nan")}, ValueError, "noise_std must be positive"),
    ({"noise_std": "1"}, TypeError, "noise_std must be a number, got str"),
    ({"weight_std": -1.0}, ValueError, "weight_std"),
    ({"prior_var": float("inf")}, ValueError, "prior_var"),
    ({"num_write_iters": 0}, ValueError, "num_write_iters"),
    ({"key_size": 3}, ValueError, "key_size must be given with"),
    ({"addressing": "key"}, ValueError, "key_size must be given with"),
    ({"addressing": "key", "key_size": 0}, ValueError, "key_size"),
    ({"addressing": "key", "key_size": 3, "sample_weights": True}, ValueError, "sample_weights"),
    ({"addressing": "key", "key_size": 3, "num_write_iters": 2}, ValueError, "num_write_iters"),
    ({"backend": "tpu"}, ValueError, "backend must be one of"),
    ({"learn_noise": "yes"}, TypeError, "learn_noise must be a bool, got str"),
    ({"sample_memory": 1}, TypeError, "sample_memory must be a bool, got int"),
    ({"sample_weights": None}, TypeError, "sample_weights must be a bool, got None$"),
    ({"prior_mean_std": -1.0}, ValueError, "prior_mean_std must be finite and at least 0"),
    ({"prior_mean_std": 0}, ValueError, "prior_mean_std must be positive with addressing="),
]


@pytest.mark.parametrize(
    ("options", "error", "match"), WRONG_CONSTRUCTIONS, ids=[str(w[0]) for w in WRONG_CONSTRUCTIONS]
)
def test_wrong_construction(options, error, match):
    with pytest.raises(error, match=f"^FusedKanervaMemory: .*{match}"):
        FusedKanervaMemory(**{"memory_size": K, "code_size": C, **options})


def test_wrong_calls():
    module, keyed = make(), make(addressing="key", key_size=S)
    values, state = torch.randn(B, T, C), make().prior(B)
    for call, error, match in (
        (lambda: module(values[..., :-1]), ValueError, r"values must have shape \(..., T, code_si"),
        (lambda: module(values.tolist()), TypeError, "values must be a torch.Tensor, got list"),
        (lambda: module(values[0, 0]), ValueError, "values must have shape"),
        (lambda: module(values.long()), TypeError, "values must have a floating-point dtype"),
        (lambda: module.read(values[..., 1:], state), ValueError, "queries must have shape"),
        (lambda: module.write(values, weights=torch.randn(B, T, K + 1)), ValueError, "weights"),
        (lambda: module.write(values, mask=torch.ones(B, T)), TypeError, "mask must be torch.bool"),
        (lambda: module.write(values, mask=torch.ones(B, T + 1) > 0), ValueError, "mask must have"),
        (lambda: module.write(values, mask=[True]), TypeError, "mask must be a torch.Tensor"),
        (lambda: module.write(values, (state.mean,)), TypeError, "state must be a MemoryState"),
        (lambda: module.address(values), ValueError, 'needs a memory with addressing="key"'),
        (lambda: module.write(values, keys=torch.randn(B, T, S)), ValueError, "keys must be None"),
        (lambda: keyed(values), ValueError, "keys must be given"),
        (
            lambda: keyed(values, keys=values),
            ValueError,
            r"keys must have shape \(..., T, key_size",
        ),
        (lambda: keyed.read(values, state), ValueError, "keys must have shape"),
        (lambda: module.generate(state, -1), ValueError, "num_samples"),
        (lambda: module.attractor(values, state, 0), ValueError, "num_steps must be at least 1"),
        (lambda: module.attractor(values, state, 1.0), TypeError, "num_steps must be an int"),
        (lambda: module.attractor(values, state, True), TypeError, "num_steps must be an int"),
        (lambda: module.attractor(values, state, 1, "z"), TypeError, "project must be callable"),
        (lambda: module.attractor(values[..., 1:], state, 1), ValueError, "queries must have"),
        (lambda: module.attractor(values, values, 1), TypeError, "state must be a MemoryState"),
        (
            lambda: module.attractor(values, state, 1, lambda z: z[:, 1:]),
            ValueError,
            r"project must keep the shape \(3, 6, 4\), got \(3, 5, 4\)",
        ),
        (
            lambda: module.attractor(values, state, 1, lambda z: None),
            TypeError,
            "the result of project must be a torch.Tensor, got NoneType",
        ),
        (
            lambda: keyed.attractor(values, state, 1),
            ValueError,
            'attractor needs a memory with addressing="least_squares"',
        ),
        (lambda: module.forget(state, values, values[0, 0]), ValueError, "values must have"),
        (lambda: module.forget(state, values[..., 1:], values), ValueError, "weights must have"),
        (lambda: module.forget(values, values, values), TypeError, "state must be a MemoryState"),
        (lambda: module.forget(state, None, values), ValueError, "weights must be given"),
        (
            lambda: module.forget(state, None, values, keys=torch.randn(B, T, S)),
            ValueError,
            "keys must be None",
        ),
        (lambda: keyed.forget(state, None, values), ValueError, "keys must be given"),
        (lambda: module.score(values, state, keys=values), ValueError, "keys must be given with"),
        (lambda: keyed.score(values, state), ValueError, "keys must be given with"),
        (lambda: module.merge([]), TypeError, "states must be a sequence of MemoryState, at least"),
        (lambda: module.merge(state), TypeError, "states must be a sequence"),
        (lambda: module.merge([state, 3]), TypeError, r"states\[1\] must be a MemoryState"),
        (lambda: module.write(values, noise_var=-1.0), ValueError, "noise_var must be positive"),
        (
            lambda: module.write(values, decay=torch.ones(B, T + 1)),
            ValueError,
            r"decay must have shape \(..., T\) = \(3, 6\)",
        ),
        (lambda: module.write(values, decay=[0.5]), TypeError, "decay must be a float or a torch"),
        (lambda: module.write(values, decay=0.5, noise_var=0), ValueError, "noise_var must be pos"),
        (lambda: module.write(values, decay=1.5), ValueError, r"decay must be in \(0, 1\]"),
        (lambda: module.prior(-1), ValueError, "batch_size"),
    ):
        with pytest.raises(error, match=match):
            call()
