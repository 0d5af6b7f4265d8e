"""The Kanerva Machine, the VAE that matches it, and their training."""

import copy
import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from kanerva_ext.data import load_omniglot, salt_and_pepper, split_episodes
from kanerva_ext.models import (
    ConvDecoder,
    ConvEncoder,
    DynamicKanervaMachine,
    KanervaMachine,
    MatchedVAE,
    evaluate,
    train,
)
from kanerva_ext.models import _common as common
from kanerva_ext.models.likelihoods import BernoulliPixels

SMALL = {"code_size": 12, "hidden_size": 16, "num_filters": 4}


pytestmark = pytest.mark.usefixtures("one_thread")


def kanerva(**options):
    torch.manual_seed(0)
    return KanervaMachine(**({"memory_size": 8, "key_size": 6, "latent_size": 5} | SMALL | options))


def vae(**options):
    torch.manual_seed(0)
    return MatchedVAE(**(SMALL | options))


@pytest.fixture(scope="module")
def episodes():
    return split_episodes(
        load_omniglot("train")[0], episode_length=8, generator=torch.Generator().manual_seed(0)
    )[:4]


def repeat(batch):
    while True:
        yield batch


@pytest.mark.parametrize("make", [kanerva, vae])
def test_terms(make, episodes):
    terms = make().elbo(episodes)
    parts = [term for name, term in terms._asdict().items() if name not in ("bound", "kl_memory")]
    assert all(term.shape == (4, 8) and term.isfinite().all() for term in (terms.bound, *parts))
    assert all((term >= 0).all() for term in parts)
    torch.testing.assert_close(terms.bound, sum(parts))


def test_memory_term(episodes):
    model = kanerva()
    terms = model.elbo(episodes)
    assert terms.kl_memory.shape == (4,)
    assert (terms.kl_memory > 0).all()
    assert model.elbo(episodes, model.write(episodes).state).kl_memory is None


@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("sample", [False, True])
def test_gradients_reach_every_parameter_of_the_kanerva_machine(episodes, sample, queries):
    model = kanerva(sample_write_address=sample).train()
    # A zero-initialised convolution stops the gradient of the one before it: one step frees it.
    train([model], repeat(episodes), steps=1)
    model.train()
    model.zero_grad()
    extra = {"queries": episodes[:, :3]} if queries else {}
    model(episodes, **extra).bound.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_gradients_reach_every_parameter_of_the_vae(episodes):
    model = vae()
    train([model], repeat(episodes), steps=1)
    model.zero_grad()
    model(episodes).bound.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_kl_equals_torch_distributions():
    torch.manual_seed(0)
    mean, log_std, other = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    std = 1.7
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(other, std)).sum(-1)
    torch.testing.assert_close(common.kl_normal(mean, log_std, other, std**2), expected)
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(common.kl_normal(mean, log_std), expected)


def test_reconstruction_equals_torch_distributions():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 1, 5, 5, dtype=torch.float64)
    images = (torch.rand(2, 3, 1, 5, 5) < 0.5).double()
    expected = -Bernoulli(logits=logits).log_prob(images).sum((-1, -2, -3))
    torch.testing.assert_close(BernoulliPixels().nll(logits, images), expected)


