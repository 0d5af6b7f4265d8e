"""What several processes check together; each calls `start` and then one of the checks."""

from __future__ import annotations

import datetime
import os

import torch
import torch.distributed as dist
from helpers import (
    CASES,
    Case,
    Problem,
    assert_as_accurate,
    problem,
    recursion,
    recursion_grads,
)
from scan_truth import scan, scan_grads, scan_problem

from kanerva_ext import distributed, ops, reference
from kanerva_ext.distributed import _write

#: Of every kind, with tiny and ordinary noise: overfitted, many steps, more slots than steps.
HARD = (
    *(c for c in CASES if not c.decay and c.steps * c.slots * c.code <= 30_000),
    *(Case(kind, 1e-6, 200, 12, 5, batch=1) for kind in ("iid", "collinear", "rank8", "repeated")),
)


def start(store: str, count: int, seconds: float = 120) -> int:
    """Join the processes of `helpers.run_processes`; this one's rank."""
    torch.set_num_threads(1)
    rank = int(os.environ["KANERVA_RANK"])
    timeout = datetime.timedelta(seconds=seconds)
    shared = dist.FileStore(store, count)
    dist.init_process_group("gloo", store=shared, rank=rank, world_size=count, timeout=timeout)
    return rank


def finish(text: str) -> None:
    print(text, flush=True)
    dist.barrier()
    os._exit(0)  # joining gloo's threads can hang


