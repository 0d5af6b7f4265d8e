"""Gradients as C++ records them, against those that a Python Function records."""

from __future__ import annotations

import json
import threading
import weakref

import pytest
import torch
from helpers import run_python
from torch.utils.checkpoint import checkpoint

from kanerva_ext import ops
from kanerva_ext.info import advice, collect
from kanerva_ext.ops import _cpp_autograd

pytestmark = pytest.mark.skipif(
    bool(_cpp_autograd.why_not), reason=f"gradients go through Python: {_cpp_autograd.why_not}"
)

# Gradients of every operator that has one, bit by bit, as JSON: of the arguments of its own tests,
# and where there is more to an operator, of what is optional.
EVERY_GRADIENT = """
import json, torch
from samples import NAMES, sample
from kanerva_ext import ops
torch.manual_seed(0)
B, T, K, C = 2, 5, 3, 4
def leaf(*shape):
    return torch.randn(*shape).requires_grad_()
root = torch.randn(B, K, K)
cov = (root @ root.mT + torch.eye(K)).requires_grad_()
mean, weights, values, queries = leaf(B, K, C), leaf(B, T, K), leaf(B, T, C), leaf(B, T, K)
leaves = [mean, cov, weights, values, queries]
calls = {
    "bayes_write, decay": lambda: ops.bayes_write(
        mean, cov, weights, values, 0.3, decay=torch.full((B, T), 0.9).requires_grad_()),
    "bayes_write, retention": lambda: ops.bayes_write(
        mean, cov, weights, values, 0.3, retention=torch.full((B, T), 0.9).requires_grad_()),
    "causal_scan, retention": lambda: ops.causal_scan(
        mean, cov, weights, values, queries, 0.3, retention=0.8, stationary_cov=cov),
    "causal_scan, packed": lambda: ops.causal_scan(
        None, None, weights, values, queries, 0.3, cu_seqlens=torch.tensor([0, 2, T])),
    "recall, one ridge": lambda: ops.recall(mean, cov, values, 0.5),
    "adaptive_write, once": lambda: ops.adaptive_write(mean, cov, values, 0.3, 0.5),
    "memory_kl, prior fixed": lambda: ops.memory_kl(
        mean, cov, mean.detach() * 2, cov.detach() * 2),
    "forget": lambda: ops.forget(
        *ops.bayes_write(mean, cov, weights, values, 0.3)[:2], weights, values, 0.3),
}
calls = {name: (call, leaves) for name, call in calls.items()}
for name in NAMES:
    own = sample(name)
    for optional in (False, True):
        args = own.arguments((B,), T, K, C, torch.float32, grad=True, optional=optional)
        taken = [x for x in args.values() if x.requires_grad]
        calls[f"{name}, {optional}"] = lambda own=own, args=args: own.call(args), taken
found = {}
for name, (call, taken) in calls.items():
    results = call()
    results = results if isinstance(results, tuple) else (results,)
    loss = sum(r.sin().sum() for r in results)
    grads = torch.autograd.grad(loss, taken, allow_unused=True)
    found[name] = [None if g is None else g.double().flatten().tolist() for g in grads]
print(json.dumps(found))
"""


def episode(batch=2, steps=5, slots=3, code=4):
    mean = torch.randn(batch, slots, code, requires_grad=True)
    cov = torch.eye(slots).repeat(batch, 1, 1).requires_grad_()
    weights = torch.randn(batch, steps, slots, requires_grad=True)
    values = torch.randn(batch, steps, code, requires_grad=True)
    return mean, cov, weights, values, torch.full((batch, steps), 0.3, requires_grad=True)


def loss_of(leaves):
    mean, cov, log_evidence = ops.bayes_write(*leaves)
    return mean.square().sum() + cov.square().sum() + log_evidence.sum()


def test_both_routes_give_the_same_gradients():
    found = {}
    for route in ("auto", "python"):
        done = run_python(EVERY_GRADIENT, KANERVA_AUTOGRAD=route)
        assert done.returncode == 0, done.stderr
        found[route] = json.loads(done.stdout)
    assert found["auto"] == found["python"]
    assert all(any(g is not None for g in grads) for grads in found["auto"].values())


def test_the_graph_holds_a_node_of_the_operator():
    mean, *_ = ops.bayes_write(*episode())
    assert mean.grad_fn.name() == "Kanerva_bayes_writeBackward"
    done = run_python(
        "import torch; from kanerva_ext import ops; one = torch.ones(1, 1, 1, requires_grad=True);"
        "print(type(ops.read(one, one, one)[0].grad_fn).__name__)",
        KANERVA_AUTOGRAD="python",
    )
    assert done.stdout.strip() == "Kanerva_readBackward"
    assert collect()["gradients"] == "C++"


