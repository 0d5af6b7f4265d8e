"""MemoryAugmented: a frozen model that reads facts at one of its layers."""

import contextlib

import pytest
import torch
from augmented_cases import C, D, K, Model, S, V, make, tokens, values
from torch import nn

import kanerva_ext.episodic
from kanerva_ext.episodic import EpisodicMemory, MemoryAugmented
from kanerva_ext.episodic._alignment import aligned
from kanerva_ext.episodic._episode import Episode


def test_it_starts_as_the_model_alone():
    augmented = make(strength=0.0)
    plain = augmented.model(tokens())
    augmented.write(tokens(), values())
    assert torch.equal(augmented(tokens()), plain)
    augmented.train()
    assert torch.equal(augmented(tokens()), plain)
    augmented.eval()
    nn.init.normal_(augmented.output.weight)
    assert not torch.equal(augmented(tokens()), plain)


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "named tuple"])
def test_what_it_adds_is_what_it_says(kind):
    """By hand: the layer's output, the read at its projection, and what comes after."""
    from kanerva_ext.layer import KanervaOutput

    wrap = {
        "tensor": lambda x: x,
        "tuple": lambda x: (x, "more"),
        "list": lambda x: [x],
        "named tuple": lambda x: KanervaOutput(x, None, None, None),
    }[kind]
    augmented = make(Model(wrap)).requires_grad_(False)
    model, memory = augmented.model, augmented.memory
    ids = augmented.write(tokens(), values(), ids=list("abcdef"))
    assert ids == list("abcdef") and list(memory) == ids
    asked = torch.cat([tokens(3), tokens(3, seed=5)])
    answer = augmented(asked)
    found = augmented.retrieved(2)

    with augmented.off():
        h = augmented.hidden(asked)
        normed = (h - h.mean(-1, keepdim=True)) / (h.var(-1, False, keepdim=True) + 1e-5).sqrt()
        read = memory.read(augmented.query(normed).reshape(-1, S))
        slope, offset = augmented.sureness
        weight = (slope * (read.score - offset)).sigmoid() * read.is_known
        h = h + (weight[:, None] * augmented.output(read.values)).view_as(h)
        last = model.blocks[2](h)
        last = last if kind == "tensor" else last[0]
        torch.testing.assert_close(answer, model.head(last))
    torch.testing.assert_close(found.weight.flatten(), weight)
    torch.testing.assert_close(found.score.flatten(), read.score)
    torch.testing.assert_close(found.read_var.flatten(), read.read_var)
    assert torch.equal(found.is_known.flatten(), read.is_known)
    assert found.shares.shape == (6, 5, 2) and [row[-1][0] for row in found.ids[:3]] == ids[:3]
    assert all(len(each) == 2 for row in found.ids for each in row)
    assert found.is_known[:3, -1].all() and not found.is_known.all()


def test_what_is_not_known_stays_to_the_bit():
    augmented = make()
    asked = tokens(40, seed=7)
    plain = augmented(asked)
    augmented.write(tokens(), values())
    augmented.calibrate(tokens(40, seed=8))
    answer = augmented(asked)
    known = augmented.retrieved().is_known
    # The last block sums over what came before: only where nothing before is known.
    free = ~known.cummax(-1).values
    assert free.any() and not free.all()
    assert torch.equal(answer[free], plain[free]) and not torch.equal(answer, plain)


def test_facts_are_edited_and_forgotten():
    augmented = make()
    plain = augmented(tokens())
    augmented.write(tokens(), values())
    first = augmented(tokens())
    augmented.memory.edit(0, -values()[0])
    second = augmented(tokens())
    assert not torch.allclose(first[0, -1], second[0, -1], atol=1e-3)
    torch.testing.assert_close(first[1:, -1], second[1:, -1], atol=0.05, rtol=0)
    augmented.memory.forget([0])
    augmented(tokens())
    assert all(row[-1] != [0] for row in augmented.retrieved().ids)
    augmented.memory.clear()
    assert torch.equal(augmented(tokens()), plain)
    with pytest.raises(RuntimeError, match="nothing has been read"):
        augmented.retrieved()


