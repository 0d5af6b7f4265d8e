"""Coders with a linear path, against probabilistic PCA and exact posteriors."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from kanerva_ext.models import DynamicKanervaMachine, KanervaMachine, MatchedVAE, evaluate, train
from kanerva_ext.models._common import CodeNormal
from kanerva_ext.models._memory_model import LogScale
from kanerva_ext.models.likelihoods import GaussianPixels, ScaledGaussianPixels
from kanerva_ext.models.linear_path import LinearPath, principal_components
from kanerva_ext.models.matched_vae import VAEBound
from kanerva_ext.models.training import Schedule, Trainer

SIZE, CODE = 8, 5
SHAPE = (3, SIZE, SIZE)
OPTIONS = {
    "code_size": CODE,
    "image_size": SIZE,
    "num_channels": 3,
    "num_filters": 0,
    "hidden_size": 16,
    "likelihood": "gaussian",
    "linear_path": True,
}
MEMORY = {"memory_size": 6}
MODELS = {
    "kanerva": (KanervaMachine, MEMORY | {"key_size": 4, "latent_size": 3}),
    "dynamic": (DynamicKanervaMachine, {"memory_size": 4, "weight_cov": "full"}),
    "isotropic": (DynamicKanervaMachine, {"memory_size": 4}),
    "vae": (MatchedVAE, {}),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def levels(count=400, seed=0):
    """uint8 images with a few strong directions."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(CODE + 3, math.prod(SHAPE), generator=torch.Generator().manual_seed(9))
    images = torch.randn(count, CODE + 3, generator=generator) @ mix * 12 + 128
    images += 6 * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 255).round().to(torch.uint8).view(count, *SHAPE)


def dequantized(images, seed=1):
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    return ((images + noise) / 256).clamp(max=1 - 2**-20)


def make(name, double=False, **options):
    torch.manual_seed(0)
    kind, own = MODELS[name]
    model = kind(**(OPTIONS | own | options))
    model.start_linear_path(levels())
    return model.double() if double else model


def test_principal_components_are_those_of_the_covariance_with_the_noise_in_it():
    images = levels()
    found = principal_components(images, CODE)
    flat = images.flatten(1).double() / 256
    cov = torch.cov(flat.mT) + torch.eye(flat.shape[1]).double() / 12 / 256**2
    values = torch.linalg.eigvalsh(cov).flip(0)
    torch.testing.assert_close(found.variances, values[:CODE])
    torch.testing.assert_close(found.noise_var, values[CODE:].mean().item())
    torch.testing.assert_close(found.mean, flat.mean(0) + 0.5 / 256)
    torch.testing.assert_close(found.directions @ cov, values[:CODE, None] * found.directions)
    torch.testing.assert_close(found.directions @ found.directions.mT, torch.eye(CODE).double())


def test_the_likelihood_is_that_of_the_whole_normal_distribution():
    found = principal_components(levels(), CODE)
    scale = (found.variances - found.noise_var).sqrt()
    loadings = found.directions.mT * scale
    cov = loadings @ loadings.mT + found.noise_var * torch.eye(len(found.mean)).double()
    test = dequantized(levels(7, seed=2)).double()
    expected = MultivariateNormal(found.mean, cov).log_prob(test.flatten(1))
    torch.testing.assert_close(found.log_likelihood(test), expected)


@pytest.mark.parametrize(
    ("images", "size", "message"),
    [
        (levels(3), 192, r"size must be in \[1, 192\)"),
        (levels(3), 0, r"size must be in \[1, 192\)"),
        (levels(1), 2, "images must be at least 2, got 1"),
    ],
)
def test_bad_arguments_of_principal_components(images, size, message):
    with pytest.raises(ValueError, match=message):
        principal_components(images, size)