def test_bound_equals_the_model_written_out_with_torch_distributions(episodes):
    """The same random numbers, the memory by its textbook formulas, the rest by distributions."""
    model = kanerva(code_std=0.7, noise_std=0.5).double().eval()
    x = episodes.double()
    torch.manual_seed(5)
    terms = model.elbo(x)

    torch.manual_seed(5)
    features = model.encoder(x)
    y_mean, y_log_std = model.latent(features)
    z_mean, z_log_std = model.write_code(features)
    z = z_mean + z_log_std.exp() * torch.randn_like(z_mean)
    matrix = model.memory.address_matrix
    matrix = matrix / matrix.norm(dim=1, keepdim=True)
    w = model.key(y_mean) @ matrix.mT
    prior_mean, prior_var = model.memory.prior_mean, model.memory.log_prior_var.exp()
    precision = torch.eye(8, dtype=x.dtype) / prior_var + w.mT @ w / 0.5**2
    mean = torch.linalg.solve(precision, prior_mean / prior_var + w.mT @ z / 0.5**2)
    y = y_mean + y_log_std.exp() * torch.randn_like(y_mean)
    read = model.key(y) @ matrix.mT @ mean
    distance, log_std = model.read_code(torch.cat([features, read], dim=-1))
    posterior = Normal(read + distance, log_std.exp())
    code = posterior.mean + posterior.stddev * torch.randn_like(read)
    pixels = Bernoulli(logits=model.decoder(code)).log_prob(x)

    torch.testing.assert_close(terms.reconstruction, -pixels.sum((-1, -2, -3)))
    q_y = Normal(y_mean, y_log_std.exp())
    torch.testing.assert_close(terms.kl_y, kl_divergence(q_y, Normal(0.0, 1.0)).sum(-1))
    torch.testing.assert_close(terms.kl_z, kl_divergence(posterior, Normal(read, 0.7)).sum(-1))


def test_reading_draws_a_fresh_address(episodes):
    """At the sample that was written, reading would be free of charge and the bound void."""
    model = kanerva(sample_write_address=True).eval()
    drawn = []
    model.key.register_forward_hook(lambda module, inputs, output: drawn.append(output))
    model.elbo(episodes)
    assert len(drawn) == 2
    assert not torch.isclose(drawn[0], drawn[1]).all(-1).any()


def test_encoder_noise_is_for_training_alone(episodes):
    model = kanerva()
    features = model.encoder(episodes)
    model.eval()
    assert torch.equal(model._latent(features)[0], model._latent(features)[0])
    model.train()
    assert not torch.equal(model._latent(features)[0], model._latent(features)[0])


def test_reading_reads_the_memory_it_is_given(episodes):
    model = kanerva().eval()
    own = model.write(episodes).state
    torch.testing.assert_close(model.denoise(episodes, own, 1)[0], model.reconstruct(episodes, own))
    other = model.write(episodes.roll(1, 0)).state
    assert not torch.allclose(model.reconstruct(episodes, own), model.reconstruct(episodes, other))


def test_any_number_of_images_can_be_read(episodes):
    model = kanerva().eval()
    state = model.write(episodes).state
    assert model.reconstruct(episodes[:, :3], state).shape == (4, 3, 1, 28, 28)


def test_shapes_and_ranges_of_pictures(episodes):
    model = kanerva().eval()
    state = model.write(episodes).state
    pictures = {
        (3, 4, 8, 1, 28, 28): model.denoise(episodes, state),
        (4, 8, 1, 28, 28): model.reconstruct(episodes),
        (4, 5, 1, 28, 28): model.generate(state, 5, num_steps=2),
        (6, 1, 28, 28): vae().generate(6),
        (2, 4, 8, 1, 28, 28): vae().denoise(episodes, 2),
    }
    for shape, images in pictures.items():
        assert images.shape == shape
        assert not images.requires_grad
        assert ((images >= 0) & (images <= 1)).all()


def test_each_read_is_the_next_query(episodes):
    model = kanerva().eval()
    state = model.write(episodes).state
    steps = model.denoise(episodes, state, 3)
    torch.testing.assert_close(model.denoise(steps[0], state, 2), steps[1:])


def test_with_noise_the_next_query_keeps_what_was_seen(episodes):
    model = kanerva().eval()
    state = model.write(episodes).state
    first, second = model.denoise(episodes, state, 2, noise=0.2)
    seen_right, seen_wrong = Bernoulli(0.9), Bernoulli(0.1)
    ink = first * torch.where(episodes > 0, *(d.mean for d in (seen_right, seen_wrong)))
    blank = (1 - first) * torch.where(episodes > 0, seen_wrong.mean, seen_right.mean)
    query = ink / (ink + blank)
    torch.testing.assert_close(second, model.reconstruct(query, state))
    assert not torch.allclose(second, model.denoise(episodes, state, 2)[1])


