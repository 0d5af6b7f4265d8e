"""Pixels' likelihoods, and the models of colour images that stand on them."""

import math

import pytest
import torch
from torch.distributions import Normal

from kanerva_ext.models import DynamicKanervaMachine, KanervaMachine, MatchedVAE, evaluate
from kanerva_ext.models.likelihoods import (
    BernoulliPixels,
    GaussianPixels,
    bits_per_dim,
    make_likelihood,
)
from kanerva_ext.models.training import Schedule, Trainer

COLOUR = {"image_size": 32, "num_channels": 3, "likelihood": "gaussian", "num_filters": 4}
MACHINES = {
    "kanerva": lambda **o: KanervaMachine(8, 12, key_size=6, latent_size=5, hidden_size=16, **o),
    "dynamic": lambda **o: DynamicKanervaMachine(8, 12, **o),
    "vae": lambda **o: MatchedVAE(12, hidden_size=16, **o),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=MACHINES)
def model(request):
    torch.manual_seed(0)
    return MACHINES[request.param](**COLOUR)


@pytest.fixture
def images():
    return torch.rand(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_gaussian_pixels_are_torchs_normal():
    likelihood = GaussianPixels()
    torch.manual_seed(0)
    outputs, images = torch.randn(2, 3, 3, 4, 4), torch.rand(2, 3, 3, 4, 4)
    std = likelihood.log_std.exp()
    assert std.item() == pytest.approx(0.25)
    pixels = Normal(0.5 + 0.25 * outputs, std).log_prob(images)
    torch.testing.assert_close(likelihood.nll(outputs, images), -pixels.sum((-1, -2, -3)))
    assert likelihood.mean(10 * outputs).aminmax() == (0.0, 1.0)
    torch.testing.assert_close(likelihood.standardize(likelihood.mean(outputs / 4)), outputs / 4)


def test_the_standard_deviation_of_a_pixel_has_a_floor():
    likelihood = GaussianPixels()
    with torch.no_grad():
        likelihood.raw_log_std.fill_(-50)
    assert likelihood.log_std.exp().item() == pytest.approx(1 / 512)


def test_half_precision_outputs_are_scored_in_float32():
    outputs, images = torch.randn(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    nll = GaussianPixels().nll(outputs.bfloat16(), images)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, GaussianPixels().nll(outputs.bfloat16().float(), images))


def test_bits_per_dimension_of_what_is_known():
    # Uniform over 256 levels: density 1 on [0, 1), 8 bits. Uniform over half of them: 7 bits.
    assert bits_per_dim(0.0, 3072) == 8
    assert bits_per_dim(-3072 * math.log(2), 3072) == pytest.approx(7)
    # A sharp normal density, integrated over levels: the entropy of the rounded variable.
    std, generator = 20 / 256, torch.Generator().manual_seed(0)
    x = 0.5 + std * torch.randn(200_000, generator=generator, dtype=torch.float64)
    levels = (256 * x).floor()
    _, counts = levels.unique(return_counts=True)
    p = counts / counts.sum()
    entropy = -(p * p.log2()).sum().item()
    noisy = (levels + torch.rand(len(x), generator=generator, dtype=torch.float64)) / 256
    nats = -Normal(0.5, std).log_prob(noisy).sum().item()
    assert bits_per_dim(nats / len(x), 1) == pytest.approx(entropy, abs=0.01)


def test_unknown_likelihood():
    with pytest.raises(ValueError, match=r"likelihood must be one of .*, got 'poisson'"):
        make_likelihood("poisson")
    assert isinstance(make_likelihood("bernoulli"), BernoulliPixels)


def test_colour_terms_and_gradients(model, images):
    trainer = Trainer(model, Schedule(learning_rate=1e-3, warm_up_steps=0))
    first = trainer.step(images, None, 0, 0.5, torch.Generator().manual_seed(0))
    assert first.bound.shape == (2, 5) and first.bound.isfinite().all()
    again = trainer.step(images, None, 1, 0.5, torch.Generator().manual_seed(0))
    assert again.bound.mean() < first.bound.mean()
    assert model.likelihood.raw_log_std.grad.abs() > 0


def test_colour_pictures(model, images):
    model.eval()
    state = (model.write(images).state,) if hasattr(model, "write") else ()
    for picture in (model.reconstruct(images, *state), *model.denoise(images, *state, 2)):
        assert picture.shape == images.shape
        assert ((picture >= 0) & (picture <= 1)).all()
    assert model.generate(*state, 3).shape[-4:] == (3, 3, 32, 32)
    with pytest.raises(ValueError, match=r"noise must be 0 without Bernoulli pixels, got 0.1"):
        model.denoise(images, *state, 1, noise=0.1)
    with pytest.raises(ValueError, match=r"\(B, T, 3, 32, 32\), got \(2, 5, 1, 32, 32\)"):
        model.elbo(images[:, :, :1])


def test_colour_evaluation_has_bits_per_dimension(model):
    levels = torch.randint(256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    options = {"episode_length": 8, "rounds": 1, "pixels": "dequantize"}
    terms = evaluate(model, levels.to(torch.uint8), **options)
    assert terms["bits_per_dim"] == pytest.approx(terms["bound"] / 3072 / math.log(2) + 8)
    parts = evaluate(model, levels.to(torch.uint8), batch_size=2, **options)
    assert parts.keys() == terms.keys()
    assert parts["bound"] == pytest.approx(terms["bound"], rel=0.02)  # other samples


@pytest.mark.parametrize("name", ["kanerva", "dynamic"])
def test_images_are_read_at_their_addresses(name, images):
    torch.manual_seed(0)
    model = MACHINES[name](**COLOUR).eval()
    state = model.write(images).state
    weights = model.addresses(images[:, :3], state)
    assert weights.shape == (2, 3, 8)
    read = model.read_images(weights, state)
    expected = model.likelihood.mean(model.decoder(weights @ state.mean))
    torch.testing.assert_close(read, expected)
    if name == "dynamic":  # a code is decoded as it is read
        torch.testing.assert_close(read, model.reconstruct(images[:, :3], state), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["kanerva", "dynamic", "vae"])
def test_generations_repeat_by_generator(name, images):
    torch.manual_seed(0)
    model = MACHINES[name](**COLOUR).eval()
    state = () if name == "vae" else (model.write(images).state,)
    with torch.no_grad():
        one, same, other = (
            model.generate(*state, 2, generator=torch.Generator().manual_seed(seed))
            for seed in (1, 1, 2)
        )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_read_at_the_mean_address_has_no_noise(images):
    torch.manual_seed(0)
    mean = MACHINES["dynamic"](sample_weights=False, **COLOUR).eval()
    first, second = (mean.elbo(images) for _ in range(2))
    assert torch.equal(first.reconstruction, second.reconstruction)
    state = mean.write(images).state
    expected = mean.addresses(images, state).square().sum(-1) / 2
    torch.testing.assert_close(first.kl_weights, expected, atol=1e-5, rtol=1e-4)
    torch.manual_seed(0)
    sampled = MACHINES["dynamic"](**COLOUR).eval()
    first, second = (sampled.elbo(images) for _ in range(2))
    assert not torch.equal(first.reconstruction, second.reconstruction)


def test_a_schedule():
    schedule = Schedule(learning_rate=1.0, warm_up_steps=10, initial_kl_weight=0.2, kl_warm_up=0.5)
    assert schedule.rate(0, 0.0) == 0.1 and schedule.rate(9, 0.0) == 1.0
    assert schedule.rate(50, 0.5) == pytest.approx(0.5) and schedule.rate(99, 1.0) == 0
    assert schedule._replace(decay="constant").rate(99, 1.0) == 1.0
    weights = [schedule.kl_weight(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert weights == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert schedule._replace(kl_warm_up=0.0).kl_weight(0.0) == 1.0
