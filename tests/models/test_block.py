"""KanervaBlock: a residual block that chains, and passes on what the layer takes and gives."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import kanerva_ext
from kanerva_ext import KanervaBlock, KanervaOutput

WIDTH = 12


def make(seed=0, **options):
    torch.manual_seed(seed)
    return KanervaBlock(WIDTH, 2, **options).double()


def tokens(batch=2, steps=9):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, steps, WIDTH, generator=generator, dtype=torch.float64)


def test_it_is_the_layer_and_the_mlp_beside_the_residual():
    block, x = make(mlp_dim=20), tokens()
    mixed = x + block.layer(block.norm(x)).hidden_states
    y = block.mlp_norm(mixed)
    gate, up = (y @ w.mT for w in block.mlp.up_proj.weight.split(20))
    want = mixed + (gate * gate.sigmoid() * up) @ block.mlp.down_proj.weight.mT
    torch.testing.assert_close(block(x), want)
    bare = make(mlp_dim=0)
    torch.testing.assert_close(bare(x), x + bare.layer(bare.norm(x)).hidden_states)


@pytest.mark.parametrize(
    "options", [{}, {"mlp_dim": 0, "conv_size": 0}, {"dynamics": "decay"}], ids=str
)
def test_blocks_chain_and_are_causal(options):
    model = nn.Sequential(make(**options), make(1, **options))
    x = tokens()
    changed = x.clone()
    changed[:, 5] += 1
    a, b = model(x), model(changed)
    assert torch.equal(a[:, :5], b[:, :5]) and (a[:, 5:] != b[:, 5:]).any(-1).all()
    a.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_padding_packing_and_cache_change_nothing():
    block, x = make(), tokens()
    whole = block(x)
    padded = torch.cat([torch.full((2, 3, WIDTH), 7.0, dtype=x.dtype), x], 1)
    mask = torch.arange(12).expand(2, 12) >= 3
    torch.testing.assert_close(block(padded, mask)[:, 3:], whole)
    bounds = torch.tensor([0, 9, 18])
    packed = block(x.reshape(1, 18, WIDTH), cu_seqlens=bounds)
    torch.testing.assert_close(packed.reshape(2, 9, WIDTH), whole)
    first = block(x[:, :4], use_cache=True)
    assert isinstance(first, KanervaOutput)
    cache, steps = first.cache.detach(), [first.hidden_states]
    with torch.no_grad():
        for t in range(4, 9):
            out = block(x[:, t : t + 1], cache=cache, inplace=True)
            assert out.cache is cache
            steps.append(out.hidden_states)
    torch.testing.assert_close(torch.cat(steps, 1), whole)
    assert out.log_evidence.shape == (2, 2)


def test_dropout_is_for_training():
    block, x = make(dropout=0.5), tokens()
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), make()(x))


def test_parameters_are_drawn_anew_and_copied():
    block, x = make(), tokens()
    other = copy.deepcopy(block)
    assert torch.equal(other(x), block(x))
    empty = make().to("meta").to_empty(device="cpu")
    empty.reset_parameters()
    assert all(p.isfinite().all() for p in empty.parameters())
    assert empty(x).isfinite().all()
    assert (empty.norm.weight == 1).all() and (empty.mlp_norm.weight == 1).all()


def test_the_mlp_has_eight_squares_of_parameters():
    block = KanervaBlock(768, 4)
    assert 8 <= sum(p.numel() for p in block.mlp.parameters()) / 768**2 < 8.2


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "d_model must be an int, got str", lambda: KanervaBlock("8", 2)),
        (ValueError, "mlp_dim must be at least 0, got -1", lambda: make(mlp_dim=-1)),
        (ValueError, r"dropout must be in \[0, 1\), got 1", lambda: make(dropout=1)),
        (TypeError, "dropout must be a number, got str", lambda: make(dropout="half")),
        (ValueError, "num_heads = 5", lambda: KanervaBlock(WIDTH, 5)),
        (TypeError, "hidden_states must be a torch.Tensor, got list", lambda: make()([1.0])),
        (
            ValueError,
            r"shape \(B, T, d_model = 12\), got \(2, 12\)",
            lambda: make()(tokens()[:, 0]),
        ),
    ],
)
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_the_language_model_says_what_it_needs(tmp_path):
    (tmp_path / "transformers.py").write_text(
        "raise ModuleNotFoundError('No module named transformers', name='transformers')"
    )
    package = str(Path(kanerva_ext.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", "import kanerva_ext.huggingface"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), package])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("is not installed: pip install 'kanerva_ext[transformers]'")