def test_pixel_posterior_is_bayes_rule_by_counting():
    torch.manual_seed(0)
    clean = (torch.rand(400_000) < 0.3).float()
    seen = salt_and_pepper(clean, 0.4)
    for value in (0.0, 1.0):
        posterior = common.next_query(torch.tensor(0.3), torch.tensor(value), 0.4)
        assert abs(clean[seen == value].mean() - posterior) < 0.01


def test_queries_are_read_and_images_are_scored(episodes):
    model = kanerva().eval()

    def bound(**options):
        torch.manual_seed(1)
        return model.elbo(episodes, **options).bound

    torch.testing.assert_close(bound(queries=episodes[:, :3]), bound())
    blank = bound(queries=torch.zeros_like(episodes[:, :3]))
    assert (blank[:, :3] != bound()[:, :3]).all()
    torch.testing.assert_close(blank[:, 3:], bound()[:, 3:])


@pytest.mark.parametrize("image_size", [8, 11, 28, 32])
def test_coders_mirror_each_other(image_size):
    encoder = ConvEncoder(7, num_filters=4, image_size=image_size)
    decoder = ConvDecoder(7, num_filters=4, image_size=image_size)
    images = torch.rand(2, 3, 1, image_size, image_size)
    assert encoder(images).shape == (2, 3, 7)
    assert decoder(encoder(images)).shape == images.shape


def test_coders_take_no_images():
    assert ConvEncoder(7, num_filters=4)(torch.zeros(2, 0, 1, 28, 28)).shape == (2, 0, 7)


def test_decoder_starts_at_the_ink_of_omniglot():
    torch.manual_seed(0)
    decoder = ConvDecoder(100, initial_output=BernoulliPixels.initial_output)
    assert 0.05 < decoder(torch.zeros(1, 100)).sigmoid().mean() < 0.12


@pytest.mark.slow
def test_training_makes_the_memory_matter(episodes):
    """Four fixed episodes, a few seconds: the right memory is then better than another one."""
    torch.manual_seed(0)
    model = KanervaMachine(8, 24, key_size=12, latent_size=10, hidden_size=64, num_filters=8)
    before = model.eval().elbo(episodes).bound.mean()
    assert train([model], repeat(episodes), steps=250) == 250
    assert not model.training
    with torch.no_grad():
        own = model.elbo(episodes).bound.mean()
        other = model.elbo(episodes, model.write(episodes.roll(1, 0)).state).bound.mean()
    assert own < before - 50
    assert own < other - 3


@pytest.mark.parametrize("threads", [1, 2])
def test_training_repeats_by_seed(episodes, threads):
    """Also side by side: neither model's random numbers depend on the other's."""

    def bounds(make, seed, threads):
        seen = []
        train(
            [model() for model in make],
            repeat(episodes),
            steps=4,
            seed=seed,
            threads=threads,
            on_step=lambda now: seen.append(now.bounds),
        )
        return list(zip(*seen, strict=True))

    both = bounds([kanerva, vae], 3, threads)
    assert both == [*bounds([kanerva], 3, 1), *bounds([vae], 3, 1)]
    assert both != bounds([kanerva, vae], 4, threads)


def test_training_stops_in_time(episodes):
    seen = []
    steps = train([vae()], repeat(episodes), seconds=0.3, on_step=seen.append)
    assert steps == len(seen) == seen[-1].step
    assert seen[-2].progress < 1 == seen[-1].progress
    assert seen[-1].seconds >= 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "steps or seconds must be given"),
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"seconds": -1.0}, "seconds must be positive, got -1"),
    ],
)
def test_bad_budgets(options, message, episodes):
    with pytest.raises(ValueError, match=message):
        train([vae()], repeat(episodes), **options)


def test_training_that_diverges_says_so(episodes):
    with pytest.raises(RuntimeError, match="bound of MatchedVAE is nan at step 1"):
        train([vae()], repeat(torch.full_like(episodes, math.nan)), steps=3)


