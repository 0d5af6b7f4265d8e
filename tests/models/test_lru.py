"""The memory of the benchmarks that writes where it was least used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from baselines.dnc_machine import DNCMachine
from baselines.lru import LRUMemory
from dnc_checks import (
    check_reads_at_once,
    content_weighting,
    sigmoid,
    states_of_textbook_steps,
    strong,
    textbook_interface,
    textbook_output,
)

from kanerva_ext.cli import main

BASELINES = Path(__file__).parents[2] / "benchmarks/baselines"

pytestmark = pytest.mark.usefixtures("one_thread")


def lru(**options):
    return strong(LRUMemory, **options)


def textbook_step(model, x, s, write):
    """One example, one step: the equations of the paper's section 3.2. Returns the output."""
    n, w, r = model.memory_size, model.word_size, model.num_read_heads
    xi = textbook_interface(model, x, s)
    keys, strengths, vector, alpha = np.split(xi, np.cumsum([r * w, r, w]))
    if write:
        usage = np.array(
            [
                model.usage_decay * s["usage"][i]
                + s["read_weights"][:, i].sum()
                + s["write_weights"][i]
                for i in range(n)
            ]
        )
        least = int(np.argmin(usage))
        memory, weights = s["memory"].copy(), np.zeros(n)
        memory[least] = 0.0
        for i in range(n):
            weights[i] = sigmoid(alpha[0]) * s["read_weights"][:, i].mean()
            weights[i] += (1 - sigmoid(alpha[0])) * (i == least)
            memory[i] += weights[i] * vector
        s["memory"], s["usage"], s["write_weights"] = memory, usage, weights

    strengths = 1 + np.log1p(np.exp(strengths))
    s["read_weights"] = np.array(
        [
            content_weighting(s["memory"], k, b)
            for k, b in zip(keys.reshape(r, w), strengths, strict=True)
        ]
    )
    s["read_vectors"] = s["read_weights"] @ s["memory"]
    return textbook_output(model, s)


def test_step_equals_the_equations_of_the_paper():
    model = lru()
    inputs = torch.randn(15, 2, 4, dtype=torch.float64)
    targets, start = set(), model.initial_state(2)
    for state in states_of_textbook_steps(model, textbook_step, inputs, start, skipped=(4, 5, 9)):
        targets |= set(state.write_weights.argmax(-1).tolist())
    assert targets == set(range(6))  # every slot had its turn


def test_what_is_written_goes_to_slots_not_used_yet():
    """With gates shut, n writes fill n slots, in order; the next empties the one longest unused."""
    model = lru(num_read_heads=1)
    with torch.no_grad():
        model.interface.weight.zero_()
        model.interface.bias.zero_()
        model.interface.bias[-1] = -50.0  # the gate
        model.interface.bias[6:11] = 1.0  # the write vector
    state = model.initial_state(1)
    for t in range(6):
        _, state = model.step(torch.zeros(1, 4, dtype=torch.float64), state)
        expected = (torch.arange(6) <= t).double()
        torch.testing.assert_close(state.memory[0].mean(-1), expected, rtol=0, atol=1e-12)
        assert state.write_weights.argmax() == t
    _, state = model.step(torch.zeros(1, 4, dtype=torch.float64), state)
    assert state.write_weights.argmax() == 0


@pytest.mark.parametrize("heads", [1, 3])
def test_reads_at_once_equal_steps_without_writing(heads):
    check_reads_at_once(lru(num_read_heads=heads))


def test_gradients_equal_finite_differences():
    model = lru(memory_size=4, word_size=3, num_read_heads=2, controller_size=3)
    inputs = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)

    def outputs(inputs):
        written, state = model(inputs)
        return written, model.read(inputs[:, :2], state)

    assert torch.autograd.gradcheck(outputs, (inputs,))


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_outside_zero_and_one_is_refused(decay):
    with pytest.raises(ValueError, match=r"usage_decay must be in \[0, 1\)"):
        LRUMemory(4, 3, usage_decay=decay)


def test_machine_with_either_memory():
    sizes = {"memory_size": 8, "code_size": 12, "hidden_size": 16, "num_filters": 4, "key_size": 6}
    sizes |= {"latent_size": 5, "num_read_heads": 2, "controller_size": 16}
    model = DNCMachine(variant="lru", **sizes)
    assert isinstance(model.memory, LRUMemory)
    assert model.config["variant"] == "lru"
    images = torch.rand(2, 6, 1, 28, 28).round()
    bound = model(images).bound.mean()
    bound.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.memory.interface.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="variant must be one of dnc, lru, got 'ntm'"):
        DNCMachine(variant="ntm", **sizes)


@pytest.mark.parametrize("name", ["dnc", "lru"])
def test_its_configuration_trains_at_the_command_line(tmp_path, name):
    config = BASELINES / f"cpu-omniglot-{name}.toml"
    words = ["model.num_filters=4", "model.hidden_size=16", "training.steps=2"]
    words += ["data.episode_length=4", "training.evaluate_every=0"]
    sets = [each for word in words for each in ("--set", word)]
    assert main(["train", str(config), "--out", str(tmp_path / "run"), "--quiet", *sets]) == 0
    assert main(["reconstruct", str(tmp_path / "run"), "--out", str(tmp_path / "x.png")]) == 0