def test_an_episode_reads_like_the_memory():
    augmented = make(noise_var=0.05)
    augmented.write(tokens(4, seed=3), values(4))
    kept, stored = augmented(tokens()), augmented.memory.get(list(augmented.memory)).keys
    inside = make(noise_var=0.05)
    inside.load_state_dict(augmented.state_dict())
    inside.write(tokens(), values())
    want, said = inside(tokens()), inside.retrieved(3)
    with augmented.episode(tokens(), values()):
        torch.testing.assert_close(augmented(tokens()), want, rtol=1e-4, atol=1e-5)
        found = augmented.retrieved(3)
    assert found.ids == said.ids and torch.equal(found.is_known, said.is_known)
    for name in ("shares", "score", "read_var", "weight"):
        torch.testing.assert_close(
            getattr(found, name), getattr(said, name), rtol=1e-3, atol=1e-4, msg=name
        )
    assert torch.equal(augmented(tokens()), kept)  # the memory is as it was
    assert torch.equal(augmented.memory.get(list(augmented.memory)).keys, stored)


def test_gradients_of_an_episode():
    """Of what is asked and of what was written, against differences."""
    memory = EpisodicMemory(S, C, K, dtype="float64", noise_var=0.1)
    generator = torch.Generator().manual_seed(0)
    options = {"dtype": torch.float64, "generator": generator}
    keys, asked = (torch.randn(3, S, **options).requires_grad_() for _ in range(2))
    facts = torch.randn(3, C, **options).requires_grad_()

    def read(keys, facts, asked):
        out = Episode(memory, keys, facts).read(asked)
        return out.values, out.score

    assert torch.autograd.gradcheck(read, (keys, facts, asked))


