"""The language model: what transformers' generate, save_pretrained and labels expect of one."""

import copy
import json

import pytest
import torch

transformers = pytest.importorskip("transformers")

from kanerva_ext import KanervaBlock  # noqa: E402
from kanerva_ext.huggingface import (  # noqa: E402
    KanervaConfig,
    KanervaForCausalLM,
    KanervaModel,
    KanervaModelCache,
)

SIZES = {
    "vocab_size": 23,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,  # far from uniform predictions
}


def make(**options):
    torch.manual_seed(0)
    return KanervaForCausalLM(KanervaConfig(**SIZES | options)).double().eval()


def text(batch=2, steps=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, SIZES["vocab_size"], (batch, steps), generator=generator)


def padded(tokens, padding=3):
    """With rows of padding on the left, and the mask."""
    left = torch.zeros(len(tokens), padding, dtype=torch.long)
    both = torch.cat([left, tokens], 1)
    return both, torch.cat([left, torch.ones_like(tokens)], 1)


def test_it_is_embeddings_blocks_and_a_norm():
    model, tokens = make(), text()
    x = model.model.embed_tokens.weight[tokens]
    for block in model.model.layers:
        assert isinstance(block, KanervaBlock)
        x = block(x)
    want = model.model.norm(x) @ model.model.embed_tokens.weight.mT
    torch.testing.assert_close(model(tokens).logits, want)
    torch.testing.assert_close(
        model(inputs_embeds=model.get_input_embeddings()(tokens)).logits, want
    )
    out = model(tokens, output_hidden_states=True, logits_to_keep=2)
    torch.testing.assert_close(out.logits, want[:, -2:])
    assert len(out.hidden_states) == 3
    assert torch.equal(model(tokens, return_dict=False)[0], model(tokens).logits)


def test_weights_start_as_the_layer_wants_them():
    layer = make().model.layers[0].layer
    torch.testing.assert_close(
        torch.nn.functional.softplus(layer.noise_proj.bias) + layer.noise_floor,
        torch.full((2,), 0.25, dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )
    assert layer.conv.weight.abs().max() <= 0.5 and layer.conv.weight.std().item() > 0.2
    assert layer.qkv_proj.weight.std().item() == pytest.approx(0.5, rel=0.1)


# ---------------------------------------------------------------------------------- generate

SEARCHES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 0, "num_return_sequences": 3},
    "top p": {"do_sample": True, "top_p": 0.8, "temperature": 1.3},
    "beams": {"num_beams": 4, "do_sample": False, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 3, "do_sample": True},
}


@pytest.mark.parametrize("dynamics", ["decay", "stationary"])
@pytest.mark.parametrize("name", SEARCHES)
def test_the_cache_changes_no_text(name, dynamics):
    model, tokens = make(dynamics=dynamics), text()
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(7)
        texts.append(
            model.generate(tokens, max_new_tokens=12, use_cache=use_cache, **SEARCHES[name])
        )
    assert torch.equal(*texts)
    assert texts[0].shape[1] > 8 and len(texts[0].unique(dim=0)) == len(texts[0])


def test_beams_are_reordered():
    """The best of four beams is better than greedy here, and its score is that of its text."""
    model, tokens = make(), text(4)
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    found = model.generate(tokens, num_beams=4, length_penalty=0.0, **options)
    greedy = model.generate(tokens, **options)

    def log_likelihood(texts):
        scores = model(texts[:, :-1]).logits.log_softmax(-1)
        return scores.gather(-1, texts[:, 1:, None])[:, 6:, 0].sum(-1)

    best = log_likelihood(found.sequences)
    torch.testing.assert_close(found.sequences_scores.double(), best, rtol=1e-5, atol=1e-5)
    assert (found.beam_indices != found.beam_indices[:, :1]).any()
    assert (best >= log_likelihood(greedy.sequences) - 1e-9).all()
    assert (best > log_likelihood(greedy.sequences) + 1e-6).any()


@pytest.mark.parametrize("name", ["greedy", "beams"])
def test_padding_on_the_left_changes_no_text(name):
    model, short, long = make(), text(1, 4), text(1, 7, seed=2)
    tokens, mask = padded(short)
    both = torch.cat([tokens, long])
    mask = torch.cat([mask, torch.ones_like(long)])
    options = {"max_new_tokens": 9, "eos_token_id": None} | SEARCHES[name]
    each = SEARCHES[name].get("num_return_sequences", 1)
    found = model.generate(both, attention_mask=mask, **options)
    assert torch.equal(found[:each, 3:], model.generate(short, **options))
    assert torch.equal(found[each:], model.generate(long, **options))


def test_a_text_goes_on_from_its_cache():
    model, tokens = make(), text(2, 9)
    options = {"do_sample": False, "eos_token_id": None}
    whole = model.generate(tokens, max_new_tokens=8, **options)
    with torch.no_grad():
        cache = model(tokens[:, :5], use_cache=True).cache
    assert cache.get_seq_length() == 5 and "seen_tokens=5" in repr(cache)
    again = copy.deepcopy(cache)
    for each in (cache, again):  # the copy is not what the first generation changed
        found = model.generate(tokens, cache=each, max_new_tokens=8, **options)
        assert torch.equal(found, whole)
        assert each.get_seq_length() == 16


