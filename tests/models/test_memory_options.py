"""FusedKanervaMemory: noise and decay of a write, forgetting, merging, scores, what is saved."""

import math
import warnings

import numpy as np
import pytest
import torch

import kanerva_ext
from kanerva_ext import FusedKanervaMemory, MemoryState, ops
from kanerva_ext.data import load_omniglot

B, T, K, C, S = 3, 20, 4, 9, 5


def make(**options):
    return FusedKanervaMemory(K, C, noise_std=0.3, **options).double()


def keyed(**options):
    return make(addressing="key", key_size=S, **options)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


NUMBERS = {
    "decay": (0.9, torch.tensor(0.8), torch.rand(B, T) * 0.5 + 0.5, torch.full((B, 1), 0.7)),
    "noise_var": (0.5, torch.tensor(0.2), torch.rand(B, T) + 0.1, torch.full((B, 1), 2.0)),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_write_iters", [1, 3])
@pytest.mark.parametrize("which", [("decay",), ("noise_var",), ("decay", "noise_var")], ids=str)
def test_noise_and_decay_with_least_squares(which, num_write_iters, masked):
    """Code by code: the covariance decays, the address is solved, the code is written."""
    module = make(num_write_iters=num_write_iters)
    values = randn(B, T, C)
    mask = torch.rand(B, T) < 0.6 if masked else torch.ones(B, T, dtype=torch.bool)
    for i in range(4):
        given = {name: NUMBERS[name][i] for name in which}
        steps = {
            name: torch.as_tensor(x, dtype=torch.float64).expand(B, T) for name, x in given.items()
        }
        state, addresses, evidence = module.prior(B), [], 0
        for t in range(T):
            code, own = values[:, t : t + 1], mask[:, t : t + 1]
            noise = steps["noise_var"][:, t : t + 1] if "noise_var" in steps else 0.09
            decay = steps["decay"][:, t : t + 1] if "decay" in steps else None
            mean = state.mean
            for _ in range(num_write_iters):
                weights = ops.solve_addresses(mean, code, 0.09)
                mean, cov, term = ops.bayes_write(
                    *state, weights, code, noise, mask=own, decay=decay
                )
            state, evidence = MemoryState(mean, cov), evidence + term
            addresses.append(torch.where(own[..., None], weights, 0))
        out = module.write(values, mask=mask if masked else None, **given)
        torch.testing.assert_close(out.state, state)
        torch.testing.assert_close(out.weights, torch.cat(addresses, 1))
        torch.testing.assert_close(out.log_evidence, evidence)
        torch.testing.assert_close(out.kl_memory, ops.memory_kl(*state, *module.prior(B)))


def test_noise_and_decay_at_given_addresses_and_keys():
    module, values, keys = keyed(), randn(B, T, C), randn(B, T, S)
    weights = module.address(keys)
    for decay, noise in zip(NUMBERS["decay"], NUMBERS["noise_var"], strict=True):
        mean, cov, evidence = ops.bayes_write(*module.prior(B), weights, values, noise, decay=decay)
        for given in ({"keys": keys}, {"weights": weights}):
            out = module.write(values, noise_var=noise, decay=decay, **given)
            torch.testing.assert_close(out.state, MemoryState(mean, cov))
            torch.testing.assert_close(out.log_evidence, evidence)


def test_decay_has_gradients_and_takes_long_strong_forgetting():
    module = make()
    values = randn(1, 3, C).requires_grad_()
    decay = torch.full((1, 3), 0.8, dtype=torch.float64, requires_grad=True)

    def function(values, decay):
        out = module.write(values, decay=decay)
        return out.state.mean, out.state.cov, out.log_evidence

    assert torch.autograd.gradcheck(function, (values, decay))
    out = make().write(randn(2, 100, C), decay=0.3)  # 0.3^100 = 5e-53
    assert out.state.mean.isfinite().all() and out.log_evidence.isfinite().all()
    assert make().write(randn(2, 0, C), decay=0.3).weights.shape == (2, 0, K)


def test_forget_by_keys_and_noise():
    module = keyed()
    first, second = (randn(B, T, C), randn(B, T, S)), (randn(B, T, C), randn(B, T, S))
    noise, mask = torch.rand(B, T, dtype=torch.float64) + 0.1, torch.rand(B, T) < 0.7
    before = module.write(first[0], keys=first[1]).state
    after = module.write(second[0], before, keys=second[1], noise_var=noise, mask=mask).state
    got = module.forget(after, None, second[0], mask.int(), True, keys=second[1], noise_var=noise)
    torch.testing.assert_close(got, before, rtol=1e-8, atol=1e-9)


def test_forget_is_exact_at_the_addresses_that_were_used():
    """And the docstring says so: later addresses were solved with the code in memory."""
    module = make()
    a, b = randn(1, 3, C), randn(1, 3, C)
    first = module.write(a)
    both = module.write(b, first.state)
    got = module.forget(both.state, first.weights, a, check=True)
    at_these = module.write(b, weights=both.weights).state
    torch.testing.assert_close(got, at_these, rtol=1e-8, atol=1e-9)
    never = module.write(b).state
    assert (got.mean - never.mean).norm() > 0.05 * never.mean.norm()
    text = " ".join(FusedKanervaMemory.forget.__doc__.split())
    assert (
        "at these addresses" in text
        and "Not noticed:" in text
        and "a wrong value at a right address" in text
    )
    wrong = module.forget(both.state, first.weights, a + 1, check=True)  # as the text says
    assert (wrong.mean - got.mean).norm() > 0.05 * got.mean.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_merge(dtype):
    module = keyed().to(dtype)
    parts = [(randn(B, t, C).to(dtype), randn(B, t, S).to(dtype)) for t in (5, 1, 8)]
    states = [module.write(v, keys=k).state for v, k in parts]
    values, keys = (torch.cat(x, 1) for x in zip(*parts, strict=True))
    want = module.write(values, keys=keys).state
    close = {} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    got = module.merge(states)
    assert isinstance(got, MemoryState) and got.mean.dtype == dtype
    torch.testing.assert_close(got, want, **close)
    torch.testing.assert_close(module.merge(states[:1]), states[0], **close)
    # From a prior of one's own: what every part was written from.
    base = states[0]
    more = [module.write(v, base, keys=k).state for v, k in parts[1:]]
    torch.testing.assert_close(module.merge(more, base), want, **close)
    module.merge(states).mean.sum().backward()
    assert module.prior_mean.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int8], ids=str)
