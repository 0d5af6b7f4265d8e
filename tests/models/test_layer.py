"""KanervaLayer: exact, causal, with padding, packing and a cache that change nothing."""

import copy
import itertools

import pytest
import torch
from layers import HEADS, WIDTH, make, tokens

from kanerva_ext import KanervaCache, KanervaLayer, ops

OPTIONS = (
    {},
    {"conv_size": 0, "use_decay": False, "use_gate": False},
    {"head_dim": 4, "value_dim": 7, "conv_size": 3, "dynamics": "decay"},
    {"num_kv_heads": 1},
    {"dynamics": "decay"},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_token_sees_itself_and_what_was_before(options):
    layer, x = make(**options), tokens(2, 9)
    changed = x.clone()
    changed[:, 5] += 1
    a, b = layer(x), layer(changed)
    for got, want in zip((a.hidden_states, a.read_var), (b.hidden_states, b.read_var), strict=True):
        assert torch.equal(got[:, :5], want[:, :5])
        assert (got[:, 5:] != want[:, 5:]).any(-1).all()


def test_it_is_a_memory_written_and_read_token_by_token():
    layer, x = make(conv_size=0, use_gate=False, dynamics="decay"), tokens(2, 7)
    out = layer(x)
    q, k, v = layer.qkv_proj(x).unflatten(-1, (3, HEADS, -1)).unbind(2)
    q, k = (y / y.norm(dim=-1, keepdim=True) for y in (q, k))
    noise = torch.nn.functional.softplus(layer.noise_proj(x)) + layer.noise_floor
    decay = torch.exp(-torch.nn.functional.softplus(layer.decay_proj(x)))
    mean = torch.zeros(2, HEADS, 6, 6, dtype=torch.float64)
    cov = torch.eye(6, dtype=torch.float64).expand_as(mean)
    evidence = 0
    for t in range(7):
        steps = (k[:, t, :, None], v[:, t, :, None], noise[:, t, :, None])
        mean, cov, more = ops.bayes_write(mean, cov, *steps, decay=decay[:, t, :, None])
        reads, var = ops.read(mean, cov, q[:, t, :, None])
        want = layer.out_proj(layer.norm(reads[:, :, 0]).flatten(1))
        torch.testing.assert_close(out.hidden_states[:, t], want)
        torch.testing.assert_close(out.read_var[:, t], var[..., 0])
        evidence = evidence + more
    torch.testing.assert_close(out.log_evidence, evidence)
    assert out.cache is None


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("side", ["left", "right", "middle", "alternate"])
def test_padding_is_as_if_it_were_not_there(side, options):
    layer, x = make(**options), tokens(1, 8)
    places = {
        "left": range(3, 11),
        "right": range(8),
        "middle": (0, 1, 5, 6, 7, 8, 9, 10),
        "alternate": (0, 2, 3, 5, 6, 7, 9, 10),
    }[side]
    padded = torch.full((1, 11, WIDTH), torch.nan, dtype=torch.float64)
    padded[:, list(places)] = x
    mask = torch.zeros(1, 11, dtype=torch.bool)
    mask[:, list(places)] = True
    padded = torch.cat([padded, tokens(1, 11, seed=2)])  # another row, without padding
    mask = torch.cat([mask, torch.ones_like(mask)])
    want = layer(x, use_cache=True)
    for attention_mask in (mask, mask.long(), mask.float(), mask.bfloat16(), mask.short()):
        out = layer(padded, attention_mask, use_cache=True)
        got = out.hidden_states[:1, list(places)]
        torch.testing.assert_close(got, want.hidden_states)
        torch.testing.assert_close(out.read_var[:1, list(places)], want.read_var)
        torch.testing.assert_close(out.log_evidence[:1], want.log_evidence)
        assert (out.hidden_states[~mask] == 0).all()
        for a, b in zip(_leaves(out.cache), _leaves(want.cache), strict=True):
            torch.testing.assert_close(a[:1], b)
    loss = [y.hidden_states[:1].square().sum() for y in (out, want)]
    grads = [torch.autograd.grad(y, list(layer.parameters()), allow_unused=True) for y in loss]
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def _leaves(cache):
    return [x for x in (*cache.state, cache.history, cache.forgotten) if x is not None]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_pieces_with_a_cache_are_the_whole(grad, options):
    layer, x = make(**options), tokens(3, 12)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[0, :3] = mask[1, :5] = mask[1, 8] = False  # prompts of different length, padded in front
    with torch.set_grad_enabled(grad):
        whole = layer(x, mask, use_cache=True)
        cache, parts, evidence = None, [], 0
        for piece in (slice(0, 6), slice(6, 8), slice(8, 9), slice(9, 10), slice(10, 12)):
            out = layer(x[:, piece], mask[:, piece], cache=cache, use_cache=True)
            cache, evidence = out.cache, evidence + out.log_evidence
            parts.append(out.hidden_states)
        torch.testing.assert_close(torch.cat(parts, 1), whole.hidden_states)
        torch.testing.assert_close(evidence, whole.log_evidence)
        for a, b in zip(_leaves(cache), _leaves(whole.cache), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_packed_sequences_are_separate(options):
    layer, x = make(**options), tokens(1, 15)
    bounds = (0, 4, 5, 5, 15)
    packed = layer(x, cu_seqlens=torch.tensor(bounds, dtype=torch.int32))
    assert packed.log_evidence.shape == (1, 4, HEADS)
    for n, (a, b) in enumerate(itertools.pairwise(bounds)):
        alone = layer(x[:, a:b])
        torch.testing.assert_close(packed.hidden_states[:, a:b], alone.hidden_states)
        torch.testing.assert_close(packed.read_var[:, a:b], alone.read_var)
        torch.testing.assert_close(packed.log_evidence[:, n], alone.log_evidence)


def test_every_parameter_learns():
    layer = make()
    layer(tokens(2, 9)).hidden_states.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all() and (parameter.grad != 0).any(), name


def test_it_forgets_no_further_than_the_limit():
    """Thousands of equal tokens with strong decay: what is never written at must not overflow."""
    layer = make(torch.float32, conv_size=0, dynamics="decay")
    with torch.no_grad():
        layer.decay_proj.bias.fill_(1.0)
    x = tokens(1, 1, torch.float32).expand(1, 400, WIDTH)
    out = layer(x, use_cache=True)
    assert out.hidden_states.isfinite().all() and out.cache.state.cov.isfinite().all()
    torch.testing.assert_close(out.cache.forgotten, torch.full((1, HEADS), 6.907755))
    assert out.cache.state.cov.amax() > 500
    again = layer(x, cache=out.cache, use_cache=True)
    assert again.hidden_states.isfinite().all()
    assert again.cache.state.cov.amax() <= out.cache.state.cov.amax()
    # Before the limit the decays are those of the gate.
    short = layer(x[:, :3], use_cache=True).cache.forgotten
    torch.testing.assert_close(
        short, 3 * torch.nn.functional.softplus(layer.decay_proj(x[:, 0])), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_zero_tokens_and_padding_have_gradients(dtype, options):
    """A token that a LayerNorm or an embedding makes zero, alone, among others, and as padding."""
    layer, x = make(dtype, **options), tokens(2, 8, dtype)
    x[0], x[1, 3] = 0, 0
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, :2] = mask[1, 6] = 0
    x.requires_grad_()
    for attention_mask in (None, mask):
        out = layer(x, attention_mask).hidden_states
        assert out.isfinite().all()
        grads = torch.autograd.grad(out.float().sum(), (x, *layer.parameters()), allow_unused=True)
        for grad in grads:
            assert grad is None or (grad.isfinite().all() and grad.abs().max() < 1e5)


def test_keys_of_any_size_have_norm_one():
    """Also those whose squares float16 does not hold."""
    layer = make(torch.float16, conv_size=0, use_decay=False)
    x = tokens(1, 6, torch.float16)
    want = layer(x).read_var
    with torch.no_grad():
        layer.qkv_proj.weight[: 2 * WIDTH] *= 2**9
    torch.testing.assert_close(layer(x).read_var, want, rtol=1e-3, atol=1e-3)


def test_gates_survive_meta_device():
    """to_empty, and reset_parameters of every module in any order, give what the constructor does:
    FSDP and large models start like that."""
    torch.manual_seed(3)
    want = KanervaLayer(WIDTH, HEADS)
    for order in (list, lambda modules: reversed(list(modules))):
        with torch.device("meta"):
            layer = KanervaLayer(WIDTH, HEADS)
        layer.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.fill_(torch.nan)
        for module in order(layer.modules()):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for (name, a), b in zip(layer.named_parameters(), want.parameters(), strict=True):
            assert a.isfinite().all(), name
            if name in ("noise_proj.bias", "retention_proj.bias", "norm.weight"):
                assert torch.equal(a, b), name
            else:
                torch.testing.assert_close(a.std(), b.std(), rtol=0.4, atol=0, msg=name)
        assert (layer(tokens(1, 3, torch.float32)).hidden_states != 0).any()
    for module in layer.modules():
        own = list(module.parameters(recurse=False))
        assert not own or hasattr(module, "reset_parameters"), type(module)


def test_fewer_key_heads_than_value_heads():
    """A key head serves several memories: the layer whose projections are repeated is the same."""
    options = {"head_dim": 4, "value_dim": 5, "conv_size": 3}
    torch.manual_seed(0)
    few = KanervaLayer(WIDTH, 6, num_kv_heads=2, **options).double()
    all_heads = KanervaLayer(WIDTH, 6, **options).double()
    assert few.qkv_proj.out_features == 2 * 2 * 4 + 6 * 5
    with torch.no_grad():
        repeat = [[4 * (h // 3) + i for h in range(6) for i in range(4)]]
        q, k = torch.tensor(repeat[0]), torch.tensor(repeat[0]) + 8
        rows = torch.cat([q, k, torch.arange(16, 46)])
        all_heads.load_state_dict(
            few.state_dict()
            | {
                "qkv_proj.weight": few.qkv_proj.weight[rows],
                "conv.weight": few.conv.weight[:, rows],
            }
        )
    x = tokens(2, 9)
    a, b = few(x, use_cache=True), all_heads(x, use_cache=True)
    torch.testing.assert_close(a.hidden_states, b.hidden_states)
    torch.testing.assert_close(a.read_var, b.read_var)
    more = tokens(2, 2, seed=5)
    torch.testing.assert_close(
        few(more, cache=a.cache).hidden_states, all_heads(more, cache=b.cache).hidden_states
    )
    assert "num_kv_heads=2" in repr(few) and "num_kv_heads" not in repr(all_heads)


def test_half_precision_keeps_the_memory_in_float32():
    layer, x = make(torch.float32), tokens(2, 20, torch.float32)
    want = layer(x).hidden_states
    half = copy.deepcopy(layer).bfloat16()
    out = half(x.bfloat16(), use_cache=True)
    assert out.hidden_states.dtype == torch.bfloat16
    assert out.cache.state.mean.dtype == out.read_var.dtype == torch.float32
    assert (out.hidden_states.float() - want).norm() < 0.1 * want.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        out.hidden_states.float().sum().backward()
    assert (out.hidden_states.float() - want).norm() < 0.1 * want.norm()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_compiled_saved_and_copied():
    torch._dynamo.reset()
    layer, x = make(), tokens(2, 9)
    want = layer(x).hidden_states
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x).hidden_states, want)
    other = KanervaLayer(WIDTH, HEADS).double()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x).hidden_states, want)
    torch._dynamo.reset()


def test_exported_with_dynamic_sizes():
    layer = make()
    batch, steps = torch.export.Dim("batch", min=2), torch.export.Dim("steps", min=2)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, :2] = False
    program = torch.export.export(
        layer,
        (tokens(3, 5), mask),
        dynamic_shapes={
            "hidden_states": {0: batch, 1: steps},
            "attention_mask": {0: batch, 1: steps},
        },
    ).module()
    x, mask = tokens(7, 11), torch.rand(7, 11) < 0.7
    got, want = program(x, mask), layer(x, mask)
    torch.testing.assert_close(got.hidden_states, want.hidden_states)
    count = torch.export.Dim("count", min=3)
    packed = torch.export.export(
        layer,
        (tokens(1, 9),),
        {"cu_seqlens": torch.tensor([0, 4, 4, 9])},
        dynamic_shapes={"hidden_states": {1: steps}, "cu_seqlens": {0: count}},
    ).module()
    x, bounds = tokens(1, 14), torch.tensor([0, 1, 6, 6, 9, 14])
    got, want = packed(x, cu_seqlens=bounds), layer(x, cu_seqlens=bounds)
    torch.testing.assert_close(got.hidden_states, want.hidden_states)


