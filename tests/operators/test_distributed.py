"""DTensor arguments: two processes on the CPU give what one gives."""

from helpers import run_processes

CODE = """
import datetime, os, torch, torch.distributed as dist
from torch.distributed.tensor import (
    Replicate, Shard, distribute_module, distribute_tensor, init_device_mesh
)
from torch.distributed.tensor.experimental import implicit_replication
import kanerva_ext.distributed
from kanerva_ext import FusedKanervaMemory, ops
from samples import NAMES, sample
torch.set_num_threads(1)
rank = int(os.environ["KANERVA_RANK"])
timeout = datetime.timedelta(seconds=120)
store = dist.FileStore({store!r}, 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
mesh = init_device_mesh("cpu", (2,))
T, K, C = 5, 4, 7

def inputs(batch):
    torch.manual_seed(0)
    root = torch.randn(batch, K, K, dtype=torch.float64)
    tensors = dict(
        mean=torch.randn(batch, K, C), cov=root @ root.mT + torch.eye(K),
        weights=torch.randn(batch, T, K), values=torch.randn(batch, T, C),
        queries=torch.randn(batch, T, C), asked=torch.randn(batch, T, K),
        noise=torch.rand(batch, T) + 0.5, ridge=torch.rand(batch) + 0.5,
        prior_cov=torch.eye(K).expand(batch, K, K),
    )
    return {{name: tensor.double().contiguous() for name, tensor in tensors.items()}}

def forget(mean, cov, weights, values, noise, **_):
    after = ops.bayes_write(mean, cov, weights, values, noise)
    return ops.forget(*after[:2], weights, values, noise)

# Calls beside those of the operators' own tests.
OTHERS = dict(
    from_statistics=lambda mean, cov, **_: ops.from_statistics(cov, mean),
    forget_what_was_written=forget,
    adaptive_write_once=lambda mean, cov, values, noise, ridge, **_: ops.adaptive_write(
        mean, cov, values, noise, ridge
    ),
    adaptive_write_masked=lambda mean, cov, values, noise, ridge, **_: ops.adaptive_write(
        mean, cov, values, noise, ridge, num_iters=3, mask=noise.detach() > 0.7,
        return_evidence=True,
    ),
    moving=lambda mean, cov, weights, values, noise, prior_cov, **_: ops.bayes_write(
        mean, cov, weights, values, noise, retention=noise / 2, stationary_cov=prior_cov
    ),
    moving_scan=lambda mean, cov, weights, values, asked, noise, **_: ops.causal_scan(
        mean, cov, weights, values, asked, noise, retention=0.7, stationary_cov=0.3
    ),
)

def sampled(name, batch):
    torch.manual_seed(0)
    return sample(name).arguments((batch,), T, K, C, torch.float64, optional=False)

def has_columns(name):
    return any("C" in result.dims for result in ops.OPERATORS[name].results)

def placed(tensor, placement):
    if placement == "columns":
        return Shard(2) if tensor.dim() == 3 and tensor.shape[2] == C else Replicate()
    return placement if tensor.dim() > 1 else Shard(0)

def results(function, tensors):
    found = function(**tensors)
    found = list(found) if isinstance(found, tuple) else [found]
    sum(r.square().sum() for r in found).backward()
    return found + [t.grad for t in tensors.values() if t.grad is not None]

# One process has less; a batch that is too small is gathered; fewer columns than steps, and more.
for batch, C in ((3, 7), (1, 7), (3, 16)):
    for placement in (Shard(0), Replicate(), "columns"):
        calls = [(name, sample(name).function, sampled(name, batch)) for name in NAMES]
        calls += [(name, function, inputs(batch)) for name, function in OTHERS.items()]
        for name, function, tensors in calls:
            plain = {{n: t.clone().requires_grad_() for n, t in tensors.items()}}
            split = {{
                n: distribute_tensor(t, mesh, [placed(t, placement)]).requires_grad_()
                for n, t in tensors.items()
            }}
            got, want = results(function, split), results(function, plain)
            assert len(got) == len(want)
            for g, w in zip(got, want):
                torch.testing.assert_close(g.full_tensor(), w, msg=f"{{name}} {{placement}}")
            if placement == Shard(0) and batch > 1:
                assert got[0].placements == (Shard(0),), (name, got[0].placements)
            if placement == "columns" and (name in OTHERS or has_columns(name)):
                assert Shard(2) in got[0].placements + got[1].placements, name
print("operators agree", flush=True)

# Any other placement is an error that names it.
for name, bad, message in (
    ("bayes_write", dict(weights=Shard(1)), "weights must be placed as Replicate() or Shard(0), "
     "got S(1); kanerva_ext.distributed.write"),
    ("read", dict(mean=Shard(1)), "mean must be placed as"),
    ("read", dict(cov=Shard(2)), "cov must be placed as"),
    ("recall", dict(mean=Shard(2), cov=Shard(1)), "cov must be placed as"),
    ("solve_addresses", dict(mean=Shard(2), queries=Shard(1)), "queries must be placed as"),
    ("adaptive_write", dict(values=Shard(1)), "values must be placed as"),
):
    tensors = {{
        n: distribute_tensor(t, mesh, [bad.get(n, Replicate())])
        for n, t in sampled(name, 3).items()
    }}
    try:
        sample(name).function(**tensors)
    except Exception as error:
        assert f"{{name}}: " in str(error) and message in str(error), error
    else:
        raise SystemExit(f"{{name}} took {{bad}}")
print("other placements are refused", flush=True)

C = 7
# A step changes the state where it lies; packed sequences are not split.
t = inputs(3)
state = [distribute_tensor(t[n].clone(), mesh, [Shard(0)]) for n in ("mean", "cov")]
one = [t["mean"].clone(), t["cov"].clone()]
names = ("weights", "values", "asked", "noise")
with torch.no_grad():
    got = ops.causal_step(
        *state, *(distribute_tensor(t[n][:, 0].clone(), mesh, [Shard(0)]) for n in names)
    )
    want = ops.causal_step(*one, *(t[n][:, 0] for n in names))
for g, w in zip([*got, *state], [*want, *one]):
    torch.testing.assert_close(g.full_tensor(), w)
for first, second in ((Replicate(), Shard(0)), (Shard(1), Shard(1))):  # these would be copied
    moved = [distribute_tensor(t[n].clone(), mesh, [p]) for n, p in
             (("mean", first), ("cov", second))]
    try:
        ops.causal_step(*moved, *(distribute_tensor(t[n][:, 0].clone(), mesh, [Shard(0)])
                                  for n in names))
    except Exception as error:
        assert "mean and cov must both be Shard(0)" in str(error), error
    else:
        raise SystemExit("a copy of the state was changed")
everywhere = [distribute_tensor(t[n].clone(), mesh, [Replicate()]) for n in ("mean", "cov")]
with torch.no_grad():
    ops.causal_step(*everywhere, *(distribute_tensor(t[n][:, 0].clone(), mesh, [Shard(0)])
                                   for n in names))
for g, w in zip(everywhere, one):
    torch.testing.assert_close(g.full_tensor(), w)
offsets = torch.tensor([0, 2, T])
args = [inputs(2)["mean"][None], inputs(2)["cov"][None]] + [t[n][:1] for n in names]
everywhere = [distribute_tensor(a.contiguous(), mesh, [Replicate()]) for a in args]
got = ops.causal_scan(*everywhere, cu_seqlens=distribute_tensor(offsets, mesh, [Replicate()]))
for g, w in zip(got, ops.causal_scan(*args, cu_seqlens=offsets)):
    torch.testing.assert_close(g.full_tensor(), w)
print("steps and packed sequences agree", flush=True)

torch.manual_seed(0)
memory = FusedKanervaMemory(K, C, sample_weights=False).double()
values = inputs(4)["values"]
want = memory.read(values, memory.write(values).state).values
want.sum().backward()
gradients = [p.grad.clone() for p in memory.parameters() if p.grad is not None]
memory.zero_grad()
distribute_module(memory, mesh)
split = distribute_tensor(values, mesh, [Shard(0)])
with implicit_replication():
    got = memory.read(split, memory.write(split).state).values
    got.sum().backward()
assert got.placements == (Shard(0),)
torch.testing.assert_close(got.full_tensor(), want)
for g, w in zip([p.grad for p in memory.parameters() if p.grad is not None], gradients):
    torch.testing.assert_close(g.full_tensor(), w)

memory.zero_grad()
prior = memory.prior_mean.full_tensor().detach()
memory.prior_mean = torch.nn.Parameter(distribute_tensor(prior, mesh, [Shard(1)]))
split = distribute_tensor(values, mesh, [Shard(2)])
with implicit_replication():
    got = memory.read(split, memory.write(split).state).values
    got.sum().backward()
assert got.placements == (Shard(2),)
torch.testing.assert_close(got.full_tensor(), want)
for g, w in zip([p.grad for p in memory.parameters() if p.grad is not None], gradients):
    torch.testing.assert_close(g.full_tensor(), w)
print("the memory agrees", flush=True)
os._exit(0)  # joining gloo's threads can hang
"""


def code(store):
    return CODE.format(store=store)


def test_two_processes_compute_as_one(tmp_path):
    for printed in run_processes(lambda store: code(store), tmp_path):
        for part in ("operators agree", "steps and packed sequences agree", "the memory agrees"):
            assert part in printed
