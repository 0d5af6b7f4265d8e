"""Random sequences of calls on a memory and a layer, each against the reference in float64.

``KANERVA_TEST_MINUTES=10 pytest tests/operators/test_state_machines.py`` goes on for ten minutes
with new random numbers; otherwise there is a fixed, short set of sequences.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from kanerva_ext import FusedKanervaMemory, KanervaCache, KanervaLayer, MemoryState

MINUTES = float(os.environ.get("KANERVA_TEST_MINUTES", "0"))
INTERPRETED = "TRITON_INTERPRET" in os.environ
BACKENDS = ["triton"] if INTERPRETED else ["auto", "reference"]
SHORT = settings(
    max_examples=2 if INTERPRETED else 60,
    stateful_step_count=10 if INTERPRETED else 20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FORGETTING = [{"use_decay": False}, {}, {"dynamics": "stationary"}]  # of a layer
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}

seeds = st.integers(0, 2**32 - 1)
small = st.integers(1, 4)
dtypes = st.sampled_from([torch.float32, torch.float64])
inputs = {
    torch.float32: st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    torch.float64: st.sampled_from([torch.float64, torch.float32, torch.float16]),
}


def draw(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    """Values that every dtype holds exactly: truth and result get the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 8).round().clamp(-24, 24).to(dtype) / 8