def test_only_its_own_parameters_learn():
    augmented = make(strength=0.0)
    before = {name: x.clone() for name, x in augmented.model.state_dict().items()}
    names = {name for name, _ in augmented.named_parameters()}
    assert names == set(augmented.state_dict())
    assert names == {
        "sureness", "key.weight", "key.bias", "query.weight", "query.bias", "output.weight",
    }  # fmt: skip
    assert not any(p.requires_grad for p in augmented.model.parameters())
    optimizer = torch.optim.Adam(augmented.train().parameters(), lr=1e-2)
    assert not augmented.model.training and not augmented.model.drop.training
    losses = []
    for step in range(60):
        facts = tokens(8, seed=step), values(8, seed=step)
        with augmented.episode(*facts):
            wanted = facts[0][:, 0]
            loss = nn.functional.cross_entropy(augmented(facts[0])[:, -1], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step == 1:  # the first step moved the output alone
            assert all(p.grad.abs().sum() > 0 for p in augmented.parameters())
    assert all(torch.equal(x, before[name]) for name, x in augmented.model.state_dict().items())
    assert sum(losses[-10:]) < sum(losses[:10])


def test_what_two_texts_share_is_found():
    """Of 5 numbers, 3 are said by both, each in its own way."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(4000, 3, generator=generator)
    texts = []
    for _ in range(2):
        own = torch.randn(4000, 2, generator=generator) * 2
        mix = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
        texts.append(torch.cat([both, own], 1) @ mix + torch.randn(5, generator=generator))
    maps, correlations = aligned(*texts, 4)
    torch.testing.assert_close(
        correlations, torch.tensor([1.0, 1, 1, 0, 0]).double(), rtol=0, atol=0.05
    )
    keys = [x.double() @ weight.mT + bias for x, (weight, bias) in zip(texts, maps, strict=True)]
    assert torch.cosine_similarity(*keys).mean() > 0.995
    torch.testing.assert_close(keys[0].mean(0), torch.zeros(4).double())
    wide, _ = aligned(*texts, 7)
    assert wide[0][0].shape == (7, 5) and not wide[0][0][5:].any()


def test_alignment_of_a_model():
    """Asked in other words, whose tokens are others: found where nothing was found before."""
    augmented = make()
    other = torch.randperm(V, generator=torch.Generator().manual_seed(2))
    told, asked = tokens(400, 3), other[tokens(400, 3)]
    ids = augmented.write(told[:12], values(12))
    augmented(asked[:12])
    before = [row[-1][0] for row in augmented.retrieved().ids]
    correlations = augmented.align(told, asked)
    assert correlations.shape == (D,) and (correlations.diff() <= 0).all() and correlations[0] > 0.5
    ids = augmented.write(told[:12], values(12), ids, replace=True)
    augmented(asked[:12])
    after = [row[-1][0] for row in augmented.retrieved().ids]
    right = [sum(a == b for a, b in zip(found, ids, strict=True)) for found in (before, after)]
    assert right[1] >= right[0] + 3
    moved = torch.nn.functional.pad(told, (0, 2))
    again = augmented.align(moved, asked, told_positions=[2] * 400, asked_positions=[-1] * 400)
    torch.testing.assert_close(again, correlations, rtol=1e-3, atol=1e-3)
    for pair in ((told[:3], asked[:2]), (told[:1], asked[:1])):
        with pytest.raises(ValueError, match="told and asked must be as many texts"):
            augmented.align(*pair)


def test_reading_is_learnt_from_the_memory_too():
    """Keys of the user's own, which `query` has to find."""
    augmented = make()
    augmented.memory.write(torch.randn(5, S), values(5))
    augmented.train()(tokens()).sum().backward()
    assert augmented.query.weight.grad.abs().sum() > 0 and augmented.key.weight.grad is None


def test_it_is_removed_and_put_back():
    model = Model().train()
    model.head.bias.requires_grad_(False)
    with make(model) as augmented:
        assert not model.training and len(model.blocks[1]._forward_hooks) == 1
        plain = augmented(tokens())
        augmented.write(tokens(), values())
        answer = augmented(tokens())
        with augmented.off():
            assert torch.equal(augmented(tokens()), plain)
            assert torch.equal(augmented.model(tokens()), plain)
        assert torch.equal(augmented.model(tokens()), answer)
    augmented.remove()  # a second time
    assert model.training and not model.blocks[1]._forward_hooks
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["head.bias"]
    model.eval()
    assert torch.equal(model(tokens()), plain)
    for call in (augmented, augmented.hidden):
        with pytest.raises(RuntimeError, match=r"removed from the model: attach\(\) puts it back"):
            call(tokens())
    augmented.attach()
    augmented.attach()
    assert torch.equal(model(tokens()), answer)
    assert "removed" not in repr(augmented)


def test_positions_and_masks():
    augmented = make()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    inputs = {"tokens": tokens(3), "attention_mask": mask}
    ends = torch.tensor([2, 4, 4])
    by_mask, by_hand = augmented.keys(inputs), augmented.keys((tokens(3),), ends)
    torch.testing.assert_close(by_mask, by_hand, rtol=0, atol=0)
    torch.testing.assert_close(augmented.keys(tokens(3)), augmented.keys(tokens(3), [-1, 4, -1]))
    torch.testing.assert_close(by_hand[:1], augmented.keys(tokens(3)[:1, :3]))


def test_padding_that_is_not_finite():
    augmented = make(layer="blocks.2")
    with torch.no_grad():
        augmented.model.embed.weight[0] = torch.nan
    text = tokens(2).clamp(min=1)
    text[0, 3:] = 0
    augmented.write(tokens().clamp(min=1), values())
    assert torch.isfinite(augmented(text)[0, :3]).all()
    assert not augmented.retrieved().is_known[0, 3:].any()
    augmented.train()(text)[0, :3].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in augmented.parameters() if p.grad is not None)


def test_a_memory_for_each_row():
    augmented = make(num_memories=3)
    with pytest.raises(ValueError, match=r"select\(memory\) must say which"):
        augmented.memory.write(torch.randn(1, S), values(1), memory=0)
        augmented(tokens())
    augmented.memory.clear(memory=0)
    augmented.select([0, 1, 1])
    augmented.write(tokens(3), values(3))
    augmented.write(tokens(3, seed=4), values(3, seed=5), memory=2)
    assert [augmented.memory.count(memory=m) for m in range(3)] == [1, 2, 3]
    both = augmented(tokens(3))
    found = augmented.retrieved()
    assert [row[-1] for row in found.ids] == [[1], [0], [1]]  # 0 was there before
    augmented.select(1)
    one = augmented(tokens(3))
    torch.testing.assert_close(one[1:], both[1:])
    assert not torch.allclose(one[0], both[0])
    augmented.calibrate(tokens(20, seed=9))
    augmented.select([0, 1])
    with pytest.raises(ValueError, match=r"a row for each memory selected, 2, got .*\(3, 5, 16\)"):
        augmented(tokens(3))
    with pytest.raises(ValueError, match="calibrate needs one memory"):
        augmented.calibrate(tokens(20))
    for bad, error in (
        (3, ValueError),
        ("a", TypeError),
        (None, TypeError),
        ([0, True], TypeError),
    ):
        with pytest.raises(error, match="memory must be"):
            augmented.select(bad)
    with pytest.raises(ValueError, match="without num_memories"):
        make().select(0)


