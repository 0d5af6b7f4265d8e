"""The Dynamic Kanerva Machine: its terms, its training and its reads."""

import pytest
import torch

from kanerva_ext import ops
from kanerva_ext.data import load_omniglot, salt_and_pepper, split_episodes
from kanerva_ext.models import DynamicKanervaMachine, evaluate, train
from kanerva_ext.models.likelihoods import BernoulliPixels

pytestmark = pytest.mark.usefixtures("one_thread")


def machine(**options):
    torch.manual_seed(0)
    return DynamicKanervaMachine(
        **({"memory_size": 8, "code_size": 12, "num_filters": 4} | options)
    )


@pytest.fixture(scope="module")
def images():
    return load_omniglot("train")[0]


@pytest.fixture(scope="module")
def episodes(images):
    generator = torch.Generator().manual_seed(0)
    return split_episodes(images, episode_length=8, generator=generator)[:4]


def test_terms(episodes):
    terms = machine().elbo(episodes)
    for term in (terms.bound, terms.reconstruction, terms.kl_weights, terms.autoencoding):
        assert term.shape == (4, 8) and (term >= 0).all() and term.isfinite().all()
    assert terms.kl_memory.shape == (4,) and (terms.kl_memory > 0).all()
    torch.testing.assert_close(terms.bound, terms.reconstruction + terms.kl_weights)


def test_terms_are_those_of_the_operators(episodes):
    """Written by `adaptive_write`, read at a sample around the least-squares address."""
    model = machine(num_write_iters=2, noise_std=0.5)
    terms = model.elbo(episodes, generator=torch.Generator().manual_seed(3))
    codes, prior = model.code(model.encoder(episodes)), model.memory.prior(4)
    mean, cov, _, _ = ops.adaptive_write(*prior, codes, 0.25, 0.25, num_iters=2)
    weights = ops.solve_addresses(mean, codes, 0.25)
    noise = torch.randn(weights.shape, generator=torch.Generator().manual_seed(3))
    std = model.memory.log_weight_std.exp()
    logits = model.decoder((weights + std * noise) @ mean)
    torch.testing.assert_close(terms.reconstruction, BernoulliPixels().nll(logits, episodes))
    q = torch.distributions.Normal(weights, std)
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(terms.kl_weights, kl, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms.kl_memory, ops.memory_kl(mean, cov, *prior))


def test_the_samples_are_the_generators(episodes):
    model = machine()
    one, two, other = (
        model.elbo(episodes, generator=torch.Generator().manual_seed(s)).bound for s in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_every_parameter_gets_a_gradient(episodes):
    model = machine()
    with torch.no_grad():  # residual branches start at zero
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    terms = model.elbo(episodes)
    (terms.bound.mean() + terms.autoencoding.mean() + terms.kl_memory.mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_given_a_memory_nothing_is_written(episodes):
    model = machine()
    terms = model.elbo(episodes, model.write(episodes[:, :4]).state)
    assert terms.kl_memory is None


@pytest.mark.slow
def test_training_lowers_the_bound(images):
    model = machine(memory_size=16, code_size=24)
    generator = torch.Generator().manual_seed(0)

    def batches():
        while True:
            yield split_episodes(images, episode_length=8, generator=generator)[:8]

    before = evaluate(model, images[:256], episode_length=8, rounds=1)
    train([model], batches(), steps=200, learning_rate=3e-3)
    after = evaluate(model, images[:256], episode_length=8, rounds=1)
    other = evaluate(model, images[:256], episode_length=8, rounds=1, other_memory=True)
    assert after["bound"] < 0.8 * before["bound"]
    assert "kl_memory" not in other and other["bound"] > 0
    assert set(after) == {
        "bound", "reconstruction", "kl_weights", "kl_memory", "autoencoding", "standard_error",
    }  # fmt: skip


def test_reads(episodes):
    model = machine().eval()
    state = model.write(episodes).state
    noisy = salt_and_pepper(episodes, 0.15, torch.Generator().manual_seed(0))
    steps = model.denoise(noisy, state, num_steps=3)
    assert steps.shape == (3, *episodes.shape) and ((steps >= 0) & (steps <= 1)).all()
    torch.testing.assert_close(steps[0], model.reconstruct(noisy, state))
    second = model.reconstruct(steps[0], state)
    torch.testing.assert_close(steps[1], second)
    assert model.generate(state, 3, num_steps=2).shape == (4, 3, 1, 28, 28)
    assert model.denoise(noisy, state, num_steps=2, noise=0.15).shape[0] == 2


def test_bad_arguments(episodes):
    model = machine()
    with pytest.raises(ValueError, match="images must have shape"):
        model.elbo(episodes[..., :20])
    with pytest.raises(ValueError, match="code_size must be a positive int"):
        machine(code_size=0)
    with pytest.raises(ValueError, match="queries must be"):
        model.elbo(episodes[:, :2], queries=episodes[:, :3])