def layouts(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    """The same numbers, laid out in one of three ways."""
    if seed % 3 == 0:
        return tensor
    if seed % 3 == 1:
        return tensor.mT.contiguous().mT
    wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
    wide[..., ::2] = tensor
    return wide[..., ::2]


def agree(got: torch.Tensor, want: torch.Tensor, tolerance: float, what: str) -> None:
    assert got.shape == want.shape, f"{what}: {tuple(got.shape)} for {tuple(want.shape)}"
    assert torch.isfinite(want).all(), what
    if got.numel():
        error = (got.double() - want).abs().max() / (1 + want.abs().max())
        assert error <= tolerance, f"{what}: off by {error:.1e}"


class Written(NamedTuple):
    """One belief: what the library holds, and the reference's from the same calls."""

    got: MemoryState
    want: MemoryState


class MemoryMachine(RuleBasedStateMachine):
    """Write, read, forget, merge, score, save, load, clone and select."""

    beliefs = Bundle("beliefs")

    @initialize(
        target=beliefs,
        seed=seeds,
        sizes=st.tuples(small, small, st.integers(1, 3)),
        is_key=st.booleans(),
        dtype=dtypes,
        noise_std=st.sampled_from([0.3, 1.0]),
        rounds=st.integers(1, 2),
        backend=st.sampled_from(BACKENDS),
    )
    def prepare(self, seed, sizes, is_key, dtype, noise_std, rounds, backend):
        slots, code, self.batch = sizes
        code += slots  # more columns than slots
        torch.manual_seed(seed)
        options = {"addressing": "key", "key_size": 3} if is_key else {"num_write_iters": rounds}
        self.memory = FusedKanervaMemory(
            slots, code, noise_std=noise_std, backend=backend, **options
        ).to(dtype)
        self.truth = copy.deepcopy(self.memory).double()
        self.truth.backend = "reference"
        self.dtype, self.tolerance = dtype, TOLERANCE[dtype]
        return Written(self.memory.prior(self.batch), self.truth.prior(self.batch))

    def _episode(self, data, seed, batch, steps):
        """Values, and the keyword arguments of a write."""
        kind = data.draw(inputs[self.dtype], label="dtype")
        values = draw(seed, batch, steps, self.memory.code_size)
        more = {}
        if self.memory.key_size is not None:
            more["keys"] = draw(seed + 1, batch, steps, self.memory.key_size)
        elif data.draw(st.booleans(), label="weights are given"):
            more["weights"] = draw(seed + 1, batch, steps, self.memory.memory_size)
        if data.draw(st.booleans(), label="noise is given"):
            more["noise_var"] = draw(seed + 2, batch, steps).abs() + 0.25
        if data.draw(st.booleans(), label="masked"):
            more["mask"] = draw(seed + 3, batch, steps) > 0
        as_given = {}
        for name, tensor in {"values": values, **more}.items():
            cast = tensor if tensor.dtype == torch.bool else tensor.to(kind)
            if name == "noise_var":
                cast = tensor.to(self.dtype)
            if tensor.dim() == 3:
                cast = layouts(cast, seed)
            as_given[name] = cast
        return {"values": values, **more}, as_given

    @rule(target=beliefs, belief=beliefs, seed=seeds, steps=st.integers(0, 5), data=st.data())
    def write(self, belief, seed, steps, data):
        episode, given = self._episode(data, seed, len(belief.got.mean), steps)
        # Addresses are solved in the state's own precision: from one state, so that they compare.
        own = belief.got.to(torch.float64)
        got = self.memory.write(state=belief.got, **given)
        want = self.truth.write(state=own, **episode)
        self._compare(got.state, want.state)
        agree(got.log_evidence, want.log_evidence, self.tolerance * 10, "log evidence")
        return Written(got.state, want.state)

    @rule(belief=beliefs, seed=seeds, steps=st.integers(0, 3), data=st.data())
    def read(self, belief, seed, steps, data):
        size = self.memory.key_size or self.memory.code_size
        queries = draw(seed, len(belief.got.mean), steps, size)
        given = queries.to(data.draw(inputs[self.dtype], label="dtype"))
        got = self.memory.read(layouts(given, seed), belief.got)
        want = self.truth.read(queries, belief.got.to(torch.float64))
        for name in ("values", "var", "weights", "kl_weights"):
            agree(getattr(got, name), getattr(want, name), self.tolerance, f"read's {name}")

    @rule(target=beliefs, belief=beliefs, seed=seeds, steps=st.integers(1, 3), data=st.data())
    def write_and_forget(self, belief, seed, steps, data):
        """What was written at known addresses leaves no trace."""
        _, given = self._episode(data, seed, len(belief.got.mean), steps)
        written = self.memory.write(state=belief.got, **given)
        more = {name: given[name] for name in ("mask", "noise_var") if name in given}
        after = self.memory.forget(written.state, written.weights, given["values"], **more)
        # What a write leaves of a variance is what forgetting has to go on.
        left = (belief.got.cov.diagonal(0, -2, -1) / written.state.cov.diagonal(0, -2, -1)).max()
        self._compare(after, belief.got.to(torch.float64), max(1.0, left.item()) ** 2)
        return Written(belief.got, belief.want)

    @rule(target=beliefs, belief=beliefs, seed=seeds, data=st.data())
    def merge(self, belief, seed, data):
        """Two writes from one belief, merged, are one after the other."""
        batch = len(belief.got.mean)
        weights = draw(seed, batch, 4, self.memory.memory_size, dtype=self.dtype)
        values = draw(seed + 1, batch, 4, self.memory.code_size, dtype=self.dtype)
        parts = [
            self.memory.write(values[:, part], belief.got, weights=weights[:, part]).state
            for part in (slice(0, 2), slice(2, 4))
        ]
        both = self.memory.write(values, belief.got, weights=weights).state
        merged = self.memory.merge(parts, prior=belief.got)
        self._compare(merged, both.to(torch.float64), 10)
        return Written(both, both.to(torch.float64))

    @rule(target=beliefs, belief=beliefs, how=st.sampled_from(["clone", "save", "torch", "select"]))
    def keep(self, belief, how):
        got = belief.got
        if how == "clone":
            kept = got.clone()
        elif how == "select":
            kept = got.select(list(range(len(got.mean))))
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "belief"
                if how == "save":
                    got.detach().save(path)
                    kept = MemoryState.load(path)
                else:
                    torch.save(got.detach(), path)
                    kept = torch.load(path)
        for before, after in zip(got, kept, strict=True):
            assert torch.equal(before, after) and before.dtype == after.dtype
        return Written(kept, belief.want)

    @rule(target=beliefs, belief=beliefs, data=st.data())
    def reorder(self, belief, data):
        size = len(belief.got.mean)
        index = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=3))
        got = belief.got.select(index)
        assert torch.equal(got.mean, belief.got.mean[index])
        assert torch.equal(got.cov, belief.got.cov[index])
        return Written(got, belief.want.select(index))

    @rule(belief=beliefs, seed=seeds)
    def gradients(self, belief, seed):
        """Of a write and a read, in every input, against the reference's."""
        batch = len(belief.got.mean)
        values = draw(seed, batch, 2, self.memory.code_size)
        weights = draw(seed + 1, batch, 2, self.memory.memory_size)
        found = []
        for module, dtype in ((self.memory, self.dtype), (self.truth, torch.float64)):
            state = MemoryState(
                *(y.detach().to(dtype).clone().requires_grad_() for y in belief.got)
            )
            leaves = [values.to(dtype).requires_grad_(), weights.to(dtype).requires_grad_()]
            out = module.write(leaves[0], state, weights=leaves[1])
            loss = out.state.mean.square().sum() + out.state.cov.square().sum()
            loss = loss + out.log_evidence.sum()
            found.append(torch.autograd.grad(loss, (*state, *leaves)))
        for name, got, want in zip(("mean", "cov", "values", "weights"), *found, strict=True):
            agree(got, want, self.tolerance * 10, f"gradient of {name}")

    def _compare(self, got: MemoryState, want: MemoryState, factor: float = 1) -> None:
        agree(got.mean, want.mean, self.tolerance * factor, "mean")
        agree(got.cov, want.cov, self.tolerance * factor, "cov")
        assert torch.equal(got.cov, got.cov.mT), "cov is not symmetric"
        assert got.mean.dtype == got.cov.dtype == self.dtype
        # eigvalsh of the smallest variance, up to rounding
        assert torch.linalg.eigvalsh(got.cov.double()).min() > -self.tolerance * factor


