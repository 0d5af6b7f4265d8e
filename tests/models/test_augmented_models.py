"""MemoryAugmented on models of several kinds: their dtypes, caches, files."""

import copy
import io

import pytest
import torch
from augmented_cases import C, D, K, Model, S, V, make, tokens, values
from torch import nn
from torch.utils.checkpoint import checkpoint

from kanerva_ext import KanervaBlock
from kanerva_ext.episodic import EpisodicMemory, MemoryAugmented


@pytest.mark.parametrize("in_memory", [False, True])
def test_save_and_load(tmp_path, in_memory):
    augmented = make()
    augmented.write(tokens(), values())
    augmented.memory.forget([5])
    threshold = augmented.calibrate(tokens(40, seed=8))
    answer = augmented(tokens(5))
    augmented.save(tmp_path / "new" / "folder")
    augmented.remove()
    again = MemoryAugmented.load(tmp_path / "new" / "folder", Model(), in_memory=in_memory)
    again.model.load_state_dict(augmented.model.state_dict())
    assert again.layer == "blocks.1" and again.hidden_size == D and not again.training
    torch.testing.assert_close(again(tokens(5)), answer)
    assert again.memory.threshold() == pytest.approx(threshold, rel=1e-6)
    assert again.write(tokens(1), values(1)) == [6]
    again.save(tmp_path / "new" / "folder")
    again.memory.close()


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="projections"):
        MemoryAugmented.load(tmp_path, Model())
    make().save(tmp_path)
    with pytest.raises(ValueError, match=r"got 'blocks\.1'; there are 0"):
        MemoryAugmented.load(tmp_path, nn.Sequential(nn.Linear(2, 2)))
    EpisodicMemory.load(tmp_path / "memory.db").close()  # not left open
    path = tmp_path / "projections.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:50])
    with pytest.raises(ValueError, match=r"projections.safetensors is damaged"):
        MemoryAugmented.load(tmp_path, Model())
    path.write_bytes(good)
    (tmp_path / "memory.db").unlink()
    EpisodicMemory(S + 1, C, K, store=tmp_path / "memory.db").close()
    model = Model()
    with pytest.raises(ValueError, match=r"does not fit memory.db"):
        MemoryAugmented.load(tmp_path, model)
    assert not model.blocks[1]._forward_hooks and all(p.requires_grad for p in model.parameters())
    EpisodicMemory.load(tmp_path / "memory.db").close()


def test_dtypes_and_moves():
    augmented = make()
    augmented.write(tokens(), values())
    answer = augmented(tokens())
    augmented.to(torch.float64)
    assert augmented.model.head.weight.dtype == torch.float64
    torch.testing.assert_close(augmented(tokens()).float(), answer, rtol=1e-3, atol=1e-3)
    augmented.model.to(torch.bfloat16)
    assert augmented(tokens()).dtype == torch.bfloat16
    with torch.inference_mode():
        augmented(tokens())
    assert augmented.retrieved().score.shape == (6, 5)


def test_a_kanerva_block_with_its_cache():
    torch.manual_seed(0)
    block = KanervaBlock(D, 2)
    augmented = MemoryAugmented(nn.Sequential(block), "0", EpisodicMemory(S, C, K), hidden_size=D)
    nn.init.normal_(augmented.output.weight)
    x = torch.randn(2, 6, D)
    augmented.write(x, values(2))
    whole = block(x)
    first = block(x[:, :4], use_cache=True)
    second = block(x[:, 4:], cache=first.cache, use_cache=True)
    torch.testing.assert_close(
        torch.cat([first.hidden_states, second.hidden_states], 1), whole, rtol=1e-4, atol=1e-4
    )
    assert augmented.retrieved().is_known[:, -1].all()


