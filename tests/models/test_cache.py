"""KanervaCache: one prompt, many continuations; nothing changes behind autograd's back."""

import io

import pytest
import torch
from layers import HEADS, make, tokens

from kanerva_ext import KanervaCache, KanervaLayer

OPTIONS = (
    {},
    {"conv_size": 0, "use_decay": False},
    {"head_dim": 4, "value_dim": 7},
    {"dynamics": "decay"},
)


def leaves(cache):
    return [x for x in (*cache.state, cache.history, cache.forgotten) if x is not None]


def assert_same(a, b):
    for got, want in zip(leaves(a), leaves(b), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_two_continuations_of_one_prompt(grad, options):
    layer, x = make(**options), tokens(2, 6)
    with torch.set_grad_enabled(grad):
        prompt = layer(x, use_cache=True).cache
        kept = prompt.clone()
        for seed in (3, 4, 5):  # one after the other, from the same cache
            more, cache = tokens(2, 4, seed=seed), prompt
            want = layer(torch.cat([x, more], 1)).hidden_states[:, 6:]
            for t in range(4):
                out = layer(more[:, t : t + 1], cache=cache, use_cache=True)
                cache = out.cache
                torch.testing.assert_close(out.hidden_states, want[:, t : t + 1])
        for got, expected in zip(leaves(prompt), leaves(kept), strict=True):
            assert torch.equal(got, expected)


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_in_place_changes_every_field(options):
    layer, x = make(**options), tokens(2, 9)
    prompt = layer(x[:, :3], use_cache=True).cache
    changed = prompt.clone()
    places = [y.data_ptr() for y in leaves(changed)]
    before = [y.clone() for y in leaves(changed)]
    cache = prompt
    for t, piece in enumerate((x[:, 3:4], x[:, 4:5], x[:, 5:8], x[:, 8:9])):
        want = layer(piece, cache=cache, use_cache=True)
        out = layer(piece, cache=changed, inplace=True)
        assert out.cache is changed, t
        torch.testing.assert_close(out.hidden_states, want.hidden_states)
        cache = want.cache
        assert_same(changed, cache)
    assert [y.data_ptr() for y in leaves(changed)] == places
    for now, then, name in zip(leaves(changed), before, ["mean", "cov"], strict=False):
        assert not torch.equal(now, then), name


def test_a_saved_cache_that_is_stepped_raises():
    layer = make(dynamics="decay")
    cache = layer(tokens(2, 5), use_cache=True).cache.detach().clone()
    out = layer(tokens(2, 2, seed=2), cache=cache)  # keeps the cache for its gradient
    with torch.no_grad():
        layer(tokens(2, 1, seed=3), cache=cache, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.hidden_states.sum().backward()
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"cache.detach\(\)"):
        requiring = KanervaCache(cache.state, cache.history, cache.forgotten.requires_grad_())
        layer(tokens(2, 1), cache=requiring, inplace=True)


def test_a_cache_that_requires_a_gradient_is_not_changed():
    layer = make()
    cache = layer(tokens(2, 5), use_cache=True).cache
    kept = cache.clone()
    with torch.no_grad():
        layer(tokens(2, 1, seed=3), cache=cache, use_cache=True)
    for got, want in zip(leaves(cache), leaves(kept), strict=True):
        assert torch.equal(got, want)
    cache.state.mean.sum().backward()


@torch.no_grad()
def test_beam_search():
    """select() reorders and repeats sequences, as beams do."""
    layer, x = make(), tokens(2, 5)
    cache = layer(x, use_cache=True).cache.select([0, 0, 1])
    text = x[[0, 0, 1]]
    for seed, beams in ((2, [1, 0, 2]), (3, torch.tensor([2, 2, 0])), (4, range(0, 3))):
        more = tokens(3, 1, seed=seed)
        out = layer(more, cache=cache, use_cache=True)
        text = torch.cat([text, more], 1)
        torch.testing.assert_close(out.hidden_states, layer(text).hidden_states[:, -1:])
        cache, text = out.cache.select(beams), text[torch.as_tensor(beams)]
    assert cache.select([]).state.mean.shape[0] == 0
    for index, error, message in (
        (3, TypeError, "index must be a torch.Tensor or a sequence of int, got int"),
        ([0.5], TypeError, "index must hold int alone"),
        (torch.tensor([0.0]), TypeError, "index must be torch.int32 or torch.int64"),
        (torch.tensor([[0]]), ValueError, "index must have shape"),
        ([0, 3], IndexError, r"index must be in 0 .. 2, got 3"),
        ([-1], IndexError, r"index must be in 0 .. 2, got -1"),
    ):
        with pytest.raises(error, match=f"KanervaCache.select: {message}"):
            cache.select(index)


@torch.no_grad()
def test_whole_length_masks_in_cached_decoding():
    """Hugging Face passes the mask of all tokens so far with every call."""
    layer, x = make(), tokens(2, 9)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :2] = mask[1, 4] = mask[1, 7] = 0
    want = layer(x, mask).hidden_states
    cache, parts = None, []
    for a, b in ((0, 5), (5, 6), (6, 9)):
        out = layer(x[:, a:b], mask[:, :b], cache=cache, use_cache=True)
        cache = out.cache
        parts.append(out.hidden_states)
    torch.testing.assert_close(torch.cat(parts, 1), want)
    for bad in (mask[:, :2], mask[:1], mask[0]):
        with pytest.raises(ValueError, match=r"attention_mask must have shape .* or \(B, S\)"):
            layer(x[:, :3], bad, cache=cache)
    with pytest.raises(ValueError, match="the tokens of this call alone"):
        layer(x[:, :3], mask)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_packed_sequences_with_a_cache(options):
    """Packed prompts, packed continuations of them, and decoding as a batch."""
    layer = make(**options)
    first, second = (0, 4, 5, 5, 15), (0, 2, 2, 3, 9)
    x, y, z = tokens(1, 15), tokens(1, 9, seed=2), tokens(4, 1, seed=3)
    packed = layer(x, cu_seqlens=torch.tensor(first), use_cache=True)
    more = layer(y, cu_seqlens=torch.tensor(second), cache=packed.cache, use_cache=True)
    last = layer(z, cache=more.cache, use_cache=True)
    assert more.log_evidence.shape == (1, 4, HEADS)
    for n in range(4):
        (a, b), (c, d) = first[n : n + 2], second[n : n + 2]
        one = layer(x[:, a:b], use_cache=True)
        assert_same(packed.cache.select([n]), one.cache)
        two = layer(y[:, c:d], cache=one.cache, use_cache=True)
        torch.testing.assert_close(more.hidden_states[:, c:d], two.hidden_states)
        torch.testing.assert_close(more.read_var[:, c:d], two.read_var)
        torch.testing.assert_close(more.log_evidence[:, n], two.log_evidence)
        assert_same(more.cache.select([n]), two.cache)
        three = layer(z[n : n + 1], cache=two.cache, use_cache=True)
        torch.testing.assert_close(last.hidden_states[n : n + 1], three.hidden_states)
    loss = more.hidden_states.square().sum()
    for name, grad in zip(
        (n for n, _ in layer.named_parameters()),
        torch.autograd.grad(loss, list(layer.parameters())),
        strict=True,
    ):
        assert grad.isfinite().all() and (grad != 0).any(), name
    with torch.no_grad():
        changed = packed.cache.detach().clone()
        layer(y, cu_seqlens=torch.tensor(second), cache=changed, inplace=True)
        assert_same(changed, more.cache)


