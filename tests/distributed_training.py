"""Trainings that several processes make together; run by `helpers.run_processes`."""

from __future__ import annotations

import copy
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication

import kanerva_ext.distributed
from kanerva_ext import FusedKanervaMemory, KanervaLayer
from kanerva_ext.models import DynamicKanervaMachine, KanervaMachine

STEPS = 20


def cases(count: int):
    """Name, model, a part of the data for each rank, and the loss of what the model gives."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    memory = FusedKanervaMemory(4, 8, learn_noise=True)
    codes = torch.randn(count, 2, 6, 8).double()
    yield (
        "memory",
        memory,
        codes,
        lambda out: out.values.square().mean() + out.kl_weights.mean() + out.kl_memory.mean(),
    )
    layer, tokens = KanervaLayer(16, 2), torch.randn(count, 2, 5, 16).double()
    yield "layer", layer, tokens, lambda out: out.hidden_states.square().mean()
    images = (torch.rand(count, 2, 4, 1, 28, 28) < 0.1).double()
    sizes = {"num_filters": 2, "noise_std": 0.5}
    for model in (
        KanervaMachine(4, 8, hidden_size=16, likelihood="gaussian", **sizes),
        DynamicKanervaMachine(4, 8, **sizes),
    ):
        model.to(memory_format=torch.contiguous_format)  # fully_shard splits no other
        yield type(model).__name__, model, images, lambda out: out.bound.mean()


def _optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def _train(model, parts, loss, ranks) -> list[float]:
    """Losses of each step; of one process, that makes the ranks' parts one after the other."""
    optimizer, losses = _optimizer(model), []
    for step in range(STEPS):
        optimizer.zero_grad()
        total = 0.0
        for rank in ranks:
            torch.manual_seed(100 * step + rank)  # of what the model samples
            value = loss(model(parts[rank])) / len(ranks)
            value.backward()
            total += value.item()
        optimizer.step()
        losses.append(total)
    model.optimizer = optimizer
    return losses


def _wrapped(model, how: str, mesh):
    if how == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    for module in model.modules():
        if isinstance(module, FusedKanervaMemory) and module is not model:
            fully_shard(module, mesh=mesh)
            for name in ("read", "write"):
                register_fsdp_forward_method(module, name)
    fully_shard(model, mesh=mesh)
    return model


def _close(got, want, bound: float, name: str) -> None:
    torch.testing.assert_close(got, want, rtol=bound, atol=bound, msg=lambda m: f"{name}: {m}")


def check_training(how: str) -> None:
    """DistributedDataParallel or fully_shard: the losses and parameters of one process."""
    count, rank = dist.get_world_size(), dist.get_rank()
    mesh = init_device_mesh("cpu", (count,))
    for name, model, parts, loss in list(cases(count)):  # drawn before training draws
        alone = model.double().train()
        together = _wrapped(copy.deepcopy(alone), how, mesh)
        want = _train(alone, parts, loss, range(count))
        got = torch.tensor(_train(together, parts, loss, [rank]), dtype=torch.float64)
        dist.all_reduce(got)
        _close(got / count, torch.tensor(want, dtype=torch.float64), 1e-9, name)
        assert want[-1] < want[0], name
        plain = dict(alone.named_parameters())
        for key, parameter in together.named_parameters():
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            _close(whole, plain[key.removeprefix("module.")], 1e-7, f"{name} {key}")


def check_tensor_parallel() -> None:
    """A memory whose columns are split trains as a whole one."""
    count = dist.get_world_size()
    mesh = init_device_mesh("cpu", (count,))
    torch.manual_seed(0)
    alone = FusedKanervaMemory(4, 10, learn_noise=True).double()
    together = copy.deepcopy(alone)
    for name, parameter in list(together.named_parameters()):
        placement = Shard(1) if name == "prior_mean" else Replicate()
        split = distribute_tensor(parameter.data, mesh, [placement])
        setattr(together, name, torch.nn.Parameter(split))
    codes = torch.randn(3, 6, 10).double()

    def loss(out):
        return out.values.square().mean() + out.kl_weights.mean() + out.kl_memory.mean() / 50

    losses = []
    for model, data in ((alone, codes), (together, distribute_tensor(codes, mesh, [Shard(2)]))):
        optimizer, own = _optimizer(model), []
        for _ in range(STEPS):
            optimizer.zero_grad()
            with implicit_replication():
                value = loss(model(data))
                value.backward()
                optimizer.step()
            own.append(value.full_tensor().item() if isinstance(value, DTensor) else value.item())
        losses.append(torch.tensor(own, dtype=torch.float64))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=1e-9)
    assert together.prior_mean.placements == (Shard(1),)
    torch.testing.assert_close(together.prior_mean.full_tensor(), alone.prior_mean)