@pytest.mark.parametrize("kind", ["kanerva", "gpt2"])
def test_transformers(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "kanerva":
        from kanerva_ext.huggingface import KanervaConfig, KanervaForCausalLM

        config = KanervaConfig(
            vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=2,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        model, layer = KanervaForCausalLM(config), "model.layers.1"
    else:
        config = transformers.GPT2Config(
            vocab_size=V, n_embd=D, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
        )
        model, layer = transformers.GPT2LMHeadModel(config), "transformer.h.1"
    model.eval()
    memory = EpisodicMemory(S, C, K)
    text, mask = tokens(4).clamp(min=3), torch.ones(4, 5, dtype=torch.long)
    text[0, :2], mask[0, :2] = 0, 0
    inputs = {"input_ids": text, "attention_mask": mask}
    plain = model(**inputs).logits
    with MemoryAugmented(model, layer, memory) as augmented:
        augmented.write(inputs, values(4))
        assert torch.equal(augmented(**inputs).logits, plain)
        nn.init.normal_(augmented.output.weight, std=5)
        changed = augmented(**inputs).logits
        assert not torch.allclose(changed[:, -1], plain[:, -1])
        assert [row[-1] for row in augmented.retrieved().ids] == [[0], [1], [2], [3]]
        told = model.generate(**inputs, max_new_tokens=1, do_sample=False)
        # Without the padded row, whose positions GPT-2 counts in another way in generate.
        assert torch.equal(told[1:, -1], changed[1:, -1].argmax(-1))
        with augmented.episode(inputs, values(4)):
            augmented.train()(**inputs).logits.sum().backward()
        assert augmented.key.weight.grad.abs().sum() > 0
    assert torch.equal(model(**inputs).logits, plain)


def test_a_copy_of_the_model_is_without_the_memory():
    model = Model()
    augmented = make(model)
    plain = model(tokens())
    augmented.write(tokens(), values())
    assert not torch.equal(model(tokens()), plain)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(twin(tokens()), plain)
    for call in (copy.copy, copy.deepcopy, lambda x: torch.save(x, io.BytesIO())):
        with pytest.raises(TypeError, match=r"a MemoryAugmented is neither .* save\(folder\)"):
            call(augmented)


@pytest.mark.parametrize("first", [0, 1])
def test_memories_at_two_layers(first):
    """Each reads and learns; the model stays frozen until the last of them leaves."""
    model = Model().train()
    plain = copy.deepcopy(model).eval()(tokens())
    both = [make(model, f"blocks.{i}") for i in (0, 2)]
    for augmented in both:
        augmented.write(tokens(), values())
    both_read = model(tokens())
    for augmented in both:
        assert [row[-1] for row in augmented.retrieved().ids] == [[i] for i in range(6)]
        augmented.train()
    with both[0].episode(tokens(), values()), both[1].episode(tokens(), values()):
        model(tokens()).sum().backward()
    assert all(a.key.weight.grad.abs().sum() > 0 for a in both)
    both[first].remove()
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert not torch.equal(model(tokens()), plain)
    both[first].attach()
    both[1 - first].remove()
    both[first].remove()
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert torch.equal(model.eval()(tokens()), plain) and not torch.equal(both_read, plain)


class Encoder(nn.Module):
    """PyTorch's own encoder, causal or with padding."""

    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(D, 2, 2 * D, batch_first=True)
        self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.encoder = nn.TransformerEncoder(layer, 3, **options)

    def forward(self, text, padding=None):
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        mask = {"mask": mask} if padding is None else {"src_key_padding_mask": padding}
        return self.head(self.encoder(self.embed(text), **mask))


def test_an_encoder_of_torch():
    augmented = make(Encoder(enable_nested_tensor=False), "encoder.layers.1")
    augmented.write(tokens(), values())
    answer = augmented(tokens())
    assert [row[-1] for row in augmented.retrieved().ids] == [[i] for i in range(6)]
    with torch.inference_mode():  # its fast path
        torch.testing.assert_close(augmented(tokens()), answer, rtol=1e-4, atol=1e-4)
    padding = torch.zeros(6, 5, dtype=torch.bool)
    padding[:, 4] = True
    with torch.no_grad():
        assert torch.isfinite(augmented(tokens(), padding)[:, :4]).all()
    nested = make(Encoder(), "encoder.layers.1")
    with torch.no_grad(), pytest.raises(TypeError, match="enable_nested_tensor=False"):
        nested(tokens(), padding)


class Checkpointed(Model):
    """Its blocks are computed again in the backward pass."""

    def forward(self, text):
        x = self.embed(text)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


def test_activation_checkpointing():
    plain, again = make(Model()), make(Checkpointed())
    again.model.load_state_dict(plain.model.state_dict())
    for augmented in (plain, again):
        with augmented.train().episode(tokens(), values()):
            augmented(tokens()).square().sum().backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for facts in (0, 6):  # the memory's own are not those that were read
        if facts:
            again.write(tokens(seed=3), values(seed=3))
        with again.episode(tokens(), values()):
            loss = again(tokens()).square().sum()
        with pytest.raises(RuntimeError, match=r"call backward\(\) within episode"):
            loss.backward()
    again(tokens()).square().sum().backward()  # of the memory itself


def test_autocast_changes_no_keys():
    """What was written under it is what is asked for outside of it, and the other way round."""
    augmented = make()
    augmented.write(tokens(), values())
    with torch.autocast("cpu", torch.bfloat16):
        augmented(tokens())
        assert augmented.retrieved().is_known[:, -1].all()
        augmented.write(tokens(), values(), list(range(6)), replace=True)
    augmented(tokens())
    assert augmented.retrieved().is_known[:, -1].all()