def test_nothing_is_recorded_without_need():
    leaves = episode()
    with torch.no_grad():
        assert not ops.bayes_write(*leaves)[0].requires_grad
    assert not ops.bayes_write(*(x.detach() for x in leaves))[0].requires_grad
    with torch.inference_mode():
        assert ops.bayes_write(*(x.detach() for x in leaves))[0].is_inference()


def test_an_argument_without_gradient_gets_none():
    mean, cov, weights, values, noise = episode()
    loss_of((mean, cov.detach(), weights, values.detach(), noise)).backward()
    assert cov.grad is None
    assert values.grad is None
    assert all(x.grad is not None for x in (mean, weights, noise))


def test_second_backward_without_the_graph_says_so():
    loss = loss_of(episode())
    loss.backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


def test_a_saved_tensor_that_changed_is_noticed():
    leaves = episode()
    weights = leaves[2] * 1.0
    loss = loss_of((*leaves[:2], weights, *leaves[3:]))
    weights.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives():
    leaves = [x.detach().double().requires_grad_() for x in episode(1, 2, 2, 2)]
    assert torch.autograd.gradgradcheck(
        lambda *args: ops.bayes_write(args[0], leaves[1], *args[1:])[:1], leaves[:1] + leaves[2:]
    )


def test_saved_tensor_hooks_and_checkpoints():
    leaves = episode()
    loss_of(leaves).backward()
    want = [x.grad.clone() for x in leaves]
    packed = []
    for x in leaves:
        x.grad = None
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: packed.append(x.shape) or x.clone(), lambda x: x
    ):
        loss = loss_of(leaves)
    loss.backward()
    assert len(packed) >= 7  # five arguments and two results
    for x, grad in zip(leaves, want, strict=True):
        assert torch.equal(x.grad, grad)
        x.grad = None
    checkpoint(lambda *args: loss_of(args), *leaves, use_reentrant=False).backward()
    for x, grad in zip(leaves, want, strict=True):
        assert torch.equal(x.grad, grad)


def test_hooks_and_anomaly_mode():
    leaves = episode()
    seen = []
    with torch.autograd.detect_anomaly(check_nan=True):
        mean, *_ = ops.bayes_write(*leaves)
        mean.grad_fn.register_hook(lambda inputs, outputs: seen.append((len(inputs), len(outputs))))
        mean.sum().backward()
        assert seen == [(8, 3)]  # of the optional arguments too
        leaves[4].data[0, 0] = -1.0  # no noise: that item is NaN
        with pytest.raises(RuntimeError, match=r"Kanerva_bayes_writeBackward.*nan"):
            ops.bayes_write(*leaves)[0].sum().backward()


def test_compiled_autograd():
    leaves = episode()
    loss_of(leaves).backward()
    want = [x.grad.clone() for x in leaves]
    for x in leaves:
        x.grad = None
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        loss_of(leaves).backward()
    for x, grad in zip(leaves, want, strict=True):
        torch.testing.assert_close(x.grad, grad)


def test_backward_of_one_graph_in_two_threads():
    leaves = episode(1, 3, 2, 2)
    losses = [loss_of(leaves) for _ in range(20)]
    found = [None] * len(losses)

    def run(start):
        for i in range(start, len(losses), 2):
            found[i] = torch.autograd.grad(losses[i], leaves)

    threads = [threading.Thread(target=run, args=(start,)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for grads in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads, found[0], strict=True))


def test_batched_gradients():
    leaves = episode()
    mean, *_ = ops.bayes_write(*leaves)
    several = torch.randn(3, *mean.shape)
    batched = torch.autograd.grad(
        mean, leaves, several, is_grads_batched=True, retain_graph=True, allow_unused=True
    )
    for i, each in enumerate(several):
        single = torch.autograd.grad(mean, leaves, each, retain_graph=True, allow_unused=True)
        for got, want in zip(batched, single, strict=True):
            torch.testing.assert_close(got[i], want)


def test_another_pytorch_gets_the_python_route(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    library, why_not = _cpp_autograd._load()
    assert library is None
    assert why_not.startswith("the library was compiled against torch ")
    told = advice({**collect(), "gradients": f"Python ({why_not})", "torch": "9.9.9"})
    assert any("recorded by Python" in sentence for sentence in told)


def test_a_setting_that_is_none_is_refused():
    done = run_python("import kanerva_ext", KANERVA_AUTOGRAD="c++")
    assert done.returncode != 0
    assert "KANERVA_AUTOGRAD must be 'auto' or 'python', got 'c++'" in done.stderr


def test_a_graph_that_is_dropped_frees_what_it_kept():
    class Box:
        def __init__(self, tensor):
            self.tensor = tensor.clone()

    kept = []

    def pack(tensor):
        box = Box(tensor)
        kept.append(weakref.ref(box))
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        results = ops.bayes_write(*episode())
    assert all(box() is not None for box in kept)
    assert len(kept) == 7  # five arguments and two results
    del results
    assert all(box() is None for box in kept)