def test_codes_are_in_units_of_the_noise():
    path = LinearPath(CODE, SHAPE)
    found = principal_components(levels(), CODE)
    path.start(found)
    images = dequantized(levels(200, seed=3))
    codes = path.encode(images)
    expected = (images.flatten(1).double() - found.mean) @ found.directions.mT
    torch.testing.assert_close(
        codes.double(), expected / found.noise_var**0.5, rtol=1e-4, atol=1e-3
    )
    assert ((codes.var(0) - 1) / path.signal_var).log().abs().max() < 0.5
    # To code and back is the projection on the components.
    back = path.decode(codes).flatten(1).double() - found.mean
    torch.testing.assert_close(back, expected @ found.directions, rtol=1e-4, atol=1e-4)


def test_the_vae_starts_at_the_exact_likelihood_of_probabilistic_pca():
    model = make("vae", double=True)
    found = principal_components(levels(), CODE)
    images = dequantized(levels(64, seed=4)).double()
    exact = -found.log_likelihood(images)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        many = torch.stack(
            [model.elbo(images[None], generator=generator).bound[0] for _ in range(400)]
        )
    error = many.std(0) / math.sqrt(len(many))
    assert ((many.mean(0) - exact).abs() < 4.5 * error).all()
    # The posterior is exact: not only no lower on average, but no higher either, and not by luck.
    assert error.max() < 0.01 * exact.abs().mean()


def test_the_dynamic_machines_full_covariance_makes_the_bound_exact():
    """-ln N(x; decoder's mean, s^2 (W W' + I)) with the loadings that the memory's mean makes."""
    model = make("dynamic", double=True)
    images = dequantized(levels(12, seed=5)).double().view(2, 6, *SHAPE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        state = model.write(images).state
        terms = [model.elbo(images, state, generator=generator) for _ in range(600)]
        noise = model.likelihood.log_std.exp()
        loadings = state.mean @ model.linear.decoder_weight
        cov = loadings.mT @ loadings + noise**2 * torch.eye(loadings.shape[-1]).double()
        normal = MultivariateNormal(model.linear.mean, cov[:, None])
        exact = -normal.log_prob(images.flatten(2))
    many = torch.stack([t.bound for t in terms])
    error = many.std(0) / math.sqrt(len(many))
    assert ((many.mean(0) - exact).abs() < 4.5 * error).all()
    assert error.max() < 0.01 * exact.abs().mean()
    isotropic = make("isotropic", double=True)
    isotropic.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        loose = isotropic.elbo(images, state, generator=generator).bound
    assert loose.mean() > exact.mean() + 1


def test_a_code_is_between_what_was_seen_and_what_was_expected():
    torch.manual_seed(0)
    var = torch.tensor([0.01, 1.0, 30.0])
    head = CodeNormal(4, 8, 3, expects=True)
    head.start(var)
    features, code, expected = torch.randn(5, 4), torch.randn(5, 3), torch.randn(5, 3)
    distance, log_std = head(features, code, expected)
    torch.testing.assert_close(distance, var / (1 + var) * (code - expected))
    torch.testing.assert_close(log_std.exp(), (var / (1 + var)).sqrt().expand(5, 3))


@pytest.mark.parametrize("filters", [0, 4])
@pytest.mark.parametrize("likelihood", ["gaussian", "scaled_gaussian"])
@pytest.mark.parametrize("name", ["kanerva", "dynamic", "vae"])
def test_gradients_reach_every_parameter(name, likelihood, filters):
    model = make(name, likelihood=likelihood, num_filters=filters)
    images = dequantized(levels(12)).view(2, 6, *SHAPE)
    batches = iter(lambda: images, None)
    train([model], batches, steps=3, corrupted=0)
    model.train().zero_grad()
    terms = model(images)
    loss = terms.bound.mean() + (terms.autoencoding.mean() if name == "dynamic" else 0)
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ["kanerva", "dynamic", "vae"])
def test_the_convolutions_add_nothing_at_first(name):
    images = dequantized(levels(12)).view(2, 6, *SHAPE)
    with_them, without = make(name, num_filters=4), make(name)
    missing = with_them.load_state_dict(without.state_dict(), strict=False).missing_keys
    assert missing and all("encoder" in n or "decoder" in n or "image_" in n for n in missing)
    bounds = []
    for model in (with_them.eval(), without.eval()):
        bounds.append(model.elbo(images, generator=torch.Generator().manual_seed(0)).bound)
    torch.testing.assert_close(*bounds)