def share(steps: int) -> slice:
    """This rank's steps: uneven shares, and none for the last of three or more."""
    rank, count = dist.get_rank(), dist.get_world_size()
    used = count - 1 if count > 2 else count
    ends = [steps * (i + 1) ** 2 // used**2 for i in range(used)] + [steps] * (count - used)
    return slice(([0, *ends])[rank], ends[rank])


def _bound(dtype) -> dict:
    return {"floor": 1e-10} if dtype == torch.float64 else {}


def plain_gradients(function, given, grads) -> list:
    """By automatic differentiation through the recursion, which the rules of `helpers` compare
    with."""
    inputs = [
        x.clone().requires_grad_() if x is not None and x.is_floating_point() else x for x in given
    ]
    symmetrised = [inputs[0], (inputs[1] + inputs[1].mT) / 2, *inputs[2:]]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    results = zip(function(*symmetrised), grads, strict=True)
    loss = sum((r * g).sum() for r, g in results) + 0 * inputs[0].sum()
    return torch.autograd.grad(loss, wanted, materialize_grads=True)


def check_write(cases=HARD, dtypes=(torch.float64, torch.float32)) -> None:
    """Posterior, evidence and gradients are those of one process, on every rank the same."""
    for case in cases:
        for dtype in dtypes:
            p = problem(case, dtype)
            truth, rivals = recursion(p), reference.bayes_write(*p)
            torch.manual_seed(1)
            grads = [torch.randn_like(x) for x in rivals]
            true_grads = recursion_grads(p, grads)
            rival_grads = plain_gradients(reference.bayes_write, p, grads)
            for method in ("auto", "sqrt"):
                _check_case(p, method, grads, truth, rivals, true_grads, rival_grads)


def _check_case(p: Problem, method, grads, truth, rivals, true_grads, rival_grads) -> None:
    part, dtype = share(p.weights.shape[1]), p.mean.dtype
    inputs = [p.mean, p.cov, *(x[:, part] for x in p[2:5])]
    inputs = [x.clone().requires_grad_() for x in inputs]
    mask = None if p.mask is None else p.mask[:, part]
    state, evidence = distributed.write(inputs[:2], *inputs[2:], mask=mask, method=method)
    results = (*state, evidence)
    for name, got, want, rival in zip(
        ("mean", "cov", "evidence"), results, truth, rivals, strict=True
    ):
        assert_as_accurate(got, want, rival, name=f"{method} {name}", **_bound(dtype))
        assert_same_everywhere(got.detach())
    assert torch.equal(state.cov, state.cov.mT)
    torch.autograd.backward(results, grads)
    names = ("mean", "cov", "weights", "values", "noise_var")
    for i, (name, x) in enumerate(zip(names, inputs, strict=True)):
        want, rival = true_grads[i], rival_grads[i]
        if i >= 2:
            # Errors are relative to the largest of all ranks' gradients.
            whole = torch.from_numpy(want.astype(float)).to(dtype)
            whole[:, part] = x.grad
            got, alone = whole, x.grad
            assert alone.shape == x.shape
        else:
            got = x.grad
        assert_as_accurate(got, want, rival, name=f"{method} gradient of {name}", **_bound(dtype))


def assert_same_everywhere(tensor) -> None:
    for other in gathered(tensor):
        assert torch.equal(other, tensor)


def gathered(tensor) -> list:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return parts


def check_sum_of_losses() -> None:
    """Each rank's own loss: the steps get the gradient of their sum, the state a share of it."""
    for steps, dtype in ((60, torch.float64), (6, torch.float64)):  # summed, and gathered
        p = problem(Case("iid", 0.1, steps, 8, 5), dtype)
        part, rank = share(steps), dist.get_rank()
        torch.manual_seed(1)
        outputs = ops.bayes_write(*p[:5])
        all_grads = [[torch.randn_like(x) for x in outputs] for _ in range(dist.get_world_size())]
        whole = [x.clone().requires_grad_() for x in p[:5]]
        grads = [sum(g) for g in zip(*all_grads, strict=True)]
        torch.autograd.backward(ops.bayes_write(*whole), grads)
        own = [p.mean, p.cov, *(x[:, part] for x in p[2:5])]
        own = [x.clone().requires_grad_() for x in own]
        state, evidence = distributed.write(own[:2], *own[2:], loss="sum")
        torch.autograd.backward((*state, evidence), all_grads[rank])
        for got, want in zip(own[2:], whole[2:], strict=True):
            torch.testing.assert_close(got.grad, want.grad[:, part], rtol=1e-10, atol=1e-10)
        for got, want in zip(own[:2], whole[:2], strict=True):
            dist.all_reduce(got.grad)
            torch.testing.assert_close(got.grad, want.grad, rtol=1e-10, atol=1e-10)


def check_strides() -> None:
    """Priors that are transposed in memory, as an inverse is, or one of them for all memories."""
    for dtype in (torch.float64, torch.float32):
        p = problem(Case("iid", 0.3, 60, 8, 5, batch=2), dtype)
        steps = [x[:, share(60)] for x in p[2:5]]
        transposed = [x.mT.contiguous().mT for x in p[:2]]
        assert not any(x.is_contiguous() for x in transposed)
        expanded = [x[:1].expand_as(x) for x in p[:2]]
        for state in (transposed, expanded):
            want = ops.bayes_write(*(x.contiguous() for x in state), *p[2:5])
            for method in ("auto", "sqrt", "information"):
                results, evidence = distributed.write(state, *steps, method=method)
                for got, right in zip((*results, evidence), want, strict=True):
                    torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)


def check_no_memories() -> None:
    """A batch of none: empty results, and gradients."""
    for steps in (4, 40):  # gathered, and summed
        p = [x[:0].clone() for x in problem(Case("iid", 0.3, steps, 8, 5, batch=2))[:5]]
        part = share(steps)
        for method in ("auto", "sqrt", "information", "scan"):
            own = [*p[:2], *(x[:, part] for x in p[2:5])]
            own = [x.clone().requires_grad_() for x in own]
            if method == "scan":
                results = distributed.causal_scan(*own[:4], own[2], own[4])
                shapes = [(0, own[2].shape[1], 5), own[4].shape]
            else:
                state, evidence = distributed.write(own[:2], *own[2:], method=method)
                results, shapes = (*state, evidence), []
            assert [r.shape for r in results] == [*shapes, (0, 8, 5), (0, 8, 8), (0,)]
            sum(r.sum() for r in results).backward()
            assert all(x.grad.shape == x.shape for x in own)