class Text(NamedTuple):
    """Tokens so far (B, T, d) with their masks (B, T), and the cache after them."""

    tokens: torch.Tensor
    mask: torch.Tensor
    cache: KanervaCache


class LayerMachine(RuleBasedStateMachine):
    """Prompts, steps, branches, reordering, saving: all as one forward over all tokens."""

    texts = Bundle("texts")

    @initialize(
        target=texts,
        seed=seeds,
        dtype=dtypes,
        batch=st.integers(1, 2),
        steps=st.integers(0, 4),
        heads=st.sampled_from([(1, 1), (2, 1), (2, 2)]),
        conv_size=st.integers(1, 3),
        forgetting=st.sampled_from(FORGETTING),
        use_gate=st.booleans(),
        backend=st.sampled_from(BACKENDS),
    )
    def prepare(self, seed, dtype, batch, steps, heads, conv_size, forgetting, use_gate, backend):
        torch.manual_seed(seed)
        self.layer = KanervaLayer(
            8,
            heads[0],
            num_kv_heads=heads[1],
            conv_size=conv_size,
            **forgetting,
            use_gate=use_gate,
            backend=backend,
        ).to(dtype)
        if self.layer.retention_proj is not None:  # enough to matter in a few tokens
            torch.nn.init.constant_(self.layer.retention_proj.bias, -1.0)
        self.truth = copy.deepcopy(self.layer).double()
        self.truth.backend = "reference"
        self.dtype = dtype
        return self._go_on(None, seed, batch, steps, None, False)

    def _go_on(self, text: Text | None, seed, batch, steps, mask, inplace) -> Text:
        tokens = draw(seed, batch, steps, 8)
        if mask is None:
            mask = torch.ones(batch, steps, dtype=torch.bool)
            given = {}
        else:
            given = {"attention_mask": mask.to(self.dtype)}
        cache = None if text is None else text.cache
        if inplace:
            cache = cache.clone()
            with torch.no_grad():
                out = self.layer(tokens.to(self.dtype), cache=cache, inplace=True, **given)
            assert out.cache is cache
        else:
            before = None if cache is None else cache.clone()
            out = self.layer(tokens.to(self.dtype), cache=cache, use_cache=True, **given)
            if cache is not None:
                for left, was in zip(leaves(cache), leaves(before), strict=True):
                    assert torch.equal(left, was), "a cache was changed"
        if text is not None:
            tokens = torch.cat([text.tokens, tokens], 1)
            mask = torch.cat([text.mask, mask], 1)
        want = self.truth(tokens, mask)
        rest = tokens.shape[1] - steps
        tolerance = 10 * TOLERANCE[self.dtype]
        agree(out.hidden_states, want.hidden_states[:, rest:], tolerance, "hidden states")
        agree(out.read_var, want.read_var[:, rest:], tolerance, "read variance")
        return Text(tokens, mask, out.cache.detach())

    @rule(
        target=texts,
        text=texts,
        seed=seeds,
        steps=st.integers(0, 3),
        masked=st.booleans(),
        inplace=st.booleans(),
    )
    def go_on(self, text, seed, steps, masked, inplace):
        batch = text.tokens.shape[0]
        mask = draw(seed + 1, batch, steps) > 0 if masked else None
        return self._go_on(text, seed, batch, steps, mask, inplace)

    @rule(target=texts, text=texts, data=st.data())
    def reorder(self, text, data):
        size = text.tokens.shape[0]
        index = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=3))
        return Text(text.tokens[index], text.mask[index], text.cache.select(index))

    @rule(target=texts, text=texts, how=st.sampled_from(["clone", "detach", "to", "torch"]))
    def keep(self, text, how):
        cache = text.cache
        if how == "torch":
            with tempfile.TemporaryDirectory() as folder:
                torch.save(cache.detach(), Path(folder) / "cache")
                cache = torch.load(Path(folder) / "cache")
        elif how == "to":
            cache = cache.to(self.dtype)
        else:
            cache = getattr(cache, how)()
        return text._replace(cache=cache)


def leaves(cache: KanervaCache) -> list[torch.Tensor]:
    fields = (*cache.state, cache.history, cache.forgotten)
    return [x for x in fields if x is not None]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("machine", [MemoryMachine, LayerMachine])
def test_random_calls(machine):
    run_state_machine_as_test(machine, settings=SHORT)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(MINUTES == 0, reason="KANERVA_TEST_MINUTES says for how long")
@pytest.mark.parametrize("machine", [MemoryMachine, LayerMachine])
def test_random_calls_for_minutes(machine):
    end = time.monotonic() + 30 * MINUTES
    long = settings(SHORT, derandomize=False, max_examples=50, stateful_step_count=40)
    while time.monotonic() < end:
        run_state_machine_as_test(machine, settings=long)
