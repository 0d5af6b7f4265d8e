"""FullyShardedDataParallel and fully_shard take the modules: two processes on the CPU."""

import pytest
from helpers import run_processes

SETUP = """
import copy, datetime, os, warnings, torch, torch.distributed as dist
from kanerva_ext import FusedKanervaMemory, KanervaLayer
from kanerva_ext.models import DynamicKanervaMachine, KanervaMachine
warnings.simplefilter("ignore")
torch.set_num_threads(1)
rank = int(os.environ["KANERVA_RANK"])
store = dist.FileStore({store!r}, 2)
timeout = datetime.timedelta(seconds=120)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)

def cases():
    torch.manual_seed(0)
    options = dict(learn_noise=True, sample_weights=False)
    yield FusedKanervaMemory(4, 8, **options), torch.randn(2, 4, 6, 8), lambda out: (
        out.values.square().mean() + out.kl_weights.mean() + out.kl_memory.mean()
    )
    yield KanervaLayer(16, 2), torch.randn(2, 2, 5, 16), lambda out: (
        out.hidden_states.square().mean()
    )
    images = (torch.rand(2, 2, 4, 1, 28, 28) < 0.1).float()
    model = KanervaMachine(
        4, 8, num_filters=4, hidden_size=16, noise_std=0.5, likelihood="gaussian"
    )
    model.to(memory_format=torch.contiguous_format)  # fully_shard splits no other
    yield model.eval(), images, lambda out: out.bound.mean() + out.kl_memory.mean()

def trained(model, data, loss, own_gradients):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        torch.manual_seed(1)
        loss(model(data)).backward()
        if own_gradients:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= 2
        optimizer.step()
    return model
"""

SHARDED = (
    SETUP
    + """
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
mesh = init_device_mesh("cpu", (2,))
for plain, data, loss in cases():
    model = copy.deepcopy(plain)
    for module in model.modules():
        if isinstance(module, FusedKanervaMemory) and module is not model:
            fully_shard(module, mesh=mesh)
            for name in ("read", "write"):
                torch.distributed.fsdp.register_fsdp_forward_method(module, name)
    fully_shard(model, mesh=mesh)
    repr(model)
    trained(model, data[rank], loss, False)
    trained(plain, data[rank], loss, True)
    want = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.full_tensor(), want[name].data, rtol=1e-4, atol=1e-5, msg=name
        )
    for name, value in model.state_dict().items():
        assert isinstance(value, torch.Tensor), name
    print(type(plain).__name__, "agrees", flush=True)
os._exit(0)  # joining gloo's threads can hang
"""
)

FLAT = (
    SETUP
    + """
from torch.distributed.fsdp import FullyShardedDataParallel
for plain, data, loss in cases():
    model = FullyShardedDataParallel(
        copy.deepcopy(plain), device_id=torch.device("cpu"), use_orig_params=True
    )
    trained(model, data[rank], loss, False)
    trained(plain, data[rank], loss, True)
    with FullyShardedDataParallel.summon_full_params(model):
        want = dict(plain.named_parameters())
        for name, parameter in model.module.named_parameters():
            torch.testing.assert_close(
                parameter.data, want[name].data, rtol=1e-4, atol=1e-5, msg=name
            )
    print(type(plain).__name__, "agrees", flush=True)
os._exit(0)
"""
)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(SHARDED, id="fully_shard"),
        pytest.param(FLAT, id="FullyShardedDataParallel", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(code, tmp_path):
    for printed in run_processes(lambda store: code.replace("{store!r}", repr(store)), tmp_path):
        for name in ("FusedKanervaMemory", "KanervaLayer", "KanervaMachine"):
            assert f"{name} agrees" in printed
