"""The Differentiable Neural Computer of the benchmarks, and the machine that has it as memory."""

import copy
import gc
import itertools
import math
import weakref

import numpy as np
import pytest
import torch
from baselines.dnc import DNC, DNCState
from baselines.dnc_machine import DNCMachine
from dnc_checks import (
    SIZES,
    check_reads_at_once,
    content_weighting,
    sigmoid,
    softmax,
    states_of_textbook_steps,
    strong,
    textbook_interface,
    textbook_output,
)
from torch.nn import functional as F

from kanerva_ext.data import load_omniglot, split_episodes
from kanerva_ext.models import evaluate, train

WRITTEN = ("memory", "usage", "precedence", "link", "write_weights")  # by writing steps alone
SMALL = {"memory_size": 8, "code_size": 12, "hidden_size": 16, "num_filters": 4, "key_size": 6}
SMALL |= {"latent_size": 5, "num_read_heads": 2, "controller_size": 16}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def episodes():
    return split_episodes(
        load_omniglot("train")[0], episode_length=8, generator=torch.Generator().manual_seed(0)
    )[:4]


def dnc(scale=4.0, **options):
    return strong(DNC, scale, **options)


def machine(**options):
    torch.manual_seed(0)
    return DNCMachine(**(SMALL | options))


def textbook_step(model, x, s, write):
    """One example, one step: the equations of the paper's Methods, one by one. Returns y."""
    n, w, r = model.memory_size, model.word_size, model.num_read_heads
    xi = textbook_interface(model, x, s)
    sizes = [w, r * w, 1, r, w, w, r, 1, 1, 3 * r]
    assert sum(sizes) == len(xi) == w * r + 3 * w + 5 * r + 3  # the paper's count
    k_w, k_r, beta_w, beta_r, v, e, f, g_a, g_w, pi = np.split(xi, np.cumsum(sizes)[:-1])
    k_r, pi = k_r.reshape(r, w), pi.reshape(r, 3)
    beta_w, beta_r = 1 + np.log1p(np.exp(beta_w)), 1 + np.log1p(np.exp(beta_r))
    e, f, g_a, g_w = sigmoid(e), sigmoid(f), sigmoid(g_a), sigmoid(g_w)
    memory, link = s["memory"].copy(), s["link"].copy()

    if write:
        psi, usage = np.ones(n), np.zeros(n)
        for i in range(n):
            for head in range(r):
                psi[i] *= 1 - f[head] * s["read_weights"][head, i]
            old, added = s["usage"][i], s["write_weights"][i]
            usage[i] = (old + added - old * added) * psi[i]
        phi = np.argsort(usage, kind="stable")
        a = np.zeros(n)
        for j in range(n):
            a[phi[j]] = 1 - usage[phi[j]]
            for i in range(j):
                a[phi[j]] *= usage[phi[i]]
        c = content_weighting(memory, k_w, beta_w)
        w_w = g_w * (g_a * a + (1 - g_a) * c)
        for i in range(n):
            for j in range(w):
                memory[i, j] = s["memory"][i, j] * (1 - w_w[i] * e[j]) + w_w[i] * v[j]
            for j in range(n):
                kept = (1 - w_w[i] - w_w[j]) * s["link"][i, j]
                link[i, j] = 0 if i == j else kept + w_w[i] * s["precedence"][j]
        s["precedence"] = (1 - w_w.sum()) * s["precedence"] + w_w
        s["memory"], s["link"], s["usage"], s["write_weights"] = memory, link, usage, w_w

    read_weights = np.zeros((r, n))
    for head in range(r):
        modes = softmax(pi[head])
        forward = link @ s["read_weights"][head]
        backward = link.T @ s["read_weights"][head]
        c = content_weighting(memory, k_r[head], beta_r[head])
        read_weights[head] = modes[0] * backward + modes[1] * c + modes[2] * forward
    s["read_weights"] = read_weights
    s["read_vectors"] = read_weights @ memory
    return textbook_output(model, s)


def test_step_equals_the_equations_of_the_paper():
    model = dnc()
    inputs = torch.randn(12, 2, 4, dtype=torch.float64)
    # From zeros the second step finds all slots but one equally used, and may take any of them.
    state = model.initial_state(2)._replace(usage=0.5 * torch.rand(2, 6, dtype=torch.float64))
    steps = states_of_textbook_steps(model, textbook_step, inputs, state, skipped=(4, 5, 9))
    for t, after in enumerate(steps):
        assert t == 0 or after.link.abs().max() > 0.01