def test_evaluation_repeats_and_leaves_no_trace():
    images = load_omniglot("test")[0][:70]
    model = kanerva().train()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = evaluate(model, images, rounds=2)
    assert torch.equal(torch.rand(3), expected)
    assert first == evaluate(model, images, rounds=2)
    assert model.training
    assert set(first) == {
        "bound", "reconstruction", "kl_y", "kl_z", "kl_memory", "standard_error"
    }  # fmt: skip
    parts = first["reconstruction"] + first["kl_y"] + first["kl_z"]
    assert math.isclose(first["bound"], parts, rel_tol=1e-5)


def test_evaluation_needs_two_episodes_for_another_memory():
    with pytest.raises(ValueError, match="two episodes of 32"):
        evaluate(kanerva(), load_omniglot("test")[0][:40], other_memory=True)


@pytest.mark.parametrize("make", [kanerva, vae])
def test_round_trips(make, episodes):
    model = make().eval()
    other = type(model)(**model.config).eval()
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model)):
        torch.manual_seed(1)
        expected = model.elbo(episodes).bound
        torch.manual_seed(1)
        torch.testing.assert_close(twin.elbo(episodes).bound, expected)


@pytest.mark.parametrize("make", [kanerva, vae])
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (None, TypeError, "images must be a torch.Tensor, got NoneType"),
        (torch.zeros(4, 28, 28), ValueError, r"\(B, T, 1, 28, 28\), got \(4, 28, 28\)"),
        (torch.zeros(2, 3, 1, 27, 28), ValueError, r"got \(2, 3, 1, 27, 28\)"),
        (torch.zeros(2, 3, 1, 28, 28, dtype=torch.bool), TypeError, "floating point"),
    ],
)
def test_bad_images(make, images, error, message):
    with pytest.raises(error, match=message):
        make().elbo(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"code_size": 0}, "code_size must be a positive int, got 0"),
        ({"hidden_size": 2.5}, "hidden_size must be a positive int, got 2.5"),
        ({"num_filters": -1}, "num_filters must be a positive int, got -1"),
        ({"image_size": 7}, "image_size must be at least 8 for 3 blocks, got 7"),
    ],
)
@pytest.mark.parametrize("make", [kanerva, vae])
def test_bad_sizes(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_size": 0}, "latent_size must be a positive int, got 0"),
        ({"memory_size": 0}, "memory_size"),
        ({"code_std": 0.0}, "code_std must be positive and finite, got 0"),
        ({"noise_std": -1.0}, "noise_std must be positive"),
        ({"encoder_noise_std": -0.1}, "encoder_noise_std must be at least 0"),
    ],
)
def test_bad_kanerva_options(options, message):
    with pytest.raises(ValueError, match=message):
        kanerva(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a positive int, got 0"),
        ({"noise": 1.0}, r"noise must be in \[0, 1\), got 1.0"),
        ({"noise": -0.1}, r"noise must be in \[0, 1\), got -0.1"),
    ],
)
def test_bad_denoising(options, message, episodes):
    model = kanerva()
    with pytest.raises(ValueError, match=message):
        model.denoise(episodes, model.memory.prior(4), **options)
    with pytest.raises(ValueError, match=message):
        vae().denoise(episodes, **options)


def test_bad_queries(episodes):
    for model in (kanerva(), vae()):
        with pytest.raises(ValueError, match=r"queries must be .* got \(4, 9\)"):
            model.elbo(episodes, queries=torch.zeros(4, 9, 1, 28, 28))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (KanervaMachine, "code_std", 0.1),
        (KanervaMachine, "encoder_noise_std", 3.0),
        (KanervaMachine, "min_latent_std", 1.0),
        (DynamicKanervaMachine, "num_write_iters", 3),
    ],
)
def test_settings_are_saved_and_checked(kind, name, value):
    sizes = {"memory_size": 4, "code_size": 8, "num_filters": 4}
    saved = kind(**sizes).state_dict()
    kind(**sizes).load_state_dict(saved)
    with pytest.raises(RuntimeError, match=f"{name} is .* in the checkpoint and {value:g} in this"):
        kind(**sizes, **{name: value}).load_state_dict(saved)