def test_steps_are_the_whole_and_overwrite_the_cache():
    model, tokens = make(), text()
    tokens, mask = padded(tokens)
    want = model(tokens, mask).logits[:, 3:]
    with torch.no_grad():
        out = model(tokens[:, :5], mask[:, :5], use_cache=True)
        logits, cache = [out.logits[:, 3:]], out.cache
        place = cache.layers[0].state.cov.data_ptr()
        for t in range(5, 10):
            out = model(tokens[:, t : t + 1], mask[:, : t + 1], cache=cache)
            assert out.cache is cache and cache.layers[0].state.cov.data_ptr() == place
            logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits, 1), want)
    for grad in (torch.inference_mode(), torch.no_grad()):
        with torch.inference_mode():
            cache = model(tokens[:, :9], mask[:, :9], use_cache=True).cache
        with grad:
            got = model(tokens[:, 9:], cache=cache).logits
        torch.testing.assert_close(got[:, 0], want[:, -1].detach())


def test_rows_of_a_cache():
    cache = KanervaModelCache()
    assert not cache.is_initialized and len(cache) == 0 and cache.get_seq_length() == 0
    model, tokens = make(), text(2, 5)
    with torch.no_grad():
        model(tokens, cache=cache)
        cache.batch_repeat_interleave(2)
        assert cache.is_initialized and len(cache) == 2
        cache.batch_select_indices(torch.tensor([3, 0, 1]))
        got = model(torch.full((3, 1), 5), cache=cache).logits[:, 0]
        longer = torch.cat([tokens[[1, 0, 0]], torch.full((3, 1), 5)], 1)
        torch.testing.assert_close(got, model(longer).logits[:, -1])
    with pytest.raises(NotImplementedError, match="cannot be taken back"):
        cache.crop(-1)
    cache.reset()
    assert not cache.is_initialized and cache.get_seq_length() == 0


# -------------------------------------------------------------------------------------- labels


def test_labels_are_the_next_tokens():
    model, tokens = make(), text()
    labels = tokens.clone()
    labels[0, 3:5] = -100
    out = model(tokens, labels=labels)
    scores = out.logits.log_softmax(-1)
    terms = [-scores[b, t - 1, tokens[b, t]] for b in (0, 1) for t in range(1, 7)]
    kept = [term for i, term in enumerate(terms) if i not in (2, 3)]
    torch.testing.assert_close(out.loss.double(), torch.stack(kept).mean(), rtol=1e-6, atol=0)
    split = model(tokens, labels=labels, num_items_in_batch=20).loss
    torch.testing.assert_close(split, out.loss * len(kept) / 20)
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_packed_texts_do_not_meet():
    model, a, b = make(), text(1, 7), text(1, 4, seed=3)
    bounds = torch.tensor([0, 7, 11])
    packed = torch.cat([a, b], 1)
    out = model(packed, labels=packed, cu_seqlens=bounds)
    torch.testing.assert_close(out.logits[:, :7], model(a).logits)
    torch.testing.assert_close(out.logits[:, 7:], model(b).logits)
    want = (6 * model(a, labels=a).loss + 3 * model(b, labels=b).loss) / 9
    torch.testing.assert_close(out.loss, want)


def test_gradient_checkpointing_changes_no_gradient():
    grads = []
    for on in (False, True):
        model, (tokens, mask) = make().train(), padded(text())
        if on:
            model.activation_checkpointing_enable()
        model(tokens, mask, labels=tokens.masked_fill(mask == 0, -100)).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