def test_bad_arguments():
    model, memory = Model(), EpisodicMemory(S, C, K)
    for bad, error, message in (
        (
            ("blocks.9",),
            ValueError,
            "layer must be .* of the Model, got 'blocks.9'; close to it are",
        ),
        (("block.1",), ValueError, r"close to it are .*blocks\.1"),
        (("",), ValueError, "there are embed, head, blocks"),
        ((3,), TypeError, "layer must be the name of a submodule, got int"),
    ):
        with pytest.raises(error, match=message):
            MemoryAugmented(model, *bad, memory, hidden_size=D)
    with pytest.raises(ValueError, match=r"hidden_size must be given.* a Model has no config"):
        MemoryAugmented(model, "blocks.1", memory)
    with pytest.raises(TypeError, match="memory must be an EpisodicMemory, got dict"):
        MemoryAugmented(model, "blocks.1", {}, hidden_size=D)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        MemoryAugmented("model", "blocks.1", memory, hidden_size=D)
    assert all(p.requires_grad for p in model.parameters()) and model.training
    with (
        MemoryAugmented(model, "blocks.1", memory, hidden_size=D + 1) as wrong,
        pytest.raises(ValueError, match=r"hidden_size must be 16.*'blocks.1' returns, got 17"),
    ):
        wrong(tokens())
    with (
        MemoryAugmented(Model(lambda x: {"x": x}), "blocks.0", memory, hidden_size=D) as wrong,
        pytest.raises(TypeError, match=r"must return floating-point hidden states.*got dict"),
    ):
        wrong(tokens())
    augmented = make(model)
    with pytest.raises(RuntimeError, match="no facts to learn to read"):
        augmented.train()(tokens())
    with torch.no_grad():
        augmented(tokens())
    with pytest.raises(ValueError, match="no facts: write them first"):
        augmented.calibrate(tokens())
    augmented.write(tokens(), values())
    model.head.weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"is frozen, but its parameter\(s\) 'head.weight' need"):
        augmented(tokens())
    model.head.weight.requires_grad_(False)
    for call, error, message in (
        (lambda: augmented.write(tokens(), values(5)), ValueError, "as many"),
        (lambda: augmented.write(tokens(), values()[:, 1:]), ValueError, "value_size = 12"),
        (lambda: augmented.write(tokens()[0], values()), ValueError, r"\(N, T, hidden_size\)"),
        (lambda: augmented.keys(tokens(), [1]), ValueError, "one for each of 6 texts"),
        (lambda: augmented.keys(tokens(), [5] * 6), ValueError, r"positions must be in -5 \.\. 4"),
        (lambda: augmented.keys(tokens(), [0.5] * 6), TypeError, "positions must be integers"),
        (lambda: augmented.calibrate(tokens(), torch.ones(2)), ValueError, "mask must have"),
        (lambda: augmented.calibrate(tokens(1)), ValueError, "at least 19"),
        (lambda: augmented.episode(tokens(), values(5)).__enter__(), ValueError, "one for each"),
        (lambda: augmented.retrieved(0), ValueError, "k must be"),
    ):
        with pytest.raises(error, match=message):
            call()
    other = nn.Sequential(nn.Linear(D, D), nn.Linear(D, D))
    other.forward = other[0].forward
    with pytest.raises(RuntimeError, match="did not call its layer '1'"):
        MemoryAugmented(other, "1", memory, hidden_size=D).hidden(torch.randn(2, 3, D))


def test_the_public_names():
    for name in ("MemoryAugmented", "Retrieved", "Sources"):
        assert hasattr(kanerva_ext.episodic, name)
    augmented = make()
    assert "Model at 'blocks.1', EpisodicMemory(key_size=8" in repr(augmented)
    with contextlib.suppress(RuntimeError):
        augmented.remove()
    assert "removed" in repr(augmented)