@torch.no_grad()
def test_vmap_over_decoding():
    layer, x = make(dynamics="decay"), tokens(1, 5)
    cache = layer(x, use_cache=True).cache
    several = tokens(3, 1, seed=4)[:, None]  # three continuations of one prompt
    out = torch.vmap(lambda y: layer(y, cache=cache, use_cache=True))(several)
    caches = out.cache
    again = torch.vmap(lambda y, c: layer(y, cache=c).hidden_states)(several, caches)
    for i in range(3):
        one = layer(several[i], cache=cache, use_cache=True)
        torch.testing.assert_close(out.hidden_states[i], one.hidden_states)
        two = layer(several[i], cache=one.cache).hidden_states
        torch.testing.assert_close(again[i], two)


@torch.no_grad()
def test_decoding_compiles():
    torch._dynamo.reset()
    layer, x = make(), tokens(2, 5)
    cache = layer(x, use_cache=True).cache
    for inplace in (False, True):
        compiled = torch.compile(
            lambda y, c: layer(y, cache=c, use_cache=True, inplace=inplace),  # noqa: B023
            fullgraph=True,
            backend="aot_eager",
        )
        y = tokens(2, 1, seed=7)
        own, other = cache.clone(), cache.clone()
        got, want = compiled(y, own), layer(y, cache=other, use_cache=True, inplace=inplace)
        torch.testing.assert_close(got.hidden_states, want.hidden_states)
        assert_same(got.cache, want.cache)
        assert_same(own, other)
    torch._dynamo.reset()


def test_saved_moved_and_detached():
    layer = make(torch.float32, dynamics="decay")
    cache = layer(tokens(2, 5, torch.float32), use_cache=True).cache
    buffer = io.BytesIO()
    torch.save({"cache": cache}, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer)["cache"]  # weights_only=True
    assert isinstance(loaded, KanervaCache)
    assert_same(loaded, cache)
    assert not any(x.requires_grad for x in leaves(cache.detach()))
    assert not {x.data_ptr() for x in leaves(cache.clone())} & {x.data_ptr() for x in leaves(cache)}
    assert all(x.dtype == torch.float64 for x in leaves(cache.to(torch.float64)))
    half = cache.to(torch.bfloat16)
    assert half.history.dtype == torch.bfloat16
    assert half.state.mean.dtype == half.state.cov.dtype == half.forgotten.dtype == torch.float32
    assert all(x.device.type == "meta" for x in leaves(cache.to("meta")))
    # Nothing of the prompt is kept alive but what the cache is.
    assert cache.history.untyped_storage().nbytes() == cache.history.nbytes