def check_shared_writes() -> None:
    """One memory of all ranks' parts of the episodes: states, addresses and gradients."""
    count, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(0)
    steps, keys = 4 * count, torch.randn(2, 4 * count, 5).double()
    values, mask = torch.randn(2, steps, 9).double(), torch.rand(2, steps) < 0.8
    for options in (
        {"addressing": "key", "key_size": 5, "learn_noise": True},
        {"learn_noise": True, "num_write_iters": 2},
        {"learn_noise": True},
    ):
        memory = FusedKanervaMemory(6, 9, **options).double()
        by_key = "key_size" in options

        def written(memory, part, by_key=by_key):
            own = values[:, part].clone().requires_grad_()
            more = {"keys": keys[:, part]} if by_key else {}
            return own, memory(own, mask=mask[:, part], **more)

        def loss(out, part):
            read = (out.values.sin() * mask[:, part, None]).sum() / 4
            return read + out.kl_memory.sum() / steps + out.log_evidence.sin().sum()

        whole = slice(0, steps)
        own, want = written(memory, whole)
        read = (want.values.sin() * mask[..., None]).sum() / 4 / count  # the mean over the ranks
        total = read + want.kl_memory.sum() / steps + want.log_evidence.sin().sum()
        total.backward()
        gradients = {n: p.grad for n, p in memory.named_parameters()}
        memory.zero_grad(set_to_none=True)
        part = slice(4 * rank, 4 * rank + 4)
        with kanerva_ext.distributed.shared_writes(memory):
            mine, got = written(memory, part)
            loss(got, part).backward()
        for a, b in ((got.state.mean, want.state.mean), (got.state.cov, want.state.cov)):
            _close(a, b, 1e-10, "state")
        _close(got.log_evidence, want.log_evidence, 1e-10, "evidence")
        _close(got.values, want.values[:, part], 1e-10, "values")
        _close(mine.grad / count, own.grad[:, part], 1e-10, "gradient of values")
        for name, parameter in memory.named_parameters():
            dist.all_reduce(parameter.grad)
            _close(parameter.grad / count, gradients[name], 1e-9, f"gradient of {name}")
        alone = memory.write(values[:, part], keys=keys[:, part] if by_key else None)
        assert not torch.allclose(alone.state.mean, got.state.mean)  # by itself again


def _sharded(seed: int):
    torch.manual_seed(seed)
    model = KanervaMachine(4, 8, hidden_size=16, num_filters=2, likelihood="gaussian")
    model.to(memory_format=torch.contiguous_format)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = _wrapped(model, "fsdp", mesh)
    torch.manual_seed(1)
    images = (torch.rand(2, 4, 1, 28, 28) < 0.1).float()
    optimizer = _optimizer(model)
    torch.manual_seed(2)
    model(images).bound.mean().backward()
    optimizer.step()
    return model, optimizer, mesh


def _contents(model, optimizer, mesh) -> dict:
    parts, moments = get_state_dict(model, optimizer)
    state = torch.arange(40.0).view(1, 4, 10), torch.eye(4)[None]
    placements = [Shard(2)], [Replicate()]
    split = [distribute_tensor(x, mesh, p) for x, p in zip(state, placements, strict=True)]
    return {"model": parts, "optimizer": moments, "memory": dict(zip("mc", split, strict=True))}


def save_checkpoint(folder: str) -> None:
    dcp.save(_contents(*_sharded(seed=0)), checkpoint_id=folder)


def load_checkpoint(folder: str) -> None:
    """What another number of processes saved."""
    want = {n: p.full_tensor() for n, p in _sharded(seed=0)[0].named_parameters()}
    model, optimizer, mesh = _sharded(seed=3)
    contents = _contents(model, optimizer, mesh)
    contents["memory"] = {n: torch.zeros_like(x) for n, x in contents["memory"].items()}
    dcp.load(contents, checkpoint_id=folder)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=contents["model"],
        optim_state_dict=contents["optimizer"],
    )
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.full_tensor(), want[name], rtol=1e-5, atol=1e-6)
    mean = contents["memory"]["m"]
    assert mean.placements == (Shard(2),)
    assert torch.equal(mean.full_tensor(), torch.arange(40.0).view(1, 4, 10))
    steps = [s["step"] for s in optimizer.state_dict()["state"].values()]
    assert steps and all(step == 1 for step in steps)
