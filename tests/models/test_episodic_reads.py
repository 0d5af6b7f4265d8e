"""Reads of an episodic memory: how exact they are, what it knows, which facts are nearest."""

import math

import pytest
import torch
from episodic_cases import cases
from torch import nn

from kanerva_ext.episodic import EpisodicMemory, IllConditioned

S, C, K = 12, 7, 20
facts, *_ = cases(S, C, K)


def make(features="relu", **options):
    slots = S if features == "none" else K
    return EpisodicMemory(S, C, options.pop("slots", slots), features, **options)


def test_reads_in_float32_stay_accurate_where_facts_are_many():
    memory = make(slots=64, noise_var=1e-5)
    keys, values = facts(5000)
    keys = keys.abs() + 2  # much alike
    memory.write(keys, values)
    wide, narrow = memory.read(keys[:200].double()), memory.read(keys[:200])
    assert narrow.values.dtype == torch.float32 and wide.values.dtype == torch.float64
    scale = wide.values.abs().max()
    assert (narrow.values - wide.values).abs().max() < 1e-3 * scale
    torch.testing.assert_close(narrow.read_var.double(), wide.read_var, rtol=1e-2, atol=0)


def test_an_ill_conditioned_memory_says_so():
    memory = make("none", noise_var=1e-17)
    keys, values = facts(1)
    memory.write(keys.expand(2000, S), values.expand(2000, C))
    with pytest.raises(IllConditioned, match="larger noise_var"):
        memory.read(keys)
    assert len(memory) == 2000


def test_known_and_unknown():
    memory = EpisodicMemory(32, C, 256)
    keys = torch.randn(100, 32)
    memory.write(keys, torch.randn(100, C))
    out = memory.read(keys)
    assert out.is_known.all() and out.score.min() > 1
    near = memory.read(keys + 0.1 * torch.randn(100, 32))
    assert near.is_known.float().mean() > 0.9
    unknown = memory.read(torch.randn(5000, 32)).is_known.float().mean()
    assert unknown < 0.1  # asked for: 0.05, of facts that are themselves a sample of 100
    # The same for any scale of queries, and nothing of a blank one.
    torch.testing.assert_close(memory.read(1e-3 * keys).score, out.score, rtol=1e-4, atol=1e-4)
    blank = memory.read(torch.zeros(1, 32))
    assert not blank.is_known and blank.score == 0 and blank.values.abs().max() == 0


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_false_alarms_come_as_often_as_asked_for(rate):
    memory = EpisodicMemory(8, 2, 256, false_alarm=rate, bandwidth=0.4, features="fourier")
    memory.write(torch.randn(1000, 8), torch.randn(1000, 2))
    alarms = memory.read(torch.randn(10_000, 8)).is_known.float().mean()
    # Three standard deviations of the rate that 1,000 facts give.
    assert abs(alarms - rate) < 3 * math.sqrt(rate * (1 - rate) / 1000) + 0.003


def test_few_facts_are_known_and_others_are_not():
    for count in (1, 3, 10):
        memory = EpisodicMemory(64, 3, 64)
        keys = torch.randn(count, 64)
        memory.write(keys, torch.randn(count, 3))
        assert memory.read(keys).is_known.all()
        assert memory.read(torch.randn(200, 64)).is_known.float().mean() < 0.01


def test_calibrating_by_queries_of_ones_own():
    memory = EpisodicMemory(16, 3, 128)
    keys = torch.randn(50, 16)
    memory.write(keys, torch.randn(50, 3))
    # Unknown questions that are more like the facts than the facts are like each other.
    unknown = keys.repeat(40, 1) + 0.5 * torch.randn(2000, 16)
    before = memory.read(unknown[1000:]).is_known.float().mean()
    threshold = memory.calibrate(unknown[:1000])
    assert threshold == memory.threshold()
    after = memory.read(unknown[1000:]).is_known.float().mean()
    assert before > 0.2 and abs(after - 0.05) < 0.03
    memory.write(torch.randn(100, 16), torch.randn(100, 3))
    assert memory.threshold() != threshold
    with pytest.raises(ValueError, match="at least 19 for false_alarm"):
        memory.calibrate(unknown[:5])