def test_a_cache_of_another_layer_is_refused():
    def made(**options):
        return make(torch.float32, dynamics="decay", **options)

    layer, x = made(), tokens(2, 4, torch.float32)
    cache = layer(x, use_cache=True).cache
    state, history, forgotten = cache
    double = cache.to(torch.float64)
    for bad, error, message in (
        (made(conv_size=3)(x, use_cache=True).cache, ValueError, "history of shape"),
        (made(conv_size=0)(x, use_cache=True).cache, ValueError, "history of shape"),
        (made(value_dim=5)(x, use_cache=True).cache, ValueError, "mean of shape"),
        (cache.select([0]), ValueError, r"mean of shape \(B, H, K, C\) = \(2, 2, 6, 6\)"),
        (double, TypeError, "mean of torch.float32 for tokens of torch.float32"),
        (cache._replace(state=state._replace(cov=double.state.cov)), TypeError, "cov of torch.fl"),
        (cache._replace(history=history.double()), TypeError, "history of torch.float32 or"),
        (cache._replace(forgotten=forgotten[:, :1]), ValueError, "forgotten of shape"),
        (cache._replace(forgotten=forgotten.to("meta")), ValueError, "forgotten on cpu"),
        (cache._replace(forgotten=3), TypeError, "forgotten that is a torch.Tensor, got int"),
        (cache._replace(state=3), TypeError, "MemoryState, got int"),
        (cache._replace(state=state._replace(cov=state.cov[..., :5, :5])), ValueError, "cov of sh"),
    ):
        with pytest.raises(error, match=f"KanervaLayer: cache must hold a {message}"):
            layer(x, cache=bad)
    with pytest.raises(ValueError, match="must hold a history None"):
        made(conv_size=0)(x, cache=cache)
    with pytest.raises(TypeError, match=r"mean of torch.float64 for tokens of torch.float64"):
        make(dynamics="decay")(x.double(), cache=cache)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("own", "other"), [("decay", "stationary"), ("stationary", "decay")])
def test_a_cache_of_other_dynamics_is_refused(own, other, inplace):
    layer, x = make(dynamics=own), tokens(1, 3)
    cache = make(dynamics=other)(x, use_cache=True).cache.detach()
    copies = (cache.clone(), cache.select([0]), cache.to(torch.float64), pickled(cache))
    message = rf"cache must come from .*'{own}'.* like this one, got that of "
    for each in (cache, *copies):
        with torch.no_grad(), pytest.raises(ValueError, match=rf"{message}.*'{other}'"):
            layer(x[:, :1], cache=each, inplace=inplace)


def test_a_cache_goes_to_a_half_precision_with_every_digit_of_the_memory():
    layer = make(torch.float32, dynamics="decay")
    cache = layer(tokens(2, 50, torch.float32), use_cache=True).cache
    for dtype in (torch.bfloat16, torch.float16):
        half = cache.to(dtype)
        assert half.history.dtype == dtype
        kept = zip((*half.state, half.forgotten), (*cache.state, cache.forgotten), strict=True)
        assert all(torch.equal(got, want) for got, want in kept)
        copy = cache.state.to(dtype, copy=True)
        assert copy.mean is not cache.state.mean and torch.equal(copy.cov, cache.state.cov)


def test_a_layer_that_forgets_nothing_counts_nothing():
    layer, x = make(use_decay=False), tokens(1, 3)
    cache = layer(x, use_cache=True).cache
    assert cache.forgotten is None and layer.dynamics == "stationary"
    layer(x[:, :1], cache=cache)
    with pytest.raises(ValueError, match="got that of one with dynamics='stationary' or"):
        make(dynamics="decay")(x[:, :1], cache=cache)


def pickled(cache):
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_step_in_place_that_cannot_be_made_changes_nothing():
    layer, given = KanervaLayer(8, 2, dynamics="decay"), torch.randn(1, 5, 8)
    with torch.inference_mode():
        inference = layer(given, use_cache=True).cache
    prompt = layer(given, use_cache=True).cache.detach()
    expanded = prompt._replace(forgotten=prompt.forgotten[:, :1].expand(1, 2))
    for cache, match in ((inference, "inference_mode"), (expanded, "must be contiguous")):
        before = cache.state.mean.clone()
        for steps in (1, 2):
            with torch.no_grad(), pytest.raises(ValueError, match=match):
                layer(given[:, :steps], cache=cache, inplace=True)
            assert torch.equal(cache.state.mean, before)
    with torch.inference_mode():
        assert layer(given[:, :1], cache=inference, inplace=True).cache is inference