def test_sequences_equal_steps():
    model = dnc()
    inputs = torch.randn(2, 7, 4, dtype=torch.float64)
    state, outputs = model.initial_state(2), []
    for x in inputs.unbind(1):
        output, state = model.step(x, state)
        outputs.append(output)
    whole, last = model(inputs)
    first, middle = model(inputs[:, :3])
    second, _ = model(inputs[:, 3:], middle)
    torch.testing.assert_close(whole, torch.stack(outputs, dim=1))
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    for name in DNCState._fields:
        torch.testing.assert_close(getattr(last, name), getattr(state, name))
        torch.testing.assert_close(getattr(model.write(inputs), name), getattr(state, name))
    assert model(inputs[:, :0])[0].shape == (2, 0, 3)


@pytest.mark.parametrize("heads", [1, 3])
def test_reads_at_once_equal_steps_without_writing(heads):
    check_reads_at_once(dnc(num_read_heads=heads))


def test_a_step_without_writing_leaves_the_memory_as_it_is():
    model = dnc()
    before = model.write(torch.randn(2, 9, 4, dtype=torch.float64))
    x = torch.randn(2, 4, dtype=torch.float64)
    _, after = model.step(x, before, write=False)
    _, written = model.step(x, before)
    for name in DNCState._fields:
        changed = not torch.equal(getattr(before, name), getattr(after, name))
        assert changed == (name not in WRITTEN), name
        assert not torch.equal(getattr(before, name), getattr(written, name)), name


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_invariants(scale, dtype):
    model = dnc(scale, eps=1e-6).to(dtype)
    state = model.initial_state(3)
    slack = 1e-5 if dtype == torch.float32 else 1e-12
    for _ in range(40):
        _, state = model.step(torch.randn(3, 4, dtype=dtype), state)
        for value in state:
            assert value.isfinite().all()
        weightings = (state.write_weights, state.read_weights, state.precedence)
        for weights in (*weightings, state.link, state.link.mT):
            assert (weights >= -slack).all() and (weights.sum(-1) <= 1 + slack).all()
        assert (state.link.diagonal(dim1=1, dim2=2) == 0).all()
        assert (state.usage >= -slack).all() and (state.usage <= 1 + slack).all()
    assert all(value.abs().sum() > 0 for value in state)


def test_forced_allocation_fills_free_slots_and_links_them():
    """Write gate and allocation gate open, nothing freed: every step takes one slot of its own."""
    model = dnc(0.0)
    with torch.no_grad():
        start, words, heads = 4 * 5 + 4, 5, 3
        model.interface.bias[start : start + words] = 1.0  # write vector
        gates = model.interface.bias[start + words :]
        gates[:words] = 50.0  # erase
        gates[words : words + heads] = -50.0  # free gates
        gates[words + heads : words + heads + 2] = 50.0  # allocation gate, write gate
    state, slots = model.initial_state(1), []
    x = torch.zeros(1, 4, dtype=torch.float64)
    for _ in range(6):
        _, state = model.step(x, state)
        slots.append(state.write_weights.argmax().item())
        expected = F.one_hot(torch.tensor(slots[-1:]), 6).double()
        torch.testing.assert_close(state.write_weights, expected, atol=1e-9, rtol=0)
    assert sorted(slots) == list(range(6))
    torch.testing.assert_close(state.memory, torch.ones_like(state.memory))
    chain = torch.zeros(6, 6, dtype=torch.float64)
    chain[slots[1:], slots[:-1]] = 1.0
    torch.testing.assert_close(state.link[0], chain, atol=1e-9, rtol=0)
    # Nothing is free any more, so that nothing is written.
    _, state = model.step(x, state)
    assert state.write_weights.abs().max() < 1e-9


class WriteAndRead(torch.nn.Module):
    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, inputs, queries):
        outputs, state = self.of(inputs)
        return outputs, self.of.read(queries, state), *state