@pytest.mark.parametrize("by", ["key", "value"])
def test_nearest_looks_through_all(by, monkeypatch):
    monkeypatch.setattr("kanerva_ext.episodic._reads.CHUNK", 3)  # several parts of the store
    memory = make(slots=256)
    keys, values = facts(50)
    ids = [f"{i}" for i in range(50)]
    memory.write(keys, values, ids=ids)
    found = memory.nearest(keys[:20], k=4, by=by)
    if by == "key":
        wanted = nn.functional.cosine_similarity(keys[:20, None], keys[None], dim=-1)
    else:
        reads = memory.read(keys[:20]).values
        wanted = nn.functional.cosine_similarity(reads[:, None], values[None], dim=-1)
    top = wanted.topk(4)
    torch.testing.assert_close(found.similarity, top.values)
    assert found.ids == [[str(i) for i in row] for row in top.indices.tolist()]
    assert [row[0] for row in found.ids] == ids[:20]
    assert make().nearest(keys[:2], by=by).ids == [[], []]
    assert [len(row) for row in memory.nearest(keys[:1], k=99).ids] == [50]


def test_inference_mode_leaves_no_trace():
    memory = make()
    keys, values = facts(9)
    with torch.inference_mode():
        memory.write(keys, values)
        first = memory.read(keys).values.clone()
    query = keys.clone().requires_grad_()
    memory.read(query).values.sum().backward()
    assert query.grad is not None
    torch.testing.assert_close(memory.read(keys).values, first)
    memory.write(*facts(2, seed=4))


def around(centre, count, width, generator):
    """Directions as far from a centre as `width` says."""
    apart = nn.functional.normalize(torch.randn(count, 48, generator=generator), dim=-1)
    return nn.functional.normalize(centre + width * apart, dim=-1)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_close_facts_and_scattered_ones_in_one_memory(rate):
    """Known is what was written, of both; and not their neighbours that were not."""
    generator = torch.Generator().manual_seed(1)
    centre = torch.randn(1, 48, generator=generator)
    centre = centre / centre.norm()
    sizes = ((0.2, 600), (5.0, 300))
    groups = [around(centre, n, width, generator) for width, n in sizes]
    memory = EpisodicMemory(48, 3, 1024, false_alarm=rate, noise_var=1e-3)
    keys = torch.cat(groups)[torch.randperm(900, generator=generator)]
    memory.write(keys, torch.randn(900, 3, generator=generator))
    alarms = []
    for (width, _), written in zip(sizes, groups, strict=True):
        assert memory.read(written).is_known.float().mean() > 0.75
        others = around(centre, 2000, width, generator)
        alarms.append(memory.read(others).is_known.float().mean().item())
    # One threshold for all would be passed by 0.075 of the close ones alone, and by no scattered
    # fact; so many of 600 and of 300 facts say no more than this.
    assert max(alarms) < 1.6 * rate and min(alarms) > 0.3 * rate
    out = memory.read(keys)
    assert torch.equal(out.is_known, out.score > memory.threshold(keys))
    assert memory.threshold(keys).unique().numel() > 20
    assert isinstance(memory.threshold(), float)
    assert memory.calibrate(torch.randn(40, 48)) == memory.threshold()
    assert (memory.threshold(keys) == memory.threshold()).all()


def test_thresholds_of_keys_whose_norms_count():
    memory = EpisodicMemory(8, 2, 256, "relu", normalize=False, noise_var=1e-3)
    close, wide = 1 + 0.01 * torch.randn(200, 8), 4 * torch.randn(200, 8)
    memory.write(torch.cat([close, wide]), torch.randn(400, 2))
    assert memory.read(wide).is_known.float().mean() > 0.5
    for others in (1 + 0.01 * torch.randn(4000, 8), 4 * torch.randn(4000, 8)):
        assert 0.01 < memory.read(others).is_known.float().mean() < 0.12


def test_facts_that_are_nearly_the_same_hide_no_others():
    """Two of ten: each is known by the other. The eight are known all the same."""
    keys = torch.randn(10, 32)
    keys[1] = keys[0] + 0.02 * torch.randn(32)
    memory = EpisodicMemory(32, 3, 128)
    memory.write(keys, torch.randn(10, 3))
    assert memory.read(keys).is_known.all()
    assert memory.read(torch.randn(500, 32)).is_known.float().mean() < 0.02


def test_reads_under_autocast_are_those_outside_of_it():
    memory = make(slots=64)
    keys, values = facts(30)
    memory.write(keys, values)
    out = memory.read(keys)
    with torch.autocast("cpu", torch.bfloat16):
        inside = memory.read(keys)
        other = make(slots=64)
        other.write(keys, values)
    for name in out._fields:
        assert torch.equal(getattr(out, name), getattr(inside, name)), name
    assert torch.equal(other.read(keys).values, out.values)