def test_the_linear_path_is_held_and_then_let_go():
    model = make("vae")
    trainer = Trainer(model, Schedule(fixed_linear_path=0.5))
    before = [p.clone() for p in model.linear.parameters()]
    images = dequantized(levels(12)).view(2, 6, *SHAPE)
    for step in range(4):
        trainer.step(images, None, step, step / 8)
        assert all(map(torch.equal, before, model.linear.parameters()))
    trainer.step(images, None, 4, 0.5)
    assert not any(map(torch.equal, before, model.linear.parameters()))


def test_another_models_linear_layer_is_trained():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 1)

        def forward(self, images, queries=None, generator=None):
            bound = self.linear(images).square().mean().view(1, 1)
            return VAEBound(bound, bound, 0 * bound)

    model = Own()
    before = model.linear.weight.clone()
    Trainer(model, Schedule()).step(torch.ones(1, 1, 4), None, 1, 0.0)
    assert not torch.equal(before, model.linear.weight)


@pytest.mark.parametrize("name", ["kanerva", "dynamic", "vae"])
def test_terms_are_summed_in_single_precision_under_autocast(name):
    images = dequantized(levels(12)).view(2, 6, *SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = make(name, likelihood="scaled_gaussian", num_filters=4).elbo(images)
    assert all(t.dtype == torch.float32 for t in terms if t is not None)


def test_a_wrapped_model_gets_all_gradients_and_keeps_its_linear_path():
    """DistributedDataParallel stops at a parameter without a gradient."""
    model, seen = make("vae"), []
    trainer = Trainer(model, Schedule(), lambda *a, **k: model(*a, **k))
    model.linear.decoder_weight.register_hook(lambda gradient: seen.append(gradient.shape))
    before = model.linear.decoder_weight.clone()
    trainer.step(dequantized(levels(12)).view(2, 6, *SHAPE), None, 0, 0.0)
    assert seen and torch.equal(before, model.linear.decoder_weight)


@pytest.mark.parametrize("name", ["kanerva", "dynamic", "vae"])
def test_pictures_and_samples(name):
    model = make(name, likelihood="scaled_gaussian").eval()
    images = dequantized(levels(12)).view(2, 6, *SHAPE)
    pictures = model.reconstruct(images)
    assert pictures.shape == images.shape and pictures.min() >= 0 and pictures.max() <= 1
    rms = (images - pictures).square().mean().sqrt()
    assert rms < 0.7 * images.std()
    if name == "vae":
        assert model.generate(7).shape == (7, *SHAPE)
    else:
        assert model.generate(model.write(images).state, 7, 2).shape == (2, 7, *SHAPE)


def test_training_lowers_the_bound_of_all():
    """Of images half of which are of a third of the contrast, noise and all."""
    images = levels(384)
    images[::2] = (128 + (images[::2].float() - 128) / 3).round().to(torch.uint8)
    for name in ("kanerva", "dynamic", "vae"):
        model = make(name, likelihood="scaled_gaussian")
        options = {"episode_length": 6, "pixels": "dequantize", "rounds": 1}
        before = evaluate(model, images, **options)
        batch = dequantized(images).view(-1, 6, *SHAPE)
        rows = torch.Generator().manual_seed(0)
        batches = iter(lambda: batch[torch.randperm(64, generator=rows)[:8]], None)  # noqa: B023
        train([model], batches, steps=60, corrupted=0, warm_up=False)
        after = evaluate(model, images, **options)
        assert after["bound"] < before["bound"] - 10, name
        assert "bits_per_dim" in after


def test_scaled_pixels_are_normal_pixels_of_the_decoded_deviation():
    torch.manual_seed(0)
    plain, scaled = GaussianPixels().double(), ScaledGaussianPixels().double()
    for pixels in (plain, scaled):
        pixels.start(0.06)
    outputs, images = torch.randn(2, 5, 3, 4, 4).double(), torch.rand(2, 5, 3, 4, 4).double()
    same = torch.cat([outputs, torch.zeros(2, 5, 1, 4, 4)], dim=-3)
    torch.testing.assert_close(scaled.nll(same, images), plain.nll(outputs, images))
    torch.testing.assert_close(scaled.mean(same), plain.mean(outputs))
    torch.testing.assert_close(plain.log_std.exp().item(), 0.06)
    factor = torch.randn(2, 5, 1, 4, 4).double()
    softplus = torch.nn.functional.softplus(scaled.raw_log_std + factor)
    std = (softplus - math.log(512)).exp().expand(2, 5, 3, 4, 4)
    normal = torch.distributions.Normal(0.5 + 0.25 * outputs, std)
    expected = -normal.log_prob(images).sum((-3, -2, -1))
    torch.testing.assert_close(scaled.nll(torch.cat([outputs, factor], -3), images), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "bernoulli"}, 'likelihood must be "gaussian"'),
        ({"code_size": 192}, "code_size must be below the numbers of an image, 192"),
        ({"linear_path": False}, "num_filters must be a positive int, got 0"),
        ({"num_filters": -1}, "num_filters must be a positive int, got -1"),
    ],
)
@pytest.mark.parametrize("name", ["kanerva", "dynamic", "vae"])
def test_bad_models(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@pytest.mark.parametrize("name", ["kanerva", "dynamic", "vae"])
def test_a_scale_by_the_convolutions_alone(name):
    kind, own = MODELS[name]
    options = OPTIONS | own | {"linear_path": False, "num_filters": 4}
    if name == "dynamic":
        del options["hidden_size"]
    model = kind(**(options | {"likelihood": "scaled_gaussian"}))
    images = dequantized(levels(12)).view(2, 6, *SHAPE)
    assert model.elbo(images).bound.shape == (2, 6)
    assert model.reconstruct(images).shape == images.shape


def test_a_scale_needs_whole_blocks():
    with pytest.raises(ValueError, match="image_size must be a multiple of 4"):
        MatchedVAE(**(OPTIONS | {"likelihood": "scaled_gaussian", "image_size": 10}))


def test_the_scale_of_a_part_follows_the_picture_there():
    """One number for a picture's smooth half and another for its rough half, after some steps."""
    torch.manual_seed(0)
    scale = LogScale(3, 16)
    rough = torch.randn(64, 3, 16, 16)
    rough[..., :8] *= 0.05
    assert torch.equal(scale(rough), torch.zeros(64, 1, 16, 16))
    optimizer = torch.optim.Adam(scale.parameters(), 1e-2)
    target = torch.zeros(64, 1, 16, 16)
    target[..., 8:] = 1.0
    for _ in range(60):
        optimizer.zero_grad()
        (scale(rough) - target).square().mean().backward()
        optimizer.step()
    found = scale(rough).mean((0, 1, 2))
    assert found[2] < 0.25 and found[13] > 0.75
    # It is the picture that says so, not the place.
    assert scale(rough.flip(-1)).mean((0, 1, 2))[13] < 0.5


def test_bad_starts():
    model = make("vae")
    with pytest.raises(ValueError, match="images must have 192 numbers each, got 48"):
        model.start_linear_path(torch.rand(5, 3, 4, 4))
    with pytest.raises(ValueError, match="images must have 5 components of 192 numbers"):
        model.start_linear_path(principal_components(levels(), 4))
    with pytest.raises(ValueError, match="needs a model with linear_path=True"):
        MatchedVAE(8).start_linear_path(torch.rand(5, 28, 28))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_cov": "diagonal"}, "weight_cov must be one of"),
        ({"weight_cov": "full", "sample_weights": False}, "sample_weights must be True"),
    ],
)
def test_bad_covariances(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicKanervaMachine(4, 6, **options)