def test_sizes_of_zero():
    layer = make()
    for batch, steps in ((0, 4), (2, 0)):
        out = layer(tokens(batch, steps), use_cache=True)
        assert out.hidden_states.shape == (batch, steps, WIDTH)
        assert out.cache.state.mean.shape[0] == batch


@pytest.mark.parametrize("compiled", [False, True])
def test_bad_cu_seqlens(compiled):
    torch._dynamo.reset()
    layer, x = make(), tokens(1, 12)
    call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    for bounds in ([0, 5, 9], [2, 12], [1, 9], [0, 13], [0, 7, 3, 12], [-1, 12]):
        with pytest.raises(ValueError, match=r"cu_seqlens must rise from 0 to T = 12 .steps., got"):
            call(x, cu_seqlens=torch.tensor(bounds))
    got = call(x, cu_seqlens=torch.tensor([0, 5, 12]))
    torch.testing.assert_close(
        got.hidden_states, layer(x, cu_seqlens=torch.tensor([0, 5, 12])).hidden_states
    )
    torch._dynamo.reset()
    for bounds, error, message in (
        ([0, 12], TypeError, "must be a torch.Tensor, got list"),
        (torch.tensor([0.0, 12.0]), TypeError, "must be torch.int32 or torch.int64"),
        (torch.tensor([[0, 12]]), ValueError, r"must have shape \(N \+ 1,\)"),
        (torch.tensor([0]), ValueError, r"must have shape \(N \+ 1,\)"),
        (torch.tensor([0, 12], device="meta"), ValueError, "must be on cpu like hidden_states"),
    ):
        with pytest.raises(error, match=f"KanervaLayer: cu_seqlens {message}"):
            layer(x, cu_seqlens=bounds)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_heads": 5}, ValueError, "d_model must be a multiple of num_heads = 5"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"head_dim": 2.0}, TypeError, "head_dim must be an int or None, got float"),
        ({"conv_size": -1}, ValueError, "conv_size must be at least 0"),
        ({"noise_floor": 0.0}, ValueError, "above noise_floor, and both in"),
        ({"noise_var": 1e-4}, ValueError, "above noise_floor"),
        ({"backend": "tpu"}, ValueError, "backend must be one of"),
        ({"num_kv_heads": 3}, ValueError, "num_kv_heads must divide num_heads = 2, got 3"),
        ({"num_kv_heads": True}, TypeError, "num_kv_heads must be an int or None, got bool"),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        KanervaLayer(**{"d_model": WIDTH, "num_heads": HEADS, **options})


