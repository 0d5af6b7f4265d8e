"""What the tests of the benchmarks' DNC and of its least recently used variant share."""

import numpy as np
import torch

SIZES = {"memory_size": 6, "word_size": 5, "num_read_heads": 3, "controller_size": 7}


def strong(kind, scale=4.0, **options):
    """In float64, with weights so large that gates and weightings take all their values."""
    torch.manual_seed(0)
    model = kind(4, 3, **(SIZES | {"eps": 1e-14} | options)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale
    return model


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def content_weighting(memory, key, strength):
    norms = np.linalg.norm(memory, axis=1) * np.linalg.norm(key)
    cosines = np.array([m @ key / n if n > 0 else 0.0 for m, n in zip(memory, norms, strict=True)])
    return softmax(cosines * strength)


def textbook_interface(model, x, s):
    """xi, from the LSTM, whose state in ``s`` goes on by a step."""
    p, h = parameters(model), model.controller_size
    gates = p["controller.weight_ih"] @ np.concatenate([x, s["read_vectors"].ravel()])
    gates = gates + p["controller.bias_ih"] + p["controller.bias_hh"]
    gates = gates + p["controller.weight_hh"] @ s["hidden"]
    s["cell"] = sigmoid(gates[h : 2 * h]) * s["cell"] + sigmoid(gates[:h]) * np.tanh(
        gates[2 * h : 3 * h]
    )
    s["hidden"] = sigmoid(gates[3 * h :]) * np.tanh(s["cell"])
    return p["interface.weight"] @ s["hidden"] + p["interface.bias"]


def textbook_output(model, s):
    p = parameters(model)
    read, weight = s["read_vectors"].ravel(), p["output.weight"]
    return weight[:, len(read) :] @ s["hidden"] + weight[:, : len(read)] @ read + p["output.bias"]


def parameters(model):
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


def states_of_textbook_steps(model, textbook_step, inputs, state, skipped):
    """Each state; every step is compared with the textbook's, and those skipped write nothing."""
    textbook = [{k: v[b].numpy() for k, v in state._asdict().items()} for b in range(2)]
    for t, x in enumerate(inputs):
        write = t not in skipped
        output, state = model.step(x, state, write=write)
        expected = [textbook_step(model, x[b].numpy(), textbook[b], write) for b in range(2)]
        np.testing.assert_allclose(output.detach(), expected, rtol=1e-9, atol=1e-9)
        for name, value in state._asdict().items():
            expected = [textbook[b][name] for b in range(2)]
            np.testing.assert_allclose(
                value.detach(), expected, rtol=1e-9, atol=1e-9, err_msg=f"{name} at {t}"
            )
        yield state


def check_reads_at_once(model):
    """They equal steps without writing."""
    state = model.write(torch.randn(2, 9, 4, dtype=torch.float64))
    queries = torch.randn(2, 5, 4, dtype=torch.float64)
    expected = [model.step(x, state, write=False)[0] for x in queries.unbind(1)]
    torch.testing.assert_close(model.read(queries, state), torch.stack(expected, dim=1))
    assert model.read(queries[:, :0], state).shape == (2, 0, 3)