@pytest.mark.slow
def test_gradients_are_those_of_differences():
    """Of everything together: the gradients of the steps' weights are put together by hand."""
    sizes = {"memory_size": 3, "word_size": 2, "num_read_heads": 2, "controller_size": 2}
    model = WriteAndRead(DNC(1, 1, **sizes).double())
    inputs = torch.randn(2, 3, 1, dtype=torch.float64, requires_grad=True)
    queries = torch.randn(2, 2, 1, dtype=torch.float64)
    names, values = zip(*model.named_parameters(), strict=True)

    def run(inputs, *values):
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, named, (inputs, queries))

    values = [(3 * value).detach().requires_grad_() for value in values]
    assert torch.autograd.gradcheck(run, (inputs, *values))


def test_second_derivatives_are_refused():
    model = dnc()
    outputs, _ = model(torch.randn(2, 4, 4, dtype=torch.float64))
    weight = model.interface.weight
    (grad,) = torch.autograd.grad(outputs.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gradients_are_finite_and_reach_every_parameter(scale):
    """Also with saturated gates, and at the start, where all slots are empty and equally used."""
    model = dnc(scale, eps=1e-6).float()
    outputs, state = model(torch.randn(2, 30, 4))
    (outputs.square().mean() + model.read(torch.randn(2, 3, 4), state).square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_graphs_are_freed():
    """The inputs that are kept for a weight's gradient must not keep their own graph alive."""
    gc.disable()
    try:
        model = dnc()
        inputs = torch.randn(2, 4, 4, dtype=torch.float64)
        outputs, state = model(inputs)
        alive = weakref.ref(state.hidden)
        outputs.sum().backward()
        del outputs, state
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.slow
def test_learns_to_recall_by_key():
    """Three pairs of a key and four random bits each, then a key: the bits, from the memory."""
    torch.manual_seed(0)
    pairs, bits, batch = 3, 4, 64
    sizes = {"memory_size": 8, "word_size": 8, "num_read_heads": 1, "controller_size": 32}
    model = DNC(pairs + bits, bits, **sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)

    def loss(change=lambda state: state):
        keys = torch.eye(pairs)[torch.rand(batch, pairs).argsort(-1)]
        values = (torch.rand(batch, pairs, bits) < 0.5).float()
        state = change(model.write(torch.cat([keys, 2 * values - 1], dim=-1)))
        reads = model.read(F.pad(keys, (0, bits)), state)
        return F.binary_cross_entropy_with_logits(reads, values)

    for _ in range(300):
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    with torch.no_grad():
        assert loss() < 0.1 * math.log(2)
        # The LSTM's state is still that of the episode, the memory is that of another one.
        assert loss(lambda state: state._replace(memory=state.memory.roll(1, 0))) > math.log(2)


@pytest.mark.parametrize("name", ["input_size", "output_size", *SIZES])
def test_bad_sizes(name):
    with pytest.raises(ValueError, match=f"{name} must be a positive int, got 0"):
        DNC(**({"input_size": 4, "output_size": 3} | SIZES | {name: 0}))


def test_terms_of_the_bound(episodes):
    terms = machine().elbo(episodes)
    parts = (terms.reconstruction, terms.kl_y, terms.kl_z)
    for part in (terms.bound, *parts):
        assert part.shape == (4, 8) and part.isfinite().all() and (part >= 0).all()
    torch.testing.assert_close(terms.bound, sum(parts))
    assert terms.kl_memory is None


def test_what_the_machine_writes_and_reads(episodes):
    """Writes [z, key, 1] in order, z sampled and the key at the mean; reads [0, key, 0]."""
    model = machine().eval()
    torch.manual_seed(1)
    state = model.write(episodes).state
    torch.manual_seed(1)
    features = model.encoder(episodes)
    mean, log_std = model.write_code(features)
    z = mean + log_std.exp() * torch.randn_like(mean)
    key, one = model.key(model.latent(features)[0]), torch.ones(4, 8, 1)
    expected = model.memory(torch.cat([z, key, one], dim=-1))[1]
    for name in DNCState._fields:
        torch.testing.assert_close(getattr(state, name), getattr(expected, name), msg=name)
    y = torch.randn(4, 3, 5)
    for query in range(3):
        zeros = torch.zeros(4, 12), model.key(y[:, query]), torch.zeros(4, 1)
        read, _ = model.memory.step(torch.cat(zeros, dim=-1), state, write=False)
        torch.testing.assert_close(model._read(y, state)[:, query], read)


def test_writing_goes_on_from_a_state(episodes):
    model = machine().eval()
    # Codes almost without noise: both ways then write the same.
    torch.nn.init.constant_(model.write_code.out.bias[12:], -1e3)
    torch.nn.init.zeros_(model.write_code.out.weight[12:])
    whole = model.write(episodes).state
    parts = model.write(episodes[:, 5:], model.write(episodes[:, :5]).state).state
    torch.testing.assert_close(parts.memory, whole.memory, atol=1e-2, rtol=0)
    assert not torch.allclose(model.write(episodes.flip(1)).state.memory, whole.memory, atol=1e-2)


@pytest.mark.parametrize("sample", [False, True])
def test_gradients_reach_every_parameter_of_the_machine(episodes, sample):
    model = machine(sample_write_address=sample)
    train([model], iter([episodes]), steps=1)  # frees convolutions that start at zero
    model.train()
    model.zero_grad()
    model(episodes, queries=episodes[:, :3]).bound.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.slow
def test_training_makes_the_memory_matter(episodes):
    """Four fixed short episodes: the right memory is then better than another one."""
    short = episodes[:, :4]
    sizes = {"hidden_size": 64, "code_size": 24, "num_filters": 8, "controller_size": 32}
    model = machine(**sizes, num_read_heads=1)
    before = model.eval().elbo(short).bound.mean()
    assert train([model], itertools.repeat(short), steps=250) == 250
    with torch.no_grad():
        own = model.elbo(short).bound.mean()
        other = model.elbo(short, model.write(short.roll(1, 0)).state).bound.mean()
    assert own < before - 80
    assert own < other - 20


@pytest.mark.parametrize("other_memory", [False, True])
def test_evaluation(other_memory):
    images = load_omniglot("test")[0][:70]
    found = evaluate(machine(), images, rounds=1, other_memory=other_memory)
    assert set(found) == {"bound", "reconstruction", "kl_y", "kl_z", "standard_error"}
    parts = found["reconstruction"] + found["kl_y"] + found["kl_z"]
    assert math.isclose(found["bound"], parts, rel_tol=1e-5)


def test_pictures(episodes):
    model = machine().eval()
    state = model.write(episodes).state
    pictures = {
        (3, 4, 8, 1, 28, 28): model.denoise(episodes, state),
        (4, 8, 1, 28, 28): model.reconstruct(episodes),
        (4, 2, 1, 28, 28): model.reconstruct(episodes[:, :2], state),
        (4, 5, 1, 28, 28): model.generate(state, 5, num_steps=2),
    }
    for shape, images in pictures.items():
        assert images.shape == shape and not images.requires_grad
        assert ((images >= 0) & (images <= 1)).all()
    other = model.write(episodes.roll(1, 0)).state
    assert not torch.allclose(
        model.reconstruct(episodes, state), model.reconstruct(episodes, other)
    )
    with pytest.raises(NotImplementedError, match="no address"):
        model.addresses(episodes, state)
    with pytest.raises(NotImplementedError, match="no address"):
        model.read_images(torch.zeros(4, 1, 8), state)


def test_round_trips(episodes):
    model = machine(word_size=9, code_std=0.7, likelihood="gaussian", num_channels=1).eval()
    other = DNCMachine(**model.config).eval()
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model)):
        assert twin.config == model.config
        torch.manual_seed(1)
        expected = model.elbo(episodes).bound
        torch.manual_seed(1)
        torch.testing.assert_close(twin.elbo(episodes).bound, expected)


def test_the_default_memory_is_as_large_as_64_slots_of_the_kanerva_machine():
    memory = DNCMachine().memory
    state = memory.initial_state(1)
    assert state.memory.shape == (1, 64, 100)
    kanerva = 64 * 100 + 64 * 64  # mean and covariance
    assert kanerva <= sum(part.numel() for part in state) < 1.2 * kanerva


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"memory_size": 0}, ValueError, "memory_size must be"),
        ({"word_size": 0}, ValueError, "word_size must be a positive int, got 0"),
        ({"num_read_heads": 0}, ValueError, "num_read_heads must be a positive int, got 0"),
        ({"code_std": 0.0}, ValueError, "code_std must be positive and finite"),
        ({"noise_std": 1.0}, TypeError, "a DNC has no noise_std"),
        ({"backend": "cpu", "noise_std": 1.0}, TypeError, "no backend and no noise_std"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        machine(**options)