def test_integer_masks(dtype):
    module, values = make(), randn(B, T, C)
    mask = torch.rand(B, T) < 0.6
    want, got = module(values, mask=mask), module(values, mask=mask.to(dtype))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    state = want.state
    torch.testing.assert_close(
        module.read(values, state, mask.to(dtype)), module.read(values, state, mask)
    )
    torch.testing.assert_close(
        module.score(values, state, mask.to(dtype)), module.score(values, state, mask)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("noise_std", [1e-4, 0.1])
def test_a_written_address_has_a_variance(noise_std, dtype):
    """At a noise variance of 1e-8 the covariance holds nothing of it in float32."""
    module = FusedKanervaMemory(32, 100, noise_std=noise_std).to(dtype)
    values = torch.randn(16, 24, 100, dtype=dtype)
    out = module(values)
    assert (out.var > 0).all()
    diagonal = out.state.cov.diagonal(dim1=-2, dim2=-1)[:, None]
    floor = torch.finfo(dtype).eps * (out.weights.square() * diagonal).sum(-1)
    assert (out.var >= floor).all()
    raw = ops.read(*out.state, out.weights)[1]
    above = raw > floor
    torch.testing.assert_close(out.var[above], raw[above])  # and is left alone otherwise
    mask = torch.rand(16, 24) < 0.5
    assert (module(values, mask=mask).var[~mask] == 0).all()


def test_an_empty_memory_reads_zero():
    module = keyed(prior_mean_std=0)
    assert (module.read(randn(B, T, S), module.prior(B)).values == 0).all()
    values, keys = randn(B, T, C), randn(B, T, S)
    assert (module(values, keys=keys).values != 0).any()
    module(values, keys=keys).values.sum().backward()
    assert (module.prior_mean.grad != 0).any()
    for std in (1.0, 0.1):
        module = FusedKanervaMemory(50, 100, prior_mean_std=std)
        got = module.prior_mean.std().item()
        assert abs(got / std - 0.88) < 0.03  # a normal truncated at two deviations
        assert module.prior_mean.abs().max() <= 2 * std


def test_as_many_slots_as_columns_warn():
    for sizes in ((4, 4), (5, 4)):
        with pytest.warns(UserWarning, match="memory_size = . should be below code_size = 4") as w:
            FusedKanervaMemory(*sizes)
        assert w[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FusedKanervaMemory(3, 4)
        FusedKanervaMemory(5, 4, addressing="key", key_size=2)
    # Because: any query is read back from the prior alone.
    with pytest.warns(UserWarning):
        full = FusedKanervaMemory(8, 8, noise_std=0.01)
    queries = torch.randn(1, 5, 8)
    error = (full.read(queries, full.prior(1)).values - queries).norm() / queries.norm()
    assert error < 0.2


# ------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("sizes", [(4, 9), (9, 4)])
@pytest.mark.parametrize("learn_noise", [False, True])
def test_score_is_the_density(sizes, learn_noise):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = FusedKanervaMemory(
            *sizes, noise_std=0.3, weight_std=0.7, learn_noise=learn_noise
        ).double()
    values = randn(2, 6, sizes[1])
    state = module.write(values).state
    queries = torch.cat([values, randn(2, 3, sizes[1]), torch.zeros(2, 1, sizes[1])], 1)
    mean = state.mean
    cov = 0.49 * mean.mT @ mean + 0.09 * torch.eye(sizes[1], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal
    zero = torch.zeros(sizes[1], dtype=torch.float64)
    want = torch.stack([normal(zero, cov[i]).log_prob(queries[i]) for i in range(2)])
    got = module.score(queries, state, normalize=False)
    torch.testing.assert_close(got, want)
    power = queries.square().mean(-1).clamp(min=0.09).sqrt()
    rival = torch.distributions.Normal(0.0, power[..., None]).log_prob(queries).sum(-1)
    torch.testing.assert_close(module.score(queries, state), (want - rival) / sizes[1])
    mask = torch.tensor([True] * 4 + [False] * 6)
    assert (module.score(queries, state, mask)[:, ~mask] == 0).all()


def test_score_of_values_at_keys():
    module, values, keys = keyed(), randn(2, 6, C), randn(2, 6, S)
    state = module.write(values, keys=keys).state
    read = module.read(keys, state)
    std = (read.var + 0.09).sqrt()[..., None]
    want = torch.distributions.Normal(read.values, std).log_prob(values).sum(-1)
    torch.testing.assert_close(module.score(values, state, keys=keys, normalize=False), want)
    assert (module.score(values, state, keys=keys) > module.score(-values, state, keys=keys)).all()


def auc(high, low):
    """How often one of ``high`` is above one of ``low``."""
    high, low = high.flatten()[:, None], low.flatten()
    return ((high > low).double() + (high == low).double() / 2).mean().item()


@pytest.mark.parametrize("noise_std", [0.05, 0.1])
def test_score_separates_real_images(noise_std):
    """Written characters from unwritten, corrupted and blank ones, and from faint ones."""
    images = load_omniglot("test")[0].flatten(1).float()
    images = images[torch.randperm(len(images))[:480]].unflatten(0, (10, 48))
    written, unwritten = images.split(24, 1)
    module = FusedKanervaMemory(32, 784, noise_std=noise_std)
    with torch.no_grad():
        state = module.write(written).state
        noise = (torch.rand_like(written) < 0.5).float()
        others = {
            "unwritten": unwritten,
            "corrupted": torch.where(torch.rand_like(written) < 0.1, noise, written),
            "blank": torch.zeros_like(written),
            "faint": 0.1 * unwritten,
        }
        score = module.score(written, state)
        for name, queries in others.items():
            assert auc(score, module.score(queries, state)) > 0.97, name
        # What the variance says, on which the score improves: blank images are the most familiar.
        var = module.read(written, state).var
        assert auc(-var, -module.read(others["blank"], state).var) < 0.01


# ------------------------------------------------------------------------- saved and loaded


def test_noise_and_weight_std_are_saved_and_checked():
    saved = FusedKanervaMemory(K, C, noise_std=1.0, weight_std=0.5).state_dict()
    FusedKanervaMemory(K, C, noise_std=1.0, weight_std=0.5).load_state_dict(saved)
    model = torch.nn.ModuleDict({"memory": FusedKanervaMemory(K, C, noise_std=0.1)})
    nested = {f"memory.{name}": x for name, x in saved.items()}
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(nested)
    assert "memory.noise_std is 1 in the checkpoint and 0.1 in this" in str(error.value)
    assert "memory.weight_std is 0.5 in the checkpoint and 1 in this" in str(error.value)
    del nested["memory._extra_state"]  # as the message says, and as old checkpoints are
    assert str(model.load_state_dict(nested)) == "<All keys matched successfully>"
    learned = FusedKanervaMemory(K, C, noise_std=1.0, learn_noise=True)
    other = FusedKanervaMemory(K, C, noise_std=0.1, learn_noise=True)
    other.load_state_dict(learned.state_dict())  # its own parameter says it
    assert other.noise_var.item() == pytest.approx(1.0)
    assert all(isinstance(x, torch.Tensor) for x in saved.values())  # as safetensors wants


def test_old_checkpoints_load():
    """Their parameters were 0-d and they said nothing of the noise."""
    module = FusedKanervaMemory(K, C, learn_noise=True, sample_weights=True, prior_var=3.0)
    saved = module.state_dict()
    del saved["_extra_state"]
    for name in ("log_prior_var", "log_noise_std", "log_weight_std"):
        assert saved[name].shape == (1,)
        saved[name] = saved[name].squeeze(0)
    other = FusedKanervaMemory(K, C, learn_noise=True, sample_weights=True)
    assert str(other.load_state_dict(saved)) == "<All keys matched successfully>"
    assert other.log_prior_var.item() == pytest.approx(math.log(3))
    assert other.noise_var.shape == ()


def test_parameters_are_reset_after_to_empty():
    for options in ({"learn_noise": True, "sample_weights": True}, {"addressing": "key"}):
        options |= {"key_size": 3} if options.get("addressing") == "key" else {}
        with torch.device("meta"):
            module = FusedKanervaMemory(K, C, noise_std=0.3, **options)
        module.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(torch.nan)
        module.reset_parameters()
        assert all(p.isfinite().all() for p in module.parameters())
        assert module.log_prior_var.item() == 0


def test_numpy_scalars_are_numbers():
    module = FusedKanervaMemory(
        np.int64(K), np.int32(C), noise_std=np.float32(0.5), prior_var=np.float64(2)
    )
    values = torch.randn(B, T, C)
    assert module.prior(np.int64(2)).mean.shape == (2, K, C)
    assert module.generate(module.prior(2), np.int64(3)).shape == (2, 3, C)
    want = module.write(values, noise_var=0.5, decay=0.5).state
    got = module.write(values, noise_var=np.float32(0.5), decay=np.float32(0.5)).state
    torch.testing.assert_close(got, want)
    prior = module.prior(B)
    for number in (np.float32(0.5), np.float64(0.5), np.int64(1)):
        plain = float(number)
        torch.testing.assert_close(
            ops.solve_addresses(prior.mean, values, number),
            ops.solve_addresses(prior.mean, values, plain),
        )
        ops.adaptive_write(*prior, values, number, number, num_iters=np.int64(2))
    out = ops.causal_scan(
        *prior, randn(B, T, K).float(), values, randn(B, T, K).float(), np.float32(1),
        chunk_size=np.int64(4),
    )  # fmt: skip
    assert out[0].shape == (B, T, C)
    kanerva_ext.KanervaLayer(np.int64(8), np.int32(2), conv_size=np.int64(3))
    for wrong in (np.bool_(True), "1", 1j):
        with pytest.raises(TypeError, match="noise_var must be"):
            module.write(values, noise_var=wrong)


# ------------------------------------------------------------------------- is it used


def test_compare_memories():
    module = FusedKanervaMemory(8, 32, noise_std=0.1, sample_weights=True)
    with torch.no_grad():
        module.log_weight_std.fill_(-5)
    codes = torch.randn(4, 6, 32)
    before = torch.random.get_rng_state()
    errors = kanerva_ext.compare_memories(module, lambda: (module(codes).values - codes).square())
    assert torch.equal(torch.random.get_rng_state(), before)
    again = kanerva_ext.compare_memories(module, lambda: (module(codes).values - codes).square())
    assert errors == again and isinstance(errors.own, float)
    written = module.write(codes).state

    def loss(state):
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return (module.read(codes, state).values - codes).square().mean().item()

    assert errors.own == pytest.approx(loss(written))
    assert errors.other == pytest.approx(loss(MemoryState(*(x.roll(1, 0) for x in written))))
    assert errors.prior == pytest.approx(loss(module.prior(4)))
    assert errors.own < 0.5 * min(errors.other, errors.prior)
    # A model that does not look shows three equal numbers, and a failing loss leaves no trace.
    ignoring = kanerva_ext.compare_memories(module, lambda: codes.square())
    assert ignoring.own == ignoring.other == ignoring.prior
    with pytest.raises(ValueError, match="at least 2 memories"):
        kanerva_ext.compare_memories(module, lambda: module(codes[:1]).values)
    assert module._read_from is None
    for args, message in (((3, len), "memory must be a Fused"), ((module, 3), "loss must be")):
        with pytest.raises(TypeError, match=f"compare_memories: {message}"):
            kanerva_ext.compare_memories(*args)


def test_a_state_of_other_sizes_is_refused():
    memory = FusedKanervaMemory(3, 8, sample_weights=True)
    other = FusedKanervaMemory(5, 8).prior(2)
    codes = torch.randn(2, 4, 8)
    for call in (
        lambda state: memory.read(codes, state),
        lambda state: memory.write(codes, state),
        lambda state: memory.generate(state, 2),
        lambda state: memory.score(codes, state),
        lambda state: memory.merge([state]),
        lambda state: memory.attractor(codes, state, 2),
        lambda state: memory.forget(state, torch.randn(2, 4, 3), codes),
    ):
        with pytest.raises(ValueError, match=r"= \(\.\.\., 3, 8\), got \(2, 5, 8\)"):
            call(other)
        with pytest.raises(TypeError, match="must hold a mean of tensors, got int"):
            call((1, 2))


def test_masked_nan_in_given_addresses_has_no_gradient():
    memory = FusedKanervaMemory(3, 8)
    weights = torch.randn(1, 4, 3)
    weights[0, 2] = float("nan")
    weights.requires_grad_()
    out = memory.write(torch.randn(1, 4, 8), weights=weights, mask=torch.tensor([[1, 1, 0, 1]]))
    (out.kl_weights.sum() + out.kl_memory.sum()).backward()
    assert torch.equal(weights.grad[0, 2], torch.zeros(3))
    assert weights.grad.isfinite().all() and weights.grad.count_nonzero() == 9


def test_a_mask_of_another_batch_is_refused():
    memory = FusedKanervaMemory(3, 8)
    with pytest.raises(ValueError, match=r"broadcasts with \(2, 4\), got \(3, 4\)"):
        memory.write(torch.randn(2, 4, 8), mask=torch.ones(3, 4, dtype=torch.bool))


@pytest.mark.parametrize("name", ["noise_std", "weight_std", "prior_var", "prior_mean_std"])
@pytest.mark.parametrize("value", [1e-23, 1e50])
def test_numbers_whose_squares_float32_does_not_hold_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be in 1e-18 \.\. 1e\+18"):
        FusedKanervaMemory(3, 8, **{name: value})


def test_sampling_is_exported_with_a_dynamic_batch():
    memory = FusedKanervaMemory(3, 8, sample_weights=True, sample_memory=True)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(memory, (torch.randn(2, 4, 8),), dynamic_shapes=({0: batch},))
    assert program.module()(torch.randn(3, 4, 8)).values.shape == (3, 4, 8)


def test_a_comparison_needs_a_number():
    memory = FusedKanervaMemory(3, 8)
    with pytest.raises(TypeError, match="must return a float or a tensor, got NoneType"):
        kanerva_ext.compare_memories(memory, lambda: None)