def test_packed_texts_do_not_meet_under_gradient_checkpointing(reentrant):
    packed, found = torch.cat([text(1, 7), text(1, 4, seed=2)], 1), []
    for on in (False, True):
        model = make().train()
        if on:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        loss = model(packed, cu_seqlens=torch.tensor([0, 7, 11]), labels=packed).loss
        loss.backward()
        found.append([loss, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("part", ["model", "language model"])
@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params"])
@torch.no_grad()
def test_a_cache_goes_by_the_names_of_other_models(name, part):
    model, tokens = make(), text()
    called = model.model if part == "model" else model
    want, cache = called(tokens)[0][:, -1:], model(tokens[:, :-1], use_cache=True).cache
    torch.testing.assert_close(called(tokens[:, -1:], **{name: cache})[0], want)
    if name != "cache":
        with pytest.raises(ValueError, match=f"{name} must be None beside another cache"):
            called(tokens, cache=cache, **{name: KanervaModelCache()})
        with pytest.raises(TypeError, match="cache must be a KanervaModelCache or None, got tuple"):
            called(tokens, **{name: ((tokens, tokens),)})


@pytest.mark.parametrize("layers", [1, 3])
def test_the_cache_of_a_model_of_other_depth_is_refused(layers):
    cache, tokens = make()(text(), use_cache=True).cache, text(2, 1)
    before = copy.deepcopy(cache.layers[0].state.mean.detach())
    match = f"cache must hold one KanervaCache for each of {layers} layers, or none yet, got 2"
    with torch.no_grad(), pytest.raises(ValueError, match=match):
        make(num_hidden_layers=layers)(tokens, cache=cache)
    assert torch.equal(cache.layers[0].state.mean, before) and cache.seen_tokens == 7


def test_it_learns_a_text():
    model, tokens = make().train(), text(4, 12)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = model(tokens, labels=tokens).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = model.eval().generate(tokens[:, :3], max_new_tokens=9, do_sample=False)
    assert loss < 0.3 and torch.equal(found, tokens)


def test_bounds_by_the_names_that_transformers_has():
    model, tokens = make(), text(1, 9)
    bounds = torch.tensor([0, 4, 9])
    want = model(tokens, labels=tokens, cu_seqlens=bounds)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    for names in ({"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}, {"position_ids": positions}):
        got = model(tokens, labels=tokens, **names)
        assert torch.equal(got.logits, want.logits) and torch.equal(got.loss, want.loss)
    alone = model(tokens, labels=tokens, position_ids=torch.arange(9)[None])
    assert torch.equal(alone.logits, model(tokens).logits)
    with pytest.raises(ValueError, match=r"position_ids must not start again .* got \(2, 9\)"):
        model(text(2, 9), position_ids=positions.expand(2, 9))
    with pytest.raises(TypeError, match="no argument cu_seqlen, but cu_seqlens"):
        model(tokens, cu_seqlen=bounds)


def test_a_cache_is_detached_between_pieces():
    model, tokens = make(), text(2, 8)
    with torch.no_grad():
        whole = model(tokens).logits
    first = model(tokens[:, :5], use_cache=True)
    kept = first.cache.detach()
    assert first.cache.layers[0].state.mean.requires_grad
    assert not kept.layers[0].state.mean.requires_grad and kept.seen_tokens == 5
    second = model(tokens[:, 5:], cache=kept)
    torch.testing.assert_close(second.logits, whole[:, 5:])
    second.logits.sum().backward()


# --------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": False, "use_decay": False, "use_gate": False, "conv_kernel": 0},
        {"num_key_value_heads": 1, "head_dim": 4, "value_dim": 6, "intermediate_size": 24},
        {"dynamics": "decay"},
        {"noise_var": 0.5, "noise_floor": 0.01, "intermediate_size": 0},
    ],
    ids=str,
)
def test_a_saved_model_is_the_same(options, tmp_path):
    model, tokens = make(**options), text()
    model.save_pretrained(tmp_path)
    loaded, found = KanervaForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float64
    )
    assert not any(found.values())
    for (name, got), want in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(got, want), name
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)
    assert loaded.config.block_options() == model.config.block_options()
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == (
        options.get("tie_word_embeddings", True)
    )
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModel):
        other = auto.from_pretrained(tmp_path, dtype=torch.float64)
        assert isinstance(other, KanervaForCausalLM | KanervaModel)
    torch.testing.assert_close(other(tokens)[0], model.model(tokens)[0])
    half = KanervaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half(tokens).logits.isfinite().all()
    assert half.generate(tokens, max_new_tokens=3, num_beams=2).shape[0] == 2


def test_what_a_file_lacks_starts_as_in_a_new_model(tmp_path):
    from safetensors.torch import load_file, save_file

    make().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    assert not [name for name in tensors if "lm_head" in name]
    name = "model.layers.1.layer.noise_proj.bias"
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    loaded, found = KanervaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert found["missing_keys"] == {name}
    want = make().model.layers[1].layer.noise_proj.bias
    torch.testing.assert_close(loaded.model.layers[1].layer.noise_proj.bias, want)


def test_the_configuration_is_what_the_file_says(tmp_path):
    config = KanervaConfig(**SIZES | {"noise_var": 0.5})
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "kanerva" and saved["noise_var"] == 0.5
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, KanervaConfig) and again.to_diff_dict() == config.to_diff_dict()
    assert config.num_heads == 2


def test_embeddings_grow():
    model, tokens = make(), text()
    before = model(tokens).logits
    model.resize_token_embeddings(30, mean_resizing=False)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(model(tokens).logits[..., :23], before)


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "either input_ids or inputs_embeds, got neither", lambda m, x: m()),
        (ValueError, "got both", lambda m, x: m(x, inputs_embeds=torch.zeros(2, 7, 16))),
        (
            TypeError,
            "KanervaModelCache or None, got DynamicCache",
            lambda m, x: m(x, cache=transformers.DynamicCache()),
        ),
        (
            ValueError,
            r"labels must have the shape .* \(2, 7\), got \(2, 6\)",
            lambda m, x: m(x, labels=x[:, 1:]),
        ),
        (
            ValueError,
            r"attention_mask must have shape \(B, T\)",
            lambda m, x: m(x, attention_mask=torch.ones(2, 5)),
        ),
        (ValueError, "num_heads = 3", lambda m, x: make(num_attention_heads=3)),
    ],
)
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call(make(), text())