def check_wide() -> None:
    """Sums that are sent in two blocks; float32 sums, and those that turn out too hard for it."""
    _write.COLUMN_BLOCK = 2**17
    for noise, kind in ((1.0, "iid"), (1e-5, "collinear")):
        case = Case(kind, noise, 1200, 256, 1030, batch=1)
        exact = problem(case)
        want = ops.bayes_write(*exact[:5])
        p = problem(case, torch.float32)
        rivals = ops.bayes_write(*p[:5])
        part = share(case.steps)
        for q, floor in ((p, None), (exact, 1e-10)):
            state, evidence = distributed.write(q[:2], *(x[:, part] for x in q[2:5]))
            for name, got, true, rival in zip(
                ("mean", "cov", "evidence"), (*state, evidence), want, rivals, strict=True
            ):
                true, rival = true.numpy(), rival if floor is None else None
                assert_as_accurate(got, true, rival, floor=floor, name=f"{kind} {name}")


def check_bytes() -> None:
    """One all-reduce of K (K + 1) / 2 + K C + 1 float64 numbers, and in the gradient none."""
    batch, slots, code, steps = 3, 10, 7, 40
    p = problem(Case("iid", 1.0, steps, slots, code, batch=batch))
    with distributed.count_bytes() as sent:
        state = [x.clone().requires_grad_() for x in p[:2]]
        posterior, _ = distributed.write(
            state, *(x[:, share(steps)] for x in p[2:5]), method="information"
        )
        posterior.mean.sum().backward()
    formula = 8 * batch * (slots * (slots + 1) // 2 + slots * code + 1)
    assert sent["all_reduce"] == formula, (sent, formula)
    assert set(sent) <= {"all_reduce", "handshake", "all_gather"}, sent  # no flags


SCANNED = (
    *(c for c in CASES if c.steps * c.slots * c.code <= 30_000),
    Case("iid", 1e-6, 100, 12, 5, batch=1),
    Case("softmax", 1e-3, 200, 6, 3, "some", True),
)


def check_scan(cases=SCANNED, dtypes=(torch.float64, torch.float32)) -> None:
    """Reads, state, evidence and gradients are those of one process."""
    names = ("weights", "values", "queries", "noise_var", "decay")
    for case in cases:
        for dtype in dtypes:
            p, queries = scan_problem(case, dtype)
            given = (*p[:4], queries, *p[4:])
            truth, rivals = scan(p, queries), reference.causal_scan(*given)
            torch.manual_seed(1)
            grads = [torch.randn_like(x) for x in rivals]
            true_grads = scan_grads(p, queries, grads)
            rival_grads = plain_gradients(reference.causal_scan, given, grads)
            part = share(case.steps)
            steps = [None if x is None else x[:, part] for x in (p.weights, p.values, queries)]
            steps += [None if x is None else x[:, part] for x in (p.noise_var, p.decay)]
            inputs = [p.mean, p.cov, *steps]
            inputs = [None if x is None else x.clone().requires_grad_() for x in inputs]
            mask = None if p.mask is None else p.mask[:, part]
            results = distributed.causal_scan(*inputs[:6], mask=mask, decay=inputs[6])
            for i, (got, want, rival) in enumerate(zip(results, truth, rivals, strict=True)):
                if i >= 2:
                    assert_same_everywhere(got.detach())
                elif case.steps:
                    whole = torch.from_numpy(want.astype(float)).to(dtype)
                    whole[:, part] = got.detach()
                    got = whole
                assert_as_accurate(got, want, rival, name=f"{case} result {i}", **_bound(dtype))
            own = [g[:, part] for g in grads[:2]] + grads[2:]
            torch.autograd.backward(results, own)
            for i, x in enumerate(inputs):
                if x is None:
                    continue
                want, rival = true_grads[i], rival_grads[i]
                name = ("mean", "cov", *names)[i]
                got = x.grad
                if i >= 2:
                    got = torch.from_numpy(want.astype(float)).to(dtype)
                    got[:, part] = x.grad
                assert_as_accurate(
                    got, want, rival, name=f"{case} gradient of {name}", **_bound(dtype)
                )


def check_plain_prior() -> None:
    """One noise for all steps, a prior without correlations: nothing is multiplied by either."""
    p = problem(Case("iid", 1.0, 90, 8, 5))
    part = share(90)
    for mean in (torch.zeros_like(p.mean), p.mean):
        cov = (0.5 * torch.eye(8, dtype=torch.float64)).expand(2, 8, 8)
        found = []
        for own in (slice(None), part):
            inputs = [mean, cov, p.weights[:, own], p.values[:, own], torch.tensor(0.3).double()]
            inputs = [x.clone().requires_grad_() for x in inputs]
            if own is part:
                state, evidence = distributed.write(inputs[:2], *inputs[2:])
                results = (*state, evidence)
            else:
                results = ops.bayes_write(*inputs)
            torch.autograd.backward(results, [r.detach().sin() for r in results])
            found.append((results, [x.grad for x in inputs]))
        (want, whole), (got, grads) = found
        noise = grads[-1].clone()
        dist.all_reduce(noise)  # this rank's steps alone
        whole = [*whole[:2], *(g[:, part] for g in whole[2:4]), whole[4]]
        for a, b in zip((*got, *grads[:-1], noise), (*want, *whole), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def check_scan_of_sums() -> None:
    """Each rank's own loss of what is the same everywhere, with `loss="sum"`."""
    for steps in (60, 6):  # scanned, and gathered
        p, queries = scan_problem(Case("iid", 0.1, steps, 8, 5, decay=True), torch.float64)
        part, rank = share(steps), dist.get_rank()
        torch.manual_seed(1)
        given = (*p[:4], queries, p.noise_var)
        outputs = ops.causal_scan(*given, decay=p.decay)
        own_grads = [[torch.randn_like(x) for x in outputs] for _ in range(dist.get_world_size())]
        whole = [x.clone().requires_grad_() for x in (*given, p.decay)]
        grads = [*own_grads[0][:2], *(sum(g) for g in list(zip(*own_grads, strict=True))[2:])]
        torch.autograd.backward(ops.causal_scan(*whole[:6], decay=whole[6]), grads)
        own = [*p[:2], *(x[:, part] for x in (*given[2:], p.decay))]
        own = [x.clone().requires_grad_() for x in own]
        results = distributed.causal_scan(*own[:6], decay=own[6], loss="sum")
        mine = [*(g[:, part] for g in own_grads[0][:2]), *own_grads[rank][2:]]
        torch.autograd.backward(results, mine)
        for got, want in zip(own[2:], whole[2:], strict=True):
            torch.testing.assert_close(got.grad, want.grad[:, part], rtol=1e-9, atol=1e-10)
        for got, want in zip(own[:2], whole[:2], strict=True):
            dist.all_reduce(got.grad)
            torch.testing.assert_close(got.grad, want.grad, rtol=1e-9, atol=1e-10)


def check_repeats() -> None:
    """The same bits again, with sums and with factors."""
    for case in (Case("iid", 1.0, 300, 20, 30), Case("collinear", 1e-6, 300, 20, 30)):
        p = problem(case)
        part = share(case.steps)
        first, again = (distributed.write(p[:2], *(x[:, part] for x in p[2:5])) for _ in range(2))
        assert torch.equal(first[0].mean, again[0].mean)
        assert torch.equal(first[0].cov, again[0].cov) and torch.equal(first[1], again[1])