def test_bad_input():
    layer, x = make(), tokens(2, 4)
    cache = layer(x, use_cache=True).cache
    bounds = torch.tensor([0, 4])
    for args, options, error, message in (
        ((None,), {}, TypeError, "hidden_states must be a torch.Tensor, got None"),
        ((x[..., 1:],), {}, ValueError, r"hidden_states must have shape \(B, T, d_model = 12\)"),
        ((x, x[..., 0] + 1j), {}, TypeError, "attention_mask must be bool, integer or floating"),
        ((x, x[..., 0]), {}, ValueError, "a floating attention_mask must hold 0 .* and 1 alone"),
        ((x.long(),), {}, TypeError, "hidden_states must have a floating-point dtype, got torch.i"),
        ((x.float(),), {}, TypeError, "hidden_states must be torch.float64 like .*, got torch.fl"),
        (
            (x, torch.ones(2, 9).bool()),
            {},
            ValueError,
            r"attention_mask must have shape .*\(2, 4\)",
        ),
        ((x,), {"cache": 3}, TypeError, "cache must be a KanervaCache or None, got int"),
        (
            (x[:1],),
            {"cache": cache},
            ValueError,
            r"cache must hold a mean of shape .*\(1, 2, 6, 6\)",
        ),
        ((x,), {"cu_seqlens": bounds}, ValueError, r"hidden_states must have one row"),
        (
            (x[:1],),
            {"cu_seqlens": bounds, "attention_mask": torch.ones(1, 4).bool()},
            ValueError,
            "cu_seqlens must be None with attention_mask",
        ),
        ((x,), {"inplace": True}, ValueError, "inplace=True needs a cache"),
        ((x,), {"inplace": True, "cache": cache}, RuntimeError, "inplace=True changes the cache"),
    ):
        with pytest.raises(error, match=f"KanervaLayer: {message}"):
            layer(*args, **options)
    assert isinstance(cache, KanervaCache)


def test_the_noise_floor_is_saved_and_checked():
    saved = KanervaLayer(8, 2).state_dict()
    with pytest.raises(RuntimeError, match=r"noise_floor is 0\.001 in the checkpoint and 0\.2 in"):
        KanervaLayer(8, 2, noise_floor=0.2, noise_var=1.0).load_state_dict(saved)
    KanervaLayer(8, 2).load_state_dict(saved)
    del saved["_extra_state"]  # as old checkpoints are
    KanervaLayer(8, 2, noise_floor=0.2, noise_var=1.0).load_state_dict(saved)
    saved["_extra_state"] = "what"
    with pytest.raises(RuntimeError, match=r"_extra_state must be a tensor .* got str"):
        KanervaLayer(8, 2).load_state_dict(saved)
